"""Sweeps whose workers are jobs of submitit or tasks of Dask: what is killed, and what is left."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from mtbench.comparing.planning.grid import Cell, Grid, Order
from mtbench.comparing.planning.suite import load
from mtbench.comparing.planning.survey import State
from mtbench.comparing.running import executors, sweep
from mtbench.comparing.running.executors import Dask, Executor, Local, Slurm
from mtbench.comparing.running.worker import Assignment, Report, Worker
from mtbench.errors import RunError, UsageError
from mtbench.plugins import extras
from tests.cli.test_sweep import BROKEN, ended, outcome, suite, wait_for, without_figures
from tests.processes import Command
from tests.refusals import refused

debug = pytest.mark.filterwarnings("ignore:unclosed file .*DEBUG:ResourceWarning")
"""Submitit's debug executor leaves its logs open."""

dask = pytest.mark.filterwarnings("ignore:Creating scratch directories:UserWarning")
"""On a busy machine that takes Dask more than a second."""

Mtbench = Callable[..., tuple[int, str, str]]

COUNTED = """
        if not hasattr(self, "told"):
            self.told = True
            with open({file!r}, "a") as stream:
                print("begun", file=stream)
        return step.total(), None"""


def order(folder: Path, *methods: str, plugins: tuple[Path, ...], **more: Any) -> Order:
    return Order(load(str(suite(folder, *methods, **more))), None, plugins)


def run(order: Order, out: Path, executor: Callable[[], Executor], **hooks: Any) -> list[str]:
    """Sweep in this process; return how the cells ended."""
    sweep.prepare(out)
    states = sweep.sweep(Grid(order), out, executor(), hooks.get("watch", lambda _: None))
    assert not list((out / ".sweep").glob("*.cell"))
    return sorted(state.status for state in states.values())


def calm(order: Order, out: Path) -> dict[str, Any]:
    """Return what an undisturbed sweep finds; nobody has to meet it, so its task does not sleep."""
    sweep.prepare(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["mtbench_plugin.tiny"], "time", Mock())
        Worker(Grid(order), out, out / "note").run()
    return outcome(out)


def at_work(out: Path) -> list[int]:
    """Return the processes that have trained an epoch of a cell and are still at it."""
    return [
        int(file.with_name(".lock").read_text().split()[1])
        for file in out.rglob("checkpoint.pt")
        if not file.with_name("result.json").exists()
    ]


class Strike:
    """A watcher that sends one signal to the first process that is in the middle of a cell."""

    def __init__(self, out: Path, sign: signal.Signals) -> None:
        self.out, self.sign, self.struck = out, sign, 0

    def __call__(self, states: Mapping[Cell, State]) -> None:
        if not self.struck and (pids := at_work(self.out)):
            self.struck = pids[0]
            os.kill(self.struck, self.sign)


@pytest.fixture
def counted(tmp_path: Path) -> tuple[Path, Callable[[], int]]:
    """A method that leaves a line whenever its training begins, and their number."""
    lines = tmp_path / "counts"
    plugin = tmp_path / "counted.py"
    plugin.write_text(BROKEN.format(what=COUNTED.format(file=str(lines))))
    return plugin, lambda: lines.read_text().count("begun")


@debug
def test_jobs_find_what_processes_find(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    file = suite(tmp_path, "famo", trials=2)
    line = ("sweep", file, "--plugin", tiny, "--out")
    more = ("--executor", "slurm", "--slurm", "cluster=local", "--slurm", "time=5", "--batch", 2)
    code, said, err = mtbench(*line, tmp_path / "jobs", *more)
    assert (code, err) == (0, "")
    assert "4 cells: 4 finished, 0 diverged, 0 failed" in said
    assert len(list((tmp_path / "jobs" / ".sweep" / "slurm").glob("*_result.pkl"))) == 2
    more = ("--executor", "slurm", "--slurm", "cluster=debug")
    code, said, err = mtbench(*line, tmp_path / "debug", *more)
    assert (code, err) == (0, "")
    assert outcome(tmp_path / "jobs") == outcome(tmp_path / "debug")


@debug
def test_jobs_draw_figures_that_are_missing(tiny: Path, tmp_path: Path) -> None:
    plugin, mended = without_figures(tiny, tmp_path)
    own, out = order(tmp_path, "ew", plugins=(plugin,), trials=0), tmp_path / "out"
    for drawn in (False, False, True):
        if drawn:
            mended.touch()
        assert run(own, out, lambda: Slurm(out, 2, [("cluster", "debug")])) == ["finished"] * 2
        assert len(list(out.rglob("incomplete.json"))) == (not drawn)
    assert len(list(out.rglob("a.png"))) == 1


@debug
def test_a_job_that_crashes_is_tried_twice(tiny: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN.format(what="raise ZeroDivisionError('x')"))
    own = order(tmp_path, "broken", "ew", plugins=(tiny, plugin), trials=0)
    out = tmp_path / "out"
    ends = run(own, out, lambda: Slurm(out, 3, [("cluster", "debug")]))
    assert ends == ["failed", "failed", "finished", "finished"]
    assert [json.loads(f.read_text())["crashes"] for f in out.rglob("failed.json")] == [2, 2]


def test_a_killed_job_is_tried_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import submitit

    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)
    own = order(tmp_path, "famo", plugins=(tiny,), trials=0, sleep=0.3)
    out = tmp_path / "out"
    strike = Strike(out, signal.SIGKILL)
    ends = run(own, out, lambda: Slurm(out, 2, [("cluster", "local")]), watch=strike)
    assert strike.struck
    assert ends == ["finished", "finished"]
    [crash] = out.rglob("crash.json")
    assert "ended without a result" in json.loads(crash.read_text())["reason"]
    assert outcome(out) == calm(own, tmp_path / "calm")


