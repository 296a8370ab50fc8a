"""From finished cells to a table that says what it supports."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from mtbench.comparing.claim import Claim
from mtbench.comparing.judging import statistics
from mtbench.comparing.judging.deciding import ALPHA, FIRST, MARGIN, VERDICTS, Verdicts, decide
from mtbench.comparing.judging.leaderboard import doubts
from mtbench.comparing.judging.leaderboard.cells import Cell, read_cells
from mtbench.comparing.judging.leaderboard.doubts import more, naming, some
from mtbench.comparing.judging.leaderboard.entrants import Group, Row, groups, largest_block
from mtbench.errors import RunError
from mtbench.training.cell.rundir import RunDirectory

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

COST = ("seconds_per_step", "cost_ratio", "peak_mib", "passes", "train_hours", "tuning_hours")
_VANISHING = 1e-6  # of the largest mean
_SEED = 0  # of the resampling: the same results give the same table


@dataclass(frozen=True)
class Board:
    """Cells that may be compared: one task of one suite, or one task, data, budget and precision.

    Attributes:
        title: what they have in common.
        primary: the metrics that are compared, with whether higher is better.
        rows: one per method and parameters, best first.
        pending: unfinished cells.
        remarks: what the numbers do and do not support.
        verdict: what is told of the rows against the baseline; empty without a baseline.
        baseline: the baseline's row, None if there is none.
        reference: the single-task row, None if there is not exactly one.
        cells: the final cells of each row that have a result.
        trials: the tuning trials of each row that have a result, by repetition and number.
        places: (ranked, ranked), how often each ranked row takes each place when units are
            resampled; the rows' order.
        margin: of equivalence, percent of delta-m.
        pairs: what is told of each row against each that the suite asks about: ``method``,
            ``against``, ``units`` and the fields of `Verdicts`.
        suite: one of the claims of the suite that says who takes part, None without one.
        unit: what is compared: ``repetition`` or ``seed``.
        doubted: tuned rows that validate below the plain one: nothing is called better than they.
    """

    title: str
    primary: dict[str, bool]
    rows: pd.DataFrame
    pending: list[str]
    remarks: list[str] = field(default_factory=list)
    verdict: str = ""
    baseline: str | None = None
    reference: str | None = None
    cells: dict[str, list[Cell]] = field(default_factory=dict)
    trials: dict[str, dict[tuple[int, int], Cell]] = field(default_factory=dict)
    places: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    margin: float = MARGIN
    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    suite: Claim | None = None
    unit: str = "seed"
    doubted: list[str] = field(default_factory=list)


def boards(
    runs: Sequence[RunDirectory], baseline: str | None = None, plain: str | None = None
) -> list[Board]:
    """Return a board for each group of comparable cells.

    Args:
        runs: the cells, trials included; their test metrics are opened.
        baseline: the row, or the method with one row, that the others are tested against.
        plain: the row or method whose step is the unit of cost, and which a tuned baseline must
            not be worse than on validation.

    Raises:
        RunError: there is no run, or none that is whole.
    """
    cells, damaged = read_cells(runs)
    found = groups(cells)
    if not found:
        raise RunError(damaged[0] if damaged else "no runs found: `mtbench run` makes some")
    made = [_board(group, baseline, plain) for group in found]
    for board in made:
        if others := [other.title for other in made if is_replanned(board, other)]:
            board.remarks.append(
                "take all verdicts from the board of the suite as it is now, for it was changed "
                f"and has others: {some(others)}"
            )
    if damaged:  # whose board they would be on, they may not say
        for board in made:
            board.remarks.append(f"a damaged cell is left out: {damaged[0]}{more(damaged)}")
    return made


def is_replanned(board: Board, other: Board) -> bool:
    """Return whether another board is of the same suite, planned otherwise."""
    one, two = board.suite, other.suite
    if one is None or two is None or one.digest == two.digest:
        return False
    return (one.suite, one.task) == (two.suite, two.task)


def _board(group: Group, baseline: str | None, plain: str | None) -> Board:
    if not group.rows:
        return Board(group.title, {}, pd.DataFrame(), group.pending)
    return _Scores(group, baseline, plain).board()


class _Scores:
    """One group's test metrics as an array (rows, units, metrics), NaN where there is none."""

    def __init__(self, group: Group, baseline: str | None, plain: str | None) -> None:
        self.group = group
        self.names = sorted(group.rows)
        self.rows = [group.rows[name] for name in self.names]
        self.chance: dict[str, float] = {}
        self.said: dict[str, Counter[tuple[bool, bool]]] = {}
        for cell in (cell for row in group.rows.values() for cell in row.finals):
            for name, metric in cell.done["metrics"].items():
                one = metric["higher_is_better"], metric["primary"]
                self.said.setdefault(name, Counter())[one] += 1
                if metric.get("chance") is not None:
                    self.chance[name] = metric["chance"]
        self.metrics = list(self.said)
        most = {name: counts.most_common(1)[0][0] for name, counts in self.said.items()}
        self.primary = {name: higher for name, (higher, primary) in most.items() if primary}
        self.higher = list(self.primary.values())
        self.official = np.array([row.official for row in self.rows])
        self.unit = "seed"
        if group.suite is not None and group.suite.study_is_unit:
            self.unit = "repetition"
        self.margin = MARGIN if group.suite is None else group.suite.margin
        self.tests = [{cell: self._test(cell) for cell in row.finals} for row in self.rows]
        self.units = sorted({u for row in self.rows if row.official for u in row.units})
        there = [
            [row.official and len(row.units.get(u, ())) >= group.per_unit for u in self.units]
            for row in self.rows
        ]
        self.there = np.array(there, bool)
        self.x = self._scores()
        self.known: Mask = np.asarray(np.isfinite(self.x).all(axis=2))
        self.wanted, self.base, self.plain = baseline, self.find(baseline), self.find(plain)
        self.remarks: list[str] = []
        self.reference = self._reference()
        against = [] if group.suite is None else group.suite.against
        self.asked = [i for i in map(self.find, against) if i is not None]
        self.costs = self._costs()
        self.decidable = not group.chosen_once
        self.pairs = self._pairs()
        self.doubted: list[str] = []
        for name in self.pairs["against"].unique():
            self._doubt(self.names.index(name))
        self._rank()

    def _test(self, cell: Cell) -> Floats:
        """Return a cell's test metrics, NaN of one that diverged."""
        values = [math.nan if cell.diverged else cell.test.get(m, math.nan) for m in self.metrics]
        return np.array(values, float)

    def _scores(self) -> Floats:
        """Return (rows, units, primary metrics), each a unit's mean; divergence is the worst.

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
        self.undefined = (
            self.there[..., None] & ~known & known.any(axis=0) & known.any(axis=1, keepdims=True)
        )
        return np.where(known, found, np.where(self.undefined, filled, np.nan))

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

    def _reference(self) -> int | None:
        """Return the single-task row; several (two learning rates), or one at 0, leave none."""
        found = [i for i, r in enumerate(self.rows) if r.official and r.finals[0].done["reference"]]
        if len(found) != 1:
            self.remarks.append("no Δm: it needs exactly one locally run single-task row")
            return None
        reference = found[0]
        sizes = np.abs(_mean(self.x))
        small = sizes[reference] < _VANISHING * np.fmax.reduce(sizes, axis=0)
        if names := [name for name, is_small in zip(self.primary, small, strict=True) if is_small]:
            are = "is" if len(names) == 1 else "are"
            self.remarks.append(
                f"no Δm: the single-task {' and '.join(names)} {are} next to 0: no unit"
            )
            return None
        if not self.known[reference].any():
            self.remarks.append(f"no Δm: {self._is_undefined(reference)}")
            return None
        self._tell_guesses(self.x[reference][self.known[reference]])
        self._tell_small(reference)
        return reference

    def _is_undefined(self, i: int) -> str:
        return f"{self.names[i]} has no {self.unit} in which all metrics are defined"

    def _tell_small(self, reference: int) -> None:
        """Name metrics in which most rows differ from the reference by more than all it has."""
        means = _mean(self.x)
        own = means[reference]
        apart = np.abs(np.delete(means - own, reference, axis=0))
        found = []
        for m, name in enumerate(self.primary):
            known = apart[np.isfinite(apart[:, m]), m]
            if len(known) and np.median(known) > abs(own[m]):
                found.append(f"{name} ({own[m]:.3g})")
        if found:
            self.remarks.append(
                "most rows differ from the single-task row by more than all it has, so Δm is "
                f"mostly that: {some(found)}"
            )

    def _tell_guesses(self, own: Floats) -> None:
        """Name metrics in which the single-task row is no better than a guess, as far as is known.

        Args:
            own: (units, metrics). A one-sided t-test at `ALPHA`; of one unit, the number itself.
        """
        n = len(own)
        for m, (name, higher) in enumerate(self.primary.items()):
            if (chance := self.chance.get(name)) is None:
                continue
            gain = (own[:, m] - chance) * (1 if higher else -1)
            luck = stats.t.isf(ALPHA, n - 1) * gain.std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
            if gain.mean() <= luck:
                self.remarks.append(
                    f"the single-task {name}, {own[:, m].mean():.3g}, is not told from a guess, "
                    f"{chance:g}: what Δm counts in percent of it may be luck"
                )

    def _costs(self) -> Floats | None:
        """Return one number a row and unit, whose mean over units is delta-m: lower is better.

        Without a single-task row, in percent of the means of the first row that the suite asks
        about, whoever reads the board; without a suite, of the baseline's.
        """
        for unit in (self.reference, *self.asked[:1], self.base):
            if unit is not None and self.known[unit].any():
                own = self.x[unit][self.known[unit]]
                change = statistics.relative_change(self.x, own, self.higher)
                if np.isfinite(change[unit][self.known[unit]]).all():
                    return np.asarray(change.mean(axis=2))
        return None

    def _pairs(self) -> pd.DataFrame:
        """Return what is told of each official row against the baseline, and those asked about."""
        anchors = dict.fromkeys(a for a in (self.base, *self.asked) if a is not None)
        found = [pair for a in anchors if self.official[a] for pair in self._against(a)]
        return pd.DataFrame(found, columns=["method", "against", "units", *Verdicts._fields])

    def _against(self, anchor: int) -> list[list[Any]]:
        """Return a pair for each other row, also where nothing can be told: that is open."""
        others = [i for i in np.flatnonzero(self.official).tolist() if i != anchor]
        costs = np.full(self.known.shape, np.nan) if self.costs is None else self.costs
        suite = self.group.suite
        common = self.known[others] & self.known[anchor]
        found: dict[int, list[Any]] = {}
        for units in np.unique(common, axis=0):  # mostly all rows have the same: told at once
            rows = np.array(others)[(common == units).all(axis=1)]
            n = int(units.sum())
            told = decide(
                costs[rows][:, units] - costs[anchor, units], margin=self.margin,
                most=None if suite is None else max(suite.planned, n),
                # As many as were asked, whoever is there yet.
                comparisons=len(others) if suite is None else max(suite.rows - 1, 1),
                resplit=self.resplit,
            )  # fmt: skip
            for i, *values in zip(rows.tolist(), *(v.tolist() for v in told), strict=True):
                if not self.decidable:
                    values[-1] = ""
                found[i] = [self.names[i], self.names[anchor], n, *values]
        return [found[i] for i in others]

    @property
    def resplit(self) -> float:
        """Return the ratio of test to training samples where units split one collection again."""
        suite = self.group.suite
        return 0.0 if suite is None or suite.resplit is None else suite.resplit

    def _rank(self) -> None:
        """Say who is ranked, on which units, and why others are not."""
        known = self.known & self.there
        rows = np.flatnonzero(self.official & known.any(axis=1))
        self.ranked: Mask = np.zeros(len(self.rows), bool)
        self.common: Mask = np.zeros(len(self.units), bool)
        if len(rows):
            inside, _ = largest_block(known[rows])
            self.ranked[rows[inside]] = True
            decided = self.pairs[self.pairs["told"].isin(VERDICTS[:3])]
            if self.base is not None:  # a question that was decided takes no more units, of both
                decided = decided[decided["against"] == self.names[self.base]]
                self.ranked |= np.isin(self.names, decided[["method", "against"]])
            self.common = np.asarray(known[self.ranked].all(axis=0))
        if not self.common.any():
            self.ranked[:] = False
        self.reasons = [self._reason(i) for i in range(len(self.rows))]

    def _reason(self, i: int) -> str:
        """Return why a row is not ranked, empty if it is."""
        if self.ranked[i]:
            return ""
        if not self.official[i]:
            return "not of the suite"
        reasons = []
        if (count := int(self.there[i].sum())) < len(self.units):
            reasons.append(f"{count} of {len(self.units)} {self.unit}s")
        lacking = np.isnan(self.x[i][self.there[i]]).any(axis=0)
        reasons += [f"no {name}" for name, none in zip(self.primary, lacking, strict=True) if none]
        return ", ".join(reasons)

    def board(self) -> Board:
        """Return everything that the scores support."""
        n, order = int(self.common.sum()), self._order()
        columns: dict[str, Any] = {
            "method": self.names,
            "seeds": [sum(not c.diverged for c in row.finals) for row in self.rows],
            "diverged": [sum(c.diverged for c in row.finals) for row in self.rows],
            "units": self.known.sum(axis=1),
            "trials": [len(row.trials) for row in self.rows],
            "complete": self.ranked,
            "reason": self.reasons,
        }
        for m, name in enumerate(self.metrics):
            known = [
                [v for t in tests.values() if math.isfinite(v := t[m])] for tests in self.tests
            ]
            columns[name] = [float(np.mean(v)) if v else math.nan for v in known]
            columns[f"{name}_sd"] = [
                float(np.std(v, ddof=1)) if len(v) > 1 else math.nan for v in known
            ]
        if n > 1 and (note := statistics.interval_note(n, unit=self.unit)):
            self.remarks.insert(0, note)
        columns["delta_m"], columns["delta_m_low"], columns["delta_m_high"] = self.delta
        columns["iqm"] = self._iqm()
        columns["mean_rank"], columns["first"], places = self.ranks, *self._places()
        verdict = self._verdict()
        columns |= self._against_the_baseline()
        columns["hypervolume"] = self._hypervolume()
        columns |= self._cost()
        self.remarks += [
            *doubts.of_cells(self.group), *self._declared(), *self._lacking(), *self._diverging(),
            *doubts.of_rows(self.group, self.unit, self.primary),
        ]  # fmt: skip
        rows = pd.DataFrame(columns).iloc[order].reset_index(drop=True)
        place = {self.names[i]: r for r, i in enumerate(np.flatnonzero(self.ranked))}
        shown = [place[name] for name in rows["method"] if name in place]
        return Board(
            self.group.title,
            self.primary,
            rows,
            self.group.pending,
            self.remarks,
            verdict,
            None if self.base is None else self.names[self.base],
            None if self.reference is None else self.names[self.reference],
            {name: self.group.rows[name].finals for name in rows["method"]},
            {name: self.group.rows[name].trials for name in rows["method"]},
            places[shown] if len(places) else places,
            self.margin,
            self.pairs,
            self.group.suite,
            self.unit,
            self.doubted,
        )

    def _order(self) -> list[int]:
        """Return the rows, best first: by delta-m, or by rank where there is none.

        Of equal ones, the one that diverged stands below.
        """
        key = self.delta[0] if self.by_delta else self.ranks
        diverged = [sum(cell.diverged for cell in row.finals) for row in self.rows]
        return sorted(
            range(len(self.names)),
            key=lambda i: (
                not self.ranked[i], math.isnan(key[i]), key[i], diverged[i], self.names[i]
            ),
        )  # fmt: skip

    @property
    def by_delta(self) -> bool:
        """Whether the rows' order is that of delta-m."""
        return bool(np.isfinite(self.delta[0][self.ranked]).all())

    @cached_property
    def delta(self) -> Floats:
        """Return delta-m and its interval (3, rows), over the units that both have."""
        found = np.full((3, len(self.names)), np.nan)
        if self.reference is None:
            return found
        common = self.known & self.known[self.reference]
        for units in np.unique(common, axis=0):
            if not units.any():
                continue
            rows = (common == units).all(axis=1)
            value, low, high = statistics.paired_bootstrap(
                lambda x, y: statistics.delta_m(x, y, self.higher),
                self.x[rows][:, units], self.x[[self.reference]][:, units], seed=_SEED,
            )  # fmt: skip
            wider = math.sqrt(1 + units.sum() * self.resplit)  # as in the verdict's test
            found[:, rows] = value, value - wider * (value - low), value + wider * (high - value)
        return found

    def _iqm(self) -> Floats:
        found = np.full(len(self.names), np.nan)
        if self.reference is not None and self.ranked[self.reference]:
            x = self.x[self.ranked][:, self.common]
            change = statistics.relative_change(
                x, self.x[[self.reference]][:, self.common], self.higher
            )
            found[self.ranked] = statistics.iqm(change)
        return found

    @cached_property
    def ranks(self) -> Floats:
        """Return mean ranks over the metrics."""
        ranks = np.full(len(self.names), np.nan)
        if self.ranked.any():
            x = self.x[self.ranked][:, self.common]
            ranks[self.ranked] = statistics.mean_rank(x, self.higher)
        return ranks

    def _places(self) -> tuple[Floats, Floats]:
        """Return the probability of the first place, and of every place, by the rows' order."""
        first, n = np.full(len(self.names), np.nan), int(self.common.sum())
        if n < 2:
            return first, np.zeros((0, 0))
        if self.by_delta and self.costs is not None:
            scores, place = self.costs[..., None], lambda costs: costs.mean((-2, -1))
        else:
            scores, place = self.x, lambda x: statistics.mean_rank(x, self.higher)
        draws = statistics.resample(
            place, scores[self.ranked][:, self.common], seed=_SEED, resamples=2_000,
            # As in the verdict's test: a mean over folds varies as one over fewer units.
            drawn=max(1, round(n / (1 + n * self.resplit))),
        )  # fmt: skip
        places = statistics.rank_probabilities(draws)
        first[self.ranked] = places[:, 0]
        return first, places

    def _against_the_baseline(self) -> dict[str, Any]:
        """Return the columns that say how rows differ from the baseline."""
        count = len(self.names)
        names = ("difference", "difference_low", "difference_high", "p", "p_equivalence")
        found: dict[str, Any] = {name: np.full(count, np.nan) for name in (*names, "wins")}
        found["told"] = np.full(count, "", dtype=object)
        if self.base is None or self.costs is None:
            return found
        pairs = self.pairs[self.pairs["against"] == self.names[self.base]]
        for pair in pairs.to_dict("records"):
            i = self.names.index(pair["method"])
            common = self.known[i] & self.known[self.base]
            gains = (self.costs[self.base] - self.costs[i])[common]
            if len(gains):
                found["wins"][i] = (gains > 0).sum() + (gains == 0).sum() / 2
            found["told"][i] = pair["told"]
            fields = ("difference", "low", "high", "p", "p_equivalence")
            for name, key in zip(names, fields, strict=True):
                found[name][i] = pair[key]
        return found

    def _verdict(self) -> str:
        """Return what is told against the baseline; what speaks against it goes to the remarks."""
        if self.wanted is None:
            return ""
        if self.base is None or not self.official[self.base]:
            self.remarks.append(
                f"no comparison with {self.wanted}: it takes exactly one finished row of it"
            )
            return ""
        if not self.known[self.base].any():
            self.remarks.append(f"no comparison: {self._is_undefined(self.base)}")
            return ""
        if self.costs is None:
            self.remarks.append(f"no comparison with {self.wanted}: a metric's mean is 0, no unit")
            return ""
        base = self.names[self.base]
        pairs = self.pairs[self.pairs["against"] == base]
        if pairs.empty:
            return ""
        if not self.decidable:
            return (
                "No verdict: all numbers are given the parameters chosen once, and the luck of "
                "that choice is in no interval. A suite's `repetitions` repeat the whole study."
            )
        if (most := int(pairs["units"].max())) < FIRST:
            return (
                f"Whether anything beats {base} cannot be told: it takes at least {FIRST} "
                f"{self.unit}s, found {most}."
            )
        groups = {word: self.pairs_of(base, word) for word in VERDICTS}
        least = int(pairs["units"].min())
        count = f"{most}" if least == most else f"{least} to {most}"
        planned = 0 if self.group.suite is None else self.group.suite.planned
        of, looks = "", ""
        if planned > most:
            of, looks = f" of {planned} planned", ", however often one looks before the last"
        return (
            f"Against {base}: better: {_listed(groups['better'])}; worse: "
            f"{_listed(groups['worse'])}; equivalent within {self.margin:g} %: "
            f"{_listed(groups['equivalent'])}; not told apart: "
            f"{_listed(groups['not told apart'])}. ({count} {self.unit}s{of}; paired t-tests, "
            f"{100 * ALPHA:g} % for all comparisons together{looks}.)"
        )

    def pairs_of(self, against: str, told: str) -> list[str]:
        """Return the rows of which something is told against another."""
        found = self.pairs[(self.pairs["against"] == against) & (self.pairs["told"] == told)]
        return [str(name) for name in found.sort_values("difference")["method"]]

    def _doubt(self, anchor: int) -> None:
        """Take back what is better than a tuned row that validates below the plain one.

        That it does is told by a paired t-test, one-sided at `ALPHA`: a gap may be luck. Models for
        each objective alone are below it where sharing helps, which no search mends.
        """
        if self.plain is None or anchor in (self.plain, self.reference):
            return
        if not (self.decidable and self.rows[anchor].trials):
            return
        own, plain = (
            {u: np.mean([c.score for c in cells]) for u, cells in self.rows[i].units.items()}
            for i in (anchor, self.plain)
        )
        gaps = np.array([own[unit] - plain[unit] for unit in own.keys() & plain.keys()])
        told = decide(gaps[np.isfinite(gaps)])
        if not (told.difference < 0 and told.p <= 2 * ALPHA):
            return
        name, other = self.names[anchor], self.names[self.plain]
        self.doubted.append(name)
        self.remarks.insert(
            0,
            f"the tuned {name} validates below {other} (by {-100 * told.difference:.2g} %): its "
            f"search did not find what {other} is, so nothing is called better than it",
        )
        taken_back = (self.pairs["against"] == name) & (self.pairs["told"] == "better")
        self.pairs.loc[taken_back, "told"] = VERDICTS[3]

    def _declared(self) -> list[str]:
        """Name metrics that cells do not declare alike: by most of them the board goes."""
        found = [name for name, counts in self.said.items() if len(counts) > 1]
        said = (
            "cells do not say alike whether a metric counts, and whether higher is better; what "
            "most say is taken: "
        )
        return naming(said, found)

    def _lacking(self) -> list[str]:
        """Name rows in which the worst number stands for one that is undefined."""
        counts = self.undefined.any(axis=2).sum(axis=1)
        found = [
            f"{name} ({count} of {len(row.units)} {self.unit}s)"
            for name, row, count in zip(self.names, self.rows, counts, strict=True)
            if count
        ]
        said = "a metric is undefined where other rows have it, and counts as the worst: "
        return naming(said, found)

    def _diverging(self) -> list[str]:
        """Name rows that others are compared with, and half or more of whose cells diverge."""
        found = []
        for i in sorted({i for i in (self.base, *self.asked) if i is not None}):
            ended = [cell.diverged for cell in self.rows[i].finals]
            if 2 * sum(ended) >= len(ended):
                found.append(f"{self.names[i]} ({sum(ended)} of {len(ended)} cells)")
        said = (
            "to be better than a row half or more of which diverges, whose numbers are the worst "
            "on the board, says little: "
        )
        return naming(said, found)

    def _hypervolume(self) -> Floats:
        """Return what share of the box a row's trials dominate on validation, two metrics only.

        The box reaches from the best value that anything has to the worst of the rows' means; a row
        without trials is the point of its seeds' mean.
        """
        found = np.full(len(self.names), np.nan)
        if len(self.primary) != 2:
            return found
        signs = np.where(self.higher, -1.0, 1.0)
        means = np.array([_mean_val(row.finals, self.primary) for row in self.rows]) * signs
        points = [
            np.array([_val(t, self.primary) for t in row.trials.values()]) * signs
            if row.trials
            else means[[i]]
            for i, row in enumerate(self.rows)
        ]
        every = np.concatenate([means, *points])
        every = every[np.isfinite(every).all(axis=1)]
        if not len(every):
            return found
        worst = means[np.isfinite(means).all(axis=1)].max(axis=0, initial=-math.inf)
        box = worst - every.min(axis=0)
        if not (np.isfinite(box).all() and (box > 0).all()):
            return found
        shares = [statistics.hypervolume(p, worst) / float(box.prod()) for p in points]
        return np.array(shares)

    def _cost(self) -> dict[str, Any]:
        def costs(row: Row, key: str) -> list[float]:
            return [c.done["cost"].get(key, math.nan) for c in row.finals if not c.diverged] or [
                math.nan
            ]

        medians = np.array([np.median(costs(row, "seconds_per_step")) for row in self.rows])
        unit = self.plain
        return {
            "seconds_per_step": medians,
            "cost_ratio": medians / medians[unit] if unit is not None else np.nan,
            "peak_mib": [max(costs(row, "peak_mib")) for row in self.rows],
            "passes": [row.finals[0].done["cost"].get("passes", "") for row in self.rows],
            "train_hours": [np.median(costs(row, "train_seconds")) / 3600 for row in self.rows],
            "tuning_hours": [
                sum(t.done["cost"].get("train_seconds", math.nan) for t in row.trials.values())
                / 3600
                for row in self.rows
            ],
        }


def _listed(names: Sequence[str]) -> str:
    """Return names in a row; one that has a comma is quoted.

    >>> _listed(["ew", "rlar, watched"])
    "ew, 'rlar, watched'"
    """
    return ", ".join(f"'{name}'" if "," in name else name for name in names) or "none"


def _val(cell: Cell, primary: dict[str, bool]) -> list[float]:
    return [float(cell.val.get(name, math.nan)) for name in primary]


def _mean_val(cells: Sequence[Cell], primary: dict[str, bool]) -> Floats:
    mean: Floats = _mean(np.array([_val(cell, primary) for cell in cells])[None])[0]
    return mean


def _mean(x: Floats) -> Floats:
    """Return means over units, of those that are there."""
    known = np.isfinite(x)
    n = known.sum(axis=1)
    return np.where(n > 0, np.where(known, x, 0).sum(axis=1) / np.maximum(n, 1), np.nan)
