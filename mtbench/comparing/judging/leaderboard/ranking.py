"""Who is ranked, on which units, and by what."""

import math
from functools import cached_property

import numpy as np

from mtbench.comparing.judging import statistics
from mtbench.comparing.judging.deciding import VERDICTS
from mtbench.comparing.judging.leaderboard.entrants import largest_block
from mtbench.comparing.judging.leaderboard.pairs import Pairs
from mtbench.comparing.judging.leaderboard.scores import Mask, Scores
from mtbench.comparing.judging.statistics import Floats

_SEED = 0  # of the resampling: the same results give the same table


class Ranking:
    """One group's rows in their order.

    Args:
        scores: the group's.
        pairs: what is told of its rows.

    Attributes:
        ranked: (rows,).
        common: (units,), those that all ranked rows have.
        reasons: why a row is not ranked, empty if it is.
    """

    def __init__(self, scores: Scores, pairs: Pairs) -> None:
        self.scores, self.pairs = scores, pairs
        known = scores.known & scores.there
        rows = np.flatnonzero(scores.official & known.any(axis=1))
        self.ranked: Mask = np.zeros(len(scores.rows), bool)
        self.common: Mask = np.zeros(len(scores.units), bool)
        if len(rows):
            inside, _ = largest_block(known[rows])
            self.ranked[rows[inside]] = True
            # A question that was decided takes no more units, of both.
            decided = pairs.with_base[pairs.with_base["told"].isin(VERDICTS[:3])]
            decided = decided.sort_values("units", ascending=False, kind="stable")
            for pair in decided[["method", "against"]].to_numpy():
                more = self.ranked | np.isin(scores.names, pair)
                if known[more].all(axis=0).any():
                    self.ranked = more
            self.common = np.asarray(known[self.ranked].all(axis=0))
        self.reasons = [self._reason(i) for i in range(len(scores.rows))]

    def _reason(self, i: int) -> str:
        """Return why a row is not ranked, empty if it is."""
        scores = self.scores
        if self.ranked[i]:
            return ""
        if not scores.official[i]:
            return scores.rows[i].why_not
        reasons = []
        if (count := int(scores.there[i].sum())) < len(scores.units):
            reasons.append(f"{count} of {len(scores.units)} {scores.group.unit}s")
        lacking = np.isnan(scores.x[i][scores.there[i]]).any(axis=0)
        reasons += [f"no {name}" for name, no in zip(scores.primary, lacking, strict=True) if no]
        return ", ".join(reasons)

    @property
    def order(self) -> list[int]:
        """The rows, best first: by delta-m, or by rank where there is none.

        Of equal ones, the one that diverged stands below.
        """
        key = self.delta[0] if self._by_delta else self.mean_rank
        names = self.scores.names
        diverged = [row.diverged for row in self.scores.rows]
        return sorted(
            range(len(names)),
            key=lambda i: (not self.ranked[i], math.isnan(key[i]), key[i], diverged[i], names[i]),
        )

    @property
    def _by_delta(self) -> bool:
        return bool(np.isfinite(self.delta[0][self.ranked]).all())

    @cached_property
    def delta(self) -> Floats:
        """Delta-m and its interval (3, rows), over the units that a row and the reference have."""
        x, known, reference = self.scores.x, self.scores.known, self.scores.reference
        found = np.full((3, len(x)), np.nan)
        if reference is None:
            return found
        common = known & known[reference]
        for units in np.unique(common, axis=0):
            if not units.any():
                continue
            rows = (common == units).all(axis=1)
            value, low, high = statistics.paired_bootstrap(
                lambda x, y: statistics.delta_m(x, y, self.scores.higher),
                x[rows][:, units], x[[reference]][:, units], seed=_SEED,
            )  # fmt: skip
            # As in the verdict's test.
            wider = math.sqrt(1 + units.sum() * self.scores.group.test_train_ratio)
            found[:, rows] = value, value - wider * (value - low), value + wider * (high - value)
        return found

    @property
    def iqm(self) -> Floats:
        """The interquartile mean of the changes against the reference, (rows,)."""
        x, reference = self.scores.x, self.scores.reference
        found = np.full(len(x), np.nan)
        if reference is not None and self.ranked[reference]:
            change = statistics.relative_change(
                self._shared(x), x[[reference]][:, self.common], self.scores.higher
            )
            found[self.ranked] = statistics.iqm(change)
        return found

    @cached_property
    def mean_rank(self) -> Floats:
        """The mean ranks over the metrics, (rows,)."""
        found = np.full(len(self.ranked), np.nan)
        if self.ranked.any():
            found[self.ranked] = statistics.mean_rank(
                self._shared(self.scores.x), self.scores.higher
            )
        return found

    def places(self) -> tuple[Floats, Floats]:
        """Return the probability of the first place, (rows,), and of every place, (ranked, ranked).

        The latter by the rows' order, empty where fewer than two units are common.
        """
        first, n = np.full(len(self.ranked), np.nan), int(self.common.sum())
        if n < 2:
            return first, np.zeros((0, 0))
        if self._by_delta and self.pairs.deltas is not None:
            values, place = self.pairs.deltas[..., None], lambda deltas: deltas.mean((-2, -1))
        else:
            values, place = self.scores.x, lambda x: statistics.mean_rank(x, self.scores.higher)
        draws = statistics.resample(
            place, self._shared(values), seed=_SEED, resamples=2_000,
            # As in the verdict's test: a mean over folds varies as one over fewer units.
            drawn=max(1, round(n / (1 + n * self.scores.group.test_train_ratio))),
        )  # fmt: skip
        places = statistics.rank_probabilities(draws)
        first[self.ranked] = places[:, 0]
        return first, places

    def _shared(self, x: Floats) -> Floats:
        """Return what ranked rows have in common units."""
        return np.asarray(x[self.ranked][:, self.common])
