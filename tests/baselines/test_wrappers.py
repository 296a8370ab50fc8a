"""damped, gramian_ema, cr_mogm, norm_matched, log, unit, only, every, cyclic."""

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.cagrad import CAGrad
from mtbench_baselines.config import ConFIG
from mtbench_baselines.consmtl import ConsMTL
from mtbench_baselines.cr_mogm import CRMOGM
from mtbench_baselines.cyclic import Cyclic
from mtbench_baselines.damped import Damped
from mtbench_baselines.db_mtl import DBMTL
from mtbench_baselines.dibs_mtl import DiBSMTL
from mtbench_baselines.epo import EPO
from mtbench_baselines.every import Every
from mtbench_baselines.ew import EqualWeights
from mtbench_baselines.gradnorm import GradNorm
from mtbench_baselines.gramian_ema import GramianEMA
from mtbench_baselines.log import Log
from mtbench_baselines.mgda import MGDA
from mtbench_baselines.moco import MoCo
from mtbench_baselines.norm_matched import NormMatched
from mtbench_baselines.only import Only
from mtbench_baselines.pcgrad import PCGrad
from mtbench_baselines.unit import Unit
from mtbench_baselines.upgrad import UPGrad
from mtbench_baselines.uw import UncertaintyWeighting

ONES = torch.ones(3).double()


@pytest.mark.parametrize("base", ["mgda", MGDA])
def test_what_is_no_balancer_has_nothing_around_it(base):
    with pytest.raises(UsageError, match=r"every: goes around a balancer, found .*\('every\+BASE'"):
        Every(base)


def gramian(seed, K=3):
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(K, 6, generator=generator, dtype=torch.float64)
    return J @ J.T


def without(G, k):
    G = G.clone()
    G[k] = G[:, k] = 0
    return G


@pytest.mark.parametrize("wrapper", [Damped, GramianEMA, CRMOGM, Log])
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


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_norm_matched_frees_no_graph_that_the_base_needs(base):
    net = Net()
    expected, _, _ = net.grads(NormMatched(base(2)))
    net.zero_grad()
    step = net.step()
    NormMatched(base(2)).backward(step.losses, latent=step.z)
    found = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
    torch.testing.assert_close(found, expected)


def test_norm_matched_leaves_what_was_accumulated_alone():
    net, method = Net(), NormMatched(MGDA(2))
    first, second = (net.grads(method, seed)[0] for seed in range(2))
    net.zero_grad()
    for seed in range(2):
        method.backward(net.step(seed))
    total = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
    torch.testing.assert_close(total, first + second)


def test_norm_matched_leaves_what_lies_beside_the_compared_to_the_base():
    """Their length says nothing of it, least of all where the compared gradients cancel."""
    x, y = (torch.ones(1, requires_grad=True) for _ in range(2))
    losses = [10 * y[0] + x[0], -20 * y[0] + x[0]]
    NormMatched(MGDA(2)).backward(Step(losses, shared=[y]))
    torch.testing.assert_close(x.grad, torch.ones(1))


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


def balanced(method, losses, z):
    """Return the shared gradient of one step, z being the shared parameters."""
    z.grad = None
    weights = method.backward(Step(losses, shared=[z]))
    return z.grad, weights


def curves(seed=0, K=3):
    """K positive losses of six shared parameters, with conflicting gradients."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randn(K, 6, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-3, 2, K, dtype=torch.float64)
    losses = [s * (z - t).square().sum() for s, t in zip(scales, targets, strict=True)]
    return z, losses


BALANCED = [MGDA, CAGrad, PCGrad, UPGrad]


@pytest.mark.parametrize("base", [*BALANCED, lambda K: MGDA(K, normalise="loss")])
def test_log_is_the_base_on_log_losses(base):
    z, losses = curves()
    expected, weights = balanced(base(3), [loss.log() for loss in losses], z)
    found, of_losses = balanced(Log(base(3)), losses, z)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of_losses, weights / torch.stack(losses).detach())


def test_log_of_dibs_is_db_mtl_but_for_its_length():
    """DB-MTL without memory sums the directions of log losses, at the longest one's length."""
    z, losses = curves()
    found, _ = balanced(Log(DiBSMTL(3)), losses, z)
    peer, _ = balanced(DBMTL(3, beta=0.0), losses, z)
    assert torch.cosine_similarity(found, peer, dim=0) > 1 - 1e-12


