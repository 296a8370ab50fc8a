"""The rule of verdicts: its error rate under looking, its power, and what looking saves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtbench.comparing.judging.deciding import (
    FIRST,
    VERDICTS,
    decide,
    level,
    looks_of,
    prospect,
    smallest_effect,
)
from mtbench.comparing.planning.suite import TaskSetting

STUDIES, MOST = 20_000, 20
LOOKS = range(FIRST, MOST + 1)


def reached(draws: np.ndarray, words: tuple[str, ...], **rule: float) -> np.ndarray:
    """Return where a verdict of some words is reached at one look or another."""
    most = draws.shape[1]
    found = np.zeros(len(draws), bool)
    for n in range(FIRST, most + 1):
        found |= np.isin(decide(draws[:, :n], planned=most, **rule).told, words)  # type: ignore[arg-type]
    return found


def ever(draws: np.ndarray, words: tuple[str, ...], **rule: float) -> float:
    return float(reached(draws, words, **rule).mean())


def normal(mean: float = 0.0, seed: int = 0, most: int = MOST) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, size=(STUDIES, most))


def test_levels_spend_alpha_and_no_more() -> None:
    """For normal sums, whose boundaries they are: by simulation, a slow twin of the integration."""
    draws = np.random.default_rng(1).normal(size=(200_000, MOST))
    z = draws.cumsum(axis=1) / np.sqrt(np.arange(1, MOST + 1))
    crossed = np.zeros(len(z), bool)
    for n in LOOKS:
        crossed |= 2 * stats.norm.sf(np.abs(z[:, n - 1])) <= level(n, MOST)
        spent = 4 * stats.norm.sf(stats.norm.isf(0.05 / 4) / math.sqrt(n / MOST))
        assert crossed.mean() == pytest.approx(spent, abs=4 * math.sqrt(spent / len(z)) + 1e-5)


def test_of_many_units_the_level_holds_at_each() -> None:
    """A hundred levels serve for all; who looks at each unit still errs at the rate stated."""
    most = 1000
    found = [level(n, most) for n in range(most + 1)]
    assert found == sorted(found)
    assert len(set(found)) <= 101
    draws = np.random.default_rng(2).normal(size=(10_000, most)).cumsum(axis=1)
    bounds = stats.norm.isf(np.array(found[1:]) / 2) * np.sqrt(np.arange(1, most + 1))
    assert (np.abs(draws) >= bounds).any(axis=1).mean() < 0.0565  # three deviations above 5 %


@pytest.mark.parametrize("most", [FIRST, FIRST + 1, 20, 50])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 15])
def test_levels_rise_to_less_than_alpha(most: int, alpha: float) -> None:
    found = [level(n, most, alpha) for n in range(most + 1)]
    assert found == sorted(found)
    assert found[:FIRST] == [0.0] * FIRST
    assert 0 < found[-1] <= alpha * (1 + 1e-9)
    assert level(FIRST, FIRST, alpha) == pytest.approx(alpha)  # one look


@pytest.mark.parametrize("comparisons", [1, 7])
def test_error_rate_holds_whenever_one_looks(comparisons: int) -> None:
    """Equal methods: neither is called better. A tenth more than stated is the t-tests' share."""
    wrong = ever(normal(), ("better", "worse"), comparisons=comparisons, margin=1e-9)
    stated = 0.05 / comparisons
    assert 0.8 * stated < wrong < 1.2 * stated + 3 * math.sqrt(stated / STUDIES)
    # Who tests at 5 % and stops at what he likes errs four times as often.
    naive = np.zeros(STUDIES, bool)
    for n in LOOKS:
        naive |= stats.ttest_1samp(normal()[:, :n], 0, axis=1).pvalue <= 0.05
    assert naive.mean() > 0.15


def test_error_rate_of_equivalence() -> None:
    """A difference of just the margin is called none as often as stated."""
    wrong = ever(normal(1.0), ("equivalent", "better"), margin=1.0)
    assert 0.04 < wrong < 0.06


@pytest.mark.parametrize(("comparisons", "found"), [(1, 0.085), (7, 0.0135)])
def test_error_rate_of_more_repetitions_than_planned(comparisons: int, found: float) -> None:
    """Twice as many, since all that were planned told nothing: the docs say what that costs."""
    draws = normal(most=2 * MOST)
    first, anew = (
        reached(d, ("better", "worse"), comparisons=comparisons, margin=1e-9)
        for d in (draws[:, :MOST], draws)
    )
    stated = 0.05 / comparisons
    assert anew.mean() < 1.2 * stated + 3 * math.sqrt(stated / STUDIES)  # judged by the new number
    assert (first | anew).mean() == pytest.approx(found, rel=0.15)  # what 20 had told is kept


