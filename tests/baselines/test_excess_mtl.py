"""ExcessMTL against a textbook twin, and torchjd from its second step on."""

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench_baselines.excess_mtl import ExcessMTL


def gradients(K, seed, d=6):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(method, jacobians):
    """Run steps of linear losses with these gradients; return weights and updates."""
    weights, updates = [], []
    for J in jacobians:
        x = nn.Parameter(torch.ones(J.shape[1], dtype=J.dtype))
        weights.append(method.backward(Step(list(J @ x), shared=[x])))
        updates.append(x.grad)
    return torch.stack(weights), torch.stack(updates)


def twin(jacobians, step_size):
    """The definition, with squares and exponentials as they are written."""
    K = len(jacobians[0])
    squares, initial, weights = 0, None, torch.ones(K).double()
    found = []
    for J in jacobians:
        squares = squares + J**2
        excess = (J / squares.sqrt() * J).sum(1)
        if initial is None:
            initial = excess
        else:
            weights = weights * (step_size * excess / initial).exp()
            weights = weights * K / weights.sum()
        found.append(weights)
    return torch.stack(found)


@pytest.mark.parametrize("K", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twin(K, scale, dtype):
    """At any unit of the losses; in float32, too, where squares of 1e-24 times 1e-24 are 0."""
    jacobians = [gradients(K, seed) for seed in range(6)]
    units = scale ** torch.linspace(0, 1, K, dtype=torch.float64)[:, None]
    weights, updates = run(ExcessMTL(K, step_size=0.3), [(J * units).to(dtype) for J in jacobians])
    expected = twin(jacobians, 0.3)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    for w, J, update in zip(weights, jacobians, updates, strict=True):
        close = {"rtol": 1e-4, "atol": 1e-4 * scale if scale > 1 else 1e-4}
        torch.testing.assert_close(update.double(), w @ (J * units), **close)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_torchjd_agrees(K):
    """Its first step moves the weights by the undivided risks: undone here before the second."""
    peer = pytest.importorskip("torchjd.aggregation").ExcessMTL(robust_step_size=0.5).weighting
    jacobians = [gradients(K, seed) for seed in range(5)]
    expected = [peer(jacobians[0])]
    peer._weights = torch.full((K,), 1 / K, dtype=torch.float64)
    expected = torch.stack([peer(J) for J in jacobians[1:]]) * K
    weights, _ = run(ExcessMTL(K, step_size=0.5), jacobians)
    torch.testing.assert_close(weights[1:], expected, rtol=1e-4, atol=1e-5)


def test_an_objective_without_a_gradient_keeps_its_state():
    jacobians = [gradients(3, seed) for seed in range(4)]
    jacobians[0][1] = jacobians[2][1] = 0
    method = ExcessMTL(3)
    run(method, jacobians)
    assert (method.initial[1] - jacobians[1][1].abs().sum()).abs() < 1e-9  # at its first label
    torch.testing.assert_close(
        method.roots[1], (jacobians[1][1] ** 2 + jacobians[3][1] ** 2).sqrt()
    )


def test_heads_get_the_weighted_gradient():
    torch.manual_seed(0)
    encoder, heads = nn.Linear(3, 4), [nn.Linear(4, 1) for _ in range(2)]
    method = ExcessMTL(2, step_size=1.0)

    def losses(x):
        z = encoder(x)
        return z, [head(z).square().mean() for head in heads]

    parameters = [*encoder.parameters(), *(p for head in heads for p in head.parameters())]
    for seed in range(3):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        for p in parameters:
            p.grad = None
        z, values = losses(x)
        weights = method.backward(Step(values, features=z)).float()
        total = sum(w * L for w, L in zip(weights, losses(x)[1], strict=True))
        for p, expected in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
            torch.testing.assert_close(p.grad, expected)
    assert (weights - 1).abs().max() > 0.01


def test_a_loss_that_only_is_noisy_does_not_take_the_weight():
    """|x_1| against a constant loss of 100 whose gradient is noise around 0."""
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    jacobians = [torch.diag(torch.stack([torch.ones(()).double(), n])) for n in noise]
    weights, _ = run(ExcessMTL(2, step_size=0.1), jacobians)
    assert 0.2 < weights[-1, 0] < 1.9


def test_where_others_are_shared_both_risks_begin_anew():
    method, fresh = ExcessMTL(2), ExcessMTL(2)
    run(method, [gradients(2, 0)])
    with pytest.warns(UserWarning, match="begins anew"):
        run(method, [gradients(2, 1)[:, :3]])
    run(fresh, [gradients(2, 1)[:, :3]])
    assert method.initial.equal(fresh.initial)