def test_log_keeps_the_direction_of_a_negative_loss():
    weights = Log(MGDA(3)).weights(gramian(0), torch.tensor([2.0, -4.0, 0.0]).double())
    scale = torch.tensor([2.0, 4.0, 1.0]).double()
    expected = MGDA(3).weights(gramian(0) / scale[:, None] / scale, ONES)
    torch.testing.assert_close(weights, expected / scale)
    assert weights[1] > 0


@pytest.mark.parametrize("base", BALANCED)
def test_unit_is_the_base_on_directions(base):
    J = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = J / J.norm(dim=1, keepdim=True)
    expected = base(3).weights(rows @ rows.T, ONES) @ rows
    for scale in (1e-12, 1.0, 1e12):
        scaled = J * torch.tensor([[1.0], [scale], [3.0]])
        found = Unit(base(3)).weights(scaled @ scaled.T, ONES) @ scaled
        torch.testing.assert_close(found, expected)


def test_unit_leaves_an_objective_without_a_gradient_out():
    weights = Unit(MGDA(3)).weights(without(gramian(0), 1), ONES)
    inside = Unit(MGDA(2)).weights(gramian(0)[::2, ::2], ONES[:2])
    assert weights[1] == 0
    torch.testing.assert_close(weights[::2], inside)


@pytest.mark.parametrize("base", BALANCED)
@pytest.mark.parametrize("chosen", [(0,), (0, 2), (2, 1), (0, 1, 2)])
def test_only_is_the_base_on_a_few(base, chosen):
    G, order = gramian(2), sorted(chosen)
    expected = torch.ones(3).double()
    expected[order] = base(len(order)).weights(G[order][:, order], ONES[order])
    torch.testing.assert_close(Only(base(3), objectives=chosen).weights(G, ONES), expected)


def test_only_by_default_leaves_the_last_to_the_sum():
    weights = Only(MGDA(3)).weights(gramian(0), ONES)
    assert weights[2] == 1
    torch.testing.assert_close(weights[:2], MGDA(2).weights(gramian(0)[:2, :2], ONES[:2]))
    assert Only(MGDA(3)).weights(without(gramian(0), 2), ONES)[2] == 0


def test_every_asks_the_base_at_every_third_step_alone(monkeypatch):
    net, base = Net(), MGDA(2)
    asked = []
    weigh = base.weigh
    monkeypatch.setattr(base, "weigh", lambda *args: asked.append(len(seen)) or weigh(*args))
    method, seen = Every(base, steps=3), []
    for seed in range(7):
        shared, heads, weights = net.grads(method, seed)
        seen.append(weights)
        _, plain_heads, _ = net.grads(EqualWeights(2), seed)
        if seed % 3:
            torch.testing.assert_close(weights, seen[seed - seed % 3])
            torch.testing.assert_close(shared, weights.float() @ net.step(seed).jacobian())
        else:
            torch.testing.assert_close(shared, net.grads(MGDA(2), seed)[0])
        for found, expected in zip(heads, plain_heads, strict=True):
            torch.testing.assert_close(found, expected)
    assert asked == [0, 3, 6]
    assert not torch.equal(seen[0], seen[3])


def test_every_pays_one_encoder_backward_in_between():
    net, method = Net(), Every(MGDA(2), steps=2)
    net.grads(method)
    step = net.step(1)
    method.backward(step)
    assert "_whole" not in vars(step)
    assert "_factored" not in vars(step)


def test_every_keeps_the_weight_of_a_label_that_is_missing():
    method, x = Every(MGDA(2), steps=1), torch.ones(2, requires_grad=True)
    method.backward(Step([x[0], 2 * x[1]], shared=[x]))
    weights = method.backward(Step([x[0] * 0, 2 * x[1]], shared=[x]))
    assert weights.tolist() == [0, 1]
    torch.testing.assert_close(method.kept, torch.tensor([0.8, 1.0]).double())


@pytest.mark.parametrize("nothing", [float("nan"), 0.0])
def test_every_tries_again_where_there_was_nothing_to_find(nothing):
    method, x = Every(MGDA(2), steps=5), torch.ones(2, requires_grad=True)
    method.backward(Step([x[0] * nothing, x[1] * nothing], shared=[x]))
    found = method.backward(Step([x[0], 2 * x[1]], shared=[x]))
    torch.testing.assert_close(found, torch.tensor([0.8, 0.2]).double())


def test_every_goes_around_methods_that_only_weigh():
    """And into no wrapper that would ask it at every step."""
    words = "wraps methods that find weights from the Gramian and do no more, found "
    bases = {
        "ew": EqualWeights(2),
        "consmtl": ConsMTL(2),
        "moco": MoCo(2),
        "every": Every(MGDA(2)),
    }
    for called, base in bases.items():
        for wrapper in (Every, Cyclic, Damped):
            name = wrapper.__name__.lower()
            with pytest.raises(UsageError, match=f"{name} {words}{called}$"):
                wrapper(base)
    with pytest.raises(UsageError, match=r"cyclic wraps .* found mgda with space=features"):
        Cyclic(MGDA(2, space="features"))


