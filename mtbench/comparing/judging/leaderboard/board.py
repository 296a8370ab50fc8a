"""From finished cells to a table that says what it supports."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtbench.comparing.judging import statistics
from mtbench.comparing.judging.leaderboard.cells import (
    Cell,
    group_key,
    labels,
    modified,
    read_cells,
    titles,
)
from mtbench.errors import RunError
from mtbench.training.rundir import RunDirectory

Floats = NDArray[np.float64]

ALPHA = 0.05
COST = ("seconds_per_step", "cost_ratio", "peak_mib", "passes", "tuning_hours")
_VANISHING = 1e-6  # of the largest mean
_SEED = 0  # of the resampling: the same results give the same table


@dataclass(frozen=True)
class Board:
    """Cells that may be compared: one task, data, budget and precision.

    Attributes:
        title: what they have in common.
        primary: the metrics that are compared, with whether higher is better.
        rows: one per method and parameters, best mean rank first.
        pending: unfinished cells.
        remarks: what the numbers do and do not support.
        verdict: whether anything beats the baseline, in a sentence; empty without a baseline.
        baseline: the baseline's row, None if there is none.
        reference: the single-task row, None if there is not exactly one.
        cells: the final cells of each row that have a result.
        trials: the tuning trials of each row's method that have a result.
        places: (ranked, ranked), how often each ranked row takes each place when seeds are
            resampled; the rows' order.
        ranking: Friedman's and Nemenyi's tests over seeds of the ranked rows, None without
            something to compare with.
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
    trials: dict[str, list[Cell]] = field(default_factory=dict)
    places: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    ranking: statistics.Ranking | None = None


def boards(
    runs: Sequence[RunDirectory], baseline: str | None = None, plain: str | None = None
) -> list[Board]:
    """Return a board for each group of comparable cells.

    Args:
        runs: the cells, trials included; their test metrics are opened.
        baseline: the row, or the method with one row, that the others are tested against.
        plain: the row or method whose step is the unit of cost.

    Raises:
        RunError: there is no run, or a record does not parse.
    """
    finals: dict[str, list[Cell]] = {}
    trials: dict[str, list[Cell]] = {}
    for cell in read_cells(runs):
        kind = finals if cell.spec.stage == "final" else trials
        kind.setdefault(group_key(cell.spec), []).append(cell)
    if not finals:
        raise RunError("no runs found: `mtbench run` makes some")
    names = titles([cells[0].spec for cells in finals.values()])
    return [
        _board(title, cells, trials.get(key, []), baseline, plain)
        for title, (key, cells) in zip(names, finals.items(), strict=True)
    ]


def _board(
    title: str,
    finals: Sequence[Cell],
    trials: Sequence[Cell],
    baseline: str | None,
    plain: str | None,
) -> Board:
    by_row: dict[str, list[Cell]] = {}
    pending = []
    for cell, label in zip(finals, labels(finals), strict=True):
        if cell.result is None:
            pending.append(f"{label} {cell.run.path.name}")
        else:
            by_row.setdefault(label, []).append(cell)
    by_origin: dict[str, list[Cell]] = {}
    for trial in trials:
        if trial.result is not None:
            by_origin.setdefault(_origin(trial), []).append(trial)
    tuned = {label: by_origin.get(_origin(cells[0]), []) for label, cells in by_row.items()}
    late = _late_trials(finals, trials)
    directions: dict[str, bool] = {}
    primary: dict[str, bool] = {}
    for cells in by_row.values():
        for cell in cells:
            for name, metric in cell.done["metrics"].items():
                directions[name] = metric["higher_is_better"]
                if metric["primary"]:
                    primary[name] = metric["higher_is_better"]
    if not by_row:
        return Board(title, primary, pd.DataFrame(), pending)
    return _Scores(by_row, tuned, directions, primary).board(title, pending, late, baseline, plain)


def _origin(cell: Cell) -> str:
    """Return what a row has in common with the trials that chose its parameters."""
    return json.dumps([cell.spec.method, cell.spec.plugins, cell.spec.init], sort_keys=True)


def _late_trials(finals: Sequence[Cell], trials: Sequence[Cell]) -> list[str]:
    """Name methods with trials that finished after a test of the group had been opened."""
    finished = [trial for trial in trials if trial.result is not None]
    if not finished:
        return []
    opened = min(modified(cell.run.path / "test.opened") for cell in finals)
    return sorted(
        {t.spec.method for t in finished if modified(t.run.path / "result.json") > opened}
    ) if math.isfinite(opened) else []  # fmt: skip


