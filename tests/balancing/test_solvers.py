"""The exact solvers: optimality by their KKT conditions, against scipy, symmetry, degeneracy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, minimize, nnls

from mtbench.balancing.solvers import (
    cagrad,
    cone_projections,
    equal_projections,
    fair_shares,
    min_norm,
)

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


@settings(max_examples=200, derandomize=True)
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


@settings(max_examples=200, derandomize=True)
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


@settings(max_examples=150, derandomize=True)
@given(jacobians(), st.integers(0, 2**32 - 1))
def test_cone_projections_kkt(J, seed):
    """Projections of the gradients and of one random combination, each in its own unit."""
    K, norms = len(J), lengths(J)
    if not J.any():
        return
    combination = np.random.default_rng(seed).normal(size=K) / norms
    U = np.vstack([np.eye(K), combination])
    W = solve(cone_projections, J, torch.from_numpy(U))
    V = W - U
    # Rounding in v, which W's own cannot be told from where u is much larger than v.
    assert (-1e-12 * np.abs(W) <= V).all()
    X, D = U @ J, W @ J
    size = np.abs(W) @ norms + np.linalg.norm(X, axis=1)
    inner = D @ J.T / norms / size[:, None]
    assert (inner >= -1e-9).all()  # harms nobody
    # Moved only along those that are in the way: <d, d - x> = 0.
    assert (np.abs(np.sum(D * (D - X), axis=1)) <= 1e-9 * size**2).all()


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("d", [4, 60])
def test_cone_projections_against_scipy(K, d):
    """scipy's NNLS in gradient space: min ||x + J^T v||, v >= 0."""
    rng = np.random.default_rng(K)
    for _ in range(3):
        J = rng.normal(size=(K, d)) * np.exp(rng.normal(size=(K, 1)))
        D = solve(cone_projections, J, torch.eye(K)) @ J
        for x, found in zip(J, D, strict=True):
            v, _ = nnls(J.T, -x)
            np.testing.assert_allclose(found, x + v @ J, atol=1e-8 * np.linalg.norm(x))


def test_many_objectives_settle_under_single_pivoting():
    """The path that ends for every definite matrix gives what the block path gives."""
    import mtbench.balancing.solvers._cone as cone

    rng = np.random.default_rng(0)
    J = rng.normal(size=(20, 6))
    M = J @ J.T + 1e-6 * np.eye(20)
    sides = rng.normal(size=(5, 20))
    expected = cone.nonnegative(M, sides, sides > 0)
    blocks, cone._BLOCKS = cone._BLOCKS, 0
    try:
        found = cone.nonnegative(M, sides, sides > 0)
    finally:
        cone._BLOCKS = blocks
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    slack = found @ M - sides
    assert (slack >= -1e-6).all()
    np.testing.assert_allclose(found * slack, 0, atol=1e-4)


def test_stacked_systems_give_what_one_by_one_gives(monkeypatch):
    import mtbench.balancing.solvers._cone as cone

    rng = np.random.default_rng(0)
    for K in (2, 5, 8, 19):
        J = rng.normal(size=(K, 2 * K))
        M, sides, support = J @ J.T, rng.normal(size=(2 * K, K)), rng.random((2 * K, K)) < 0.5
        support[0], support[1] = False, True
        stacked = cone.restricted(M, sides, support)
        with monkeypatch.context() as patch:
            patch.setattr(cone, "_LARGE", 0)
            patch.setattr(np.linalg, "solve", None)  # the other path
            np.testing.assert_allclose(cone.restricted(M, sides, support), stacked, rtol=1e-8)
        np.testing.assert_allclose((stacked @ M)[support], sides[support], rtol=1e-8, atol=1e-12)
        assert (stacked[~support] == 0).all()