def test_cyclic_twin():
    """ConFIG of the corrected averages, one of which a plain backward renews."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    net, method = Net(), Cyclic(ConFIG(2), beta=0.7)
    averages, counts = torch.zeros(2, 16), [0, 0]
    for seed in range(7):
        k = seed % 2
        loss = net.step(seed).losses[k]
        grads = torch.autograd.grad(loss, list(net.encoder.parameters()))
        averages[k] = 0.7 * averages[k] + 0.3 * torch.cat([g.flatten() for g in grads])
        counts[k] += 1
        rows = [m / (1 - 0.7**n) for m, n in zip(averages, counts, strict=True) if n]
        expected = torchjd.ConFIG()(torch.stack(rows))
        found, heads, _ = net.grads(method, seed)
        torch.testing.assert_close(found, expected)
        for ours, plain in zip(heads, net.grads(EqualWeights(2), seed)[1], strict=True):
            torch.testing.assert_close(ours, plain)


def test_cyclic_without_memory_of_a_problem_that_stands_still_is_its_base():
    net, method = Net(), Cyclic(MGDA(2), beta=0.0)
    net.grads(method)
    torch.testing.assert_close(net.grads(method)[0], net.grads(MGDA(2))[0])


def test_cyclic_passes_over_a_missing_label_and_an_overflow():
    method = Cyclic(MGDA(3), beta=0.5)
    x = torch.ones(3, requires_grad=True)

    def backward(*scales):
        x.grad = None
        return method.backward(
            Step([s * x[k] for k, s in enumerate(scales)], shared=[x])
        ), x.grad.tolist()

    assert backward(0.0, 1.0, 1.0)[1] == [0, 1, 0]
    _, shown = backward(1.0, 1.0, float("inf"))
    assert shown[2] == float("inf")
    assert method.count.tolist() == [0, 1, 0]
    assert backward(1.0, 1.0, 1.0)[1] == [0, 0.5, 0.5]  # the third has its turn again
    assert method.count.tolist() == [0, 1, 1]


def test_cyclic_gives_a_loss_of_zero_that_has_a_gradient_its_turn():
    method = Cyclic(MGDA(2), beta=0.5)
    for _ in range(2):
        x = torch.ones(2, requires_grad=True)
        method.backward(Step([x[0] - x[0].detach(), 2 * x[1]], shared=[x]))
    assert method.count.tolist() == [1, 1]
    torch.testing.assert_close(x.grad, torch.tensor([0.8, 0.4]))


def test_log_goes_around_nothing_that_wants_positive_losses():
    for base in (EPO(2), Damped(EPO(2))):
        with pytest.raises(
            UsageError, match=r"log: (epo|damped) leaves out .*: leave the wrapper out$"
        ):
            Log(base)


def test_every_resumes_where_it_was():
    net, method = Net(), Every(MGDA(2), steps=4)
    for seed in range(2):
        net.grads(method, seed)
    other = Every(MGDA(2), steps=4)
    other.load_state_dict(method.state_dict())
    for seed in range(2, 7):
        assert torch.equal(net.grads(other, seed)[2], net.grads(method, seed)[2])


@pytest.mark.parametrize(
    ("wrapper", "parameters", "words"),
    [
        (Cyclic, {"beta": 1.0}, "cyclic: beta must be at least 0 and below 1, found 1.0"),
        (Every, {"steps": 0}, "every: steps must be at least 1, found 0"),
        (Only, {"objectives": (0, 2)}, r"only: objectives .* from 0 to 1, .* found \(0, 2\)"),
        (Only, {"objectives": ()}, r"only: objectives .* found \(\)"),
        (Only, {"objectives": (1, 1)}, r"only: objectives .* found \(1, 1\)"),
        (Damped, {"damping": -1.0}, "damped: damping must be finite and at least 0, found -1.0"),
        (GramianEMA, {"beta": 1.0}, "gramian_ema: beta must be at least 0 and below 1, found 1.0"),
        (CRMOGM, {"alpha": -0.1}, "cr_mogm: alpha must be at least 0 and below 1, found -0.1"),
    ],
)
def test_refuses(wrapper, parameters, words):
    with pytest.raises(UsageError, match=words):
        wrapper(MGDA(2), **parameters)
