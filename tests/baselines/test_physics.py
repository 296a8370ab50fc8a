"""relobralo, softadapt, lr_annealing: what physics-informed networks are weighted by."""

import math

import pytest
import torch

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.lr_annealing import LearningRateAnnealing
from mtbench_baselines.relobralo import ReLoBRaLo
from mtbench_baselines.softadapt import SoftAdapt

SIZES = [1, 2, 3, 8]


def history(K, steps=12, seed=0):
    """Losses that float32, in which steps hold them, has too."""
    losses = torch.rand(steps, K, generator=torch.Generator().manual_seed(seed)) * 3 + 0.1
    return losses.double()


def run(method, losses):
    """Return the weights of every step, and check that they are what is applied."""
    found = []
    for values in losses:
        x = values.clone().requires_grad_()
        weights = method.backward(Step(list(x.unbind()), shared=[x]))
        torch.testing.assert_close(x.grad, weights, rtol=1e-5, atol=1e-6)
        found.append(weights)
    return found


def softmax(values):
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("lookback", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 0.999])
@pytest.mark.parametrize("K", SIZES)
def test_relobralo_twin(K, alpha, lookback):
    losses = history(K)
    found = run(ReLoBRaLo(K, seed=4, temperature=0.5, alpha=alpha, lookback=lookback), losses)
    generator, rows = torch.Generator().manual_seed(4), losses.tolist()

    def balanced(now, then):
        return [K * s for s in softmax([a / (0.5 * b) for a, b in zip(now, then, strict=True)])]

    weights = [1.0] * K
    for t, now in enumerate(rows):
        own = 0 if t == 1 else alpha  # the authors' schedule
        keep = torch.rand((), generator=generator).item() < lookback
        old = weights if keep else balanced(now, rows[0])
        new = balanced(now, rows[max(t - 1, 0)])
        weights = [own * a + (1 - own) * b for a, b in zip(old, new, strict=True)]
        torch.testing.assert_close(found[t], torch.tensor(weights, dtype=torch.float64))
        assert found[t].sum().item() == pytest.approx(K)
    assert found[0].tolist() == pytest.approx([1.0] * K)


def test_relobralo_missing_label():
    """It keeps its weight, and its last loss is that of the last label."""
    losses = torch.tensor([[2.0, 1.0, 3.0], [1.0, 0.0, 3.0], [1.0, 2.0, 3.0]]).double()
    method = ReLoBRaLo(3, temperature=1.0, alpha=0.0, lookback=1.0)
    first, second, third = run(method, losses)
    assert second[1] == first[1]
    torch.testing.assert_close(second[::2], 2 * torch.tensor(softmax([0.5, 1.0])).double())
    torch.testing.assert_close(third, 3 * torch.tensor(softmax([1.0, 2.0, 1.0])).double())


@pytest.mark.parametrize("variant", ["original", "normalised", "loss-weighted"])
@pytest.mark.parametrize("K", SIZES)
def test_softadapt_twin(K, variant):
    losses = history(K)
    found = run(SoftAdapt(K, beta=0.8, variant=variant), losses)
    rows = losses.tolist()
    for t, now in enumerate(rows):
        rates = [a - b for a, b in zip(now, rows[max(t - 1, 0)], strict=True)]
        if variant == "normalised" and any(rates):
            rates = [r / sum(map(abs, rates)) for r in rates]
        weights = softmax([0.8 * r for r in rates])
        if variant == "loss-weighted":
            weights = [w * loss for w, loss in zip(weights, now, strict=True)]
        expected = torch.tensor(weights).double()
        torch.testing.assert_close(found[t], expected / expected.sum())


def test_softadapt_normalised_does_not_know_the_unit():
    losses = history(3)
    found = run(SoftAdapt(3, variant="normalised"), losses)
    for ours, scaled in zip(
        found, run(SoftAdapt(3, variant="normalised"), 1e6 * losses), strict=True
    ):
        torch.testing.assert_close(scaled, ours)


