"""What is told of each row against the baseline, and against those that the suite asks about."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mtbench.comparing.judging import statistics
from mtbench.comparing.judging.deciding import ALPHA, FIRST, VERDICTS, Verdicts, decide
from mtbench.comparing.judging.leaderboard.doubts import naming
from mtbench.comparing.judging.leaderboard.scores import Scores
from mtbench.comparing.judging.statistics import Floats


class Pairs:
    """One group's rows, compared by twos.

    Args:
        scores: the group's.
        baseline: the row, or the method with one row, that the others are tested against.
        plain: the row or method which a tuned baseline must not be worse than on validation.

    Attributes:
        base: the baseline's row, None if there is not exactly one.
        plain: likewise.
        deltas: (rows, units), whose mean over units is delta-m: lower is better; None without what
            it can be measured in.
        table: a pair for each official row and each that it is compared with; ``open`` where more
            units may tell.
        doubted: tuned rows that validate below the plain one: nothing is called better than they.
        remarks: of these.
    """

    def __init__(self, scores: Scores, baseline: str | None, plain: str | None) -> None:
        self.scores = scores
        self._wanted, self.base, self.plain = baseline, scores.find(baseline), scores.find(plain)
        suite = scores.group.suite
        asked = map(scores.find, [] if suite is None else suite.against)
        self._asked = [i for i in asked if i is not None]
        self.deltas = self._deltas()
        self._decidable = not scores.group.chosen_once
        self._repeats = [row.repeats for row in scores.rows]
        anchors = dict.fromkeys(a for a in (self.base, *self._asked) if a is not None)
        self.table = pd.DataFrame(
            [pair for a in anchors if scores.official[a] for pair in self._against(a)],
            columns=["method", "against", "units", *Verdicts._fields, "open"],
        )
        self.doubted: list[str] = []
        self.remarks: list[str] = []
        if plain is not None:
            for name in self.table["against"].unique():
                self._doubt(scores.names.index(name))

    def _deltas(self) -> Floats | None:
        """Return one number a row and unit.

        Without a single-task row, in percent of the means of the first row that the suite asks
        about, whoever reads the board; without a suite, of the baseline's.
        """
        scores = self.scores
        for row in (scores.reference, *self._asked[:1], self.base):
            if row is not None and scores.known[row].any():
                change = statistics.relative_change(scores.x, scores.of(row), scores.higher)
                if np.isfinite(change[row][scores.known[row]]).all():
                    return np.asarray(change.mean(axis=2))
        return None

    def _against(self, anchor: int) -> list[list[Any]]:
        """Return a pair for each other row, also where nothing can be told: that is open."""
        names, known, group = self.scores.names, self.scores.known, self.scores.group
        others = [i for i in np.flatnonzero(self.scores.official).tolist() if i != anchor]
        deltas = np.full(known.shape, np.nan) if self.deltas is None else self.deltas
        suite = group.suite
        common = known[others] & known[anchor]
        found: dict[int, list[Any]] = {}
        for units in np.unique(common, axis=0):  # mostly all rows have the same: told at once
            rows = np.array(others)[(common == units).all(axis=1)]
            n = int(units.sum())
            told = decide(
                deltas[rows][:, units] - deltas[anchor, units], margin=group.margin,
                planned=None if suite is None else max(suite.planned, n),
                # As many as were asked, whoever is there yet.
                comparisons=len(others) if suite is None else max(suite.rows - 1, 1),
                test_train_ratio=group.test_train_ratio,
            )  # fmt: skip
            for i, *values in zip(rows.tolist(), *(v.tolist() for v in told), strict=True):
                *numbers, word = values
                found[i] = [names[i], names[anchor], n, *numbers, *self._told(word, i, anchor)]
        return [found[i] for i in others]

    def _told(self, word: str, *pair: int) -> tuple[str, bool]:
        """Return what a test's word comes to, given the pair's cells, and whether it is open.

        Copies say no more than one. How bad a diverged cell is, the worst number of a board bounds
        from one side alone. More units change neither.
        """
        if not self._decidable:
            return "", False
        diverged = any(self.scores.rows[i].diverged for i in pair)
        if any(self._repeats[i] for i in pair) or (word == "equivalent" and diverged):
            return VERDICTS[3], False
        return word, word == VERDICTS[3]

    def _doubt(self, anchor: int) -> None:
        """Take back what is better than a tuned row that validates below the plain one.

        That it does is told by a paired t-test, one-sided at `ALPHA`: a gap may be luck. Models for
        each objective alone are below it where sharing helps, which no search mends.
        """
        rows, names = self.scores.rows, self.scores.names
        if anchor in (self.plain, self.scores.reference):
            return
        if not (self._decidable and rows[anchor].trials):
            return
        if self.plain is None:
            self.remarks.append(
                "there is not exactly one finished row of the plain sum, which a search of "
                f"{names[anchor]} can miss: whether it was tuned well is not known"
            )
            return
        own, plain = (
            {u: np.mean([c.score for c in cells]) for u, cells in rows[i].units.items()}
            for i in (anchor, self.plain)
        )
        gaps = np.array([own[unit] - plain[unit] for unit in own.keys() & plain.keys()])
        told = decide(gaps[np.isfinite(gaps)], test_train_ratio=self.scores.group.test_train_ratio)
        if not (told.difference < 0 and told.p <= 2 * ALPHA):
            return
        name, other = names[anchor], names[self.plain]
        self.doubted.append(name)
        self.remarks.insert(
            0,
            f"the tuned {name} validates below {other} (by {-100 * told.difference:.2g} %): its "
            f"search did not find what {other} is, so nothing is called better than it",
        )
        taken_back = (self.table["against"] == name) & (self.table["told"] == "better")
        self.table.loc[taken_back, ["told", "open"]] = VERDICTS[3], True

    @property
    def with_base(self) -> pd.DataFrame:
        """The pairs with the baseline."""
        name = None if self.base is None else self.scores.names[self.base]
        return self.table[self.table["against"] == name]

    def columns(self) -> dict[str, Any]:
        """Return the columns that say how rows differ from the baseline."""
        scores = self.scores
        count = len(scores.names)
        names = ("difference", "difference_low", "difference_high", "p", "p_equivalence")
        found: dict[str, Any] = {name: np.full(count, np.nan) for name in (*names, "wins")}
        found["told"] = np.full(count, "", dtype=object)
        if self.base is None or self.deltas is None:
            return found
        for pair in self.with_base.to_dict("records"):
            i = scores.names.index(pair["method"])
            common = scores.known[i] & scores.known[self.base]
            gains = (self.deltas[self.base] - self.deltas[i])[common]
            if len(gains):
                found["wins"][i] = (gains > 0).sum() + (gains == 0).sum() / 2
            found["told"][i] = pair["told"]
            fields = ("difference", "low", "high", "p", "p_equivalence")
            for name, key in zip(names, fields, strict=True):
                found[name][i] = pair[key]
        return found

    def no_comparison(self) -> str:
        """Return why nothing is compared with the baseline that is asked for; empty if it is."""
        if self._wanted is None:
            return ""
        if self.base is not None and (why_not := self.scores.rows[self.base].why_not):
            return f"no comparison with {self._wanted}: {why_not}"
        if self.base is None:
            return f"no comparison with {self._wanted}: it takes exactly one finished row of it"
        if not self.scores.known[self.base].any():
            return f"no comparison: {self.scores.is_undefined(self.base)}"
        if self.deltas is None:
            return f"no comparison with {self._wanted}: a metric's mean is 0, no unit"
        return ""

    def verdict(self) -> str:
        """Return what is told against the baseline, in words; empty where nothing is compared."""
        pairs = self.with_base
        if self.base is None or self.no_comparison() or pairs.empty:
            return ""
        if not self._decidable:
            return (
                "No verdict: all numbers are given the parameters chosen once, and the luck of "
                "that choice is in no interval. A suite's `repetitions` repeat the whole study."
            )
        base, group = self.scores.names[self.base], self.scores.group
        if (most := int(pairs["units"].max())) < FIRST:
            return (
                f"Whether anything beats {base} cannot be told: it takes at least {FIRST} "
                f"{group.unit}s, found {most}."
            )
        better, worse, equivalent, open_ = (
            _listed(pairs[pairs["told"] == word].sort_values("difference")["method"].tolist())
            for word in VERDICTS
        )
        least = int(pairs["units"].min())
        count = f"{most}" if least == most else f"{least} to {most}"
        planned = 0 if group.suite is None else group.suite.planned
        of, looks = "", "" if group.suite else ", if their number was fixed beforehand"
        if planned > most:
            of, looks = f" of {planned} planned", ", however often one looks before the last"
        return (
            f"Against {base}: better: {better}; worse: {worse}; equivalent within "
            f"{group.margin:g} %: {equivalent}; not told apart: {open_}. ({count} "
            f"{group.unit}s{of}; paired t-tests, {100 * ALPHA:g} % for all comparisons "
            f"together{looks}.)"
        )

    def doubts(self) -> list[str]:
        """Name rows some of whose cells diverge."""
        named = zip(self.scores.names, self.scores.rows, strict=True)
        said = (
            "cells diverged, for which the worst numbers on the board stand: to be better than "
            "such a row says less, and nothing is equivalent to it: "
        )
        found = [
            f"{name} ({row.diverged} of {len(row.finals)} cells)"
            for name, row in named
            if row.official and row.diverged
        ]
        return naming(said, found)


def _listed(names: Sequence[str]) -> str:
    """Return names in a row; one that has a comma is quoted.

    >>> _listed(["ew", "rlar, watched"])
    "ew, 'rlar, watched'"
    """
    return ", ".join(f"'{name}'" if "," in name else name for name in names) or "none"