def test_a_job_that_is_preempted_is_queued_again(
    tiny: Path, tmp_path: Path, counted: tuple[Path, Callable[[], int]]
) -> None:
    plugin, begun = counted
    own = order(tmp_path, "counted", plugins=(tiny, plugin), trials=0, sleep=0.3)
    out = tmp_path / "out"
    strike = Strike(out, signal.SIGUSR2)  # what SLURM sends by submitit's wish
    ends = run(own, out, lambda: Slurm(out, 2, [("cluster", "local")]), watch=strike)
    assert strike.struck
    assert ends == ["finished", "finished"]
    assert begun() == 3
    assert not list(out.rglob("crash.json"))


def test_jobs_outlive_a_killed_sweep_and_the_next_goes_on(
    tiny: Path, tmp_path: Path, counted: tuple[Path, Callable[[], int]]
) -> None:
    plugin, begun = counted
    out = tmp_path / "out"
    file = suite(tmp_path, "counted", trials=0, sleep=0.3)
    file.write_text(file.read_text().replace("seeds = 2", "seeds = 1"))
    line = ("sweep", file, "--plugin", tiny, "--plugin", plugin, "--out", out)
    line = (*line, "--executor", "slurm", "--slurm", "cluster=local")
    process = Command(*line)
    wait_for(lambda: at_work(out))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    code, said, err = ended(Command(*line))
    assert (code, err) == (0, ""), said
    assert "1 cells: 1 finished, 0 diverged, 0 failed" in said
    assert begun() == 1


SBATCH = """#!/bin/sh
echo called >> {folder}/calls
id=$(wc -l < {folder}/calls)
cp "$1" {folder}/script-$id
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
export SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
if [ -n "$last" ]; then
    for i in $(seq 0 $last); do
        SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$i \\
            sh {folder}/script-$id > {folder}/out-$id-$i 2>&1 &
    done
else
    sh {folder}/script-$id > {folder}/out-$id 2>&1 &
fi
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/sh
until case "${1##*/}" in python*) true;; *) false;; esac; do shift; done
exec "$@"
"""


def test_what_sbatch_is_told(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for SLURM runs what it is given, at once: no real one is here."""
    shims = tmp_path / "shims"
    shims.mkdir()
    texts = {
        "sbatch": SBATCH.format(folder=shims),
        "srun": SRUN,
        "sacct": "#!/bin/sh\necho JobID\n",
    }
    for name, text in texts.items():
        (shims / name).write_text(text)
        (shims / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{shims}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "out"
    line = ("sweep", suite(tmp_path, "ew", trials=0), "--plugin", tiny, "--out", out)
    keys = ("partition=gpu", "time=90", "gpus_per_node=1", "array_parallelism=1", "setup=true")
    code, said, err = mtbench(
        *line, "--executor", "slurm", *(word for key in keys for word in ("--slurm", key))
    )
    assert (code, err) == (0, ""), [f.read_text() for f in shims.glob("out-*")]
    assert "2 cells: 2 finished" in said
    [script] = shims.glob("script-*")
    text = script.read_text()
    for wanted in (
        "--partition=gpu", "--time=90", "--gpus-per-node=1", "--array=0-1%1", "--signal=USR2@90",
    ):  # fmt: skip
        assert f"#SBATCH {wanted}\n" in text
    assert "\ntrue\n" in text


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes of Dask that are restarted when they die."""
    from dask import config
    from distributed import LocalCluster

    forkserver.ensure_running()  # that of tests/processes.py: a new worker need not import torch
    with (
        config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
            host="127.0.0.1", silence_logs=50,
        ) as made,
    ):  # fmt: skip
        yield made


