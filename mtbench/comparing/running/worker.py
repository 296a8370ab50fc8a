"""What a worker of a sweep does, wherever it runs: it takes cells and trains them.

Workers share nothing but the folder. Each holds its cell by a lock that the kernel releases when
the worker ends, however it ends; files are replaced atomically, and a cell goes on from its
checkpoint.
"""

import os
import platform
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mtbench.balancing.engine import Engine
from mtbench.comparing import claim
from mtbench.comparing.planning.grid import Cell, Entry, Grid, Order, best, frozen
from mtbench.comparing.planning.survey import (
    INCOMPLETE,
    Earlier,
    failed,
    is_open,
    record_crash,
    record_incomplete,
    state_of,
)
from mtbench.errors import MtbenchError, RunError
from mtbench.training.cell.rundir import RunDirectory, Spec, WriteError
from mtbench.training.machine.cache import cache_dir
from mtbench.training.machine.device import use_device
from mtbench.training.machine.locks import HeldError
from mtbench.training.task import Splits
from mtbench.training.trained.model import conclude
from mtbench.training.trainer.observer import Silent
from mtbench.training.trainer.record import OutdatedError
from mtbench.training.trainer.trainer import Trainer

PINNED = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), "1")
"""The environment of a worker: one thread, one process."""

WAIT = 0.2
"""Seconds between two looks for an open cell, where others hold all that is left."""

KEPT = 2
"""How many seeds' data a worker keeps."""

_ALONE = threading.Lock()
"""Training uses the process' random generators: one worker a process, whatever its threads."""


