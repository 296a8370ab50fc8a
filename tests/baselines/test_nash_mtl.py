"""nash_mtl: the bargaining solution, by other means, and its weights between solutions."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mtbench.balancing.engine import grad
from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.nash_mtl import NashMTL


def gradients(K, seed, d=20):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(J, **parameters):
    method = NashMTL(len(J), **parameters)
    return method.weights(J @ J.T, torch.ones(len(J))) @ J


@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_maximises_the_product_of_improvements(K):
    """A general solver on the paper's problem in gradient space, d in the unit ball."""
    for seed in range(5):
        J = gradients(K, seed, d=8).numpy()
        ours = direction(torch.from_numpy(J)).numpy()
        ours /= np.linalg.norm(ours)
        found = minimize(
            lambda d, J=J: -np.log(np.maximum(J @ d, 1e-12)).sum(),
            0.5 * ours + 1e-2 * J.mean(0),
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda d: 1 - d @ d},
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        assert np.log(J @ ours).sum() >= np.log(J @ found).sum() - 1e-9
        np.testing.assert_allclose(ours, found, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e12])
@pytest.mark.parametrize("K", [2, 3, 8, 40])
def test_equation_and_length(K, scale):
    """G w = 1 / w, and so w G w = K."""
    J = gradients(K, K, d=100) * scale
    w = NashMTL(K, max_norm=0.0).weights(J @ J.T, torch.ones(K))
    torch.testing.assert_close(w * (J @ (w @ J)), torch.ones(K).double(), rtol=1e-9, atol=0)
    d = w @ J
    torch.testing.assert_close(d.norm().item(), K**0.5)
    cut = direction(J, max_norm=0.5 * d.norm().item())
    torch.testing.assert_close(cut, d / 2)


def test_scale_of_one_objective_does_not_matter():
    J = gradients(3, 0)
    scaled = J * torch.tensor([[1e-6], [1.0], [1e6]])
    a, b = direction(J), direction(scaled)
    torch.testing.assert_close(a / a.norm(), b / b.norm())


def test_two_objectives_get_the_bisector():
    for seed in range(10):
        J = gradients(2, seed)
        d = direction(J)
        bisector = (J / J.norm(dim=1, keepdim=True)).sum(0)
        torch.testing.assert_close(d / d.norm(), bisector / bisector.norm())


@pytest.mark.filterwarnings("ignore")
def test_torchjd_agrees():
    torchjd = pytest.importorskip("torchjd.aggregation")
    for seed in range(6):
        J = gradients(3, seed)
        found = torchjd.NashMTL(3, max_norm=0.0, optim_niter=100)(J)
        torch.testing.assert_close(direction(J, max_norm=0.0), found, rtol=1e-5, atol=1e-5)


def step(x, labelled=(1.0, 1.0)):
    z = x * 1.0
    return Step([z[0].square() * labelled[0], (3 * z[1] + z[0]) * labelled[1]], features=z)


def test_weights_are_kept_between_solutions(monkeypatch):
    method = NashMTL(2, update_weights_every=3)
    calls = []
    solve = method.weights
    monkeypatch.setattr(method, "weights", lambda *given: calls.append(1) or solve(*given))
    x = torch.tensor([2.0, 5.0], requires_grad=True)
    first = method.backward(step(x))
    for t in range(1, 7):
        x.grad = None
        with torch.no_grad():
            x += 0.1
        weights = method.backward(step(x))
        assert len(calls) == 1 + t // 3
        if t < 3:
            assert weights.equal(first)
            expected = torch.stack([2 * x[0] * first[0] + first[1], 3 * first[1]]).detach()
            torch.testing.assert_close(x.grad, expected.to(x))
    assert not weights.equal(first)


def test_a_step_that_overflows_is_no_solution():
    """The next one finds weights in its place."""
    method, fresh = (NashMTL(2, update_weights_every=3) for _ in range(2))
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    z = x * 1.0
    method.backward(Step([z[0].sqrt() + 1, 3 * z[1]], features=z))
    x = torch.ones(2, requires_grad=True)
    assert method.backward(step(x)).equal(fresh.backward(step(x)))


def test_between_solutions_one_encoder_backward_suffices(monkeypatch):
    calls = []

    def counted(outputs, inputs, *args, **kwargs):
        calls.append(inputs)
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr("mtbench.balancing.passes.grad", counted)
    method = NashMTL(2, update_weights_every=2)
    x = torch.tensor([2.0, 5.0], requires_grad=True)
    for backwards in (2, 1, 2, 1):
        calls.clear()
        method.backward(step(x))
        assert sum(any(p is x for p in inputs) for inputs in calls) == backwards


def test_a_missing_label_keeps_the_last_weight():
    method = NashMTL(2)
    x = torch.tensor([2.0, 5.0], requires_grad=True)
    method.backward(step(x, labelled=(1.0, 0.0)))
    assert method.last[1] == 1
    method.backward(step(x))
    kept = method.last[1].item()
    method.backward(step(x, labelled=(1.0, 0.0)))
    assert method.last[1] == kept


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"max_norm": -1.0}, "max_norm must be finite and at least 0, found -1.0"),
        ({"update_weights_every": 0}, "update_weights_every must be at least 1, found 0"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"nash_mtl: {words}"):
        NashMTL(2, **parameters)
