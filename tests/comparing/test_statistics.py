"""Statistics: values worked by hand, exhaustive twins, simulated coverage, quoted facts."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mtbench.comparing.judging import statistics as s
from mtbench.errors import UsageError

HIGHER = [True, False, True]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def table(methods: int = 5, n: int = 6, seed: int = 0) -> Any:
    return rng(seed).uniform(0.5, 2, (methods, n, 3))


# --- effect sizes ---------------------------------------------------------------------------------


def test_relative_change_by_hand() -> None:
    # Reference means: 0.5 and -4. A tenth up is 20 % better; 2 down of 4 is 50 % better.
    reference = [[0.4, -3.0], [0.6, -5.0]]
    found = s.relative_change([[0.6, -6.0], [0.5, -4.0]], reference, [True, False])
    np.testing.assert_allclose(found, [[-20, -50], [0, 0]], atol=1e-12)


def test_delta_m_is_of_means_not_a_mean_of_ratios() -> None:
    scores, reference = np.array([[2.0], [2.0]]), np.array([[1.0], [3.0]])
    assert s.delta_m(scores, reference, [False]) == 0  # ratios of seeds: (100 - 33) / 2
    assert s.delta_m(scores[:1], reference[:1], [False]) == 100


def test_delta_m_of_published_numbers() -> None:
    # NYUv2, single-task and linear scalarization, as in Nash-MTL (arXiv 2202.01017).
    single = [38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15]
    linear = [39.29, 65.33, 0.5493, 0.2263, 28.15, 23.96, 22.09, 47.50, 61.08]
    higher = [True, True, False, False, False, False, True, True, True]
    assert s.delta_m([linear], [single], higher) == pytest.approx(5.59, abs=0.005)


def test_a_reference_of_zero_or_a_missing_score_is_nan() -> None:
    assert math.isnan(s.delta_m([[1.0, 1.0]], [[0.0, 1.0]], [True, True]))
    scores = table()
    scores[2, 1, 0] = math.nan
    found = s.delta_m(scores, scores[0], HIGHER)
    assert np.isnan(found).tolist() == [False, False, True, False, False]


@given(
    st.integers(0, 10**6),
    st.permutations(range(6)),
    st.permutations(range(3)),
    st.lists(st.sampled_from([1e-6, 0.3, 1e3]), min_size=3, max_size=3),
)
def test_effects_know_no_units_and_no_order(
    seed: int, seeds: list[int], metrics: list[int], units: list[float]
) -> None:
    scores, reference = table(seed=seed), table(seed=seed + 1)[0]
    other = (scores * units)[:, seeds][..., metrics]
    base = (reference * units)[seeds][:, metrics]
    higher = [HIGHER[m] for m in metrics]
    delta = s.delta_m(scores, reference, HIGHER)
    np.testing.assert_allclose(s.delta_m(other, base, higher), delta, atol=1e-9)
    np.testing.assert_allclose(s.mean_rank(other, higher), s.mean_rank(scores, HIGHER))
    # A metric turned round, with its direction, is the same metric.
    flipped = [not h for h in HIGHER]
    np.testing.assert_allclose(s.delta_m(-scores, -reference, flipped), delta, atol=1e-9)
    np.testing.assert_allclose(s.mean_rank(-scores, flipped), s.mean_rank(scores, HIGHER))
    np.testing.assert_allclose(s.relative_change(scores, reference, HIGHER).mean((-2, -1)), delta)


def test_iqm_by_hand() -> None:
    # Ten values: two are cut off at either end.
    values = np.array([[-90.0, 1, 2, 3, 4], [5, 6, 7, 8, 999]])
    assert s.iqm(values) == pytest.approx(np.mean([2, 3, 4, 5, 6, 7]))
    assert s.iqm(values) == stats.trim_mean(values.ravel(), 0.25)
    assert s.iqm([[7.0]]) == 7


def test_iqm_does_not_trim_what_is_missing() -> None:
    values = np.ones((2, 4, 3))
    values[1, 0, 0] = math.nan
    found = s.iqm(values)
    assert found[0] == 1
    assert math.isnan(found[1])


# --- ranks ----------------------------------------------------------------------------------------


def test_mean_rank_by_hand() -> None:
    # Means, first metric: .9 .7 .7 (ranks 1, 2.5, 2.5); second: 3 1 2 (3, 1, 2).
    scores = [[[0.8, 4], [1.0, 2]], [[0.7, 1], [0.7, 1]], [[0.6, 2], [0.8, 2]]]
    assert s.mean_rank(scores, [True, False]).tolist() == [2, 1.75, 2.25]


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_an_incomplete_method_is_not_ranked_and_moves_nobody(lost: float) -> None:
    scores = table()
    without = s.mean_rank(np.delete(scores, 2, axis=0), HIGHER)
    scores[2, 0, 1] = lost
    found = s.mean_rank(scores, HIGHER)
    assert math.isnan(found[2])
    assert np.delete(found, 2).tolist() == without.tolist()
    # Nor in a draw that happens to miss the seed it lacks.
    whole = s.resample(lambda x: s.mean_rank(x, HIGHER), scores, seed=0, resamples=200)
    part = s.resample(
        lambda x: s.mean_rank(x, HIGHER), np.delete(scores, 2, axis=0), seed=0, resamples=200
    )
    assert np.isnan(whole[:, 2]).all()
    np.testing.assert_array_equal(np.delete(whole, 2, axis=1), part)


@given(st.integers(0, 10**6), st.integers(1, 7))
def test_ranks_sum_to_a_constant(seed: int, methods: int) -> None:
    scores = rng(seed).integers(0, 3, (methods, 2, 3))
    assert s.mean_rank(scores, HIGHER).mean() == pytest.approx((methods + 1) / 2)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_rank_probabilities_are_doubly_stochastic(seed: int, methods: int) -> None:
    draws = rng(seed).integers(0, 4, (50, methods)).astype(float)
    found = s.rank_probabilities(draws)
    np.testing.assert_allclose(found.sum(axis=0), 1)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    # Expected places are expected average ranks.
    places = found @ np.arange(1, methods + 1)
    np.testing.assert_allclose(places, stats.rankdata(draws, axis=1).mean(axis=0))


def test_rank_probabilities_leave_out_who_has_no_rank() -> None:
    found = s.rank_probabilities([[1.0, math.nan, 2.0], [1.0, math.nan, 2.0]])
    np.testing.assert_array_equal(found, [[1, 0, 0], [math.nan] * 3, [0, 1, 0]])
    assert np.isnan(s.rank_probabilities([[math.nan] * 2])).all()


# --- resampling -----------------------------------------------------------------------------------


def test_draws_are_those_of_all_index_tuples() -> None:
    scores, reference = table(2, 3), table(1, 3, seed=1)[0]
    draws = s.resample(lambda x, y: s.delta_m(x, y, HIGHER), scores, reference, seed=0)
    every = np.array(
        [
            s.delta_m(scores[:, index], reference[list(index)], HIGHER)
            for index in map(list, itertools.product(range(3), repeat=3))
        ]
    )
    assert draws.shape == (10_000, 2)
    for k in range(2):
        assert set(draws[:, k].round(9)) == set(every[:, k].round(9))
    error = np.abs(draws.mean(axis=0) - every.mean(axis=0))
    assert (error < 4 * every.std(axis=0) / 100).all()


def test_the_reference_is_drawn_with_the_method() -> None:
    # The same numbers up to a factor: paired draws leave delta-m constant.
    reference = table(1)[0]
    found = s.paired_bootstrap(
        lambda x, y: s.delta_m(x, y, [False] * 3), 1.1 * reference, reference, seed=0
    )
    np.testing.assert_allclose(found, 10)
    alone = s.paired_bootstrap(
        lambda x: s.delta_m(x, reference, [False] * 3), 1.1 * reference, seed=0
    )
    assert alone.high - alone.low > 1


def test_against_scipy_at_the_expanded_level() -> None:
    x, y = rng().normal(1, 0.2, (2, 10))
    n = 10
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))

    def ratio(a: Any, b: Any, axis: int = -1) -> Any:
        return a.mean(axis=axis) / b.mean(axis=axis)

    theirs = stats.bootstrap(
        (x, y), ratio, paired=True, vectorized=True, method="percentile",
        n_resamples=50_000, confidence_level=1 - 2 * tail, rng=rng(),
    ).confidence_interval  # fmt: skip
    ours = s.paired_bootstrap(
        lambda a, b: (a.mean(-2) / b.mean(-2))[..., 0], x[:, None], y[:, None], seed=1
    )
    assert ours.value == pytest.approx(x.mean() / y.mean())
    width = theirs.high - theirs.low
    np.testing.assert_allclose(ours[1:], theirs, atol=0.03 * width)


@pytest.mark.parametrize(("n", "expected"), [(3, 0.75), (6, 0.93), (10, 0.945)])
def test_coverage_of_delta_m(n: int, expected: float) -> None:
    generator = rng(n)
    ours, single = np.array([0.45, 2.4, 0.8]), np.array([0.5, 2.0, 0.8])
    common = generator.normal(1, 0.03, (1000, n, 3))
    x = ours * (common + generator.normal(0, 0.03, common.shape))
    y = single * (common + generator.normal(0, 0.03, common.shape))
    truth = s.delta_m([ours], [single], HIGHER)
    found = s.paired_bootstrap(lambda x, y: s.delta_m(x, y, HIGHER), x, y, seed=0, resamples=1000)
    covered = np.mean((found.low <= truth) & (truth <= found.high))
    assert covered == pytest.approx(expected, abs=0.03)


def test_resampling_is_reproducible_and_does_not_depend_on_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def statistic(x: Any) -> Any:
        return s.mean_rank(x, HIGHER)

    first = s.resample(statistic, table(), seed=3, resamples=101)
    monkeypatch.setattr(s, "_CHUNK", 1)
    np.testing.assert_array_equal(first, s.resample(statistic, table(), seed=3, resamples=101))
    assert (first != s.resample(statistic, table(), seed=4, resamples=101)).any()


def test_a_missing_score_has_no_interval() -> None:
    scores = table()
    scores[1, 0, 0] = math.nan
    found = s.paired_bootstrap(
        lambda x, y: s.delta_m(x, y, HIGHER), scores, scores[0], seed=0, resamples=100
    )
    for part in found:
        assert np.isnan(part).tolist() == [False, True, False, False, False]


def test_one_seed_has_no_interval() -> None:
    found = s.paired_bootstrap(lambda x: x.mean((-2, -1)), [[3.0]], seed=0)
    assert found.value == 3
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(UsageError, match=r"paired by seed, found \[3, 5\]"):
        s.resample(lambda x, y: x, np.ones((3, 1)), np.ones((5, 1)), seed=0)


def test_what_few_seeds_can_cover() -> None:
    assert s.interval_note(6) == ""
    assert "cannot cover more than 93.8 %" in s.interval_note(5)
    assert "1 seed: a 95 % interval cannot cover more than 0 %" in s.interval_note(1)
    inside = np.abs(np.sign(rng().normal(size=(20_000, 4))).sum(axis=1)) < 4
    assert inside.mean() == pytest.approx(1 - 2.0**-3, abs=0.01)
    assert "87.5 %" in s.interval_note(4)


# --- tests ----------------------------------------------------------------------------------------


def test_quoted_facts() -> None:
    costs = np.tile(np.arange(10), (20, 1))
    assert s.friedman_nemenyi(costs[:5]).critical_difference == pytest.approx(6.06, abs=0.005)
    assert s.friedman_nemenyi(costs).critical_difference == pytest.approx(3.03, abs=0.005)


# Demšar 2006, table 5: q / sqrt 2 at infinite degrees of freedom.
@pytest.mark.parametrize(("k", "q"), [(3, 2.343), (5, 2.728), (8, 3.031), (10, 3.164)])
@pytest.mark.parametrize("N", [4, 14])
def test_critical_difference_of_the_printed_table(k: int, q: float, N: int) -> None:
    found = s.friedman_nemenyi(rng().normal(size=(N, k)))
    assert found.critical_difference == pytest.approx(q * math.sqrt(k * (k + 1) / 6 / N), rel=5e-4)


def friedman_statistic(ranks: Any) -> Any:
    N, k = ranks.shape[-2:]
    spread = (ranks.mean(axis=-2) - (k + 1) / 2) ** 2
    return 12 * N / (k * (k + 1)) * spread.sum(axis=-1)


def test_friedman_by_its_formula_and_how_near_it_is_to_the_exact_p() -> None:
    costs = np.array([[1, 2, 3], [1, 2, 3], [1, 3, 2], [2, 1, 3]])
    found = s.friedman_nemenyi(costs)
    assert friedman_statistic(costs) == pytest.approx(4.5)
    assert found.p == pytest.approx(stats.chi2.sf(4.5, 2))
    rows = list(itertools.permutations((1, 2, 3)))
    every = friedman_statistic(np.array(list(itertools.product(rows, repeat=4))))
    costs[2] = 1, 2, 3  # rank sums 5, 7, 12 of mean 8
    more = s.friedman_nemenyi(costs)
    assert more.p == pytest.approx(stats.chi2.sf(6.5, 2))
    assert np.mean(every >= 6.5 - 1e-9) == pytest.approx(0.042, abs=5e-4)  # printed tables
    # The docstring's case: 6.0 is 0.0498 by chi-squared, 0.069 exactly.
    assert stats.chi2.sf(6.0, 2) == pytest.approx(0.0498, abs=5e-5)
    assert np.mean(every >= 6.0 - 1e-9) == pytest.approx(0.069, abs=5e-4)


@pytest.mark.parametrize("k", [3, 4, 10, 40])
def test_the_blocks_that_friedman_and_nemenyi_take(k: int) -> None:
    def agreed(N: int) -> s.Friedman:
        return s.friedman_nemenyi(np.tile(np.arange(k), (N, 1)))

    needed = int(agreed(2).needed)
    assert agreed(needed).p <= 0.05
    assert agreed(needed).critical_difference <= k - 1
    if needed > 2:
        before = agreed(needed - 1)
        assert before.p > 0.05 or before.critical_difference > k - 1


def test_methods_that_always_tie() -> None:
    found = s.friedman_nemenyi(np.ones((6, 4)))
    assert found.p == 1


def test_an_incomplete_block_is_not_passed_over() -> None:
    costs = rng().normal(size=(6, 4))
    costs[0, 0] = math.nan
    found = s.friedman_nemenyi(costs)
    assert math.isnan(found.p)


# --- fronts ---------------------------------------------------------------------------------------


def front(name: str, size: int) -> Any:
    t = np.linspace(0, 1, size)
    if name == "vlmop2":
        u = 2 * t - 1
        return np.stack([1 - np.exp(-((1 - u) ** 2)), 1 - np.exp(-((1 + u) ** 2))], axis=1)
    return np.stack([t, 1 - np.sqrt(t) if name == "zdt1" else 1 - t**2], axis=1)


@pytest.mark.parametrize(
    ("name", "reference", "volume"),
    [("vlmop2", 1.0, 0.342), ("zdt1", 1.1, 0.87667), ("zdt2", 1.1, 0.54333)],
)
def test_hypervolume_of_known_fronts(name: str, reference: float, volume: float) -> None:
    points = front(name, 100_001)
    digits = 5 if name.startswith("zdt") else 3
    assert round(s.hypervolume(points, [reference] * 2), digits) == pytest.approx(volume, abs=2e-5)
    assert s.pareto_mask(front(name, 200)).all()


def by_inclusion_exclusion(points: Any, reference: Any) -> float:
    volume = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            sides = np.maximum(np.subtract(reference, np.max(subset, axis=0)), 0)
            volume += (-1) ** (size + 1) * float(np.prod(sides))
    return volume


@given(st.integers(0, 7), st.integers(0, 10**6))
@settings(max_examples=30)
def test_hypervolume_by_inclusion_and_exclusion(size: int, seed: int) -> None:
    points = rng(seed).integers(0, 6, (size, 2)).astype(float)
    reference = np.full(2, 4.0)
    found = s.hypervolume(points, reference)
    assert found == pytest.approx(by_inclusion_exclusion(points, reference), abs=1e-9)
    assert s.hypervolume(points[::-1, ::-1], reference) == pytest.approx(found)
    kept = points[s.pareto_mask(points)]
    assert s.hypervolume(kept, reference) == pytest.approx(found)
    assert s.hypervolume(3 * points + 1, 3 * reference + 1) == pytest.approx(9 * found)


def test_hypervolume_of_what_diverged_is_nothing() -> None:
    assert s.hypervolume([[math.nan, 0.0], [2.0, 0.0], [0.0, 1.0]], [1, 1]) == 0
    assert s.hypervolume([], [1, 1]) == 0


@given(st.integers(1, 4), st.integers(0, 10**6))
def test_pareto_mask_by_definition(K: int, seed: int) -> None:
    points = rng(seed).integers(0, 4, (12, K)).astype(float)
    points[0, 0] = math.nan
    expected = [
        not any(math.isnan(v) for v in p) and not any(all(q <= p) and any(q < p) for q in points)
        for p in points
    ]
    assert s.pareto_mask(points).tolist() == expected
