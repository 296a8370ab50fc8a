"""Running a suite's cells in processes that share nothing but the folder.

Each worker takes the next open cell of the suite and holds it by a lock that the kernel releases
when the worker ends, however it ends. So any number of sweeps may work on one folder, and be
stopped at any moment: files are replaced atomically, and a cell goes on from its checkpoint.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from mtbench.cache import cache_dir
from mtbench.engine import Engine
from mtbench.errors import MtbenchError, RunError
from mtbench.grid import (
    Cell,
    Entry,
    Grid,
    Order,
    State,
    Survey,
    best,
    claimed,
    failed,
    record_crash,
    state_of,
)
from mtbench.rundir import RunDirectory, Spec
from mtbench.task import Progress, Splits
from mtbench.trainer import Trainer, draw

PINNED = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), "1")
"""The environment of a worker: one thread, one process."""

WAIT = 0.2
"""Seconds between two looks for an open cell, where others hold all that is left."""

LOOK = 1.0
"""Seconds between two looks at the folder."""

DEATHS = 3
"""How many workers in a row may die outside any cell."""

KEPT = 2
"""How many seeds' data a worker keeps."""

Watcher = Callable[[Mapping[Cell, State]], None]
"""Is told now and then how far the cells are."""


def prepare(out: Path) -> None:
    """Make the folder of a sweep.

    Raises:
        RunError: it cannot be written.
    """
    try:
        (out / ".sweep").mkdir(parents=True, exist_ok=True)
        (out / ".sweep" / "workers.log").touch()
    except OSError as error:
        raise RunError(
            f"--out {out}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def check_data(grid: Grid, progress: Progress) -> None:
    """Set up each task's data once, which fills caches, so that what is broken is told at once.

    Raises:
        DataError: the data is absent or broken.
    """
    for entries in grid.tasks.values():
        entries[0].request.task.setup(grid.first_seed, progress)


def sweep(grid: Grid, out: Path, jobs: int, watch: Watcher) -> dict[Cell, State]:
    """Run what is open, in `jobs` processes; return every cell's state at the end.

    Args:
        grid: the cells.
        out: the folder; `prepare` has made it.
        jobs: number of processes.
        watch: is told how it goes.

    Raises:
        RunError: the workers cannot work, or the folder can no more be written.
    """
    survey = Survey(grid, out)
    watch(survey.look())
    crew = _Crew(grid.order, out)
    try:
        for _ in range(min(jobs, len(grid.cells))):
            crew.hire()
        looked = time.monotonic()
        while crew.attend(LOOK):
            begin = time.monotonic()
            if begin - looked >= LOOK:
                watch(survey.look())
                # A folder so large that looking takes long is looked at less often.
                looked = time.monotonic() + 9 * (time.monotonic() - begin)
    except OSError as error:  # the disk is full, say
        raise RunError(f"{out}: {error.strerror or error}; mend it and sweep again") from error
    finally:
        crew.stop()
    states = survey.look()
    watch(states)
    return states


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    run: Path | None = None


class _Crew:
    """The workers: started, listened to, and replaced when they die."""

    def __init__(self, order: Order, out: Path) -> None:
        self.order, self.out = order, out
        self.workers: list[_Worker] = []
        self.deaths = 0

    def hire(self) -> None:
        """Start a worker."""
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(self.order, self.out, theirs))
        self.workers.append(_Worker(process, ours))
        with _environment():
            process.start()
        theirs.close()  # so that the pipe ends with the worker

    def attend(self, seconds: float) -> bool:
        """Listen for at most so long; return whether any worker is left."""
        ready = connection.wait([worker.pipe for worker in self.workers], seconds)
        for worker in [worker for worker in self.workers if worker.pipe in ready]:
            try:
                message = worker.pipe.recv()
            except EOFError:
                self._part(worker)
                continue
            if isinstance(message, MtbenchError):
                raise message
            worker.run = message
            if worker.run is not None:
                self.deaths = 0
        return bool(self.workers)

    def _part(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.process.join()
        code = worker.process.exitcode or 0
        if code == 0:
            return
        reason = f"the worker ended with exit code {code}"
        if code < 0:
            reason = f"the worker was killed by {signal.Signals(-code).name}"
        run = None if worker.run is None else RunDirectory(worker.run)
        if run is None:
            self.deaths += 1
            if self.deaths >= DEATHS:
                raise RunError(
                    f"{reason} before any cell, {DEATHS} times in a row: see "
                    f"{self.out / '.sweep' / 'workers.log'}"
                )
        elif run.result() is None and not failed(run):
            record_crash(run, reason)
        self.hire()

    def stop(self) -> None:
        """End the workers that are left; what they do goes on from its checkpoint."""
        started = [worker.process for worker in self.workers if worker.process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()


@contextmanager
def _environment() -> Iterator[None]:
    """Give a process that is started what a worker needs: pinned threads, and deaf to Ctrl-C."""
    before = {name: os.environ.get(name) for name in PINNED}
    os.environ.update(PINNED)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(order: Order, out: Path, pipe: Connection) -> None:
    """Be a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (out / ".sweep" / "workers.log").open("a") as log:
        sys.stdout.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        _Work(Grid(order), out, pipe.send).run()
    except MtbenchError as error:
        pipe.send(error)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Work:
    """What a worker does.

    Args:
        grid: the cells.
        out: the folder.
        tell: is told the directory of a cell that begins, and None when it has ended.
    """

    def __init__(self, grid: Grid, out: Path, tell: Callable[[Path | None], None]) -> None:
        self.grid, self.out, self.tell = grid, out, tell
        self.data: OrderedDict[tuple[str, int], Splits] = OrderedDict()
        self.fingerprints: dict[tuple[str, int], str] = {}
        self.trials: dict[Cell, RunDirectory] = {}
        self.taken: dict[Entry, int] = {}

    def run(self) -> None:
        """Take one open cell after another, until none is left."""
        left = list(self.grid.cells)
        while left:
            closed = next(filter(self._close, left), None)
            if closed is None:
                time.sleep(WAIT)
            else:
                left.remove(closed)

    def _close(self, cell: Cell) -> bool:
        """Do what is to do of a cell; return whether nothing is left."""
        trial = cell.trial
        if trial is None and self.grid.suite.budget.trials:
            trial = self._best(cell.entry)
            if trial is None:
                return False
        spec = self.grid.spec(cell, self._fingerprint(cell), trial)
        with claimed(self.out, spec) as mine:
            if not mine:
                return False
            run = RunDirectory.at(self.out, spec)
            if run.result() is None and not failed(run):
                self.tell(run.path)
                self._train(cell, spec, run)
                self.tell(None)
            if run.result() is None and not failed(run):
                return False
        if cell.trial is not None:
            self.trials[cell] = run
        return True

    def _best(self, entry: Entry) -> int | None:
        """Return the number of the trial that is taken, None while some are open."""
        if entry not in self.taken:
            budget = self.grid.suite.budget
            cells = [Cell(entry, budget.tuning_seed, t) for t in range(budget.trials)]
            if not all(cell in self.trials for cell in cells):
                return None
            self.taken[entry] = best([state_of(self.trials[cell]).score for cell in cells])
        return self.taken[entry]

    def _train(self, cell: Cell, spec: Spec, run: RunDirectory) -> None:
        task, method = cell.entry.request.task, cell.entry.choice.method
        on_cpu = spec.device == "cpu"
        engine = Engine(batched=False) if on_cpu else Engine(notebook=cache_dir())
        splits = self._splits(cell)
        try:
            Trainer(spec, task, splits, method, run, _Silent(), 1, None, engine).run()
            if spec.stage == "final" and spec.seed == self.grid.suite.budget.first_seed:
                draw(run, task, splits, method)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f" ({Path(where.filename).name}, line {where.lineno})"
            known = isinstance(error, MtbenchError)
            reason = str(error) if known else f"{type(error).__name__}: {error}{place}"
            record_crash(run, reason, traceback.format_exc())

    def _fingerprint(self, cell: Cell) -> str:
        key = (cell.entry.task, cell.seed)
        if key not in self.fingerprints:
            self.fingerprints[key] = self._splits(cell).fingerprint
        return self.fingerprints[key]

    def _splits(self, cell: Cell) -> Splits:
        key = (cell.entry.task, cell.seed)
        if key not in self.data:
            self.data[key] = cell.entry.request.task.setup(cell.seed, lambda *_: None)
            if len(self.data) > KEPT:
                self.data.popitem(last=False)
        return self.data[key]


class _Silent:
    """An observer that tells nobody: the folder says how a sweep goes."""

    def started(self, spec: Spec, epochs: int, steps: int, done: int) -> None:
        """Say nothing."""

    def stepped(self, epoch: int, losses: dict[str, float]) -> None:
        """Say nothing."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """Say nothing."""

    def finished(self, result: dict[str, Any]) -> None:
        """Say nothing."""
