"""A group's test metrics as an array, and the row that delta-m is measured against."""

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from mtbench.comparing.judging.deciding import beats_guess
from mtbench.comparing.judging.leaderboard.cells import Recorded
from mtbench.comparing.judging.leaderboard.doubts import naming, some
from mtbench.comparing.judging.leaderboard.entrants import Group
from mtbench.comparing.judging.statistics import Floats

Mask = NDArray[np.bool_]

_VANISHING = 1e-6  # of the largest mean


class Scores:
    """One group's test metrics.

    Args:
        group: whose; it has a row.

    Attributes:
        names: the rows' labels, in the order of all that follows.
        rows: the rows.
        metrics: all of them.
        tests: of each row, each final cell's metrics (metrics,), NaN of one that diverged.
        primary: the metrics that are compared, with whether higher is better.
        higher: the same, without their names.
        official: (rows,), who takes part.
        units: those of the rows that take part.
        there: (rows, units), whether a row has all cells of a unit.
        x: (rows, units, primary metrics), each a unit's mean, NaN where there is none.
        undefined: likewise, whether the worst stands for a metric that is undefined.
        known: (rows, units), whether there are all primary metrics.
        reference: the single-task row, None if delta-m cannot be measured against one.
        remarks: why it cannot, or what to mind where it is.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.names = sorted(group.rows)
        self.rows = [group.rows[name] for name in self.names]
        self._chance: dict[str, float] = {}
        self._said: dict[str, Counter[tuple[bool, bool]]] = {}
        for cell in (cell for row in group.rows.values() for cell in row.finals):
            for name, metric in cell.done.metrics.items():
                one = metric.higher_is_better, metric.primary
                self._said.setdefault(name, Counter())[one] += 1
                if metric.chance is not None:
                    self._chance[name] = metric.chance
        self.metrics = list(self._said)
        most = {name: counts.most_common(1)[0][0] for name, counts in self._said.items()}
        self.primary = {name: higher for name, (higher, primary) in most.items() if primary}
        self.higher = list(self.primary.values())
        self.official = np.array([row.official for row in self.rows])
        self.tests = [{cell: self._test(cell) for cell in row.finals} for row in self.rows]
        self.units = sorted({u for row in self.rows if row.official for u in row.units})
        there = [
            [row.official and len(row.units.get(u, ())) >= group.per_unit for u in self.units]
            for row in self.rows
        ]
        self.there: Mask = np.array(there, bool)
        self.x, self.undefined = self._by_unit()
        self.known: Mask = np.asarray(np.isfinite(self.x).all(axis=2))
        self.remarks: list[str] = []
        self.reference = self._reference()

    def _test(self, cell: Recorded) -> Floats:
        """Return a cell's test metrics, NaN of one that diverged."""
        values = [math.nan if cell.diverged else cell.test.get(m, math.nan) for m in self.metrics]
        return np.array(values, float)

    def _by_unit(self) -> tuple[Floats, Mask]:
        """Return `x` and `undefined`; divergence is the worst.

        So is a metric that a cell lacks, where its row has it in other units, and other rows do.
        """
        columns = [self.metrics.index(name) for name in self.primary]
        found, filled = np.full((2, len(self.rows), len(self.units), len(columns)), np.nan)
        signs = np.where(self.higher, 1.0, -1.0)
        tested = [
            test[columns]
            for row, tests in zip(self.rows, self.tests, strict=True)
            for test in tests.values()
            if row.official
        ]
        every = np.array(tested).reshape(-1, len(columns)) * signs
        gains = np.where(np.isfinite(every), every, np.inf).min(axis=0, initial=np.inf)
        worst = np.where(np.isfinite(gains), gains * signs, np.nan)
        for i, u in np.argwhere(self.there).tolist():
            values = np.array([
                worst if cell.diverged else self.tests[i][cell][columns]
                for cell in self.rows[i].units[self.units[u]]
            ])  # fmt: skip
            found[i, u] = values.mean(axis=0)
            filled[i, u] = np.where(np.isfinite(values), values, worst).mean(axis=0)
        known = np.isfinite(found)
        undefined = (
            self.there[..., None] & ~known & known.any(axis=0) & known.any(axis=1, keepdims=True)
        )
        return np.where(known, found, np.where(undefined, filled, np.nan)), undefined

    def find(self, wanted: str | None) -> int | None:
        """Return the row of a label, or the only official row of a method."""
        if wanted in self.names:
            return self.names.index(wanted)
        of_method = [
            i
            for i, row in enumerate(self.rows)
            if row.official and row.finals[0].spec.method == wanted
        ]
        return of_method[0] if len(of_method) == 1 else None

    def of(self, i: int) -> Floats:
        """Return a row's primary metrics in the units that have all, (units, metrics)."""
        return np.asarray(self.x[i][self.known[i]])

    def is_undefined(self, i: int) -> str:
        """Return the words for a row of which `of` is empty."""
        return f"{self.names[i]} has no {self.group.unit} in which all metrics are defined"

    def doubts(self) -> list[str]:
        """Tell of metrics that cells do not declare alike, and that some of them lack."""
        said = (
            "cells do not say alike whether a metric counts, and whether higher is better; what "
            "most say is taken: "
        )
        lacking = (
            f"{name} ({count} of {len(row.units)} {self.group.unit}s)"
            for name, row, count in zip(
                self.names, self.rows, self.undefined.any(axis=2).sum(axis=1), strict=True
            )
            if count
        )
        return [
            *naming(said, [name for name, counts in self._said.items() if len(counts) > 1]),
            *naming(
                "a metric is undefined where other rows have it, and counts as the worst: ",
                list(lacking),
            ),
        ]

    def _reference(self) -> int | None:
        """Return the single-task row; several (two learning rates), or one at 0, leave none."""
        every = [i for i, row in enumerate(self.rows) if row.finals[0].done.reference]
        found = [i for i in every if self.rows[i].official]
        if len(found) != 1:
            why = "".join(f" ({self.rows[i].why_not})" for i in every[:1] if i not in found)
            self.remarks.append(f"no Δm: it needs exactly one locally run single-task row{why}")
            return None
        reference = found[0]
        if all(cell.diverged for cell in self.rows[reference].finals):
            self.remarks.append("no Δm: every single-task cell diverged")
            return None
        sizes = np.abs(mean_over_units(self.x))
        small = sizes[reference] < _VANISHING * np.fmax.reduce(sizes, axis=0)
        if names := [name for name, is_small in zip(self.primary, small, strict=True) if is_small]:
            are = "is" if len(names) == 1 else "are"
            self.remarks.append(
                f"no Δm: the single-task {' and '.join(names)} {are} next to 0: no unit"
            )
            return None
        if not self.known[reference].any():
            self.remarks.append(f"no Δm: {self.is_undefined(reference)}")
            return None
        self._tell_guesses(self.of(reference))
        self._tell_small(reference)
        return reference

    def _tell_guesses(self, own: Floats) -> None:
        """Name metrics in which the single-task row is no better than a guess, as far as is known.

        Args:
            own: (units, metrics).
        """
        for m, (name, higher) in enumerate(self.primary.items()):
            if (chance := self._chance.get(name)) is None:
                continue
            gain = (own[:, m] - chance) * (1 if higher else -1)
            if not beats_guess(gain, self.group.test_train_ratio):
                self.remarks.append(
                    f"the single-task {name}, {own[:, m].mean():.3g}, is not told from a guess, "
                    f"{chance:g}: what Δm counts in percent of it may be luck"
                )

    def _tell_small(self, reference: int) -> None:
        """Name metrics in which most rows differ from the reference by more than all it has."""
        common = (self.known & self.known[reference])[..., None]  # as delta-m is taken
        own = mean_over_units(np.where(common, self.x[reference], np.nan))
        apart = mean_over_units(np.where(common, self.x - self.x[reference], np.nan))
        is_compared = common[:, :, 0].any(axis=1)
        is_compared[reference] = False
        n_apart = (np.abs(apart) > np.abs(own))[is_compared].sum(axis=0)
        found = [
            f"{name} ({own[reference, m]:.3g})"
            for m, name in enumerate(self.primary)
            if n_apart[m] > is_compared.sum() / 2
        ]
        if found:
            self.remarks.append(
                "most rows differ from the single-task row by more than all it has, so Δm is "
                f"mostly that: {some(found)}"
            )


def mean_over_units(x: Floats) -> Floats:
    """Return means over units, of those that are there; (rows, units, metrics) to (rows, metrics).

    >>> mean_over_units(np.array([[[1.0], [np.nan], [2.0]]]))
    array([[1.5]])
    """
    known = np.isfinite(x)
    n = known.sum(axis=1)
    return np.where(n > 0, np.where(known, x, 0).sum(axis=1) / np.maximum(n, 1), np.nan)
