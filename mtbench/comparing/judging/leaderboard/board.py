"""From finished cells to a table that says what it supports."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mtbench.comparing.claim import Claim
from mtbench.comparing.judging import statistics
from mtbench.comparing.judging.deciding import MARGIN
from mtbench.comparing.judging.leaderboard import doubts
from mtbench.comparing.judging.leaderboard.cells import Recorded, read_cells
from mtbench.comparing.judging.leaderboard.doubts import more, some
from mtbench.comparing.judging.leaderboard.entrants import Group, Row, groups
from mtbench.comparing.judging.leaderboard.pairs import Pairs
from mtbench.comparing.judging.leaderboard.ranking import Ranking
from mtbench.comparing.judging.leaderboard.scores import Scores, mean_over_units
from mtbench.comparing.judging.statistics import Floats
from mtbench.errors import RunError
from mtbench.training.cell.rundir import RunDirectory

COST = ("seconds_per_step", "cost_ratio", "peak_mib", "passes", "train_hours", "tuning_hours")


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
        alike: whether the ranked rows have the same units, the single-task one apart.
    """

    title: str
    primary: dict[str, bool]
    rows: pd.DataFrame
    pending: list[str]
    remarks: list[str] = field(default_factory=list)
    verdict: str = ""
    baseline: str | None = None
    reference: str | None = None
    cells: dict[str, list[Recorded]] = field(default_factory=dict)
    trials: dict[str, dict[tuple[int, int], Recorded]] = field(default_factory=dict)
    places: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    margin: float = MARGIN
    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    suite: Claim | None = None
    unit: str = "seed"
    doubted: list[str] = field(default_factory=list)
    alike: bool = True

    @property
    def heads(self) -> dict[str, str]:
        """The compared metrics by what their columns are called."""
        return {headed(name, higher): name for name, higher in self.primary.items()}


def headed(metric: str, higher: bool) -> str:
    """Return what the column of a metric is called for a reader."""
    return f"{metric} {'↑' if higher else '↓'}"


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
                "take all verdicts from the board of the suite as it is now, which `mtbench "
                f"status OUT SUITE` names, for it was changed and has others: {some(others)}"
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
    scores = Scores(group)
    pairs = Pairs(scores, baseline, plain)
    ranking = Ranking(scores, pairs)
    first, places = ranking.places()
    columns: dict[str, Any] = {
        "method": scores.names,
        "seeds": [sum(not c.diverged for c in row.finals) for row in scores.rows],
        "diverged": [row.diverged for row in scores.rows],
        "units": scores.known.sum(axis=1),
        "trials": [row.tried for row in scores.rows],
        "complete": ranking.ranked,
        "reason": ranking.reasons,
        **_measured(scores),
        **dict(zip(("delta_m", "delta_m_low", "delta_m_high"), ranking.delta, strict=True)),
        "iqm": ranking.iqm,
        "mean_rank": ranking.mean_rank,
        "first": first,
        **pairs.columns(),
        "hypervolume": _hypervolume(scores.rows, scores.primary),
        **_cost(scores.rows, pairs.plain),
    }
    rows = pd.DataFrame(columns).iloc[ranking.order].reset_index(drop=True)
    place = {scores.names[i]: r for r, i in enumerate(np.flatnonzero(ranking.ranked))}
    shown = [place[name] for name in rows["method"] if name in place]
    n, why_not = int(ranking.common.sum()), pairs.no_comparison()
    note = statistics.interval_note(n, group.unit) if n > 1 else ""
    own = [
        scores.known[i].tolist() for i in np.flatnonzero(ranking.ranked) if i != scores.reference
    ]
    return Board(
        title=group.title,
        primary=scores.primary,
        rows=rows,
        pending=group.pending,
        remarks=[
            *filter(None, [note]), *pairs.remarks, *scores.remarks, *filter(None, [why_not]),
            *doubts.of_cells(group), *scores.doubts(), *pairs.doubts(),
            *doubts.of_rows(group, scores.primary),
        ],
        verdict=pairs.verdict(),
        baseline=None if pairs.base is None else scores.names[pairs.base],
        reference=None if scores.reference is None else scores.names[scores.reference],
        cells={name: group.rows[name].finals for name in rows["method"]},
        trials={name: group.rows[name].trials for name in rows["method"]},
        places=places[shown] if len(places) else places,
        margin=group.margin,
        pairs=pairs.table,
        suite=group.suite,
        unit=group.unit,
        doubted=pairs.doubted,
        alike=all(units == own[0] for units in own),
    )  # fmt: skip


def _measured(scores: Scores) -> dict[str, list[float]]:
    """Return each metric's mean and standard deviation over a row's cells."""
    columns = {}
    for m, name in enumerate(scores.metrics):
        known = [[v for t in tests.values() if math.isfinite(v := t[m])] for tests in scores.tests]
        columns[name] = [float(np.mean(v)) if v else math.nan for v in known]
        columns[f"{name}_sd"] = [
            float(np.std(v, ddof=1)) if len(v) > 1 else math.nan for v in known
        ]
    return columns


def _hypervolume(rows: Sequence[Row], primary: Mapping[str, bool]) -> Floats:
    """Return what share of the box a row's trials dominate on validation, two metrics only.

    The box reaches from the best value that anything has to the worst of the rows' means; a row
    without trials is the point of its seeds' mean.
    """
    found = np.full(len(rows), np.nan)
    if len(primary) != 2:
        return found

    def points(cells: Iterable[Recorded]) -> Floats:  # lower is better
        values = [[cell.val.get(name, math.nan) for name in primary] for cell in cells]
        return np.array(values, float) * np.where(list(primary.values()), -1.0, 1.0)

    means = np.concatenate([mean_over_units(points(row.finals)[None]) for row in rows])
    own = [points(row.trials.values()) if row.trials else means[[i]] for i, row in enumerate(rows)]
    every = np.concatenate([means, *own])
    every = every[np.isfinite(every).all(axis=1)]
    if not len(every):
        return found
    worst = means[np.isfinite(means).all(axis=1)].max(axis=0, initial=-math.inf)
    box = worst - every.min(axis=0)
    if not (np.isfinite(box).all() and (box > 0).all()):
        return found
    return np.array([statistics.hypervolume(p, worst) / float(box.prod()) for p in own])


def _cost(rows: Sequence[Row], plain: int | None) -> dict[str, Any]:
    """Return what a row's cells and trials cost; the ratio is of training to the plain row's."""

    def costs(row: Row, key: str) -> list[float]:
        found = [getattr(c.done.cost, key) for c in row.finals if not c.diverged]
        return found or [math.nan]

    medians = np.array([np.median(costs(row, "seconds_per_step")) for row in rows])
    recipes = [row.finals[0].spec.recipe for row in rows]
    trained = medians * [recipe["epochs"] / recipe["batch_size"] for recipe in recipes]
    return {
        "seconds_per_step": medians,
        "cost_ratio": np.nan if plain is None else trained / trained[plain],
        "peak_mib": [max(costs(row, "peak_mib")) for row in rows],
        "passes": [row.finals[0].done.cost.passes for row in rows],
        "train_hours": [np.median(costs(row, "train_seconds")) / 3600 for row in rows],
        "tuning_hours": [
            sum(t.done.cost.train_seconds for t in row.trials.values()) / 3600 for row in rows
        ],
    }
