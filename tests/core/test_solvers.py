"""The exact solvers: optimality by their KKT conditions, against scipy, symmetry, degeneracy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mtbench.solvers import cagrad, min_norm

C = 0.5


@st.composite
def jacobians(draw):
    """K gradients in d dimensions: dependent, near-parallel, equal, zero, of any scale."""
    K = draw(st.integers(1, 8))
    d = draw(st.sampled_from([1, 2, 3, 30]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    J = rng.normal(size=(K, d)) + draw(st.sampled_from([0.0, 1.0, 100.0])) * rng.normal(size=d)
    J *= np.exp(draw(st.sampled_from([0.0, 1.0, 10.0])) * rng.normal(size=(K, 1)))
    if draw(st.booleans()):
        J[-1] = J[0]
    if draw(st.integers(0, 4)) == 0:
        J[draw(st.integers(0, K - 1))] = 0
    if draw(st.integers(0, 4)) == 0:
        J[-1] = -J[0] * draw(st.sampled_from([1.0, 2.0]))
    return J * 10.0 ** draw(st.integers(-12, 12))


def solve(solver, J, *args):
    weights = solver(torch.from_numpy(J @ J.T), *args).numpy()
    assert np.isfinite(weights).all()
    return weights


def lengths(J):
    """The norms; a zero gradient counts as the shortest other one, as in the solvers."""
    norms = np.linalg.norm(J, axis=1)
    return np.where(norms > 0, norms, norms[norms > 0].min(initial=np.inf))


def cagrad_value(J, w, c=C):
    g0 = J.mean(0)
    return w @ J @ g0 + c * np.linalg.norm(g0) * np.linalg.norm(w @ J)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(jacobians())
def test_min_norm_kkt(J):
    w = solve(min_norm, J)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1)
    if J.any():
        # (Gw)_i >= w^T G w, up to the rounding of g_w and of w itself.
        g, norms = w @ J, lengths(J)
        rounding = 1e-9 * (w @ norms) + 1e-15 * norms.max()
        assert (J @ g >= g @ g - rounding * (norms + w @ norms)).all()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(jacobians(), st.sampled_from([0.1, 0.5, 0.9, 1.5]))
def test_cagrad_kkt(J, c):
    """Primal feasible, and no worse in the worst objective than the dual bound allows."""
    weights = solve(cagrad, J, c)
    g0, K = J.mean(0), len(J)
    radius, norms = c * np.linalg.norm(g0), lengths(J)
    if not J.any() or radius < 1e-7 * norms.max():  # a mean of pure cancellation
        return
    w = weights - 1 / K
    w = w / w.sum() if w.sum() > 0 else np.full(K, 1 / K)
    assert w.min() >= -1e-9
    d = weights @ J
    # The weights reach 1e4 where g_w nearly vanishes, and multiply the Jacobian's rounding.
    rounding = 1e-14 * (np.abs(weights) @ norms)
    assert np.linalg.norm(d - g0) <= radius * (1 + 1e-9) + rounding
    # max_d min_k <g_k, d> = min_w <g_w, g0> + r ||g_w||: equal values prove both optimal. The
    # smoothing near g_w = 0 costs at most r f, f = 1e-4 sum_k w_k ||g_k||.
    size = w @ norms
    cancels = np.linalg.norm(w @ J) < 2e-4 * size
    scale = np.linalg.norm(g0) + radius
    slack = 2e-7 * scale * (size + norms) + rounding * norms + (1e-4 * radius * size) * cancels
    assert (J @ d >= cagrad_value(J, w, c) - slack).all()


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_against_scipy(K, shift):
    rng = np.random.default_rng(K)
    for _ in range(4 if K == 40 else 10):
        J = rng.normal(size=(K, 60)) + shift * rng.normal(size=60)
        J /= np.linalg.norm(J)
        values = {
            min_norm: lambda w, J=J: np.sum((w @ J) ** 2),
            lambda G: (lambda v: v / v.sum())(cagrad(G, C) - 1 / K): lambda w, J=J: cagrad_value(
                J, w
            ),
        }
        for solver, value in values.items():
            best = minimize(
                lambda w, value=value: 1e3 * value(w),
                np.full(K, 1 / K),
                method="SLSQP",
                bounds=[(0, 1)] * K,
                constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
                options={"ftol": 1e-14, "maxiter": 2000},
            )
            found = value(solve(solver, J))
            assert found <= best.fun / 1e3 + 1e-12  # never worse than scipy
            assert found == pytest.approx(best.fun / 1e3, abs=1e-6)  # and solves the same problem


@pytest.mark.parametrize("solver", [min_norm, lambda G: cagrad(G, C)])
@pytest.mark.parametrize("K", [2, 3, 8])
def test_scale_and_permutation(solver, K):
    rng = np.random.default_rng(K)
    J = rng.normal(size=(K, 20)) + 0.5
    w = solve(solver, J)
    for scale in (1e-12, 1e-4, 1e2, 1e12):
        np.testing.assert_allclose(solve(solver, J * scale), w, rtol=1e-9, atol=1e-12)
    order = rng.permutation(K)
    np.testing.assert_allclose(solve(solver, J[order]), w[order], rtol=1e-7, atol=1e-10)


def test_min_norm_two_objectives_closed_form():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = rng.normal(size=(2, 3)) * np.exp(3 * rng.normal(size=(2, 1)))
        share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
        np.testing.assert_allclose(
            solve(min_norm, np.stack([a, b])), [share, 1 - share], atol=1e-10
        )


@pytest.mark.parametrize(
    ("rows", "direction"),
    [
        # One objective: (1 + c) g.
        ([[2.0, 0.0]], [3.0, 0.0]),
        # Equal ones, the same.
        ([[2.0, 0.0]] * 3, [3.0, 0.0]),
        # Opposite ones in balance, a third aside: the best worst case is 0, nearest is g0 itself.
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [0.0, 1 / 3]),
        # A zero gradient cannot be improved: g0.
        ([[1.0, 0.0], [0.0, 0.0]], [0.5, 0.0]),
        # The same where two objectives, in balance but askew to g0, hold d on their normal.
        ([[1.0, 0.1], [-1.0, -0.1], [0.0, 1.0]], [-1 / 30.3, 1 / 3.03]),
    ],
)
def test_cagrad_in_degenerate_cases(rows, direction):
    J = np.array(rows)
    for scale in (1e-12, 1.0, 1e12):
        d = solve(cagrad, J * scale, C) @ J
        np.testing.assert_allclose(d, direction, atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-9, 1e-7])
def test_cagrad_does_not_amplify_rounding(noise):
    """In balance but for noise, weights stay small enough to be applied in float32."""
    J = np.array([[1.0, noise], [-1.0, noise], [0.0, 1.0]])
    weights = solve(cagrad, J, C)
    assert np.abs(weights).max() < 1e4
    d = weights.astype(np.float32) @ J.astype(np.float32)
    np.testing.assert_allclose(d, [0, 1 / 3], atol=1e-3)


def test_cagrad_improves_a_tiny_objective():
    """At c = 1/2 the ball reaches past the normal of a gradient 1e6 times smaller."""
    J = np.array([[1e6, 0.0], [-0.3, 1.0]])
    d = solve(cagrad, J, 0.9) @ J
    exact = J.mean(0) + 0.9 * np.linalg.norm(J.mean(0)) * J[1] / np.linalg.norm(J[1])
    np.testing.assert_allclose(d, exact, rtol=1e-6)
    assert J[1] @ d > 0


@pytest.mark.parametrize("K", [1, 2, 8])
@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_nothing_to_solve_is_uniform(K, fill):
    gramian = torch.full((K, K), fill, dtype=torch.float64)
    expected = torch.full((K,), 1 / K, dtype=torch.float64)
    torch.testing.assert_close(min_norm(gramian), expected)
    torch.testing.assert_close(cagrad(gramian, C), expected)


def test_float32_gramians_that_are_not_quite_semidefinite():
    rng = np.random.default_rng(1)
    for _ in range(200):
        J = np.repeat(rng.normal(size=(2, 50)), 4, axis=0) + 1e-7 * rng.normal(size=(8, 50))
        gramian = torch.from_numpy((J @ J.T).astype(np.float32))
        assert min_norm(gramian).isfinite().all()
        assert cagrad(gramian, C).isfinite().all()
