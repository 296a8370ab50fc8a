"""damped, gramian_ema, cr_mogm, norm_matched."""

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.cagrad import CAGrad
from mtbench_baselines.cr_mogm import CRMOGM
from mtbench_baselines.damped import Damped
from mtbench_baselines.ew import EqualWeights
from mtbench_baselines.gradnorm import GradNorm
from mtbench_baselines.gramian_ema import GramianEMA
from mtbench_baselines.mgda import MGDA
from mtbench_baselines.moco import MoCo
from mtbench_baselines.norm_matched import NormMatched
from mtbench_baselines.uw import UncertaintyWeighting

ONES = torch.ones(3).double()


def gramian(seed, K=3):
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(K, 6, generator=generator, dtype=torch.float64)
    return J @ J.T


def without(G, k):
    G = G.clone()
    G[k] = G[:, k] = 0
    return G


@pytest.mark.parametrize("wrapper", [Damped, GramianEMA, CRMOGM])
def test_no_gradient_no_weight(wrapper):
    """And the base sees the others alone, as it would without the wrapper."""
    method = wrapper(MGDA(3))
    for seed in range(3):
        weights = method.weights(without(gramian(seed), 1), ONES)
        assert weights[1] == 0
        assert weights.sum().item() == pytest.approx(1)
    weights = method.weights(gramian(3), ONES)
    assert (weights > 0).sum() > 1
    assert not method.weights(gramian(3) * 0, ONES).any()


@pytest.mark.parametrize("base", [MGDA, CAGrad])
def test_damped_is_the_base_on_independent_parts(base):
    """Every gradient gets a component of its own, of the mean square times delta."""
    G = gramian(0)
    expected = base(3).weights(G + 0.3 * G.diagonal().mean() * torch.eye(3), ONES)
    torch.testing.assert_close(Damped(base(3), damping=0.3).weights(G, ONES), expected)
    torch.testing.assert_close(
        Damped(base(3), damping=0.0).weights(G, ONES), base(3).weights(G, ONES)
    )


def test_much_damping_weighs_all_alike():
    weights = Damped(MGDA(3), damping=1e6).weights(gramian(0), ONES)
    torch.testing.assert_close(weights, ONES / 3, atol=1e-5, rtol=0)


def test_gramian_ema_of_a_constant_is_the_constant():
    method, G = GramianEMA(CAGrad(3)), gramian(0)
    for _ in range(4):
        torch.testing.assert_close(method.weights(G, ONES), CAGrad(3).weights(G, ONES))


def test_gramian_ema_is_the_corrected_average():
    method = GramianEMA(MGDA(3), beta=0.8)
    for seed in range(5):
        found = method.weights(gramian(seed), ONES)
    shares = torch.tensor([0.8 ** (4 - s) for s in range(5)])
    mean = sum(s * gramian(i) for i, s in enumerate(shares.tolist())) / shares.sum()
    torch.testing.assert_close(found, MGDA(3).weights(mean, ONES))


def test_gramian_ema_stays_positive_semidefinite_where_labels_come_and_go(monkeypatch):
    seen = []
    method = GramianEMA(MGDA(3))
    monkeypatch.setattr(method.base, "weigh", lambda G, losses: seen.append(G) or losses)
    for seed in range(30):
        method.weights(without(gramian(seed), seed % 3), ONES)
    method.weights(gramian(30), ONES)
    assert all(torch.linalg.eigvalsh(G).min() > -1e-12 for G in seen)
    mean = torch.stack([gramian(s).diagonal() for s in range(31)]).mean()
    assert 0.5 * mean < seen[-1].diagonal().mean() < 2 * mean  # steps without a label do not count


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_cr_mogm_torchjd(alpha):
    torchjd = pytest.importorskip("torchjd.aggregation")
    theirs = torchjd.CRMOGMWeighting(lambda G: MGDA(3).weights(G, ONES), alpha=alpha)
    ours = CRMOGM(MGDA(3), alpha=alpha)
    for seed in range(6):
        torch.testing.assert_close(ours.weights(gramian(seed), ONES), theirs(gramian(seed)))


