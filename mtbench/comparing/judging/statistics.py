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
from scipy import optimize, stats

from mtbench.errors import UsageError

Floats = NDArray[np.float64]

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
    statistic: Callable[..., Floats], *samples: ArrayLike, seed: int, resamples: int = 10_000
) -> Floats:
    """Return a statistic of seeds drawn with replacement, the same ones from every sample.

    What lacks a seed is missing from every draw, or else it would be there in those that miss it.

    Args:
        statistic: takes samples (..., n, M), reduces seeds and metrics, and knows leading axes.
        samples: each (..., n, M); methods, metrics and tasks may differ, the n seeds may not.
        seed: of the draws.
        resamples: how many.

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
    draws = np.random.default_rng(seed).integers(lengths[0], size=(resamples, lengths[0]))
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
    level: float = 0.95,
) -> Interval:
    r"""Return a statistic with its expanded percentile interval over resampled seeds.

    .. math::
        \text{quantiles } \alpha',\; 1 - \alpha' \text{ of the draws}, \qquad
        \alpha' = \Phi\Big(-\sqrt{\tfrac{n}{n-1}} \; t_{n-1,\,(1 + \text{level})/2}\Big)

    (Hesterberg 2014, arXiv 1411.5279). The plain percentile interval is too narrow, for it uses the
    normal quantile and the variance with divisor n: at 95 % it covers a normal mean in 90 % of
    cases at n = 10, this one in 95 %. Scores of long tails are covered less (lognormal, sigma 0.7:
    85 and 90 %), and at n < 6 no bootstrap interval can keep its promise: `interval_note`.

    Args:
        statistic: takes samples (..., n, M), reduces seeds and metrics, and knows leading axes.
        samples: each (..., n, M), as for `resample`.
        seed: of the draws.
        resamples: how many.
        level: coverage aimed at.

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
    draws = resample(statistic, *samples, seed=seed, resamples=resamples)
    n = np.shape(samples[0])[-2]
    if n < 2:
        return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Interval(value, np.asarray(low), np.asarray(high))


def interval_note(n: int, level: float = 0.95) -> str:
    r"""Return why n seeds are too few for a bootstrap interval, empty if they are not.

    It lies between the least and the greatest seed's value. All n lie on one side of the truth with
    probability :math:`2^{1-n}` (at least; of the median, exactly).

    Example:
        >>> interval_note(10)
        ''
        >>> interval_note(3)
        '3 seeds: a 95 % interval cannot cover more than 75 %; it takes at least 6 seeds'
    """
    needed = max(2, math.ceil(1 - math.log2(1 - level)))
    if n >= needed:
        return ""
    return (
        f"{n} seed{'s' * (n != 1)}: a {100 * level:g} % interval cannot cover more than "
        f"{100 * (1 - 2.0 ** (1 - n)):.3g} %; it takes at least {needed} seeds"
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


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, higher: Sequence[bool], *, paired: bool, level: float = 0.95
) -> Interval:
    r"""Return the probability that x is better than y, averaged over metrics; ties count half.

    .. math:: p = \frac{1}{M} \sum_m \operatorname{mean}_{(s, s') \in P}
        \big[ x_{sm} \prec y_{s'm} \big] + \tfrac12 \big[ x_{sm} = y_{s'm} \big]

    P is all pairs of seeds, as in Agarwal et al. (NeurIPS 2021, arXiv 2108.13264; the Mann-Whitney
    statistic), or s = s' (`paired`): whether x wins on the seed that both were given.

    The limits are Clopper and Pearson's for n p wins of n. They are exact for one metric and paired
    seeds without ties, and conservative otherwise (no [0, 1]-valued variable varies more than a
    binary one of its mean; the Mann-Whitney statistic of independent samples no more than
    p (1 - p) / n). Our choice: where one side wins everywhere a bootstrap would give [1, 1].

    Args:
        x: (..., n, M).
        y: (..., n, M).
        higher: (M,).
        paired: compare within seeds only.
        level: coverage of the interval.

    Returns:
        p and its limits, (...).

    Raises:
        UsageError: the numbers of seeds differ.

    Example:
        >>> found = probability_of_improvement([[1.0], [2.0]], [[1.0], [3.0]], [False], paired=True)
        >>> found.value.item()
        0.75
    """
    ours, theirs = np.asarray(x, float), np.asarray(y, float)
    n = ours.shape[-2]
    if theirs.shape[-2] != n:
        raise UsageError(f"x and y must have the same seeds, found {n} and {theirs.shape[-2]}")
    if not paired:
        ours, theirs = ours[..., :, None, :], theirs[..., None, :, :]
    wins = (1 - np.sign(_costs(ours, higher) - _costs(theirs, higher))) / 2
    value = np.asarray(wins.mean(axis=(-2, -1) if paired else (-3, -2, -1)))
    won, lost = n * value, n * (1 - value)
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):  # no wins, no losses, or NaN
        low = np.where(won > 0, stats.beta.ppf(tail, won, lost + 1), won)
        high = np.where(lost > 0, stats.beta.isf(tail, won + 1, lost), 1 - lost)
    return Interval(value, low, high)


