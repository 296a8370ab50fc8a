"""EPO search against cvxpy on the same linear programs, and where it ends."""

import numpy as np
import pytest
import torch

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.epo import EPO


def program(G, losses, r, eps=1e-4):
    """The authors' program in cvxpy; returns (value of w, residual of w) as functions of w."""
    cp = pytest.importorskip("cvxpy")
    m = len(r)
    rl = r * losses
    share = rl / rl.sum()
    mu = (share * np.log(share * m)).sum()
    a = r * (np.log(share * m) - mu)
    Ca = G @ a
    w = cp.Variable(m)
    constraints = [w >= 0, cp.sum(w) == 1]
    if mu > eps:
        rhs = np.zeros(m)
        if (Ca > 0).any():
            rhs = np.where(Ca > 0, -1e9, Ca)
            rhs[rl == rl.max()] = 0
        objective = w @ Ca
        constraints.append(G @ w >= rhs)
    else:
        objective = cp.sum(G @ w)
        constraints += [G @ w >= 0, w @ Ca >= min(0.0, Ca.max())]
        rhs = np.zeros(m)
    problem = cp.Problem(cp.Maximize(objective), constraints)
    problem.solve(solver=cp.CLARABEL)
    value = (lambda v: v @ Ca) if mu > eps else (lambda v: (G @ v).sum())
    return problem.value, value, lambda v: (G @ v - rhs).min()


@pytest.mark.parametrize("K", [2, 3, 5, 8])
@pytest.mark.parametrize("near", [False, True])
def test_solves_the_authors_program(K, near):
    rng = np.random.default_rng(K)
    for _ in range(3):
        J = rng.standard_normal((K, 20)) + 0.3
        G = J @ J.T
        r = rng.uniform(0.5, 2.0, K)
        losses = 1 / r if near else rng.uniform(0.2, 3.0, K)
        w = EPO(K, preference=tuple(r)).weights(torch.tensor(G), torch.tensor(losses)).numpy()
        best, value, slack = program(G, losses, r)
        assert w.min() >= 0
        assert w.sum() == pytest.approx(1)
        assert value(w) == pytest.approx(best, rel=1e-4, abs=1e-4)
        assert slack(w) > -1e-6 * np.trace(G)


@pytest.mark.parametrize("r", [(3.0, 1.0), (1.0, 5.0)])
def test_ends_on_the_ray_and_on_the_front(r):
    """VLMOP2 in two dimensions, whose front no weighted sum reaches inside."""
    x = torch.tensor([0.2, -0.4], requires_grad=True)
    method = EPO(2, preference=r)
    for _ in range(250):
        x.grad = None
        losses = [1 - torch.exp(-(x - s / 2**0.5).square().sum()) for s in (1, -1)]
        method.backward(Step(losses, shared=[x]))
        x.data -= 0.08 * x.grad
    ratio = r[0] * losses[0].item() / (r[1] * losses[1].item())
    assert ratio == pytest.approx(1, rel=0.05)
    assert abs(x[0].item() - x[1].item()) < 0.05


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_all_does_not_matter(scale):
    J = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = torch.tensor([1.0, 2.0, 0.5]).double()
    method = EPO(3, preference=(1.0, 2.0, 1.0))
    torch.testing.assert_close(
        method.weights(J @ J.T * scale**2, losses * scale), method.weights(J @ J.T, losses)
    )


def test_what_has_no_place_on_the_ray_is_left_out():
    G = torch.diag(torch.tensor([1.0, 0.0, 4.0, 9.0])).double()
    w = EPO(4).weights(G, torch.tensor([1.0, 2.0, -1.0, 3.0]).double())
    assert w[1] == w[2] == 0
    assert w.sum() == 1
    assert not EPO(2).weights(torch.zeros(2, 2), torch.ones(2)).any()


@pytest.mark.parametrize("case", ["equal", "opposed", "near-parallel", "rank-deficient"])
def test_degenerate_gradients(case):
    g = torch.randn(1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    J = {
        "equal": g.expand(3, 6),
        "opposed": torch.cat([g, -g, g * 0.5]),
        "near-parallel": g + 1e-9 * torch.eye(3, 6).double(),
        "rank-deficient": torch.cat([g, 2 * g, torch.eye(1, 6).double()]),
    }[case]
    for losses in ([1.0, 1.0, 1.0], [3.0, 1.0, 0.1]):
        w = EPO(3).weights(J @ J.T, torch.tensor(losses).double())
        assert w.isfinite().all()
        assert w.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"preference": (1.0,)}, "preference must hold one number per objective"),
        ({"preference": (1.0, 0.0)}, "preference .*, each finite and above 0"),
        ({"tolerance": 0.0}, "tolerance must be finite and above 0, found 0.0"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"epo: {words}"):
        EPO(2, **parameters)
