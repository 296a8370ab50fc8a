r"""What finished cells support: effect sizes, their uncertainty, and what is out of reach.

Scores are arrays (..., methods, n seeds, M metrics) in the metrics' own units; a missing one is
NaN, and so is what is computed from it. `higher` says of each metric whether higher is better.
Seeds are paired: at one index every method and the single-task reference had the same initial
weights, split and batches, so a seed is what is resampled, with everything that was run on it.
All metrics of a run stay together: they are no independent observations.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mtbench.errors import UsageError

Floats = NDArray[np.float64]

COVERAGE = 0.95
"""Of an interval, as it aims at it."""

_CHUNK = 500_000  # numbers of a block of resamples: what stays in a cache is fastest


class Interval(NamedTuple):
    """An estimate and its limits, numbers or arrays of one shape."""

    value: Floats
    low: Floats
    high: Floats


def relative_change(scores: ArrayLike, reference: ArrayLike, higher: Sequence[bool]) -> Floats:
    r"""Return how much worse each score is than the reference's mean, in percent.

    .. math:: c_{sm} = 100 \, (-1)^{h_m} \, (x_{sm} - \bar r_m) \, / \, |\bar r_m|

    with :math:`h_m = 1` where higher is better and :math:`\bar r_m` the mean over seeds. It has no
    unit, so metrics can be pooled; lower is better.

    Args:
        scores: x, (..., n, M).
        reference: r, (..., n, M). NaN comes of a metric whose mean is 0.
        higher: (M,).

    Returns:
        c, (..., n, M).

    Example:
        >>> relative_change([[0.6, 3.0]], [[0.5, 2.0]], [True, False]).round(6).tolist()
        [[-20.0, 50.0]]
    """
    mean = np.asarray(reference, float).mean(axis=-2, keepdims=True)
    divisor = np.where(mean == 0, np.nan, np.abs(mean))
    return 100 * _costs(np.asarray(scores, float) - mean, higher) / divisor


def delta_m(scores: ArrayLike, reference: ArrayLike, higher: Sequence[bool]) -> Floats:
    r"""Return delta-m in percent, the mean relative change against single-task models.

    .. math:: \Delta m = \frac{100}{M} \sum_m (-1)^{h_m} \frac{\bar x_m - \bar r_m}{|\bar r_m|}

    Lower is better: the sign of the multitask-optimization papers, which Maninis et al. (CVPR 2019,
    arXiv 1904.08918) have the other way round. Means over seeds come first, as in the papers'
    tables: a mean of ratios of single seeds would be biased by the noise in their divisors. The
    absolute value is ours; it matters only for metrics that can be negative.

    Args:
        scores: x, (..., n, M).
        reference: r, (..., n, M), of a locally run single-task method.
        higher: (M,).

    Returns:
        delta-m, (...). `paired_bootstrap` gives its interval, in which the reference varies too.

    Example:
        >>> delta_m([[0.6, 3.0]], [[0.5, 2.0]], [True, False]).round(6).item()
        15.0
    """
    means = np.asarray(scores, float).mean(axis=-2, keepdims=True)
    return np.asarray(relative_change(means, reference, higher).mean(axis=(-2, -1)))


def iqm(values: ArrayLike) -> Floats:
    """Return the interquartile mean over seeds and metrics together.

    The mean of what is left when a quarter of the values (rounded down) is cut off at either end
    (Agarwal et al., NeurIPS 2021, arXiv 2108.13264). Values must be in one unit:
    `iqm(relative_change(...))` is delta-m without its outliers.

    Args:
        values: (..., n, M).

    Returns:
        (...).

    Example:
        >>> iqm([[1.0, 2.0], [3.0, 100.0]]).item()
        2.5
    """
    array = np.asarray(values, float)
    flat = array.reshape(*array.shape[:-2], -1)
    # Sorting puts NaN last, where it would be cut off.
    lost = np.isnan(flat).any(axis=-1)
    return np.where(lost, np.nan, stats.trim_mean(np.where(lost[..., None], 0, flat), 0.25, -1))


def mean_rank(scores: ArrayLike, higher: Sequence[bool]) -> Floats:
    """Return each method's rank, 1 the best, averaged over metrics.

    A metric's means over seeds are ranked, ties share the average of their ranks. A method with a
    score that is missing or infinite gets NaN and is left out of the others' ranks. Over tasks, the
    mean of the tasks' mean ranks gives tasks, not metrics, equal weight. A rank depends on who else
    is in the table.

    Args:
        scores: (..., methods, n, M).
        higher: (M,).

    Returns:
        (..., methods).

    Example:
        >>> mean_rank([[[0.9, 5.0]], [[0.8, 1.0]], [[0.8, 9.0]]], [True, False]).tolist()
        [1.5, 1.75, 2.75]
    """
    with np.errstate(invalid="ignore"):
        costs = _costs(np.asarray(scores, float).mean(axis=-2), higher)
    costs = np.where(np.isfinite(costs).all(axis=-1, keepdims=True), costs, np.inf)
    ranks = stats.rankdata(costs, axis=-2).mean(axis=-1)
    return np.where(np.isinf(costs).any(axis=-1), np.nan, ranks)


def resample(
    statistic: Callable[..., Floats],
    *samples: ArrayLike,
    seed: int,
    resamples: int = 10_000,
    drawn: int | None = None,
) -> Floats:
    """Return a statistic of seeds drawn with replacement, the same ones from every sample.

    What lacks a seed is missing from every draw, or else it would be there in those that miss it.

    Args:
        statistic: takes samples (..., n, M), reduces seeds and metrics, and knows leading axes.
        samples: each (..., n, M); methods, metrics and tasks may differ, the n seeds may not.
        seed: of the draws.
        resamples: how many.
        drawn: how many seeds each has, n by default. Of units that say less than n independent
            ones would, it is the number of these that say as much.

    Returns:
        (resamples, ...): what `statistic` returns, once per draw.

    Raises:
        UsageError: the samples' numbers of seeds differ.

    Example:
        >>> ours, single = [[0.5], [0.75]], [[0.5], [0.5]]
        >>> draws = resample(lambda x, y: delta_m(x, y, [False]), ours, single, seed=0)
        >>> sorted(set(draws.tolist()))
        [0.0, 25.0, 50.0]
    """
    arrays = [np.asarray(sample, float) for sample in samples]
    lengths = sorted({array.shape[-2] for array in arrays})
    if len(lengths) != 1:
        raise UsageError(f"samples must be paired by seed, found {lengths} seeds")
    depth = max(array.ndim for array in arrays)
    rows = [_by_seed(array.reshape((1,) * (depth - array.ndim) + array.shape)) for array in arrays]
    draws = np.random.default_rng(seed).integers(lengths[0], size=(resamples, drawn or lengths[0]))
    size = max(1, _CHUNK // sum(array.size for array in arrays))
    return np.concatenate(
        [
            statistic(*(np.moveaxis(row[part], 1, -2) for row in rows))
            for part in (draws[i : i + size] for i in range(0, resamples, size))
        ]
    )


def _by_seed(sample: Floats) -> Floats:
    """Return (n, ..., M): what is copied together lies together."""
    known = np.isfinite(sample).all(axis=-2, keepdims=True)
    return np.ascontiguousarray(np.moveaxis(np.where(known, sample, np.nan), -2, 0))


def paired_bootstrap(
    statistic: Callable[..., Floats],
    *samples: ArrayLike,
    seed: int,
    resamples: int = 10_000,
) -> Interval:
    r"""Return a statistic with its expanded percentile interval over resampled seeds.

    .. math::
        \text{quantiles } \alpha',\; 1 - \alpha' \text{ of the draws}, \qquad
        \alpha' = \Phi\Big(-\sqrt{\tfrac{n}{n-1}} \; t_{n-1,\,(1 + c)/2}\Big), \qquad c = 0.95

    (Hesterberg 2014, arXiv 1411.5279). The plain percentile interval is too narrow, for it uses the
    normal quantile and the variance with divisor n: at 95 % it covers a normal mean in 90 % of
    cases at n = 10, this one in 95 %. Scores of long tails are covered less (lognormal, sigma 0.7:
    85 and 90 %), and at n < 6 no bootstrap interval can keep its promise: `interval_note`.

    Args:
        statistic: takes samples (..., n, M), reduces seeds and metrics, and knows leading axes.
        samples: each (..., n, M), as for `resample`.
        seed: of the draws.
        resamples: how many.

    Returns:
        What `statistic` returns, and its limits: NaN for one seed, or where the value is NaN.

    Raises:
        UsageError: the samples' numbers of seeds differ.

    Example:
        >>> ours, single = [[0.5], [0.75]], [[0.5], [0.5]]
        >>> found = paired_bootstrap(lambda x, y: delta_m(x, y, [False]), ours, single, seed=0)
        >>> [limit.item() for limit in found]
        [25.0, 0.0, 50.0]
    """
    value = np.asarray(statistic(*(np.asarray(sample, float) for sample in samples)))
    n = np.shape(samples[0])[-2]
    draws = resample(statistic, *samples, seed=seed, resamples=resamples if n > 1 else 1)
    if n < 2:
        return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + COVERAGE) / 2, n - 1))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Interval(value, np.asarray(low), np.asarray(high))


def interval_note(n: int, unit: str = "seed") -> str:
    r"""Return why n units are too few for a bootstrap interval, empty if they are not.

    It lies between the least and the greatest unit's value. All n lie on one side of the truth with
    probability :math:`2^{1-n}` (at least; of the median, exactly).

    Example:
        >>> interval_note(10)
        ''
        >>> interval_note(3)
        '3 seeds: a 95 % interval cannot cover more than 75 %; it takes at least 6 seeds'
    """
    needed = max(2, math.ceil(1 - math.log2(1 - COVERAGE)))
    if n >= needed:
        return ""
    return (
        f"{n} {unit}{'s' * (n != 1)}: a {100 * COVERAGE:g} % interval cannot cover more than "
        f"{100 * (1 - 2.0 ** (1 - n)):.3g} %; it takes at least {needed} {unit}s"
    )


def rank_probabilities(draws: ArrayLike) -> Floats:
    """Return how often each method comes first, second, ... among resampled tables.

    Methods that tie share their places evenly. A method with NaN anywhere has no place and is left
    out. "Always first" is said of the seeds that were run, not of all seeds.

    Args:
        draws: (resamples, methods), lower is better: `resample` of `mean_rank` or `delta_m`.

    Returns:
        (methods, methods), entry (i, r) the share of draws with method i at place r + 1; rows and
        columns of placed methods sum to 1, rows of others are NaN.

    Example:
        >>> rank_probabilities([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [1.5, 1.5]]).tolist()
        [[0.625, 0.375], [0.375, 0.625]]
    """
    array = np.asarray(draws, float)
    placed = ~np.isnan(array).any(axis=0)
    kept = array[:, placed]
    first, last = (stats.rankdata(kept, ties, axis=1) for ties in ("min", "max"))
    places = np.arange(1, array.shape[1] + 1)
    shares = np.full((array.shape[1],) * 2, np.nan)
    for column, method in enumerate(np.flatnonzero(placed)):
        begin, end = first[:, [column]], last[:, [column]]
        shares[method] = (((begin <= places) & (places <= end)) / (end - begin + 1)).mean(axis=0)
    return shares


class Friedman(NamedTuple):
    """Friedman's test and what Nemenyi's makes of its ranks.

    Attributes:
        p: of Friedman's test.
        critical_difference: two methods differ whose mean ranks are further apart.
        needed: with fewer blocks nothing can be significant.
    """

    p: float
    critical_difference: float
    needed: float


def variance_components(values: ArrayLike) -> tuple[float, float]:
    r"""Return the variance between groups' true means, and that within a group.

    .. math:: s_w^2 = \frac1n \sum_i s^2(x_{i\cdot}), \qquad s_b^2 = s^2(\bar x_i) - s_w^2 / m

    The estimates by the method of moments, both unbiased. So the former may be below 0, where the
    means differ by no more than their members do.

    Args:
        values: x, (n, m): n groups of m values.

    Example:
        >>> variance_components([[0.0, 2.0], [10.0, 12.0]])
        (49.0, 2.0)
    """
    x = np.asarray(values, float)
    within = float(x.var(axis=1, ddof=1).mean())
    return float(x.mean(axis=1).var(ddof=1)) - within / x.shape[1], within


def friedman_nemenyi(costs: ArrayLike, alpha: float = 0.05) -> Friedman:
    r"""Return Friedman's test over independent blocks, and Nemenyi's critical difference.

    .. math:: CD = \frac{q_\alpha(k, \infty)}{\sqrt 2} \sqrt{\frac{k (k + 1)}{6 N}}

    with q the studentized range's quantile (Demšar, JMLR 2006). Nemenyi's verdicts count where
    Friedman's p is at most alpha. Both are approximations for large N: four blocks of three methods
    with p = 0.0498 have 0.069 when all orders are counted.

    What may be a block? Tasks: data of their own, and the verdict is about tasks like these; a
    task's entry is one number, such as its delta-m. Or one task's seeds, and the verdict is about
    retraining on that task. Not a task's metrics: one run yields them all, and counting them as N
    makes certainty out of nothing. Nor the seeds of several tasks in one list: those of one task
    resemble each other.

    Args:
        costs: (N, k), at least two blocks x at least three methods, lower is better; leave out
            methods that lack a block.
        alpha: level of the critical difference.

    Returns:
        p, critical difference and how many blocks it takes.

    Example:
        >>> found = friedman_nemenyi([[1, 2, 3], [1, 2, 3], [1, 3, 2], [1, 2, 3]])
        >>> round(found.p, 3), round(found.critical_difference, 3), found.needed
        (0.039, 1.657, 3)
    """
    array = np.asarray(costs, float)
    N, k = array.shape
    ranks = stats.rankdata(array, axis=1)
    unit = stats.studentized_range.ppf(1 - alpha, k, np.inf) * math.sqrt(k * (k + 1) / 12)
    needed = math.ceil(max((unit / (k - 1)) ** 2, stats.chi2.isf(alpha, k - 1) / (k - 1), 2))
    p = 1.0 if np.ptp(ranks) == 0 else float(stats.friedmanchisquare(*array.T).pvalue)
    return Friedman(p, float(unit / math.sqrt(N)), needed)


def pareto_mask(costs: ArrayLike) -> NDArray[np.bool_]:
    """Return which points no other point dominates; equal points do not dominate each other.

    Args:
        costs: (points, K), lower is better. A point with NaN is never on the front.

    Returns:
        (points,).

    Example:
        >>> pareto_mask([[1, 3], [2, 2], [3, 1], [2, 3]]).tolist()
        [True, True, True, False]
    """
    array = np.asarray(costs, float)
    return np.array(
        [
            not (np.isnan(c).any() or ((array <= c).all(axis=1) & (array < c).any(axis=1)).any())
            for c in array
        ],
        dtype=bool,
    )


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """Return the area that a set of points dominates, up to a reference point.

    Its value depends on units and reference point: use the same for all.

    Args:
        costs: (points, 2), lower is better. Points beyond the reference, or with NaN, add nothing.
        reference: (2,).

    Example:
        >>> hypervolume([[0.0, 0.5], [0.5, 0.0]], [1.0, 1.0])
        0.75
    """
    x, y = np.asarray(reference, float)
    points = np.asarray(costs, float).reshape(-1, 2)
    points = points[(points < (x, y)).all(axis=1)]
    points = points[np.argsort(points[:, 1])]
    widths = x - np.minimum.accumulate(points[:, 0])
    return float(widths @ np.diff(points[:, 1], append=y))


def _costs(scores: Floats, higher: Sequence[bool]) -> Floats:
    """Return scores such that lower is better."""
    return np.where(higher, -scores, scores)
