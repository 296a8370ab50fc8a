r"""Better, worse, equivalent, or not told apart: one rule, whose error rate holds under looking.

A pair of methods is compared by its differences of delta-m, one number a unit (a repetition of the
whole study, or a seed). Direction and significance come from the same t-test; equivalence from two
one-sided ones against a margin that was stated before. Whoever looks at results as they come in,
and stops when he likes them, makes errors more often than the level says. So a level that is to
hold at every look is spent as O'Brien and Fleming's rule does, little at first: with :math:`t = n /
N` of all units there,

.. math:: \alpha(t) = 4 \, \big(1 - \Phi(z_{1 - \alpha / 4} / \sqrt t)\big)

(Lan and DeMets, Biometrika 1983), with a look at every n from `FIRST` to N: the verdict may be read
at any time. (Where N is large, at a hundred of them; between two, the smaller level of the earlier
one is used.) Boundaries are exact for normal differences of known variance; as is common (Jennison
and Turnbull 2000, section 4.4), the levels that belong to them are given to t-tests. The tests
check error rate and power by simulation, with skewed differences too.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from mtbench.comparing.judging.statistics import Floats

ALPHA = 0.05
"""The probability of a false verdict among all comparisons with one baseline."""

MARGIN = 2.0
"""Percent of delta-m within which methods count as equivalent, unless a suite says otherwise."""

FIRST = 6
"""The fewest units of a verdict: with fewer, a t-test lives by differences being normal."""

VERDICTS = ("better", "worse", "equivalent", "not told apart")

_LOOKS = 100
_NODES = 400
_FAR = 9.0  # standard deviations: what lies beyond is nothing


def level(n: int, planned: int, alpha: float = ALPHA) -> float:
    """Return the level of a two-sided test at n of `planned` units; 0 where there is none yet.

    Args:
        n: units that are there.
        planned: units that are planned.
        alpha: of all looks together.

    Example:
        >>> [round(level(n, 20), 4) for n in (5, 6, 10, 20)]
        [0.0, 0.0001, 0.0025, 0.0338]
    """
    passed = int(np.searchsorted(_looks(planned), n, side="right"))
    return _levels(planned, alpha)[passed - 1] if passed else 0.0


def _looks(planned: int) -> NDArray[np.int_]:
    step = max(1, math.ceil((planned - FIRST + 1) / _LOOKS))
    return np.arange(planned, FIRST - 1, -step)[::-1]


@lru_cache(maxsize=256)
def _levels(planned: int, alpha: float) -> tuple[float, ...]:
    """Return the levels at each look: Armitage, McPherson and Rowe's integration."""
    looks = _looks(planned)
    spent = 4 * stats.norm.sf(stats.norm.isf(alpha / 4) / np.sqrt(looks / planned))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    found: list[float] = []
    points, density = np.zeros(1), np.ones(1)  # of the sum of units so far, not yet stopped
    before, last = 0.0, 0
    for n, so_far in zip(looks.tolist(), spent.tolist(), strict=True):
        spread = math.sqrt(n - last)
        known = points, density, spread, so_far - before
        bound, own = _FAR * math.sqrt(n), 0.0
        if _excess(bound, *known) < 0:
            bound = float(optimize.brentq(_excess, 0.0, bound, args=known))
            own = 2 * float(stats.norm.sf(bound / math.sqrt(n)))
        found.append(own)
        here = bound * nodes
        steps = stats.norm.pdf((here[:, None] - points) / spread) / spread
        points, density = here, (steps @ density) * weights * bound
        before, last = so_far, n
    return tuple(found)


def _excess(bound: float, points: Floats, density: Floats, spread: float, share: float) -> float:
    """Return how much more than a share stops beyond a bound."""
    tails = stats.norm.sf((bound - points) / spread) + stats.norm.sf((bound + points) / spread)
    return float(density @ tails) - share