@dask
def test_a_killed_dask_worker_loses_nothing(
    cluster: Any, tiny: Path, tmp_path: Path, counted: tuple[Path, Callable[[], int]]
) -> None:
    plugin, begun = counted
    own = order(tmp_path, "counted", plugins=(tiny, plugin), trials=2, sleep=0.3)
    out = tmp_path / "out"
    strike = Strike(out, signal.SIGKILL)
    ends = run(own, out, lambda: Dask(cluster.scheduler_address, 1), watch=strike)
    assert strike.struck
    assert ends == ["finished"] * 4
    assert begun() == 5  # the one that was cut off went on
    [crash] = out.rglob("crash.json")
    assert json.loads(crash.read_text())["reason"] == "the worker at it died"
    assert outcome(out) == calm(own, tmp_path / "calm")


@dask
def test_a_cell_that_kills_dask_workers_fails_alone(
    cluster: Any, tiny: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "deadly.py"
    # Dask's nanny gives up a worker that dies before it has heard that it started.
    plugin.write_text(BROKEN.format(what="import os, time; time.sleep(3); os.kill(os.getpid(), 9)"))
    own = order(tmp_path, "deadly", "ew", plugins=(tiny, plugin), trials=0)
    out = tmp_path / "out"
    ends = run(own, out, lambda: Dask(cluster.scheduler_address, 4))
    assert ends == ["failed", "failed", "finished", "finished"]


@dask
def test_dask_that_cannot_be_is_told(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(executors, "TIMEOUT", 1.0)
    line = ("sweep", suite(tmp_path, "ew"), "--plugin", tiny, "--out", tmp_path / "out")
    line = (*line, "--executor", "dask", "--scheduler")
    refused(mtbench(*line, "tcp://127.0.0.1:1"), "--scheduler tcp://127.0.0.1:1: does not answer")
    refused(mtbench(*line, "nonsense://1:x"), "--scheduler nonsense://1:x: is no address")
    with LocalCluster(n_workers=0, dashboard_address=":0", host="127.0.0.1") as empty:
        address = empty.scheduler_address
        refused(mtbench(*line, address), f"dask worker {address} --nthreads 1")


@dask
def test_a_dask_cluster_without_workers_ends_the_sweep(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(executors, "PATIENCE", 1.0)
    own = order(tmp_path, "ew", plugins=(tiny,), trials=0)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0",
        host="127.0.0.1", silence_logs=50,
    ) as cluster:  # fmt: skip
        executor = Dask(cluster.scheduler_address, 1)
        cluster.scale(0)
        wait_for(lambda: not executor.client.nthreads())
        with pytest.raises(RunError, match="has no workers; start some, and the same"):
            run(own, tmp_path / "out", lambda: executor)


class Dying:
    """An executor whose workers die at once."""

    log = "nowhere"

    def __init__(self, said: str) -> None:
        self.said, self.names, self.stopped = said, [""], False

    def shares(self, ready: Any, left: int, under_way: int) -> Any:
        cells = ready()
        return [tuple(cells)] if cells else []

    def submit(self, assignments: Any) -> None:
        self.names = [assignment.name for assignment in assignments]

    def ended(self, seconds: float) -> Any:
        return [(name, self.said) for name in self.names]

    def stop(self) -> None:
        self.stopped = True


def test_workers_that_die_before_any_cell_are_not_started_for_ever(
    tiny: Path, tmp_path: Path
) -> None:
    dying = Dying("boom")
    with pytest.raises(RunError, match="boom before any cell, 3 times in a row: see nowhere"):
        run(order(tmp_path, "ew", plugins=(tiny,)), tmp_path / "out", lambda: dying)
    assert dying.stopped


class Boasting(Dying):
    """One whose workers say that all is done, and have done nothing."""

    def ended(self, seconds: float) -> Any:
        return [(name, Report(closed=(0, 1))) for name in self.names]


def test_cells_without_a_result_are_not_finished(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a worker writes into another folder of the same name, or has other data."""
    monkeypatch.setattr("mtbench.cli.sweep._executor", lambda *_: Boasting(""))
    file = suite(tmp_path, "ew", trials=0)
    code, said, err = mtbench("sweep", file, "--plugin", tiny, "--out", tmp_path / "out")
    assert (code, err) == (1, "")
    assert "2 cells: 0 finished, 0 diverged, 0 failed" in said
    assert f"2 cells have no result in {tmp_path / 'out'}" in said


def test_a_worker_whose_cells_have_other_numbers_says_so(tiny: Path, tmp_path: Path) -> None:
    own = order(tmp_path, "ew", plugins=(tiny,))
    sweep.prepare(tmp_path)
    report = Assignment(
        own, tmp_path, "x", (0,), Grid(order(tmp_path, "uw", plugins=(tiny,))).digest
    )()
    assert "the same mtbench and plugins must be installed on all machines" in str(report.error)


def test_a_suite_for_a_gpu_is_planned_where_there_is_none(tiny: Path, tmp_path: Path) -> None:
    suite(tmp_path, "ew", trials=0)
    (file := tmp_path / "mine.toml").write_text(f'device = "cuda:7"\n{file.read_text()}')
    own = Order(load(str(file)), None, (tiny,))
    assert Grid(own).device == "cuda"
    sweep.prepare(tmp_path)
    report = Assignment(own, tmp_path, "x", (0,), Grid(own).digest)()
    assert "device cuda:7: not available here" in str(report.error)


def test_what_sbatch_takes_is_read_as_what_it_is() -> None:
    texts = (
        "account=00123", "mem_gb=1.5", "use_srun=false", "srun_args=--mpi=none", "setup=a",
        "setup=b", "exclusive=user", "time=90", "cluster=local",
    )  # fmt: skip
    pairs = [(key, text) for key, _, text in (text.partition("=") for text in texts)]
    assert executors._parameters(pairs) == {
        "cluster": "local", "timeout_min": 90, "slurm_account": "00123", "mem_gb": 1.5,
        "slurm_use_srun": False, "slurm_srun_args": ["--mpi=none"], "slurm_setup": ["a", "b"],
        "slurm_exclusive": "user",
    }  # fmt: skip


def test_a_temporary_folder_that_takes_no_socket_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(executors.forkserver, "ensure_running", refuse)
    with pytest.raises(RunError, match=r"^TMPDIR .*AF_UNIX path too long.*short name"):
        Local(1, tmp_path).submit([])


def test_a_worker_that_does_not_see_the_folder_says_so(tiny: Path, tmp_path: Path) -> None:
    own = order(tmp_path, "ew", plugins=(tiny,))
    report = Assignment(own, tmp_path / "none", "x", (0,), Grid(own).digest)()
    assert "must lie on a file system that all machines share" in str(report.error)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--executor", "dask"], "--executor dask needs --scheduler ADDRESS"),
        (["--scheduler", "x"], "--scheduler is for --executor dask, found --executor local"),
        (["--batch", 2], "--batch is for --executor slurm and dask, found --executor local"),
        (["--executor", "slurm", "--batch", 0], "--batch must be at least 1, found 0"),
        (["--executor", "slurm", "--jobs", 2], "--jobs is for --executor local"),
        (["--executor", "slurm", "--slurm", "gpu"], "--slurm must be KEY=VALUE, found 'gpu'"),
        (["--executor", "slurm"], "there is no srun here"),
        (["--executor", "slurm", "--slurm", "cluster=slrm"], "did you mean 'slurm'?"),
        (
            ["--executor", "slurm", "--slurm", "cluster=debug", "--slurm", "partitoin=x"],
            "--slurm: Unknown argument 'partitoin'",
        ),
        (
            ["--executor", "slurm", "--slurm", "cluster=debug", "--slurm", "time=1h"],
            "--slurm time must be int, found '1h'",
        ),
        (
            ["--executor", "slurm", "--slurm", "nodes=2", "--slurm", "cluster=debug"],
            "--slurm nodes: each job is one process on one machine: leave it out",
        ),
        (
            ["--executor", "slurm", "--slurm", "time=1", "--slurm", "timeout_min=2"],
            "--slurm timeout_min: is given twice",
        ),
        (
            ["--executor", "slurm", "--slurm", "cluster=debug", "--slurm", "cluster=local"],
            "--slurm cluster: is given twice",
        ),
        (["--executor", "pbs"], "'pbs' is not one of"),
        (["--plain", "eww"], "--plain: no row is called 'eww'; did you mean 'ew'?"),
    ],
)
def test_bad_options(
    more: list[object], said: str, mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    """Before data is set up, which may take long."""
    text = tiny.read_text().replace('progress("making numbers", 1, 1)', 'raise OSError("no data")')
    (other := tmp_path / "tiny.py").write_text(text)
    line = ("sweep", suite(tmp_path, "ew"), "--plugin", other, "--out", tmp_path / "out")
    refused(mtbench(*line, *more), said)


@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [
        ("submitit", lambda out: Slurm(out, 1, []), "slurm"),
        ("dask", lambda out: Dask("tcp://127.0.0.1:1", 1), "dask"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    package: str, make: Any, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "_is_installed", lambda name: name != package)
    with pytest.raises(UsageError, match=rf"pip install 'mtbench-toolkit\[{extra}\]'"):
        make(tmp_path)


def test_processes_are_as_many_as_are_wanting(tmp_path: Path) -> None:
    local = Local(3, tmp_path)
    assert local.shares(list, 8, 0) == [None] * 3
    assert local.shares(list, 8, 2) == [None]
    assert local.shares(list, 1, 0) == [None]
    assert local.shares(list, 0, 2) == []