def test_error_rate_with_collapses() -> None:
    """One unit in ten collapses, for either method: the tails are heavy and the rate is lower."""
    rng = np.random.default_rng(3)
    hit = (rng.random((2, STUDIES, MOST)) < 0.1).astype(float)
    assert ever(normal() + 10 * (hit[0] - hit[1]), ("better", "worse"), margin=1e-9) < 0.05


@pytest.mark.parametrize(("share", "found"), [(0.05, 0.25), (0.1, 0.29), (0.2, 0.19)])
def test_collapses_of_one_method_alone_break_the_level(share: float, found: float) -> None:
    """By 10 deviations, the mean difference being 0: a limit of t-tests, which the docs state."""
    hit = np.random.default_rng(6).random((STUDIES, MOST)) < share
    d = normal() + 10 * (hit - share)
    assert ever(d, ("better", "worse"), margin=1e-9) == pytest.approx(found, abs=0.015)


def test_ranks_do_not_mend_that() -> None:
    """They ask whether most units differ, and leave out what the mean difference is made of."""
    rng = np.random.default_rng(7)
    d = rng.normal(size=(1_000, MOST)) + 10 * ((rng.random((1_000, MOST)) < 0.1) - 0.1)
    plain = np.isin(decide(d, margin=1e-9).told, ("better", "worse")).mean()
    assert plain < 0.15
    assert (stats.wilcoxon(d, axis=1).pvalue <= 0.05).mean() > 0.5


def test_what_is_chosen_once_covers_too_little_and_repetitions_what_they_say() -> None:
    """Two methods that are equal over all the luck of tuning, which moves each choice by 2 points.

    Ten seeds move it by 1: an interval over them knows the smaller part. This is why a suite that
    tunes once gives no verdict.
    """
    rng = np.random.default_rng(5)
    luck, seeds = 2 * rng.normal(size=(STUDIES, 10)), rng.normal(size=(STUDIES, 10))
    covered = {}
    for name, units in (("once", luck[:, :1] + seeds), ("repeated", luck + seeds)):
        found = decide(units)
        covered[name] = ((found.low <= 0) & (found.high >= 0)).mean()
    assert covered["once"] < 0.4
    assert 0.94 < covered["repeated"] < 0.96


def test_nadeau_and_bengio_hold_where_units_split_one_collection() -> None:
    """Correlated differences, as of re-splits with a fifth for testing: rho = 0.25."""
    rng = np.random.default_rng(4)
    rho = 0.25 / (1 + 0.25)  # so that var(mean) = (1/n + 0.25) s^2, the correction's assumption
    shared = rng.normal(size=(STUDIES, 1)) * math.sqrt(rho)
    draws = shared + rng.normal(size=(STUDIES, 10)) * math.sqrt(1 - rho)
    plain, corrected = (
        np.isin(decide(draws, margin=1e-9, test_train_ratio=r).told, ("better", "worse")).mean()
        for r in (0.0, 0.25)
    )
    assert plain > 0.25
    assert 0.04 < corrected < 0.06


def false_alarms(differences: np.ndarray, resplit: float) -> float:
    told = decide(differences, margin=1e-9, test_train_ratio=resplit).told
    return float(np.isin(told, ("better", "worse")).mean())


