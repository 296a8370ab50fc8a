"""pcgrad, cagrad, mgda against their textbook forms in gradient space, torchjd and LibMTL."""

import random

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mtbench.balancing.engine import grad
from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.cagrad import CAGrad
from mtbench_baselines.mgda import MGDA
from mtbench_baselines.pcgrad import PCGrad, project
from tests.baselines.libmtl_shim import method as libmtl


def gradients(K, seed, d=6):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(method, J, losses=None):
    losses = torch.ones(len(J)).double() if losses is None else losses
    return method.weights(J @ J.T, losses).to(J) @ J


def pcgrad_in_gradient_space(J, orders):
    """Algorithm 1 of the paper, as written."""
    total = torch.zeros_like(J[0])
    for i, order in enumerate(orders.tolist()):
        g = J[i].clone()
        for j in order:
            if j != i and g @ J[j] < 0:
                g = g - (g @ J[j]) / (J[j] @ J[j]) * J[j]
        total += g
    return total


@pytest.mark.parametrize("d", [2, 6])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8])
def test_pcgrad_twin(K, d):
    conflicts = 0
    for seed in range(20):
        J = gradients(K, seed, d)
        method = PCGrad(K, seed=seed)
        orders = torch.rand(K, K, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
        expected = pcgrad_in_gradient_space(J, orders)
        torch.testing.assert_close(direction(method, J), expected)
        torch.testing.assert_close(project(J @ J.T, orders) @ J, expected)
        conflicts += not torch.allclose(expected, J.sum(0))
    assert conflicts > 0 or K == 1


def test_pcgrad_order_is_drawn_anew():
    J = gradients(5, 0)
    method = PCGrad(5)
    assert len({tuple(direction(method, J).tolist()) for _ in range(5)}) > 1


def test_pcgrad_without_conflict_is_the_sum():
    J = gradients(4, 0).abs()
    torch.testing.assert_close(direction(PCGrad(4), J), J.sum(0))


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_against_scipy_in_gradient_space(K, c):
    """d itself by a general constrained solver: max t, <g_k, d> >= t, |d - g0| <= c |g0|."""
    for seed in range(5):
        J = gradients(K, seed).numpy()
        J /= np.linalg.norm(J)
        g0 = J.mean(0)
        found = minimize(
            lambda v: -v[0],
            np.concatenate([[(J @ g0).min()], g0]),
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda v, J=J: J @ v[1:] - v[0]},
                {
                    "type": "ineq",
                    "fun": lambda v, g0=g0: c**2 * g0 @ g0 - (v[1:] - g0) @ (v[1:] - g0),
                },
            ],
            options={"ftol": 1e-15, "maxiter": 1000},
        ).x[1:]
        ours = direction(CAGrad(K, c=c), torch.from_numpy(J)).numpy() * (1 + c**2) / K
        assert (J @ ours).min() >= (J @ found).min() - 1e-8
        np.testing.assert_allclose(ours, found, atol=1e-4)


def test_cagrad_is_the_sum_at_c_0():
    J = gradients(4, 0)
    torch.testing.assert_close(direction(CAGrad(4, c=0.0), J), J.sum(0))


def test_mgda_two_objectives_closed_form():
    for seed in range(50):
        J = gradients(2, seed) * torch.tensor([[1.0], [2.0]])
        a, b = J
        share = ((b - a) @ b / (a - b).square().sum()).clamp(0, 1)
        torch.testing.assert_close(direction(MGDA(2), J), share * a + (1 - share) * b)


@pytest.mark.parametrize(
    ("normalise", "scale"),
    [("none", [1, 1]), ("l2", [3, 4]), ("loss", [5, 0.5]), ("loss+", [15, 2])],
)
def test_mgda_normalisation(normalise, scale):
    """Orthogonal gradients of lengths 3, 4: weights are as 1 / (length / scale)^2."""
    J = torch.diag(torch.tensor([3.0, 4.0]).double())
    losses = torch.tensor([5.0, 0.5]).double()
    weights = MGDA(2, normalise=normalise).weights(J @ J.T, losses)
    expected = (torch.tensor(scale, dtype=torch.float64) / torch.tensor([3.0, 4.0])).square()
    torch.testing.assert_close(weights, expected / expected.sum())


