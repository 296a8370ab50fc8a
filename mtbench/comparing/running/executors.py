"""Executors: where the workers of a sweep run. Processes here, SLURM by submitit, or Dask.

Each is given `Assignment`s and tells how they ended; what a worker does is the same everywhere.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection, forkserver, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mtbench.comparing.running.worker import PINNED, Assignment, Report
from mtbench.errors import RunError, UsageError, did_you_mean
from mtbench.plugins import extras, params

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

MINUTES = 60
"""The time limit of a SLURM job by default; one that reaches it is queued again."""

REQUEUES = 1000
"""How often that may happen: a cell goes on from its checkpoint."""

PRELOADED = ("mtbench.comparing.running.worker", "torch._dynamo")
"""What local workers find imported; torch's optimizers import the second at their first step."""

ARRAY = 1000
"""The largest job array: SLURM's own default."""

TIMEOUT = 10.0
"""Seconds in which Dask's scheduler must answer, and have a worker."""

PATIENCE = 300.0
"""Seconds that a sweep waits for a cluster that has lost all its workers to start others."""

Outcome = Report | str
"""What a worker said, or how it died."""


class Executor(Protocol):
    """Starts workers.

    Attributes:
        log: where their output is.
    """

    log: str

    def shares(
        self, ready: Callable[[], Sequence[int]], left: int, under_way: int
    ) -> Sequence[tuple[int, ...] | None]:
        """Return what new workers are to do, an `Assignment.cells` each.

        Args:
            ready: returns the cells that nobody works on; it looks at all.
            left: how many cells no worker has called closed yet.
            under_way: how many workers there are.
        """

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Start workers."""

    def ended(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Return the names of workers that have ended, and how; wait at most so long for one."""

    def stop(self) -> None:
        """End what is under way; it goes on from its checkpoint."""


