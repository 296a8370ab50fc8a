"""Running a suite's cells: what is open is given to an executor's workers until nothing is.

All that is known lies in the folder: any number of sweeps may work on one, and this process may be
stopped at any moment and started again.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from mtbench.comparing.planning.grid import Cell, Grid
from mtbench.comparing.planning.survey import State, Survey
from mtbench.comparing.running.executors import Executor
from mtbench.comparing.running.worker import Assignment, Report
from mtbench.errors import RunError, writable
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.task import Progress

LOOK = 1.0
"""Seconds between two looks at the folder."""

DEATHS = 3
"""How many workers in a row may die outside any cell."""

Watcher = Callable[[Mapping[Cell, State]], None]
"""Is told now and then how far the cells are."""


def prepare(out: Path) -> None:
    """Make the folder of a sweep.

    Raises:
        RunError: it cannot be written.
    """
    with writable(f"--out {out}", "choose another folder"):
        (out / ".sweep").mkdir(parents=True, exist_ok=True)
        (out / ".sweep" / "workers.log").touch()


def check_data(grid: Grid, progress: Progress) -> None:
    """Set up each task's data, which fills caches, so that what is broken is told at once.

    Of a collection that is, every fold. Of populations that are simulated, the first: they differ
    by a number, and to make them all would take as long as it will.

    Raises:
        DataError: the data is absent or broken.
    """
    for entry in (entries[0] for entries in grid.tasks.values()):
        simulated = entry.resplit == 0
        for repetition, request in enumerate(entry.requests[: 1 if simulated else None]):
            request.task.setup(grid.suite.budget.final_seeds(repetition)[0], progress)


def sweep(grid: Grid, out: Path, executor: Executor, watch: Watcher) -> dict[Cell, State]:
    """Run what is open; return every cell's state at the end.

    Args:
        grid: the cells.
        out: the folder; `prepare` has made it.
        executor: starts the workers.
        watch: is told how it goes.

    Raises:
        RunError: the workers cannot work, or the folder can no more be written.
    """
    drive = _Drive(grid, out, executor, watch)
    try:
        while drive.go_on():
            pass
    except OSError as error:  # the disk is full, say
        raise RunError(f"{out}: {error.strerror or error}; mend it and sweep again") from error
    finally:
        executor.stop()
    return drive.look()


class _Drive:
    def __init__(self, grid: Grid, out: Path, executor: Executor, watch: Watcher) -> None:
        self.grid, self.out, self.executor, self.watch = grid, out, executor, watch
        self.survey = Survey(grid, out)
        self.closed: set[int] = set()  # by what workers say, who know the data
        self.under_way: dict[str, Assignment] = {}
        self.deaths = 0
        for state in self.look().values():  # of workers that were killed, and of earlier mtbenchs
            if state.run is not None:
                RunDirectory(state.run).drop_checkpoint()

    def look(self) -> dict[Cell, State]:
        """Look at the folder."""
        begin = time.monotonic()
        self.states = self.survey.look()
        self.watch(self.states)
        # A folder so large that looking takes long is looked at less often.
        self.due = time.monotonic() + max(LOOK, 19 * (time.monotonic() - begin))
        return self.states

    def go_on(self) -> bool:
        """Start workers and listen to those that end; return whether there is more to do."""
        left = len(self.grid.cells) - len(self.closed)
        begun = [
            Assignment(self.grid.order, self.out, uuid.uuid4().hex, cells, self.grid.digest)
            for cells in self.executor.shares(self._open, left, len(self.under_way))
        ]
        self.under_way |= {assignment.name: assignment for assignment in begun}
        self.executor.submit(begun)
        for name, outcome in self.executor.ended(LOOK):
            self._part(self.under_way.pop(name), outcome)
        if time.monotonic() >= self.due or not self.under_way:
            self.look()
        return bool(self.under_way) or not all(map(self._is_closed, range(len(self.grid.cells))))

    def _is_closed(self, number: int) -> bool:
        return number in self.closed or self.states[self.grid.cells[number]].closed

    def _open(self) -> list[int]:
        """Return the cells that nobody works on or is to, and whose parameters are known.

        Finished ones that lack figures are among them.
        """
        cells = self.grid.cells
        given = {i for assignment in self.under_way.values() for i in assignment.cells or ()}
        closed = {cell for i, cell in enumerate(cells) if self._is_closed(i)}
        return [
            i
            for i, cell in enumerate(cells)
            if i not in given
            and i not in self.closed
            and (self.states[cell].status == "open" or self.states[cell].incomplete)
            and closed.issuperset(self.grid.needs(cell))
        ]

    def _part(self, assignment: Assignment, outcome: Report | str) -> None:
        if isinstance(outcome, Report):
            if outcome.error is not None:
                raise outcome.error
            self.closed.update(outcome.closed)
            self.deaths = 0
        elif assignment.blame(outcome):
            self.deaths = 0
        else:
            self.deaths += 1
            if self.deaths >= DEATHS:
                raise RunError(
                    f"{outcome} before any cell, {DEATHS} times in a row: see {self.executor.log}"
                )