@dataclass(frozen=True)
class Report:
    """What a worker has to say when it ends.

    Attributes:
        closed: the cells, by their number in the grid, on which nothing is left to do.
        error: what the user has to mend.
    """

    closed: tuple[int, ...] = ()
    error: MtbenchError | None = None


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do; it can be pickled, and called again when it was cut off.

    Attributes:
        order: of the sweep.
        out: its folder.
        name: of the worker; no other has it.
        cells: their numbers in the grid; None for all, and then it waits for what others hold.
        digest: of the grid in which these are the numbers.
    """

    order: Order
    out: Path
    name: str
    cells: tuple[int, ...] | None
    digest: str

    @property
    def note(self) -> Path:
        """The file that holds the directory of the cell that the worker is at."""
        return self.out / ".sweep" / f"{self.name}.cell"

    def __call__(self) -> Report:
        """Do it."""
        with _ALONE:
            try:
                if not self.note.parent.is_dir():
                    raise RunError(
                        f"--out {self.out}: a worker does not see this folder: it must lie on a "
                        "file system that all machines share"
                    )
                self.blame("the worker at it died")
                grid = Grid(self.order)
                if grid.digest != self.digest:
                    raise RunError(
                        f"suite {self.order.suite.name}: a worker on {platform.node()} has other "
                        f"cells ({len(grid.cells)}, on {grid.device}): the same mtbench and "
                        "plugins must be installed on all machines, and the suite must name its "
                        "device"
                    )
                use_device(self.order.suite.device)
                return Report(Worker(grid, self.out, self.note).run(self.cells))
            except MtbenchError as error:
                return Report(error=error)

    def blame(self, reason: str) -> bool:
        """Record a crash of the cell that a worker was at when it died.

        Without the cell's lock, which another worker may have by now and keep for hours: deaths
        that nobody may record would let two sweeps lose workers to one cell for ever.

        Returns:
            whether there was one.
        """
        try:
            path = os.fsdecode(self.note.read_bytes())
        except FileNotFoundError:
            return False
        self.note.unlink()
        run = RunDirectory(Path(path))
        if path and not failed(run):
            if run.result() is None:
                record_crash(run, reason)
            elif self.order.concludes(run.spec()):
                record_incomplete(run, reason)
        return bool(path)


class Worker:
    """Trains cells.

    Args:
        grid: the cells.
        out: the folder.
        note: the file that says which cell it is at.
    """

    def __init__(self, grid: Grid, out: Path, note: Path) -> None:
        self.grid, self.out, self.note = grid, out, note
        self.data: OrderedDict[tuple[str, int], Splits] = OrderedDict()
        self.fingerprints: dict[tuple[str, int], str] = {}
        self.runs: dict[Cell, RunDirectory | None] = {}
        self.taken: dict[tuple[Entry, int], int] = {}
        self.earlier = Earlier(out)

    def run(self, numbers: Sequence[int] | None = None) -> tuple[int, ...]:
        """Take one open cell after another, until none is left.

        Args:
            numbers: of the cells, None for all. What others hold is waited for if it is all, and
                otherwise left to them.

        Returns:
            the numbers of those on which nothing is left to do.
        """
        cells = self.grid.cells
        wanted = cells if numbers is None else [cells[number] for number in numbers]
        # A study ends before the next begins: what is there can be compared at any time.
        left = list(dict.fromkeys(one for cell in wanted for one in self._with_needs(cell)))
        while left:
            closed = next(filter(self._close, left), None)
            if closed is not None:
                left.remove(closed)
            elif numbers is None:
                time.sleep(WAIT)
            else:
                break
        done = set(wanted) - set(left)
        return tuple(i for i, cell in enumerate(cells) if cell in done)

    def _with_needs(self, cell: Cell) -> Iterator[Cell]:
        """Yield what a cell takes its parameters from, and the cell."""
        for one in self.grid.needs(cell):
            yield from self._with_needs(one)
        yield cell

    def _close(self, cell: Cell) -> bool:
        """Do what is to do of a cell; return whether nothing is left."""
        trial, tried, origin = cell.trial, None, ""
        needed = self.grid.needs(cell)
        if not all(one in self.runs for one in needed):
            return False
        if cell.entry.weights_from:
            try:
                origin, tried = frozen(cell, {one: self.runs[one] for one in needed})
            except RunError:  # as `Survey` says, too
                self.runs[cell] = None
                return True
        elif needed:
            trial = self._best(cell)
            tried = self._trained(needed[trial]).spec()
        spec = self.grid.spec(cell, self._fingerprint(cell), trial, tried)
        own = self.grid.claim(cell, trial, origin)
        anew = self.grid.order.other_code == "anew"
        run = None if anew else self.earlier.find(cell.entry, own, spec)
        if run is None:
            run = RunDirectory.at(self.out, spec)
            if is_open(state_of(run), anew) or own not in claim.read(run):
                try:
                    with run.claim():
                        claim.add(run, own)
                        if is_open(state := state_of(run), anew):
                            if state.closed:
                                run.clear(keep=claim.FILE)
                            self._train(cell, spec, run)
                except HeldError:
                    return False
                if is_open(state_of(run), anew):
                    return False
        elif (run.path / INCOMPLETE).exists():
            with suppress(HeldError), run.claim():
                self._conclude(cell, spec, run)
        self.runs[cell] = run
        return True

    def _best(self, cell: Cell) -> int:
        """Return the number of the trial that a final cell takes."""
        study = cell.entry, cell.repetition
        if study not in self.taken:
            runs = map(self._trained, self.grid.trials(*study))
            self.taken[study] = best([state_of(run).score for run in runs])
        return self.taken[study]

    def _trained(self, trial: Cell) -> RunDirectory:
        """Return a closed trial's directory: only a cell that takes weights may have none."""
        run = self.runs[trial]
        assert run is not None
        return run

    def _train(self, cell: Cell, spec: Spec, run: RunDirectory) -> None:
        request, _ = cell.entry.setting(cell.repetition, None)
        task, method = request.task, cell.entry.choice.method
        on_cpu = spec.device == "cpu"
        engine = Engine(batched=False) if on_cpu else Engine(notebook=cache_dir())
        splits = self._splits(cell)
        self.note.write_bytes(os.fsencode(run.path))  # a path need not be UTF-8
        try:
            trainer = Trainer(spec, task, splits, method, run, Silent(), threads=1, engine=engine)
            try:
                trainer.run()
            except OutdatedError:  # one cell is of one code
                if self.grid.order.other_code is None:
                    raise
                run.clear(keep=claim.FILE)
                trainer.run()
            run.drop_checkpoint()
        except (WriteError, OutdatedError):  # no fault of the cell
            self.note.unlink(missing_ok=True)
            raise
        except Exception as error:
            record_crash(run, *_said(error))
        else:
            self._conclude(cell, spec, run)
        self.note.unlink(missing_ok=True)

    def _conclude(self, cell: Cell, spec: Spec, run: RunDirectory) -> None:
        """Draw a finished cell's figures, if it is to have some; that this fails is on record."""
        if not self.grid.order.concludes(spec):
            return
        request, _ = cell.entry.setting(cell.repetition, None)
        splits, method = self._splits(cell), cell.entry.choice.method
        try:
            conclude(run, request.task, splits, method, sealed=True)
        except WriteError:
            raise
        except Exception as error:
            record_incomplete(run, *_said(error))
        else:
            (run.path / INCOMPLETE).unlink(missing_ok=True)

    def _fingerprint(self, cell: Cell) -> str:
        key = (cell.entry.task, cell.seed)
        if key not in self.fingerprints:
            self.fingerprints[key] = self._splits(cell).fingerprint
        return self.fingerprints[key]

    def _splits(self, cell: Cell) -> Splits:
        key = (cell.entry.task, cell.seed)
        if key not in self.data:
            request, _ = cell.entry.setting(cell.repetition, None)
            self.data[key] = request.task.setup(cell.seed, lambda *_: None)
            if len(self.data) > KEPT:
                self.data.popitem(last=False)
        return self.data[key]


def _said(error: Exception) -> tuple[str, str]:
    """Return what an error says and where it was raised, in a line and at length."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f" ({Path(where.filename).name}, line {where.lineno})"
    known = isinstance(error, MtbenchError)
    reason = str(error) if known else f"{type(error).__name__}: {error}{place}"
    return reason, "".join(traceback.format_exception(error))