def test_cr_mogm_average_stays_without_a_gradient():
    method = CRMOGM(MGDA(3), alpha=0.5)
    method.weights(gramian(0), ONES)
    before = method.average.clone()
    method.weights(without(gramian(1), 0), ONES)
    assert method.average[0] == before[0]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Linear(3, 4)
            self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))

    def step(self, seed=0):
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        z = torch.tanh(self.encoder(inputs))
        losses = [(head(z) - 1 - k).square().mean() for k, head in enumerate(self.heads)]
        return Step(losses, features=z)

    def grads(self, method, seed=0):
        self.zero_grad()
        weights = method.backward(self.step(seed))
        shared, *heads = (
            torch.cat([p.grad.flatten() for p in part.parameters()])
            for part in (self.encoder, *self.heads)
        )
        return shared, heads, weights


BASES = {
    "ew": EqualWeights,
    "mgda": MGDA,
    "mgda at the features": lambda K: MGDA(K, space="features"),
    "moco": MoCo,
    "gradnorm": GradNorm,
    "uw": UncertaintyWeighting,
    "cr_mogm+mgda": lambda K: CRMOGM(MGDA(K)),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_norm_matched_keeps_the_direction_and_the_heads(base):
    net = Net()
    plain, _, _ = net.grads(EqualWeights(2))
    expected, heads, weights = net.grads(base(2))
    found, found_heads, found_weights = net.grads(NormMatched(base(2)))
    torch.testing.assert_close(found, expected * plain.norm() / expected.norm())
    for a, b in zip(found_heads, heads, strict=True):
        torch.testing.assert_close(a, b)
    if weights is not None:
        scaled = weights.double() * (plain.norm() / expected.norm()).double()
        torch.testing.assert_close(found_weights, scaled)


def test_norm_matched_leaves_what_was_accumulated_alone():
    net, method = Net(), NormMatched(MGDA(2))
    first, second = (net.grads(method, seed)[0] for seed in range(2))
    net.zero_grad()
    for seed in range(2):
        method.backward(net.step(seed))
    total = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
    torch.testing.assert_close(total, first + second)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_norm_matched_at_any_scale(scale):
    x = torch.ones(2, requires_grad=True)
    step = Step([x[0] * scale, 2 * x[1] * scale], shared=[x])
    NormMatched(MGDA(2)).backward(step)
    torch.testing.assert_close(x.grad / scale, torch.tensor([2.0, 1.0]))


@pytest.mark.parametrize("base", [EqualWeights, MGDA, MoCo])
def test_norm_matched_with_scaled_losses(base):
    """A loss scale for float16 reaches .grad, as the base leaves it."""
    found = []
    for scale in (1.0, 1024.0):
        x = torch.ones(2, requires_grad=True)
        step = Step([x[0], 2 * x[1]], shared=[x], loss_scale=scale)
        NormMatched(base(2)).backward(step)
        found.append(x.grad / scale)
    torch.testing.assert_close(*found)


def test_norm_matched_zero_stays_zero():
    x = torch.ones(1, requires_grad=True)
    step = Step([x[0], -x[0]], shared=[x])
    NormMatched(MGDA(2)).backward(step)
    assert x.grad.tolist() == [0]


@pytest.mark.parametrize(
    ("wrapper", "parameters", "words"),
    [
        (Damped, {"damping": -1.0}, "damped: damping must be finite and at least 0, found -1.0"),
        (GramianEMA, {"beta": 1.0}, "gramian_ema: beta must be at least 0 and below 1, found 1.0"),
        (CRMOGM, {"alpha": -0.1}, "cr_mogm: alpha must be at least 0 and below 1, found -0.1"),
    ],
)
def test_refuses(wrapper, parameters, words):
    with pytest.raises(UsageError, match=words):
        wrapper(MGDA(2), **parameters)