def holm(p: ArrayLike) -> Floats:
    r"""Return Holm's adjusted p-values; NaN is no comparison.

    .. math:: \tilde p_{(i)} = \min\big(1,\; \max_{j \le i} (m - j + 1) \, p_{(j)}\big)

    (Holm, Scandinavian Journal of Statistics 1979.)

    Args:
        p: (m,).

    Returns:
        (m,).

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    array = np.asarray(p, float)
    adjusted = np.full_like(array, np.nan)
    order = np.argsort(array)[: np.isfinite(array).sum()]
    steps = array[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


class Comparison(NamedTuple):
    """Tests of methods against one baseline.

    Attributes:
        p: two-sided, (methods,).
        adjusted: the same after Holm's correction.
        note: why none can be significant with so few seeds, else empty.
    """

    p: Floats
    adjusted: Floats
    note: str


def wilcoxon_holm(scores: ArrayLike, baseline: ArrayLike, alpha: float = 0.05) -> Comparison:
    """Return Wilcoxon's signed-rank tests of every method against a baseline.

    The pairs are one task's seeds, so the verdict is about retraining on this task, not about other
    tasks. Equal pairs are dropped (Wilcoxon's way); without any other, p is 1. p is exact up to 50
    seeds, or 13 where differences tie (`scipy.stats.wilcoxon`).

    Args:
        scores: (methods, n), one number a seed, such as `relative_change(...).mean(-1)`.
        baseline: (n,).
        alpha: level at which the note asks what can be reached.

    Returns:
        p, adjusted p and note. A method with a missing seed gets NaN and is no comparison.

    Example:
        >>> wilcoxon_holm([[2.0, 4.0, 6.0, 8.0, 10.0, 12.0]], [1, 2, 3, 4, 5, 6]).p.tolist()
        [0.03125]
    """
    differences = np.asarray(scores, float) - np.asarray(baseline, float)
    sizes = np.sort(np.abs(differences), axis=1)
    apart = np.all(np.diff(sizes, axis=1) > 0, axis=1)
    plain: NDArray[np.bool_] = np.any(sizes[:, :1] > 0, axis=1) & apart  # no NaN, zero or tie
    p = np.array(
        [math.nan if done else _wilcoxon(row) for row, done in zip(differences, plain, strict=True)]
    )
    if plain.any():  # all at once: scipy's calls are slow one by one
        p[plain] = stats.wilcoxon(differences[plain], axis=1).pvalue
    note = significance_note(differences.shape[1], int(np.isfinite(p).sum()), alpha)
    return Comparison(p, holm(p), note)


def _wilcoxon(differences: Floats) -> float:
    if np.isnan(differences).any():
        return math.nan
    unequal = differences[differences != 0]
    return float(stats.wilcoxon(unequal).pvalue) if len(unequal) else 1.0


def seeds_needed(comparisons: int, alpha: float = 0.05) -> int:
    r"""Return the fewest seeds at which Wilcoxon with Holm can reach significance.

    With all n differences of one sign p is :math:`2 / 2^n`, and Holm multiplies the smallest of m
    by m: the least n with :math:`2 m / 2^n \le \alpha`.

    Example:
        >>> seeds_needed(1), seeds_needed(9)
        (6, 9)
    """
    return max(1, math.ceil(math.log2(2 * comparisons / alpha)))


def significance_note(n: int, comparisons: int, alpha: float = 0.05) -> str:
    """Return why n seeds cannot show significance, empty if they can.

    Example:
        >>> significance_note(9, 9)
        ''
        >>> significance_note(5, 1)
        '5 seeds: Wilcoxon cannot go below p = 0.0625; 0.05 takes at least 6 seeds'
        >>> significance_note(8, 9)
        '8 seeds: Wilcoxon with Holm over 9 cannot go below p = 0.0703; 0.05 takes at least 9 seeds'
    """
    if not comparisons or n >= (needed := seeds_needed(comparisons, alpha)):
        return ""
    test = f"Wilcoxon with Holm over {comparisons}" if comparisons > 1 else "Wilcoxon"
    least = min(1, comparisons * 2.0 ** (1 - n))
    return (
        f"{n} seed{'s' * (n != 1)}: {test} cannot go below p = {least:.3g}; "
        f"{alpha:g} takes at least {needed} seeds"
    )


class Ranking(NamedTuple):
    """Friedman's test and what Nemenyi's makes of its ranks.

    Attributes:
        mean_ranks: over blocks, (methods,), 1 the best.
        p: of Friedman's test; NaN where it cannot be made.
        critical_difference: two methods differ whose mean ranks are further apart.
        cliques: the diagram's bars: methods (columns) no two of which differ, best first; only
            maximal ones, and none of a single method.
        note: why nothing can be significant with so few blocks, else empty.
    """

    mean_ranks: Floats
    p: float
    critical_difference: float
    cliques: list[tuple[int, ...]]
    note: str


def friedman_nemenyi(costs: ArrayLike, alpha: float = 0.05) -> Ranking:
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
        costs: (N, k), blocks x methods, lower is better; leave out methods that lack a block.
        alpha: level of the critical difference.

    Returns:
        Mean ranks, p, critical difference, cliques and note.

    Example:
        >>> found = friedman_nemenyi([[1, 2, 3], [1, 2, 3], [1, 3, 2], [1, 2, 3]])
        >>> found.mean_ranks.tolist(), round(found.p, 3), round(found.critical_difference, 3)
        ([1.0, 2.25, 2.75], 0.039, 1.657)
        >>> found.cliques
        [(0, 1), (1, 2)]
    """
    array = np.asarray(costs, float)
    N, k = array.shape
    ranks = stats.rankdata(array, axis=1)
    mean_ranks = ranks.mean(axis=0)
    if N < 2 or k < 3:
        note = f"Friedman's test takes at least 2 blocks and 3 methods, found {N} and {k}"
        return Ranking(mean_ranks, math.nan, math.nan, [], note)
    p = 1.0 if np.ptp(ranks) == 0 else float(stats.friedmanchisquare(*array.T).pvalue)
    unit = stats.studentized_range.ppf(1 - alpha, k, np.inf) * math.sqrt(k * (k + 1) / 12)
    critical = float(unit / math.sqrt(N))
    needed = math.ceil(max((unit / (k - 1)) ** 2, stats.chi2.isf(alpha, k - 1) / (k - 1)))
    note = (
        f"{N} blocks: mean ranks of {k} methods cannot differ by more than {k - 1}, and would have "
        f"to by {critical:.2f}; Friedman and Nemenyi take at least {needed} blocks"
    )
    found = cliques(mean_ranks, critical)
    return Ranking(mean_ranks, p, critical, found, note if needed > N else "")


def cliques(mean_ranks: ArrayLike, critical_difference: float) -> list[tuple[int, ...]]:
    """Return the maximal groups of methods whose mean ranks lie within a critical difference.

    Args:
        mean_ranks: (methods,).
        critical_difference: the largest difference that does not count.

    Returns:
        Groups of two or more, best first; in each the methods' indices, best first.

    Example:
        >>> cliques([3.0, 1.0, 1.5, 2.4], 1.0)
        [(1, 2), (2, 3), (3, 0)]
    """
    ranks = np.asarray(mean_ranks, float)
    order = np.argsort(ranks, kind="stable")
    # A sum of ranks divided by N is exact to a few ulps only.
    reach = ranks[order] + critical_difference * (1 + 1e-12)
    ends = np.searchsorted(ranks[order], reach, side="right")
    previous = np.concatenate([[0], ends[:-1]])
    return [
        tuple(order[begin:end].tolist())
        for begin, (end, before) in enumerate(zip(ends, previous, strict=True))
        if end > before and end - begin > 1
    ]


def smallest_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    r"""Return the smallest mean difference that n paired seeds are likely to detect.

    In standard deviations of the paired differences: the d at which a two-sided t-test has the
    power asked for,

    .. math:: P\big(F'_{1,\,n-1}(n d^2) > F_{1,\,n-1;\,1-\alpha}\big) = \text{power},

    F' being the square of noncentral t. For one of m comparisons pass alpha / m.

    Args:
        n: number of seeds.
        power: probability of detecting it.
        alpha: two-sided level.

    Returns:
        d; infinite for fewer than two seeds.

    Example:
        >>> [round(smallest_effect(n), 2) for n in (1, 3, 5, 10)]
        [inf, 3.26, 1.68, 1.0]
    """
    if n < 2:
        return math.inf
    threshold = stats.f.isf(alpha, 1, n - 1)

    def excess(d: float) -> float:
        return float(stats.ncf.sf(threshold, 1, n - 1, n * d**2) - power)

    upper = 1.0
    while excess(upper) < 0:
        upper *= 2
    return float(optimize.brentq(excess, 0, upper))


def best_of(trials: ArrayLike, *, higher: bool, level: float = 0.95) -> Interval:
    r"""Return the best of n trials to be expected, for n = 1..B, from B trials.

    .. math:: E_n = \sum_{i=1}^{B} \frac{\binom{i-1}{n-1}}{\binom{B}{n}} \, v_{(i)}

    with :math:`v_{(1)}, .., v_{(B)}` from worst to best: the mean over all subsets of n, which is
    unbiased (Tang et al., ACL 2020, arXiv 2004.13705), where the plug-in estimate of Dodge et al.
    (EMNLP 2019, arXiv 1909.03004) is too low. The band holds the middle `level` of what tuning with
    n fresh trials would end with, :math:`P(\text{best} \le v_{(i)}) \approx (i / B)^n`. It cannot
    go beyond the best trial seen, so towards n = B it says too little on that side.

    The trials must be independent and identically distributed: drawn at random beforehand. Those of
    an adaptive sampler (TPE), a pruner, a grid or a quasi-random sequence are not, and the curve
    would be wrong. A trial that failed or diverged (not finite) counts as the worst finite one.

    Args:
        trials: (B,), validation scores in any order.
        higher: whether higher is better.
        level: share of outcomes in the band.

    Returns:
        Expectations and the band's edges, each (B,); NaN if no trial succeeded.

    Example:
        >>> best_of([3.0, 1.0, 2.0, float("nan")], higher=True).value.round(3).tolist()
        [1.75, 2.333, 2.75, 3.0]
    """
    array = np.asarray(trials, float)
    finite = array[np.isfinite(array)]
    if not len(finite):
        return Interval(*(np.full(len(array), np.nan) for _ in range(3)))
    gains = np.where(np.isfinite(array), array, finite.min() if higher else finite.max())
    v = np.sort(gains if higher else -gains)
    B = len(v)
    i, n = np.arange(1, B + 1), np.arange(1, B + 1)[:, None]
    # Of the C(B, n) subsets, C(i, n) have no trial better than the i-th: a product of n ratios.
    within = np.cumprod(np.maximum(i - n + 1, 0) / (B - n + 1), axis=0)
    value = np.diff(within, prepend=0.0) @ v
    reached = n * np.log(i / B) + 1e-12  # or rounding decides whether (i / B)^n is the quantile
    low, high = (
        v[(reached >= math.log(q)).argmax(axis=1)] for q in ((1 - level) / 2, (1 + level) / 2)
    )
    return Interval(value, low, high) if higher else Interval(-value, -high, -low)


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
    r"""Return the volume that a set of points dominates, up to a reference point.

    .. math:: \lambda\big(\{z : \exists\, p \in \text{costs},\; p \le z \le \text{reference}\}\big)

    Exact, by slicing along the last objective; for N points in K dimensions about
    :math:`N^{K-1} \log N`. Its value depends on units and reference point: use the same for all.

    Args:
        costs: (points, K), lower is better. Points beyond the reference, or with NaN, add nothing.
        reference: (K,).

    Returns:
        The volume.

    Example:
        >>> hypervolume([[0.0, 0.5], [0.5, 0.0]], [1.0, 1.0])
        0.75
    """
    bound = np.asarray(reference, float)
    points = np.asarray(costs, float).reshape(-1, len(bound))
    points = points[(points < bound).all(axis=1)]
    points = points[np.argsort(points[:, -1])]
    if len(bound) == 1:
        return float(bound[0] - points[0, 0]) if len(points) else 0.0
    depths = np.diff(points[:, -1], append=bound[-1])
    if len(bound) == 2:
        widths = bound[0] - np.minimum.accumulate(points[:, 0])
        return float(widths @ depths)
    slices = (hypervolume(points[: i + 1, :-1], bound[:-1]) for i in np.flatnonzero(depths))
    return float(sum(v * d for v, d in zip(slices, depths[depths != 0], strict=True)))


def _costs(scores: Floats, higher: Sequence[bool]) -> Floats:
    """Return scores such that lower is better."""
    return np.where(higher, -scores, scores)
