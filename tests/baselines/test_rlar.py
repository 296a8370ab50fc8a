"""RLAR: the penalty reaches the encoder, has the right gradient, and does what it is for."""

import math

import pytest
import torch
from torch import nn

from mtbench.balancing.distributed import Ranks
from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.rlar import RLAR


class Net(nn.Module):
    def __init__(self, K=2, dtype=torch.float64, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
        self.heads = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)) for _ in range(K)]
        )
        self.to(dtype)

    def step(self, shape=None, labelled=None, scale=1.0):
        """One pass on 8 samples; `labelled` (8, K) says whose label is there."""
        generator = torch.Generator().manual_seed(1)
        dtype = self.heads[0][0].weight.dtype
        x = torch.randn(8, 3, generator=generator, dtype=torch.float64).to(dtype)
        y = torch.randn(8, len(self.heads), generator=generator, dtype=torch.float64).to(dtype)
        z = self.encoder(x)
        z = z if shape is None else z.reshape(8, *shape)
        mask = torch.ones_like(y) if labelled is None else labelled.to(dtype)
        losses = [
            scale * ((head(z.reshape(8, 4))[:, 0] - y[:, k]).square() * mask[:, k]).mean()
            for k, head in enumerate(self.heads)
        ]
        return Step(losses, features=z)


def alignments(step):
    """(B, pairs) cosines of dL_j/dz and dL_k/dz, by the plain formula."""
    g = [grads[-1].flatten(1) for grads in step.feature_grads()]
    K = len(g)
    return torch.stack(
        [torch.cosine_similarity(g[j], g[k]) for j in range(K) for k in range(j + 1, K)], 1
    )


@pytest.mark.parametrize("mode", ["positive", "absolute"])
@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("K", [2, 3])
def test_value(mode, margin, K):
    net = Net(K)
    method = RLAR(K, mode=mode, margin=margin)
    c = alignments(net.step())
    assert (c > margin).any()
    assert (c < -margin).any()
    expected = (c.abs() if mode == "absolute" else c).sub(margin).relu().square().mean()
    torch.testing.assert_close(method.penalty(net.step().sensitivities), expected)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 2, 2), (2, 2, 1, 1)])
def test_any_latent_shape(shape):
    net = Net()
    flat = RLAR(2).penalty(net.step().sensitivities)
    torch.testing.assert_close(RLAR(2).penalty(net.step(shape).sensitivities), flat)


def encoder_grad(net, penalty):
    net.zero_grad()
    if penalty.requires_grad:
        penalty.backward()
    return [p.grad for p in net.encoder.parameters()]


def test_the_penalty_alone_moves_the_encoder():
    net = Net()
    method = RLAR(2)
    assert all(g.any() for g in encoder_grad(net, method.penalty(net.step().sensitivities))[:-1])
    constant = tuple(g.detach() for g in net.step().sensitivities)
    assert all(g is None for g in encoder_grad(net, method.penalty(constant)))


@pytest.mark.parametrize("mode", ["positive", "absolute"])
def test_gradient_by_finite_differences(mode):
    net = Net(3)
    method = RLAR(3, mode=mode, margin=0.1)
    labelled = torch.ones(8, 3)
    labelled[0, 0] = labelled[3, 2] = 0  # masked samples are no trap for the double backward

    def penalty():
        return method.penalty(net.step(labelled=labelled).sensitivities)

    net.zero_grad()
    penalty().backward()
    h = 1e-6
    for parameter in (net.encoder[0].weight, net.encoder[2].weight, net.heads[0][0].weight):
        found = parameter.grad.clone().flatten()
        flat = parameter.data.view(-1)
        for i in range(0, len(flat), 3):
            values = []
            for sign in (1, -1):
                flat[i] += sign * h
                values.append(penalty().item())
                flat[i] -= sign * h
            numeric = (values[0] - values[1]) / (2 * h)
            assert found[i].item() == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_objective_is_the_sum_plus_lambda_r():
    net = Net()
    method = RLAR(2, weight=0.7, warmup=0)
    step = net.step()
    objective, weights = method.objective(step)
    expected = step.total() + 0.7 * method.penalty(step.sensitivities)
    torch.testing.assert_close(objective, expected)
    assert weights.tolist() == [1, 1]


