"""ntk_weights: traces of the residuals' tangent kernels, exact and drawn."""

import itertools
import math
import statistics

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import mtbench
from mtbench.balancing.step import Step
from mtbench.errors import StepError, UsageError
from mtbench_baselines.ew import EqualWeights
from mtbench_baselines.ntk_weights import NTKWeights

ALL = 10**6


def linear(A, b, factors=(1.0, 1.0)):
    """Return losses whose residuals are A_k x - b_k, and these."""
    x = nn.Parameter(torch.ones(A[0].shape[1], dtype=A[0].dtype))
    residuals = [rows @ x - shift for rows, shift in zip(A, b, strict=True)]
    losses = [c * r.square().mean() for c, r in zip(factors, residuals, strict=True)]
    return x, losses, residuals


def rows(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 4, generator=generator).double() for size in sizes]


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.5, 1e6)])
def test_of_linear_residuals(factors):
    """The trace is the squared norm of the matrix, whatever the loss's factor."""
    A = rows(5, 3)
    x, losses, residuals = linear(A, (2.0, -1.0), factors)
    weights = NTKWeights(2, probes=ALL).backward(losses, residuals=residuals)
    traces = torch.stack([a.square().sum() for a in A])
    torch.testing.assert_close(weights, traces.sum() / traces)
    again = linear(A, (2.0, -1.0), factors)
    sum(w * loss for w, loss in zip(weights, again[1], strict=True)).backward()
    torch.testing.assert_close(x.grad, again[0].grad)


class Net(nn.Module):
    """An encoder with two heads; the second residual has two components a point."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 5), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(5, 1), nn.Linear(5, 2)])

    def forward(self, x):
        z = self.encoder(x)
        return tuple(head(z) - x.sin()[:, : head.out_features] for head in self.heads)


def made(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().double(), torch.randn(7, 2).double()


def exact(net, x):
    """Return the traces of J J^T over all parameters."""
    parameters = dict(net.named_parameters())
    found = jacrev(lambda p: functional_call(net, p, (x,)))(parameters)
    return torch.stack([sum(J.square().sum() for J in row.values()) for row in found])


def told(net, x, **said):
    residuals = net(x)
    return Step([r.square().mean() for r in residuals], residuals=residuals, **said)


@pytest.mark.parametrize("said", ["nothing", "shared", "scaled"])
def test_all_residuals_give_the_kernels_trace(said):
    net, x = made()
    more = {"shared": {"shared": net.encoder.parameters()}, "scaled": {"loss_scale": 2.0**9}}
    weights = NTKWeights(2, probes=ALL).backward(told(net, x, **more.get(said, {})))
    traces = exact(net, x)
    torch.testing.assert_close(weights, traces.sum() / traces)


def test_drawn_residuals_give_it_on_average():
    """With one residual the second trace is exact, and the weight tells the first one's."""
    a, b = rows(40, 1)
    a *= torch.linspace(0.1, 3, 40)[:, None]
    found = []
    for seed in range(300):
        _, losses, residuals = linear([a, b], (0.5, 0.5))
        w = NTKWeights(2, seed=seed, probes=3).backward(losses, residuals=residuals)
        found.append(b.square().sum().item() / (w[0].item() - 1))
    error = statistics.stdev(found) / len(found) ** 0.5
    assert error < 0.05 * statistics.fmean(found)
    assert abs(statistics.fmean(found) - a.square().sum().item()) < 4 * error


def train(net, x, method, steps, first=0):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    weights = []
    for _ in range(first, steps):
        optimizer.zero_grad()
        weights.append(method.backward(told(net, x)))
        optimizer.step()
    return weights


def test_weights_are_kept_between_looks():
    found = train(*made(), NTKWeights(2, steps=3, probes=2), 7)
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(found)]
    assert changes == [False, False, True, False, False, True]