def test_mgda_common_descent():
    for seed in range(20):
        J = gradients(4, seed, d=10)
        d = direction(MGDA(4), J)
        assert (J @ d >= d @ d - 1e-9).all()


def test_mgda_upper_bound_takes_one_encoder_backward(monkeypatch):
    calls = []

    def counted(outputs, inputs, *args, **kwargs):
        calls.append(inputs)
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr("mtbench.balancing.passes.grad", counted)
    for space, backwards in (("shared", 3), ("features", 1)):
        calls.clear()
        x = torch.randn(4, requires_grad=True)
        z = x.view(1, 4) * 2
        MGDA(3, space=space).backward(Step([z[0, k] ** 2 for k in range(3)], features=z))
        assert sum(any(p is x for p in inputs) for inputs in calls) == backwards


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        (CAGrad, {"c": -0.1}, "cagrad: c must be finite and at least 0, found -0.1"),
        (CAGrad, {"c": float("nan")}, "cagrad: c must be finite"),
        (MGDA, {"normalise": "l1"}, "mgda: normalise must be one of none, l2, loss, loss\\+"),
        (MGDA, {"space": "z"}, "mgda: space must be"),
    ],
)
def test_refuses(method, parameters, words):
    with pytest.raises(UsageError, match=words):
        method(2, **parameters)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_mgda_torchjd(K):
    """Frank-Wolfe, on gradients of scale 1: never shorter than ours, and near it."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    for seed in range(3):
        J = gradients(K, seed) + 0.5
        frank_wolfe = torchjd.MGDA(epsilon=1e-9, max_iters=500)(J)
        d = direction(MGDA(K), J)
        assert d.norm() <= frank_wolfe.norm() + 1e-12  # ours is exact
        torch.testing.assert_close(d, frank_wolfe, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_pcgrad_torchjd(K, monkeypatch):
    torchjd = pytest.importorskip("torchjd.aggregation")
    monkeypatch.setattr(torch, "randperm", torch.arange)
    orders = torch.arange(K).expand(K, K)
    for seed in range(10):
        J = gradients(K, seed)
        torch.testing.assert_close(project(J @ J.T, orders) @ J, torchjd.PCGrad()(J))


@pytest.mark.parametrize("K", [2, 3, 5, 8])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_torchjd(K, c):
    """Clarabel, on gradients of scale 1; torchjd's step is the paper's d."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    for seed in range(5):
        J = gradients(K, seed)
        d = direction(CAGrad(K, c=c), J) * (1 + c**2) / K
        torch.testing.assert_close(d, torchjd.CAGrad(c=c)(J), atol=1e-4, rtol=1e-3)


def libmtl_direction(name, J, **parameters):
    """What LibMTL makes of K gradients: those of linear losses."""
    x = torch.zeros(J.shape[1], requires_grad=True)
    losses = [row @ x + 1 for row in J.float()]
    libmtl(name, len(J), [x]).backward(losses, **parameters)
    return x.grad.to(J)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_pcgrad_libmtl(K, monkeypatch):
    monkeypatch.setattr(random, "shuffle", lambda order: None)
    orders = torch.arange(K).expand(K, K)
    for seed in range(10):
        J = gradients(K, seed)
        found = project(J @ J.T, orders) @ J
        torch.testing.assert_close(found, libmtl_direction("PCGrad", J), atol=1e-5, rtol=1e-4)


def test_cagrad_libmtl():
    """SLSQP, for three objectives only."""
    for seed in range(5):
        J = gradients(3, seed)
        theirs = libmtl_direction("CAGrad", J, calpha=0.5, rescale=1)
        torch.testing.assert_close(direction(CAGrad(3), J) / 3, theirs, atol=5e-3, rtol=5e-3)


def test_mgda_libmtl():
    """Its closed form for two objectives keeps a thousandth for either."""
    for seed in range(10):
        J = gradients(2, seed)
        theirs = libmtl_direction("MGDA", J, mgda_gn="none")
        torch.testing.assert_close(direction(MGDA(2), J), theirs, atol=5e-3, rtol=5e-3)