@pytest.mark.parametrize("K", [2, 3, 8, 40])
def test_the_memory_layout_of_the_gramian_does_not_matter(K):
    J = torch.randn(K, 2 * K, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
    rows = J @ J.T
    columns = rows.T.contiguous().T
    assert not columns.is_contiguous()
    before = rows.clone()
    for solver in (
        min_norm,
        equal_projections,
        fair_shares,
        lambda G: cagrad(G, C),
        lambda G: cone_projections(G, torch.eye(K)),
    ):
        torch.testing.assert_close(solver(columns), solver(rows), rtol=1e-9, atol=1e-12)
    assert torch.equal(rows, before)  # nor is it written to
    assert torch.equal(columns, before)


def test_cagrad_by_brackets_agrees(monkeypatch):
    """Where the support and lambda do not settle together, lambda is bracketed."""
    import mtbench.balancing.solvers._ball as ball

    rng = np.random.default_rng(0)
    for K in (2, 3, 8):
        J = rng.normal(size=(K, 20))
        expected = solve(cagrad, J, C)
        with monkeypatch.context() as patch:
            patch.setattr(ball, "_ROUNDS", 0)
            np.testing.assert_allclose(solve(cagrad, J, C), expected, rtol=1e-8)


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
def test_cagrad_does_not_depend_on_the_scale(K):
    """SLSQP with absolute tolerances is off by 5 % in most draws at 1e-4 and 1e2."""
    rng = np.random.default_rng(K)
    for _ in range(8):
        J = rng.normal(size=(K, 50)) * np.exp(rng.normal(size=(K, 1)))
        w = solve(cagrad, J, C)
        for scale in (1e-12, 1e-6, 1e-4, 1e-2, 1e2, 1e4, 1e6, 1e12):
            np.testing.assert_allclose(solve(cagrad, J * scale, C), w, rtol=1e-8, atol=1e-12)


def test_fair_shares_never_misses():
    """1,440 draws; a conic solver's residual exceeds 5 % in 305 of them."""
    for K in (2, 3, 5, 8):
        for scale in (1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6):
            rng = np.random.default_rng(K)
            for draw in range(60):
                J = rng.normal(size=(K, 100)) * np.exp((draw % 3) * rng.normal(size=(K, 1)))
                w = solve(fair_shares, J * scale)
                assert w.min() > 0
                np.testing.assert_allclose(w * (J @ (w @ J)) * scale**2, 1, rtol=1e-10)


@settings(max_examples=150, derandomize=True)
@given(jacobians(), st.sampled_from([1.0, 0.5, 2.0, 1 / 3]))
def test_fair_shares_kkt(J, power):
    """The equation, where no weight nears the bound."""
    w = solve(fair_shares, J, power)
    assert w.min() > 0
    if not J.any():
        return
    norms = lengths(J)
    orthogonal = norms ** (-2 / (1 + power))
    bound = min(1e4, 1e10 ** (1 / (1 + power)))
    if power == 1:
        assert (w <= 1.01 * len(J) ** (1 / 9) * bound * orthogonal).all()
    if (w <= bound / 30 * orthogonal).all() and J.any(axis=1).all():
        rounding = 1e-14 * norms * (w @ norms)
        assert (np.abs(J @ (w @ J) - w**-power) <= 1e-9 * w**-power + rounding).all()


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("K", [2, 3, 5])
def test_fair_shares_against_scipy(K, power):
    rng = np.random.default_rng(K)
    for _ in range(5):
        J = rng.normal(size=(K, 20))
        J /= np.linalg.norm(J)
        c = rng.uniform(0.5, 2, size=K)
        found = least_squares(
            lambda w, J=J, c=c: J @ (w @ J) - c * w**-power,
            np.full(K, 1.0),
            bounds=(1e-9, np.inf),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        ).x
        w = solve(fair_shares, J, power, torch.from_numpy(c))
        np.testing.assert_allclose(w, found, rtol=1e-6)


@pytest.mark.parametrize("power", [0.5, 1 / 3, 0.2, 0.1])
@pytest.mark.parametrize("K", [3, 5, 8])
def test_fair_shares_of_dependent_gradients_solve_the_bounded_equation(K, power):
    """At small p weights differ by up to 1e40."""
    rng = np.random.default_rng(K)
    bound = min(1e4, 1e10 ** (1 / (1 + power)))
    for draw in range(60):
        J = rng.normal(size=(K, K - 1 - draw % 2)) * 10.0 ** rng.integers(-6, 6, size=(K, 1))
        if draw % 3 == 0:
            J[1] = -J[0] * (1 + 1e-9 * draw)
        w = solve(fair_shares, J, power)
        near = w * np.linalg.norm(J, axis=1) ** (2 / (1 + power)) / bound
        push, brake = w**-power, w**-power * near ** (8 + power)
        sizes = np.abs(J @ J.T) @ w + push + brake
        assert (np.abs(J @ (w @ J) - push + brake) <= 1e-8 * sizes).all()


@pytest.mark.parametrize("K", [2, 3, 8])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_fair_shares_of_cancelling_gradients_stay_finite(K, power):
    """At most about 1e4 times those of orthogonal gradients, so that float32 can apply them."""
    rng = np.random.default_rng(K)
    for dimension in (1, 2):
        J = rng.normal(size=(K, dimension))
        J[-1] = -J[0]
        for scale in (1e-12, 1.0, 1e12):
            w = solve(fair_shares, J * scale, power)
            np.testing.assert_allclose(
                w * scale ** (2 / (1 + power)), solve(fair_shares, J, power), rtol=1e-3
            )
            orthogonal = np.linalg.norm(J * scale, axis=1) ** (-2 / (1 + power))
            assert (w <= 2e4 * orthogonal).all()


@settings(max_examples=150, derandomize=True)
@given(jacobians())
def test_equal_projections_are_equal(J):
    w = solve(equal_projections, J)
    assert np.abs(w).sum() <= 10 * (1 + 1e-9)
    live = J.any(axis=1)
    if live.any():
        assert w.sum() <= 1 + 1e-9
        assert (w[~live] == 0).all()
        projections = (J @ (w @ J))[live] / lengths(J)[live]
        # A ridge of 1e-12, and u of at most 1e6 in front of it.
        size = np.abs(w) @ lengths(J)
        assert np.ptp(projections) <= 1e-6 * size
        assert projections.min() >= -1e-6 * size


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
def test_equal_projections_are_those_of_the_closed_form(K):
    """The paper's: w_2.. = g_1 U^T (D U^T)^-1 with D = g_1 - g_k, U = u_1 - u_k."""
    rng = np.random.default_rng(K)
    for _ in range(10):
        J = rng.normal(size=(K, 60)) + 0.5
        units = J / np.linalg.norm(J, axis=1, keepdims=True)
        U = units[0] - units[1:]
        rest = J[0] @ U.T @ np.linalg.inv((J[0] - J[1:]) @ U.T)
        paper = np.concatenate([[1 - rest.sum()], rest])
        if np.abs(paper).sum() < 10:
            np.testing.assert_allclose(solve(equal_projections, J), paper, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[2.0, 0.0]], [1.0]),
        ([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]], [0.4, 0.4, 0.2]),  # dependent: as 1 / length
        ([[1.0, 0.0], [-2.0, 0.0]], [2 / 3, 1 / 3]),  # opposite: d = 0
        ([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]], [2 / 3, 0.0, 1 / 3]),  # a zero gradient
    ],
)
def test_equal_projections_in_degenerate_cases(rows, expected):
    for scale in (1e-12, 1.0, 1e12):
        w = solve(equal_projections, np.array(rows) * scale)
        np.testing.assert_allclose(w, expected, atol=1e-3)  # 1e-16 of rounding over the ridge