@contextmanager
def _environment() -> Iterator[None]:
    """Give processes that are started what a worker needs: pinned threads."""
    before = {name: os.environ.get(name) for name in PINNED}
    os.environ.update(PINNED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class _Child:
    name: str
    process: ForkServerProcess
    pipe: Connection


class Local:
    """Processes on this machine; each takes cells until none is left.

    They are forked from one server that has imported what they need: a worker is there at once,
    and all share that memory.

    Args:
        jobs: how many.
        out: the sweep's folder.
    """

    def __init__(self, jobs: int, out: Path) -> None:
        self.jobs, self.file = jobs, out / ".sweep" / "workers.log"
        self.log = str(self.file)
        self.children: list[_Child] = []

    def shares(
        self, ready: Callable[[], Sequence[int]], left: int, under_way: int
    ) -> Sequence[tuple[int, ...] | None]:
        """Return one for each worker that is wanting."""
        return [None] * (min(self.jobs, left) - under_way)

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Start processes."""
        context = get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        with _environment(), _deaf(), _told():
            forkserver.ensure_running()  # workers have of it what it starts with
        for assignment in assignments:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(assignment, self.file, theirs))
            self.children.append(_Child(assignment.name, process, ours))
            process.start()  # waits for what the server imports
            theirs.close()  # so that the pipe ends with the child

    def ended(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Listen to the pipes."""
        ready = connection.wait([child.pipe for child in self.children], seconds)
        found: list[tuple[str, Outcome]] = []
        for child in [child for child in self.children if child.pipe in ready]:
            try:
                outcome: Outcome | None = child.pipe.recv()
            except EOFError:
                outcome = None
            child.process.join()
            child.pipe.close()
            self.children.remove(child)
            found.append((child.name, outcome or _death(child.process.exitcode or 0)))
        return found

    def stop(self) -> None:
        """Kill the processes."""
        started = [child.process for child in self.children if child.process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()


@contextmanager
def _told() -> Iterator[None]:
    """Name the folder of the socket to the server of processes: a path of 100 bytes is too long."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"TMPDIR {tempfile.gettempdir()}: no worker can be started ({error}); set TMPDIR to "
            "another folder, with a short name"
        ) from error


def _death(code: int) -> str:
    if code < 0:
        return f"the worker was killed by {signal.Signals(-code).name}"
    return f"the worker ended with exit code {code}"


@contextmanager
def _deaf() -> Iterator[None]:
    """Let a process that is started not hear Ctrl-C, nor its children; here it is lost too."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _child(assignment: Assignment, log: Path, pipe: Connection) -> None:
    """Be a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("a") as stream:
        sys.stdout.flush()
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    pipe.send(assignment())


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Batches:
    """What executors share whose workers train a batch of cells and end."""

    batch: int

    def shares(
        self, ready: Callable[[], Sequence[int]], left: int, under_way: int
    ) -> Sequence[tuple[int, ...] | None]:
        """Return batches of what is ready."""
        cells = ready()
        return [tuple(cells[i : i + self.batch]) for i in range(0, len(cells), self.batch)]


@dataclass(frozen=True)
class _SlurmTask:
    """An assignment as submitit calls it."""

    assignment: Assignment

    def __call__(self) -> Report:
        return self.assignment()

    def checkpoint(self) -> "DelayedSubmission":
        """Be queued again: the job's time is over or it was preempted, which is no crash."""
        from submitit.helpers import DelayedSubmission

        self.assignment.note.unlink(missing_ok=True)
        return DelayedSubmission(self)


class Slurm(_Batches):
    """Jobs of SLURM, submitted as arrays; each trains a batch of cells and ends.

    Args:
        out: the sweep's folder; all machines must see it.
        batch: cells in a job.
        options: submitit's parameters and their texts, most of them sbatch's, such as
            ``partition`` or ``gpus_per_node``; ``time`` is in minutes; ``setup``, ``teardown`` and
            ``srun_args`` may come several times. Beside them ``cluster``, which may be ``local``
            or ``debug``: submitit's executors without a SLURM.

    Raises:
        UsageError: submitit is not installed, an option that it does not know or that a cell does
            not have, or a value that does not fit.
        RunError: there is no SLURM here.
    """

    def __init__(self, out: Path, batch: int, options: Sequence[tuple[str, str]]) -> None:
        extras.need("slurm", "--executor slurm")
        import submitit

        self.batch, self.log = batch, str(out.absolute() / ".sweep" / "slurm")
        own = _parameters(options)
        cluster = own.pop("cluster", "slurm")
        clusters = ("slurm", "local", "debug")
        if cluster not in clusters:
            raise UsageError(f"--slurm cluster={cluster}: {did_you_mean(cluster, clusters)}")
        again = {f"{name}_max_num_timeout": REQUEUES for name in ("slurm", "local")}
        try:
            self.executor = submitit.AutoExecutor(self.log, cluster, **again)
        except RuntimeError as error:
            raise RunError(
                "--executor slurm: there is no srun here: run it where jobs are submitted, or try "
                "it out with --slurm cluster=local"
            ) from error
        try:
            self.executor.update_parameters(**own)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise UsageError(f"--slurm: {str(error).partition('. Valid')[0]}") from error
        self.jobs: dict[str, Job[Report]] = {}

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Submit job arrays.

        Raises:
            RunError: SLURM takes no job.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        for start in range(0, len(assignments), ARRAY):
            part = [_absolute(assignment) for assignment in assignments[start : start + ARRAY]]
            try:
                with _environment(), self.executor.batch():
                    jobs = [self.executor.submit(_SlurmTask(assignment)) for assignment in part]
            except (FailedJobError, FailedSubmissionError, OSError) as error:
                raise RunError(f"--executor slurm: no job was taken ({error})") from error
            self.jobs |= {a.name: job for a, job in zip(part, jobs, strict=True)}

    def ended(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Ask for every job."""
        found = [(name, _outcome(job)) for name, job in self.jobs.items() if job.done()]
        for name, _ in found:
            del self.jobs[name]
        if not found:
            time.sleep(seconds)
        return found

    def stop(self) -> None:
        """Cancel the jobs."""
        for job in self.jobs.values():
            job.cancel(check=False)


_KINDS: Mapping[str, Any] = {
    "timeout_min": int, "cpus_per_task": int, "gpus_per_node": int, "cpus_per_gpu": int,
    "gpus_per_task": int, "num_gpus": int, "signal_delay_s": int, "array_parallelism": int,
    "mem_gb": float, "use_srun": bool, "stderr_to_stdout": bool, "exclusive": bool | str,
}  # fmt: skip
"""What submitit's parameters are that are no text."""

_COMMON = ("cluster", "timeout_min", "name", "cpus_per_task", "gpus_per_node", "mem_gb")
"""Those that are of every cluster; SLURM's own have a prefix."""

_LISTS = ("setup", "teardown", "srun_args")

_OF_TASKS = ("nodes", "tasks_per_node", "ntasks_per_node")


def _parameters(options: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return submitit's parameters, read from text.

    Raises:
        UsageError: one that a cell does not have, one given twice, or a value that does not fit.
    """
    found: dict[str, Any] = {}
    for given, text in options:
        key = {"time": "timeout_min"}.get(given, given)
        name = key if key in _COMMON else f"slurm_{key}"
        if key in _OF_TASKS:
            raise UsageError(
                f"--slurm {given}: each job is one process on one machine: leave it out"
            )
        if key in _LISTS:
            found.setdefault(name, []).append(text)
        elif name in found:
            raise UsageError(f"--slurm {given}: is given twice")
        else:
            found[name] = params.convert(text, _KINDS.get(key, str), f"--slurm {given}")
    return {"timeout_min": MINUTES} | found


def _absolute(assignment: Assignment) -> Assignment:
    """Return the assignment with paths that hold in any directory."""
    order = assignment.order
    order = replace(
        order,
        data=order.data and order.data.absolute(),
        plugins=tuple(plugin.absolute() for plugin in order.plugins),
    )
    return replace(assignment, order=order, out=assignment.out.absolute())


def _outcome(job: "Job[Report]") -> Outcome:
    from submitit.core.utils import UncompletedJobError

    try:
        return job.result()
    except UncompletedJobError:  # or its subclass: an exception was raised
        return f"job {job.job_id} ended without a result (state {job.state})"


class Dask(_Batches):
    """Tasks of a Dask cluster; each trains a batch of cells.

    Args:
        address: of the scheduler.
        batch: cells in a task.

    Raises:
        UsageError: Dask is not installed, or this is no address.
        RunError: the scheduler does not answer, or has no workers.
    """

    log = "the output of the Dask workers"

    def __init__(self, address: str, batch: int) -> None:
        extras.need("dask", "--executor dask")
        from distributed import Client

        self.batch, self.address = batch, address
        self.futures: dict[str, Any] = {}
        try:
            client: Any = Client  # it has no annotations
            self.client = client(address, timeout=TIMEOUT)
        except ValueError as error:
            raise UsageError(f"--scheduler {address}: is no address ({error})") from error
        except OSError as error:
            raise RunError(
                f"--scheduler {address}: does not answer within {TIMEOUT:g} s; start one: dask "
                "scheduler"
            ) from error
        try:
            self._need_workers(TIMEOUT)
        except RunError:
            self.client.close()
            raise

    def _need_workers(self, seconds: float) -> None:
        try:
            self.client.wait_for_workers(1, timeout=seconds)
        except TimeoutError:
            raise RunError(
                f"--scheduler {self.address}: has no workers; start some, and the same command "
                f"goes on: dask worker {self.address} --nthreads 1"
            ) from None
        except OSError:  # the scheduler is gone, which its status says
            pass

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Submit tasks."""
        for assignment in assignments:
            self.futures[assignment.name] = self.client.submit(
                _absolute(assignment), key=f"mtbench-{assignment.name}", pure=False
            )

    def ended(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Ask for every task.

        Raises:
            RunError: the scheduler is gone, or all workers are, and none comes.
        """
        done = {name: future for name, future in self.futures.items() if future.done()}
        if self.client.status != "running":
            raise RunError(
                f"--scheduler {self.address}: is gone; start it and the same command goes on"
            )
        for name in done:
            del self.futures[name]
        if not done:
            self._need_workers(PATIENCE)
            time.sleep(seconds)
        return [(name, self._outcome(future)) for name, future in done.items()]

    def _outcome(self, future: Any) -> Outcome:
        if future.status == "finished":
            report: Report = future.result()
            return report
        if future.status == "error":
            error = future.exception()
            return f"{type(error).__name__}: {error}"
        return f"the task ended as {future.status}"

    def stop(self) -> None:
        """Take back the tasks; a worker ends the cell that it is at."""
        self.client.cancel(list(self.futures.values()))
        self.client.close()