class _Scores:
    """One group's test metrics as an array (rows, seeds, metrics), NaN where there is none."""

    def __init__(
        self,
        cells: dict[str, list[Cell]],
        trials: dict[str, list[Cell]],
        directions: dict[str, bool],
        primary: dict[str, bool],
    ) -> None:
        self.cells, self.trials, self.primary = cells, trials, primary
        self.names = sorted(cells)
        self.metrics = list(directions)
        self.higher = list(primary.values())
        self.seeds = sorted({cell.spec.seed for row in cells.values() for cell in row})
        position = {seed: s for s, seed in enumerate(self.seeds)}
        self.every = np.full((len(self.names), len(self.seeds), len(self.metrics)), np.nan)
        for i, name in enumerate(self.names):
            for cell in cells[name]:
                test = cell.run.open_test()
                if not cell.diverged:
                    self.every[i, position[cell.spec.seed]] = [
                        _number(test.get(metric), cell) for metric in self.metrics
                    ]
        x = self.every[:, :, [self.metrics.index(name) for name in primary]]
        self.x = np.where(np.isfinite(x), x, np.nan)
        self.known = np.all(np.isfinite(self.x), axis=2)
        self.reasons = [self._reason(i) for i in range(len(self.names))]
        self.ranked = np.array([not reason for reason in self.reasons])

    def _reason(self, i: int) -> str:
        """Return why a row is not ranked, empty if it is."""
        cells = self.cells[self.names[i]]
        finished = [cell for cell in cells if not cell.diverged]
        reasons = []
        if len(finished) < len(self.seeds):
            reasons.append(f"{len(finished)} of {len(self.seeds)} seeds")
        most = max(len(trials) for trials in self.trials.values())
        if (ours := len(self.trials[self.names[i]])) < most:
            reasons.append(f"{ours} of {most} trials")
        position = [self.seeds.index(cell.spec.seed) for cell in finished]
        lacking = np.any(np.isnan(self.x[i, position]), axis=0)
        reasons += [f"no {name}" for name, none in zip(self.primary, lacking, strict=True) if none]
        return ", ".join(reasons)

    def find(self, wanted: str | None) -> int | None:
        """Return the row of a label, or the only row of a method."""
        if wanted in self.names:
            return self.names.index(wanted)
        of_method = [
            i for i, name in enumerate(self.names) if self.cells[name][0].spec.method == wanted
        ]
        return of_method[0] if len(of_method) == 1 else None

    def reference(self) -> int | None:
        """Return the single-task row; several (two learning rates, say) leave none."""
        found = [i for i, n in enumerate(self.names) if self.cells[n][0].done["reference"]]
        return found[0] if len(found) == 1 else None

    def _vanishing(self, reference: int | None) -> list[str]:
        """Return the metrics in which the single-task row is next to 0: no unit for the others."""
        if reference is None:
            return []
        sizes = np.abs(_moments(self.x)[0])
        small = sizes[reference] < _VANISHING * np.fmax.reduce(sizes, axis=0)
        return [name for name, is_small in zip(self.primary, small, strict=True) if is_small]

    def board(
        self,
        title: str,
        pending: list[str],
        late: list[str],
        baseline: str | None,
        plain: str | None,
    ) -> Board:
        """Return everything that the scores support."""
        count, n = len(self.names), len(self.seeds)
        ranked = np.flatnonzero(self.ranked)
        base, reference, unit = self.find(baseline), self.reference(), self.find(plain)
        columns: dict[str, Any] = {
            "method": self.names,
            "seeds": [sum(not c.diverged for c in self.cells[name]) for name in self.names],
            "diverged": [sum(c.diverged for c in self.cells[name]) for name in self.names],
            "trials": [len(self.trials[name]) for name in self.names],
            "complete": self.ranked,
            "reason": self.reasons,
        }
        means, deviations = _moments(self.every)
        for m, name in enumerate(self.metrics):
            columns[name], columns[f"{name}_sd"] = means[:, m], deviations[:, m]
        remarks = [note] if (note := statistics.interval_note(n)) and n > 1 else []
        vanishing = self._vanishing(reference)
        if vanishing:
            names = " and ".join(vanishing)
            remarks.append(f"no Δm: the single-task {names} is next to 0, which is no unit")
            reference = None
        delta = self._delta_m(reference)
        if np.isnan(delta[0]).all() and not vanishing:
            remarks.append("no Δm: it needs exactly one locally run single-task row")
        columns["delta_m"], columns["delta_m_low"], columns["delta_m_high"] = delta
        columns["iqm"] = np.full(count, np.nan)
        if reference is not None and self.known[reference].all():
            change = statistics.relative_change(self.x, self.x[[reference]], self.higher)
            columns["iqm"] = statistics.iqm(change)
        columns["mean_rank"], columns["first"], places = self._ranks(ranked)
        columns |= self._against(base)
        costs = self._costs(reference, base)
        tests, verdict = self._tests(costs, base, ranked)
        columns |= tests
        if baseline is not None and (base is None or not self.ranked[base]):
            remarks.append(
                f"no comparison with {baseline}: it takes exactly one row of it that is ranked"
            )
        elif baseline is not None and costs is None:
            remarks.append(f"no comparison with {baseline}: a metric's mean is 0, so no unit")
        ranking = None
        if costs is not None and len(ranked) > 2 and n > 1:
            ranking = statistics.friedman_nemenyi(costs[ranked].T, ALPHA)
            if ranking.note or ranking.p > ALPHA:
                remarks.append(
                    ranking.note
                    or f"Friedman over {n} seeds: p = {ranking.p:.3g}, so ranks are not compared"
                )
        if late:
            remarks.append(
                "trials finished after a test here had been opened, so their choice may have seen "
                f"it: {', '.join(late)}"
            )
        columns["hypervolume"] = self._hypervolume()
        columns |= self._cost(unit)
        rows = pd.DataFrame(columns).sort_values(
            ["mean_rank", "method"], na_position="last", ignore_index=True
        )
        place = {self.names[i]: r for r, i in enumerate(ranked)}
        order = [place[name] for name in rows["method"] if name in place]
        if ranking is not None:
            ranking = _reordered(ranking, order)
        return Board(
            title,
            self.primary,
            rows,
            pending,
            remarks,
            verdict,
            None if base is None else self.names[base],
            None if reference is None else self.names[reference],
            {name: self.cells[name] for name in rows["method"]},
            {name: self.trials[name] for name in rows["method"]},
            places[order] if len(places) else places,
            ranking,
        )

    def _delta_m(self, reference: int | None) -> Floats:
        """Return delta-m and its interval (3, rows), over the seeds that both have."""
        found = np.full((3, len(self.names)), np.nan)
        if reference is None:
            return found
        common = self.known & self.known[reference]
        for seeds in np.unique(common, axis=0):
            if not seeds.any():
                continue
            rows = (common == seeds).all(axis=1)
            found[:, rows] = statistics.paired_bootstrap(
                lambda x, y: statistics.delta_m(x, y, self.higher),
                self.x[rows][:, seeds], self.x[[reference]][:, seeds], seed=_SEED,
            )  # fmt: skip
        return found

    def _against(self, base: int | None) -> dict[str, Floats]:
        """Return the probability that a row beats the baseline at the same seed."""
        found = np.full((3, len(self.names)), np.nan)
        if base is not None:
            rows = self.known.all(axis=1) & self.known[base].all()
            rows[base] = False
            if rows.any():
                found[:, rows] = statistics.probability_of_improvement(
                    self.x[rows], np.broadcast_to(self.x[base], self.x[rows].shape), self.higher,
                    paired=True,
                )  # fmt: skip
        names = ("improvement", "improvement_low", "improvement_high")
        return dict(zip(names, found, strict=True))

    def _ranks(self, ranked: NDArray[np.int_]) -> tuple[Floats, Floats, Floats]:
        """Return mean ranks, the probability of the first place, and of every place."""
        ranks, first = np.full((2, len(self.names)), np.nan)
        places = np.zeros((0, 0))
        if len(ranked):
            ranks[ranked] = statistics.mean_rank(self.x[ranked], self.higher)
        if len(ranked) and len(self.seeds) > 1:
            draws = statistics.resample(
                lambda x: statistics.mean_rank(x, self.higher),
                self.x[ranked], seed=_SEED, resamples=2_000,
            )  # fmt: skip
            places = statistics.rank_probabilities(draws)
            first[ranked] = places[:, 0]
        return ranks, first, places

    def _costs(self, *units: int | None) -> Floats | None:
        """Return one number a row and seed, lower is better, in percent of the first unit's means.

        A unit is a row; one that lacks a seed, or has a mean of 0, cannot be it.
        """
        for unit in units:
            if unit is not None and self.known[unit].all():
                change = statistics.relative_change(self.x, self.x[[unit]], self.higher)
                if not np.isnan(change[unit]).any():
                    return np.asarray(change.mean(axis=2))
        return None

    def _tests(
        self, costs: Floats | None, base: int | None, ranked: NDArray[np.int_]
    ) -> tuple[dict[str, Any], str]:
        """Return the ranked rows' tests against the baseline, and what they say."""
        count = len(self.names)
        p, adjusted = np.full((2, count), np.nan)
        told = np.full(count, "", dtype=object)
        verdict = ""
        if costs is not None and base is not None and self.ranked[base] and len(ranked) > 1:
            others = ranked[ranked != base]
            test = statistics.wilcoxon_holm(costs[others], costs[base], ALPHA)
            p[others], adjusted[others] = test.p, test.adjusted
            better = costs[others].mean(axis=1) < costs[base].mean()
            told[others[(test.adjusted <= ALPHA) & better]] = "better"
            told[others[(test.adjusted <= ALPHA) & ~better]] = "worse"
            verdict = self._verdict(base, others, told)
            if test.note:
                verdict = f"Whether anything beats {self.names[base]} cannot be told. {test.note}."
        return {"p": p, "p_holm": adjusted, "told": told}, verdict

    def _verdict(self, base: int, others: NDArray[np.int_], told: NDArray[np.object_]) -> str:
        name = self.names[base]
        groups = {
            outcome: [self.names[i] for i in others if told[i] == outcome]
            for outcome in ("better", "worse", "")
        }
        return (
            f"Better than {name}: {', '.join(groups['better']) or 'none'}. "
            f"Worse: {', '.join(groups['worse']) or 'none'}. "
            f"Not told apart from it: {len(groups[''])} of {len(others)} "
            f"(Wilcoxon-Holm over {len(self.seeds)} seeds, {ALPHA:g})."
        )

    def _hypervolume(self) -> Floats:
        """Return what share of the box a row's trials dominate on validation, two metrics only.

        The box reaches from the best value that anything has to the worst of the rows' means; a row
        without trials is the point of its seeds' mean.
        """
        found = np.full(len(self.names), np.nan)
        if len(self.primary) != 2:
            return found
        signs = np.where(self.higher, -1.0, 1.0)
        means = np.array([_mean_val(self.cells[name], self.primary) for name in self.names]) * signs
        points = [
            np.array([_val(t, self.primary) for t in self.trials[name]]) * signs
            if self.trials[name]
            else means[[i]]
            for i, name in enumerate(self.names)
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

    def _cost(self, unit: int | None) -> dict[str, Any]:
        seconds = [
            np.array([c.done["cost"]["seconds_per_step"] for c in self.cells[n] if not c.diverged])
            for n in self.names
        ]
        medians = np.array([np.median(s) if len(s) else np.nan for s in seconds])
        peaks = [
            max(
                (c.done["cost"]["peak_mib"] for c in self.cells[n] if not c.diverged),
                default=math.nan,
            )
            for n in self.names
        ]
        tuning = [
            sum(t.done["cost"].get("train_seconds", math.nan) for t in self.trials[n]) / 3600
            for n in self.names
        ]
        return {
            "seconds_per_step": medians,
            "cost_ratio": medians / medians[unit] if unit is not None else np.nan,
            "peak_mib": peaks,
            "passes": [self.cells[n][0].done["cost"].get("passes", "") for n in self.names],
            "tuning_hours": tuning,
        }


def _number(value: Any, cell: Cell) -> float:
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{cell.run.path / 'test.json'}: {value!r} is no number; delete the folder to run the "
            "cell again"
        ) from error


def _val(cell: Cell, primary: dict[str, bool]) -> list[float]:
    return [float(cell.val.get(name, math.nan)) for name in primary]


def _mean_val(cells: Sequence[Cell], primary: dict[str, bool]) -> Floats:
    values = np.array([_val(cell, primary) for cell in cells])
    mean: Floats = _moments(values[None])[0][0]
    return mean


def _moments(x: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation over seeds, of the seeds that are there."""
    known = np.isfinite(x)
    n = known.sum(axis=1)
    mean = np.where(n > 0, np.where(known, x, 0).sum(axis=1) / np.maximum(n, 1), np.nan)
    squares = np.where(known, x - mean[:, None], 0) ** 2
    return mean, np.where(n > 1, np.sqrt(squares.sum(axis=1) / np.maximum(n - 1, 1)), np.nan)


def _reordered(ranking: statistics.Ranking, order: Sequence[int]) -> statistics.Ranking:
    back = {old: new for new, old in enumerate(order)}
    return ranking._replace(
        mean_ranks=ranking.mean_ranks[list(order)],
        cliques=[tuple(back[i] for i in clique) for clique in ranking.cliques],
    )