def test_where_it_looks():
    """Pooled: the gradient of a shift that is equal at all positions, by shifting."""
    torch.manual_seed(0)
    z = torch.randn(8, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    heads = 0.1 * torch.randn(2, 4, 2, 3, dtype=torch.float64)  # no sample is solved
    shift = torch.zeros(8, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    losses = [(head * z).sum((1, 2, 3)).tanh().square().sum() for head in heads]
    shifted = [(head * (z + shift)).sum((1, 2, 3)).tanh().square().sum() for head in heads]
    a, b = (torch.autograd.grad(loss, shift)[0].flatten(1) for loss in shifted)
    pooled = torch.cosine_similarity(a, b).relu().square().mean()
    sensitivities = tuple(torch.autograd.grad(loss, z, create_graph=True)[0] for loss in losses)
    torch.testing.assert_close(RLAR(2, where="pooled").penalty(sensitivities), pooled)
    torch.testing.assert_close(
        RLAR(2, where="both").penalty(sensitivities), (pooled + RLAR(2).penalty(sensitivities)) / 2
    )
    flat = tuple(s.flatten(1) for s in sensitivities)  # without positions all are one
    assert RLAR(2, where="pooled").penalty(flat) == RLAR(2).penalty(flat)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_it_tells_on_which_samples_it_acts(margin):
    net = Net(3)
    method = RLAR(3, margin=margin, warmup=0)
    method.backward(net.step())
    c = alignments(net.step())
    told = method.all_notes()
    torch.testing.assert_close(told["acts"], (c > margin).double().mean())
    torch.testing.assert_close(told["alignment"], c.mean())
    assert not told["acts"].requires_grad


def test_pairs_without_a_label_are_left_out():
    net = Net(3)
    labelled = torch.ones(8, 3)
    labelled[:3, 0] = labelled[5, 1] = labelled[5, 2] = 0
    c = alignments(net.step())  # pairs 01, 02, 12
    both = torch.stack([labelled[:, j] * labelled[:, k] for j, k in ((0, 1), (0, 2), (1, 2))], 1)
    expected = (c.relu().square() * both).sum() / both.sum()
    penalty = RLAR(3).penalty(net.step(labelled=labelled).sensitivities)
    torch.testing.assert_close(penalty, expected)


def test_no_pair_left_is_zero_and_finite():
    net = Net()
    labelled = torch.ones(8, 2)
    labelled[:4, 0] = labelled[4:, 1] = 0
    method = RLAR(2, warmup=0)
    step = net.step(labelled=labelled)
    assert method.penalty(step.sensitivities) == 0
    method.backward(step)
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_solved_sample_is_left_out_at_any_batch_size_and_scale():
    """Vanishing is relative to the objective's largest sample gradient: 1/B and units cancel."""
    rows = torch.tensor([[1.0, 0.0], [1e-5, 0.0], [0.0, 1.0], [0.02, 0.02]])
    other = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    for scale in (1e-25, 1.0, 1e25):
        found = RLAR(2).penalty((rows * scale, other))
        torch.testing.assert_close(found, torch.tensor((1 + 0 + 0.5) / 3))


def test_scale_of_the_losses_does_not_matter():
    reference = encoder_grad(net := Net(), RLAR(2).penalty(net.step().sensitivities))
    for scale in (1e-12, 1e12):
        net = Net(dtype=torch.float32)
        found = encoder_grad(net, RLAR(2).penalty(net.step(scale=scale).sensitivities))
        for a, b in zip(found, reference, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5)


class Told(Ranks):
    """A rank whose numbers another one is told."""

    def __init__(self):
        self.sums, self.maxima = [], []

    def total(self, share):
        self.sums.append(share.detach())
        return share

    def maximum(self, value):
        self.maxima.append(value.detach())
        return value.detach()


class Beside(Ranks):
    """A rank that is told them."""

    def __init__(self, told):
        self.sums, self.maxima = iter(told.sums), iter(told.maxima)

    def total(self, share):
        return share + next(self.sums)

    def maximum(self, value):
        return torch.maximum(value.detach(), next(self.maxima))


@pytest.mark.parametrize("where", ["bottleneck", "pooled", "both"])
def test_a_rank_without_a_sample_finds_the_penalty_of_the_others(where):
    method = RLAR(2, where=where)
    told = Told()
    rows = tuple(torch.randn(8, 4, 2, 3, requires_grad=True) for _ in range(2))
    whole = method.penalty(rows, told)
    without = tuple(s.detach()[:0].requires_grad_() for s in rows)
    found = method.penalty(without, Beside(told))
    assert whole > 0
    assert torch.equal(found, whole)
    found.backward()
    assert without[0].grad.shape == (0, 4, 2, 3)


def test_a_penalty_under_inference_mode_does_not_stop_training():
    K = 9  # of no other test: what is kept for a K is made here
    with torch.inference_mode():
        RLAR(K).penalty(tuple(torch.randn(4, 5) for _ in range(K)))
    sensitivities = tuple(torch.randn(4, 5, requires_grad=True) for _ in range(K))
    RLAR(K).penalty(sensitivities).backward()
    assert sensitivities[0].grad is not None


def test_bf16_autocast():
    """R is computed in float32 from the bf16 sensitivities, and double backward goes through."""
    net = Net(dtype=torch.float32)
    method = RLAR(2, warmup=0)
    with torch.autocast("cpu", torch.bfloat16):
        step = net.step()
        assert step.sensitivities[0].dtype == torch.bfloat16
        penalty = method.penalty(step.sensitivities)
        exact = method.penalty(tuple(g.detach().double() for g in step.sensitivities))
        assert penalty.dtype == torch.float32
        torch.testing.assert_close(penalty.double(), exact, rtol=1e-6, atol=0)
    method.backward(step)
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    assert all(p.grad.isfinite().all() for p in net.parameters())


def train(weight, mode="positive", steps=200):
    net = Net(seed=3)
    method = RLAR(2, weight=weight, warmup=0, mode=mode)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        step = net.step()
        method.backward(step)
        optimizer.step()
    return net.step(), sum(step.values).item()


@pytest.mark.parametrize("mode", ["positive", "absolute"])
def test_lowers_the_alignment_that_it_penalises(mode):
    def penalty(step):
        return RLAR(2, mode=mode).penalty(step.sensitivities).item()

    start = sum(Net(seed=3).step().values)
    (plain, _), (ours, our_loss) = train(0.0, mode), train(1.0, mode)
    assert penalty(ours) < 0.2 * penalty(plain)
    assert our_loss < 0.2 * start  # and the objectives are still learnt


def test_absolute_penalises_opposition_too():
    a = torch.tensor([[1.0, 0.0]])
    assert RLAR(2).penalty((a, -a)) == 0
    assert RLAR(2, mode="absolute").penalty((a, -a)) == 1


def test_warm_up_ramp():
    method = RLAR(2, weight=1.0, warmup=3)
    net = Net()
    shares = []
    for _ in range(6):
        step = net.step()
        added = method.objective(step)[0] - step.total()
        shares.append((added / method.penalty(step.sensitivities)).item())
        method.after_epoch()
    assert shares == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 1])


def test_weight_zero_is_equal_weights_and_costs_nothing():
    step = Net().step()
    objective, _ = RLAR(2, weight=0.0).objective(step)
    assert objective.equal(step.total())
    assert "sensitivities" not in vars(step)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"weight": -1.0}, "weight must be finite and at least 0, found -1.0"),
        ({"weight": math.nan}, "weight must be finite"),
        ({"margin": 1.0}, "margin must be at least 0 and below 1, found 1.0"),
        ({"warmup": -1}, "warmup must be at least 0, found -1"),
        ({"where": "skin"}, "where must be one of bottleneck, pooled, both, found 'skin'"),
        ({"mode": "negative"}, "mode must be one of positive, absolute, found 'negative'"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"rlar: {words}"):
        RLAR(2, **parameters)
