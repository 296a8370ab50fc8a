"""What finished runs on a suite's tasks tell of how its differences will scatter."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mtbench.comparing.claim import Claim
from mtbench.comparing.judging import leaderboard, statistics
from mtbench.comparing.judging.deciding import FIRST
from mtbench.comparing.judging.leaderboard import Board
from mtbench.comparing.judging.statistics import Floats
from mtbench.comparing.planning.grid import Cell, Grid
from mtbench.training.cell.rundir import Spec, find_runs


@dataclass(frozen=True)
class Luck:
    """What moves a difference of delta-m to a row, as standard deviations, in points.

    Attributes:
        row: that others are compared with.
        trials: of every row.
        choice: what another draw of so many trials does.
        seed: what another final seed does, of the same parameters.
    """

    row: str
    trials: int
    choice: float
    seed: float


@dataclass(frozen=True)
class Scatter:
    """How paired differences of delta-m scatter on a task.

    Attributes:
        deviation: their standard deviation, in points.
        origin: what measured it, in words.
        luck: of what it consists, to each row asked about, where that can be told.
    """

    deviation: float
    origin: str
    luck: list[Luck] = field(default_factory=list)


@dataclass(frozen=True)
class _Measured:
    """What one board of a pilot says of the pairs with one row."""

    title: str
    unit: str
    specs: list[Spec]
    deviations: list[float]
    luck: Luck | None


def scatter(grid: Grid, pilot: Path, baseline: str) -> dict[str, Scatter]:
    """Return how differences scatter on each task of a pilot.

    The deviation is the median of the pairs that the suite asks about, as far as they were run on
    the same setting of the task, whatever else they are a part of; where there are none, of those
    on its only other setting.

    Args:
        grid: of the suite.
        pilot: a folder of runs.
        baseline: the row that is asked about where the suite names none.
    """

    def setting_of(spec: Spec, free: Collection[str]) -> list[Any]:
        made = spec.model_dump(mode="json")
        own = {k: v for k, v in made["task_params"].items() if k not in free}
        return [spec.task, own, *(made["recipe"][k] for k in ("epochs", "batch_size"))]

    runs = list(find_runs([pilot]))
    measured = [
        _Measured(
            board.title,
            _unit(board.suite),
            [cells[0].spec for cells in board.cells.values()],
            found,
            _luck(board),
        )
        for row in grid.suite.against or [baseline]
        for board in leaderboard.boards(runs, row)
        if (found := _deviations(board))
    ]
    told: dict[str, Scatter] = {}
    for setting, (task, entries) in zip(grid.suite.tasks, grid.tasks.items(), strict=True):
        free = setting.resample or ()
        cell = Cell(entries[0], grid.first_seed)
        wanted, unit = setting_of(grid.spec(cell, "", None), free), _unit(grid.claim(cell, None))
        own = [
            one for one in measured if any(setting_of(spec, free) == wanted for spec in one.specs)
        ]
        others = [one for one in measured if one.specs[0].task == setting.name]
        origin = "by the pilot"
        if not own and len(titles := {one.title for one in others}) == 1:
            own, origin = others, f"by the pilot on another setting: {titles.pop()}"
        if other := next((one.unit for one in own if one.unit != unit), None):
            origin += f", whose repetitions are {other}, not {unit}"
        if own:
            deviation = median(value for one in own for value in one.deviations)
            # Of a suite that was changed there are two boards: either has measured the same.
            luck = {one.luck.row: one.luck for one in own if one.luck is not None}
            told[task] = Scatter(deviation, origin, list(luck.values()))
    return told


def _unit(suite: Claim | None) -> str:
    """Return what a unit consists of."""
    if suite is None or not suite.study_is_unit:
        return "of one seed"
    return f"of {suite.trials} trials and {suite.seeds} seeds"


def _deviations(board: Board) -> list[float]:
    """Return the standard deviations of all pairs with a board's baseline."""
    pairs = board.pairs
    if pairs.empty:
        return []
    found: list[float] = pairs[pairs["against"] == board.baseline]["deviation"].dropna().tolist()
    return found


def _luck(board: Board) -> Luck | None:
    """Return what differences to a board's baseline consist of, None where that cannot be told.

    Repetitions of a study differ in their trials, whose choice the final seeds of a repetition
    share. So what these do not explain is the choice: but for repetitions with data of their own.
    """
    suite, base = board.suite, board.baseline
    if suite is None or base is None or board.reference is None:
        return None
    if not suite.trials or suite.seeds < 2 or suite.resplit is not None:
        return None
    reference = _tests(board, board.reference)
    reference = reference[np.isfinite(reference).all(axis=1)]
    own, found = _costs(board, base, reference, suite), []
    for name in board.pairs[board.pairs["against"] == base]["method"]:
        by_repetition: dict[int, list[float]] = {}
        for (repetition, seed), cost in _costs(board, name, reference, suite).items():
            if (repetition, seed) in own:
                difference = cost - own[repetition, seed]
                by_repetition.setdefault(repetition, []).append(difference)
        whole = [values for values in by_repetition.values() if len(values) == suite.seeds]
        if len(whole) >= FIRST:
            found.append(statistics.variance_components(whole))
    if not found:
        return None
    choice, seed = np.median(found, axis=0).tolist()
    return Luck(base, suite.trials, math.sqrt(max(choice, 0.0)), math.sqrt(seed))


def _tests(board: Board, name: str) -> Floats:
    """Return the test metrics of a row's cells, (cells, metrics), NaN where undefined."""
    rows = [[cell.test.get(m, math.nan) for m in board.primary] for cell in board.cells[name]]
    return np.array(rows, float)


def _costs(
    board: Board, name: str, reference: Floats, suite: Claim
) -> dict[tuple[int, int], float]:
    """Return a row's delta-m by repetition and seed, as far as it is defined."""
    higher = list(board.primary.values())
    costs = statistics.relative_change(_tests(board, name), reference, higher).mean(axis=1)
    return {
        (claim.repetition, cell.spec.seed): cost
        for cell, cost in zip(board.cells[name], costs.tolist(), strict=True)
        for claim in cell.claimed(suite, name)
        if math.isfinite(cost)
    }