def test_softadapt_missing_label():
    losses = torch.tensor([[2.0, 1.0, 3.0], [1.0, 0.0, 3.0], [1.0, 3.0, 3.0]]).double()
    _, second, third = run(SoftAdapt(3, beta=1.0), losses)
    torch.testing.assert_close(second[::2], torch.tensor(softmax([-1.0, 0.0])).double())
    assert second[1] == 0
    torch.testing.assert_close(third, torch.tensor(softmax([0.0, 2.0, 0.0])).double())


def linear(J):
    """Return a step whose gradients are the rows of J, and what receives them."""
    x = torch.zeros_like(J[0], requires_grad=True)
    return x, Step([1 + row @ x for row in J], shared=[x])


@pytest.mark.parametrize("main", [0, 2])
def test_lr_annealing_twin(main):
    method, weights = LearningRateAnnealing(3, main=main, beta=0.8), [1.0, 1.0, 1.0]
    for seed in range(6):
        J = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)).double()
        J *= torch.tensor([[1.0], [1e-3], [1e3]])
        x, step = linear(J)
        found = method.backward(step)
        peak = max(abs(entry) for entry in J[main].tolist())
        for k in set(range(3)) - {main}:
            mean = sum(abs(weights[k] * entry) for entry in J[k].tolist()) / 7
            weights[k] = 0.8 * weights[k] + 0.2 * peak / mean
        torch.testing.assert_close(found, torch.tensor(weights).double())
        torch.testing.assert_close(x.grad, found @ J)


def test_lr_annealing_settles_at_the_root_of_the_ratio():
    J = torch.tensor([[8.0, -1.0], [0.5, 0.5]]).double()
    method = LearningRateAnnealing(2)
    for _ in range(400):
        weights = method.backward(linear(J)[1])
    torch.testing.assert_close(weights, torch.tensor([1.0, 4.0]).double())


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_lr_annealing_keeps_its_weights_where_there_is_nothing_to_measure(row, value):
    J = torch.tensor([[8.0, -1.0], [0.5, 0.5]]).double()
    method = LearningRateAnnealing(2)
    before = method.backward(linear(J)[1])
    J[row] *= value
    assert torch.equal(method.backward(linear(J)[1]), before)


def test_lr_annealing_has_nothing_to_measure_at_a_frozen_encoder():
    heads = [torch.ones((), requires_grad=True) for _ in range(2)]
    LearningRateAnnealing(2).backward([head.square() for head in heads])
    assert [float(head.grad) for head in heads] == [2.0, 2.0]


def test_lr_annealing_sums_beyond_float16():
    x = torch.ones(200_000, dtype=torch.float16, requires_grad=True)
    losses = [(2 * x[:3]).sum(), x.float().sum()]
    weights = LearningRateAnnealing(2).backward(Step(losses, shared=[x]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.1]).double())


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        (ReLoBRaLo, {"temperature": 0.0}, "relobralo: temperature must be .* found 0.0"),
        (ReLoBRaLo, {"alpha": 1.5}, r"relobralo: alpha must be in \[0, 1\], found 1.5"),
        (ReLoBRaLo, {"lookback": -0.1}, r"relobralo: lookback must be in \[0, 1\], found -0.1"),
        (SoftAdapt, {"beta": math.inf}, "softadapt: beta must be finite, found inf"),
        (SoftAdapt, {"variant": "x"}, "softadapt: variant must be one of original, .*'x'"),
        (LearningRateAnnealing, {"main": 2}, "lr_annealing: main must be .* below 2, found 2"),
        (LearningRateAnnealing, {"beta": 1.0}, "lr_annealing: beta must be .* below 1, found 1.0"),
    ],
)
def test_refuses(method, parameters, words):
    with pytest.raises(UsageError, match=words):
        method(2, **parameters)