def test_goes_on_bit_identical():
    whole = train(*made(), NTKWeights(2, seed=5, steps=2, probes=2), 9)
    net, x = made()
    method = NTKWeights(2, seed=5, steps=2, probes=2)
    train(net, x, method, 4)
    fresh = NTKWeights(2, seed=8, steps=2, probes=2)
    fresh.load_state_dict(method.state_dict())
    for wanted, found in zip(whole[4:], train(net, x, fresh, 9, first=4), strict=True):
        assert torch.equal(wanted, found)


def test_an_objective_without_labels_keeps_its_weight():
    A = rows(4, 6)
    method = NTKWeights(2, steps=1, probes=ALL)
    for _ in range(2):
        _, losses, residuals = linear(A, (1.0, 1.0))
        weights = method.backward([losses[0], None], residuals=[residuals[0], None])
        assert weights.tolist() == [1, 1]
    _, losses, residuals = linear(A, (1.0, 1.0))
    wanted = method.backward(losses, residuals=residuals)
    _, losses, residuals = linear(A, (1.0, 1.0))
    assert method.backward([None, losses[1]], residuals=[None, residuals[1]])[0] == wanted[0] != 1


def test_a_wrapper_hands_residuals_on():
    net, x = made()
    NTKWeights(2).backward(told(net, x))
    alone = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
    net.zero_grad()
    mtbench.balancer("norm_matched+ntk_weights", 2).backward(told(net, x))
    wrapped = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
    net.zero_grad()
    told(net, x).total().backward()
    length = torch.cat([p.grad.flatten() for p in net.encoder.parameters()]).norm()
    torch.testing.assert_close(wrapped, alone * length / alone.norm())
    step = told(net, x)
    assert step.at(net.encoder[0].parameters()).residuals == step.residuals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda losses, r: (losses, None), r"ntk_weights looks at what .* give residuals=\[r_1"),
        (lambda losses, r: (losses, r[:1]), "one tensor per loss, found 1 for 2"),
        (lambda losses, r: (losses, [r[0], None]), r"residuals\[1\] must be .* found None"),
        (lambda losses, r: (losses, [r[0].detach(), r[1]]), r"residuals\[0\] .* off the graph"),
        (lambda losses, r: (losses, r[::-1]), r"losses\[0\] must be the mean of the squares"),
        (lambda losses, r: ([losses[0], r[1].abs().mean()], r), r"losses\[1\] must be the mean"),
        (lambda losses, r: ([losses[0] + r[0].sum(), losses[1]], r), r"losses\[0\] must be the m"),
        (lambda losses, r: (losses, [r[0], r[1] / 0]), r"losses\[1\] must be the mean"),
        (lambda losses, r: (losses, [r[0], r[1] * math.nan]), r"losses\[1\] must be the mean"),
        (lambda losses, r: (dict(zip("ab", losses, strict=True)), r), "residuals have no names"),
    ],
)
def test_residuals_that_are_none_are_refused(change, words):
    _, losses, residuals = linear(rows(5, 3), (2.0, -1.0))
    given, said = change(losses, residuals)
    with pytest.raises(StepError, match=words) as error:
        NTKWeights(2).backward(given, residuals=said)
    assert "\n" not in str(error.value)


def test_refusals():
    _, losses, residuals = linear(rows(5, 3), (2.0, -1.0))
    with pytest.raises(
        StepError, match=r"ntk_weights looks at the residuals, and those of several"
    ):
        NTKWeights(2).accumulate(losses, residuals=residuals)
    with pytest.raises(StepError, match=r"needs Step\(residuals=...\), found none"):
        _ = Step(losses).residuals
    with pytest.raises(UsageError, match=r"samo gives .* found ntk_weights, which looks at them"):
        mtbench.balancer("samo+ntk_weights", 2)
    for name in ("steps", "probes"):
        with pytest.raises(UsageError, match=f"ntk_weights: {name} must be at least 1, found 0"):
            NTKWeights(2, **{name: 0})


def test_others_do_without():
    _, losses, residuals = linear(rows(5, 3), (2.0, -1.0))
    weights = EqualWeights(2).backward(losses, residuals=[residuals[1], residuals[0]])
    assert weights.tolist() == [1, 1]