def test_equal_projections_never_climb():
    """Where the paper's sum of weights is negative, its direction makes every objective worse."""
    rng = np.random.default_rng(0)
    climbing = 0
    for _ in range(300):
        J = rng.normal(size=(4, 4)) * np.exp(rng.normal(size=(4, 1)))
        units = J / np.linalg.norm(J, axis=1, keepdims=True)
        paper = np.linalg.solve(units @ J.T, np.ones(4))
        climbing += paper.sum() < 0
        w = solve(equal_projections, J)
        assert (J @ (w @ J) > -1e-9).all()
        np.testing.assert_allclose(w / np.abs(w).sum(), paper / np.abs(paper).sum(), atol=1e-6)
    assert climbing > 10


@pytest.mark.parametrize("K", [2, 3, 8])
def test_new_solvers_are_scale_and_permutation_equivariant(K):
    rng = np.random.default_rng(K)
    J = rng.normal(size=(K, 20)) + 0.2
    eye = torch.eye(K)
    cases = (
        (equal_projections, (), 0),
        (lambda G: cone_projections(G, eye).mean(0), (), 0),
        (fair_shares, (1.0,), -1.0),
        (fair_shares, (0.5,), -2 / 1.5),
    )
    order = rng.permutation(K)
    for solver, args, exponent in cases:
        w = solve(solver, J, *args)
        for scale in (1e-12, 1e-4, 1e2, 1e12):
            scaled = solve(solver, J * scale, *args) / scale**exponent
            np.testing.assert_allclose(scaled, w, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(solve(solver, J[order], *args), w[order], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("K", [1, 2, 8])
@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_nothing_to_solve_in_the_new_solvers(K, fill):
    gramian = torch.full((K, K), fill, dtype=torch.float64)
    expected = torch.full((K,), 1 / K, dtype=torch.float64)
    torch.testing.assert_close(fair_shares(gramian), expected)
    torch.testing.assert_close(equal_projections(gramian), expected)
    U = torch.eye(K, dtype=torch.float64)
    torch.testing.assert_close(cone_projections(gramian, U), U)


def test_new_solvers_of_float32_gramians_that_are_not_quite_semidefinite():
    rng = np.random.default_rng(1)
    for _ in range(50):
        J = np.repeat(rng.normal(size=(2, 50)), 4, axis=0) + 1e-7 * rng.normal(size=(8, 50))
        gramian = torch.from_numpy((J @ J.T).astype(np.float32))
        for solver in (equal_projections, fair_shares, lambda G: cone_projections(G, torch.eye(8))):
            assert solver(gramian).isfinite().all()
        weights = cone_projections(gramian, torch.eye(8)).numpy()
        assert (weights @ J @ J.T >= -1e-5 * np.abs(weights).sum(1, keepdims=True) * 50).all()