class Verdicts(NamedTuple):
    """What paired differences say, (...) each.

    Attributes:
        difference: their mean.
        deviation: their standard deviation, NaN of one.
        low: of its confidence interval, at the level that the verdict has; infinite where none can
            be given yet, NaN for one unit.
        high: likewise.
        p: of no difference, two-sided, multiplied by the number of comparisons.
        p_equivalence: of a difference of the margin or more, likewise.
        told: of `VERDICTS`.
    """

    difference: Floats
    deviation: Floats
    low: Floats
    high: Floats
    p: Floats
    p_equivalence: Floats
    told: NDArray[np.str_]


def decide(
    differences: ArrayLike,
    *,
    margin: float = MARGIN,
    planned: int | None = None,
    comparisons: int = 1,
    alpha: float = ALPHA,
    test_train_ratio: float = 0.0,
) -> Verdicts:
    r"""Return what is told of pairs, each by its differences of a cost: lower is better.

    .. math:: t = \bar d \, / \, \big(s \sqrt{1/n + \rho}\big)

    is compared with Student's distribution of n - 1 degrees of freedom at :math:`\alpha / m` (m
    comparisons, Bonferroni: every comparison's verdict is its own), of which the share that `level`
    gives is there to be spent. Equivalent are two methods if both one-sided tests against the
    margin reject, at the same level; it comes before better and worse, for a difference that is
    surely smaller than the margin is none that counts.

    Args:
        differences: d, (..., n). NaN makes a pair untold.
        margin: in units of d.
        planned: units that were planned, None where they are looked at once.
        comparisons: m.
        alpha: of all comparisons and looks together.
        test_train_ratio: rho. Where all units split one collection again, their differences are
            correlated, and the plain test rejects true hypotheses several times too often; with the
            ratio of test to training samples here it is Nadeau and Bengio's corrected test (Machine
            Learning 2003).

    Example:
        >>> d = [-3.0, -6.0, -1.0, -4.5, -5.0, -2.0]
        >>> decide(d).told.item()
        'better'
        >>> decide(d, planned=20).told.item()  # a glance at 6 of 20
        'not told apart'
        >>> decide([0.1, -0.2, 0.3, 0.0, 0.2, -0.1], margin=2.0).told.item()
        'equivalent'
    """
    d = np.asarray(differences, float)
    n = d.shape[-1]
    mean = d.mean(axis=-1) if n else np.full(d.shape[:-1], np.nan)
    each = alpha / comparisons
    two_sided, one_sided = (each, each) if n >= FIRST else (0.0, 0.0)
    if planned is not None:
        two_sided, one_sided = level(n, planned, each), level(n, planned, 2 * each) / 2
    if n < 2:
        unknown, told = np.full(mean.shape, np.nan), np.full(mean.shape, VERDICTS[3])
        return Verdicts(mean, unknown, unknown, unknown, unknown, unknown, told)
    deviation = d.std(axis=-1, ddof=1)
    error = deviation * math.sqrt(1 / n + test_train_ratio)
    with np.errstate(divide="ignore", invalid="ignore"):  # equal differences have no error
        p = np.where((error == 0) & (mean == 0), 1.0, 2 * stats.t.sf(np.abs(mean) / error, n - 1))
        inside = (margin - np.abs(mean)) / error
    p_equivalence = np.where(
        (error == 0) & (np.abs(mean) == margin), 1.0, stats.t.sf(inside, n - 1)
    )
    quantile = stats.t.isf(two_sided / 2, n - 1)
    reach = np.where(error > 0, quantile * error, 0.0) if two_sided else np.inf + error
    apart = (p <= two_sided) & (two_sided > 0)
    told = np.select(
        [(p_equivalence <= one_sided) & (one_sided > 0), apart & (mean < 0), apart & (mean > 0)],
        ["equivalent", "better", "worse"],
        VERDICTS[3],
    )
    return Verdicts(
        mean, deviation, mean - reach, mean + reach,
        np.minimum(1, comparisons * p), np.minimum(1, comparisons * p_equivalence), told,
    )  # fmt: skip