def errors_of_least_squares(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the test error of two equally bad models: each sees four of eight features."""
    targets = train[:, :1], test[:, :1]
    found = []
    for part in (slice(1, 5), slice(5, 9)):
        weights = np.linalg.lstsq(train[:, part], targets[0], rcond=None)[0]
        found.append(np.abs(test[:, part] @ weights - targets[1]).mean())
    return np.array(found)


def population(rng: np.random.Generator, count: int) -> np.ndarray:
    x = rng.standard_normal((count, 8))
    return np.column_stack([x.sum(axis=1) + rng.standard_normal(count), x])


def test_folds_of_one_collection_keep_the_level() -> None:
    """Models are trained in truth: four rounds of five folds, a fifth of the rest validates."""
    rng = np.random.default_rng(8)
    setting = TaskSetting(name="any", resample={"fold": [0, 1, 2, 3, 4]})
    differences = []
    for _ in range(400):
        data = population(rng, 100)
        folds = rng.permutation(100).reshape(5, 20)
        own = []
        for repetition in range(MOST):
            tested = folds[setting.data_of(repetition)["fold"]]
            rest = rng.permutation(np.setdiff1d(np.arange(100), tested))
            first, second = errors_of_least_squares(data[rest[:64]], data[tested])
            own.append(first - second)
        differences.append(own)
    d = np.array(differences)
    assert false_alarms(d, 0.0) > 0.3
    assert 0.02 < false_alarms(d, setting.resplit or 0.0) < 0.08
    assert ever(d, ("better", "worse"), margin=1e-9, test_train_ratio=setting.resplit or 0.0) < 0.07


def test_populations_of_their_own_keep_the_level() -> None:
    """Trained on new samples each time, and tested on one set, as on phantoms."""
    rng = np.random.default_rng(9)
    test = population(rng, 1_000)
    d = np.array(
        [
            [np.subtract(*errors_of_least_squares(population(rng, 64), test)) for _ in range(MOST)]
            for _ in range(200)
        ]
    )
    # On this test set the two are not equal: what is told holds given the test set.
    assert 0.01 < false_alarms(d - d.mean(), 0.0) < 0.09


def test_power_and_what_looking_saves() -> None:
    looks = looks_of(MOST)
    large = prospect(-3.0, 1.0, MOST, comparisons=7, looks=looks)
    assert large.shares["better"] == 1.0
    assert large.units < 10  # half of the repetitions
    for effect, word in ((-1.0, "better"), (0.0, "equivalent")):
        once = prospect(effect, 1.0, MOST, margin=1.0)
        often = prospect(effect, 1.0, MOST, margin=1.0, looks=looks)
        assert often.shares[word] > 0.85
        assert often.units < 0.8 * MOST
        assert often.shares[word] > once.shares[word] - 0.03


@pytest.mark.parametrize(("comparisons", "resplit"), [(7, 0.0), (70, 1.25)])
def test_the_smallest_effect_is_told_as_often_as_stated(comparisons: int, resplit: float) -> None:
    """Also where it is large: six units of two folds, and all methods."""
    effect = smallest_effect(FIRST, comparisons, test_train_ratio=resplit)
    found = prospect(
        -effect, 1.0, FIRST, margin=1e-9, comparisons=comparisons, test_train_ratio=resplit
    )
    assert found.told(["better"]) == pytest.approx(0.8, abs=0.01)


def test_folds_take_more_than_populations() -> None:
    plain, folds = (
        prospect(-1.0, 1.0, MOST, margin=1e-9, test_train_ratio=rho) for rho in (0.0, 0.25)
    )
    assert plain.shares["better"] > 0.9 > 0.6 > folds.shares["better"]
    null = prospect(0.0, 1.0, MOST, margin=1e-9, test_train_ratio=0.25)
    assert 0.02 < null.shares["better"] + null.shares["worse"] < 0.06  # the last look has 3.4 %


def test_verdicts_by_hand() -> None:
    d = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 3.0])
    found = decide(d, margin=0.5)
    t = 3.0 / (d.std(ddof=1) / math.sqrt(6))
    assert found.p == pytest.approx(2 * stats.t.sf(t, 5))
    assert found.told == "worse"
    half = stats.t.isf(0.025, 5) * 3.0 / t
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert decide(-d, margin=0.5).told == "better"
    assert decide(d, margin=50.0).told == "equivalent"  # though it is told from 0
    assert decide(np.array([4.0, -3, 2, -5, 6, 1]), margin=0.5).told == "not told apart"


def test_odd_differences() -> None:
    equal = decide(np.zeros(6), margin=1.0)
    assert (equal.told, equal.p, equal.low, equal.high) == ("equivalent", 1.0, 0.0, 0.0)
    assert decide(np.full(6, 2.0), margin=2.0).told == "worse"
    assert decide(np.full(6, -2.0), margin=3.0).told == "equivalent"
    assert decide(np.array([np.nan] * 6)).told == "not told apart"
    few = decide(np.array([-9.0, -9.1]))
    assert few.told == "not told apart"
    assert (few.low, few.high) == (-math.inf, math.inf)


@given(st.lists(st.floats(-100, 100), min_size=6, max_size=12), st.floats(0.1, 10))
def test_turning_a_pair_round_turns_its_verdict(d: list[float], margin: float) -> None:
    one, other = decide(d, margin=margin), decide([-x for x in d], margin=margin)
    turned = {"better": "worse", "worse": "better"}
    assert turned.get(str(one.told), str(one.told)) == str(other.told)
    assert str(one.told) in VERDICTS
    if one.told == "better":
        assert one.high <= 0