def beats_guess(gains: Floats, test_train_ratio: float = 0.0) -> bool:
    """Return whether gains over a guess, one number a unit, are told from none.

    A one-sided t-test at `ALPHA`, corrected as in `decide`; of one unit, the number itself.

    Example:
        >>> beats_guess(np.array([0.1, 0.2, 0.1])), beats_guess(np.array([0.3, -0.2, 0.1]))
        (True, False)
    """
    found = decide(-gains, test_train_ratio=test_train_ratio)
    return bool(found.difference < 0 and (len(gains) == 1 or found.p <= 2 * ALPHA))


class Prospect(NamedTuple):
    """What a comparison is likely to end with.

    Attributes:
        shares: probability of each of `VERDICTS`.
        units: expected number of units until a verdict, or all that were planned.
    """

    shares: dict[str, float]
    units: float

    def told(self, words: Sequence[str]) -> float:
        """Return the probability of one of some verdicts."""
        return sum(self.shares[word] for word in words)


def prospect(
    effect: float,
    deviation: float,
    planned: int,
    *,
    margin: float = MARGIN,
    comparisons: int = 1,
    looks: Sequence[int] | None = None,
    test_train_ratio: float = 0.0,
    studies: int = 4_000,
) -> Prospect:
    """Return how the test that is really made ends, by simulating it with normal differences.

    Args:
        effect: the true difference, percent of delta-m; below 0 is better.
        deviation: of one unit's paired difference.
        planned: units that are planned.
        margin: of equivalence.
        comparisons: with one baseline.
        looks: the numbers of units at which it may stop; by default only at the end.
        test_train_ratio: as in `decide`; what all units of a study then share is simulated too.
        studies: how many are simulated.

    Example:
        >>> found = prospect(-2.0, 1.0, 20, looks=range(6, 21))
        >>> found.shares["worse"], found.units < 20
        (0.0, True)
    """
    generator = np.random.default_rng(0)
    draws = generator.normal(effect, deviation, (studies, planned))
    draws += deviation * math.sqrt(test_train_ratio) * generator.standard_normal((studies, 1))
    told = np.full(studies, VERDICTS[3], dtype="<U14")
    units = np.full(studies, planned)
    for n in looks or (planned,):
        open_ = told == VERDICTS[3]
        found = decide(
            draws[open_, :n],
            margin=margin,
            planned=planned,
            comparisons=comparisons,
            test_train_ratio=test_train_ratio,
        ).told
        told[open_] = found
        units[open_] = np.where(found == VERDICTS[3], planned, n)
    shares = {word: float((told == word).mean()) for word in VERDICTS}
    return Prospect(shares, float(units.mean()))


def smallest_effect(
    planned: int, comparisons: int, power: float = 0.8, *, test_train_ratio: float = 0.0
) -> float:
    """Return the difference that is told with some probability, in deviations of one unit.

    Example:
        >>> round(smallest_effect(20, 1), 1), smallest_effect(5, 1)
        (0.7, inf)
    """
    if planned < FIRST:
        return math.inf

    def lacking(effect: float) -> float:
        found = prospect(
            -effect,
            1.0,
            planned,
            margin=1e-9,
            comparisons=comparisons,
            test_train_ratio=test_train_ratio,
        )
        return found.shares["better"] - power

    beyond = 10.0
    while lacking(beyond) < 0:  # few units that split one collection, and many comparisons
        beyond *= 2
    return float(optimize.bisect(lacking, 0.0, beyond, xtol=0.01))


def looks_of(planned: int) -> list[int]:
    """Return the numbers of units at which a sweep asks whether to go on.

    At most ten, none before `FIRST`, the last is `planned`. Any others were as good: `level` holds
    at each.

    Example:
        >>> looks_of(20), looks_of(8)
        ([6, 8, 10, 12, 14, 16, 18, 20], [6, 7, 8])
    """
    step = max(1, math.ceil(planned / 10))
    return [n for n in range(planned, 0, -step) if n >= min(FIRST, planned)][::-1]
