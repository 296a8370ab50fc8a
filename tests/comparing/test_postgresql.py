"""Tuning on a real PostgreSQL that several processes share, one of which is killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

from mtbench.training.cell.rundir import find_runs
from tests.cli.test_sweep import BROKEN, ended, wait_for
from tests.processes import Command
from tests.refusals import refused

pytest.importorskip("psycopg", reason="the extra postgresql is not installed")
BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
pytestmark = pytest.mark.skipif(BIN is None, reason="no PostgreSQL server is installed here")

Mtbench = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server of our own; it refuses to run as root, so root becomes nobody."""
    assert BIN is not None
    # Below /tmp itself: nobody may not enter pytest's folders.
    folder = Path(
        subprocess.check_output(["mktemp", "-d", "/tmp/mtbench-pg-XXXXXX"], text=True).strip()
    )
    user = "nobody" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = {"user": user, "cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([BIN / "initdb", "-D", folder / "db", "-U", "me", "-A", "trust", "-N"], **run)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [BIN / "pg_ctl", "-D", folder / "db", "-w"]
    subprocess.run([*control, "-l", folder / "log", "-o", options, "start"], **run)
    try:
        yield f"postgresql+psycopg://me:secret@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)
        shutil.rmtree(folder)


@pytest.fixture
def database(server: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    import psycopg

    name = f"t{abs(hash(request.node.name))}"
    plain = server.replace("+psycopg", "")
    with psycopg.connect(f"{plain}/postgres", autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return f"{server}/{name}"


def trials(url: str) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(url)
    try:
        [name] = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def at_work(out: Path) -> list[str]:
    """Return who is training."""
    unfinished = [run for run in find_runs([out]) if run.result() is None] if out.exists() else []
    return [holder for run in unfinished if (holder := run.holder())]


def worker(tiny: Path, plugin: Path, out: Path, url: str, *more: object) -> list[object]:
    return [
        "tune", "--plugin", tiny, "--plugin", plugin, "-t", "tiny", "-m", "counted", "--out", out,
        "--storage", url, "--device", "cpu", "--threads", 1, "--epochs", 2, *more,
    ]  # fmt: skip


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A method with something to search, which writes down every beginning of its training."""
    plugin = tmp_path / "counted.py"
    body = f"""
        if not hasattr(self, "told"):
            self.told = True
            with open({str(tmp_path / "counts")!r}, "a") as stream:
                print("begun", file=stream)
        return step.total(), None"""
    plugin.write_text(BROKEN.format(what=body))
    return plugin


@pytest.mark.parametrize(("mode", "workers", "count"), [("official", 5, 10), ("exploratory", 3, 6)])
def test_many_processes_one_killed(
    mode: str, workers: int, count: int, database: str, tiny: Path, counted: Path, tmp_path: Path
) -> None:
    """On one folder, as on a cluster: the killed one's trial goes on with the others."""
    out = tmp_path / "out"
    sampler = [] if mode == "official" else ["--sampler", "tpe"]
    line = worker(tiny, counted, out, database, "--sleep", 0.1, "--trials", count, *sampler)
    crew = [Command(*line) for _ in range(workers)]
    first = wait_for(lambda: at_work(out))[0]
    [victim] = [process for process in crew if f"process {process.pid} " in first]
    crew.remove(victim)
    os.kill(victim.pid, signal.SIGSTOP)  # so that it is killed in the middle of a trial
    mine = {
        run.path.relative_to(out).as_posix()
        for run in find_runs([out])
        if run.result() is None and run.holder() == first
    }
    victim.kill()
    victim.communicate()
    for process in crew:
        code, _, err = ended(process)
        assert (code, err) == (0, ""), err
    found = trials(database)
    complete = [t for t in found if t.state is optuna.trial.TrialState.COMPLETE]
    assert len(complete) == count
    assert len({t.user_attrs["cell"] for t in complete}) == count
    others = Counter(t.state.name for t in found if t not in complete)
    assert set(others) <= {"FAIL"}
    killed = {t.user_attrs.get("cell") for t in found if t.state.name == "FAIL"}
    assert killed == mine
    runs = list(find_runs([out]))
    assert len(runs) == count
    assert all(run.result() is not None for run in runs)
    begun = (tmp_path / "counts").read_text().count("begun")
    assert begun <= count + len(mine)
    [best] = out.rglob("best.toml")
    assert f"finished = {count}" in best.read_text()


def test_processes_on_folders_of_their_own(
    database: str, tiny: Path, counted: Path, tmp_path: Path
) -> None:
    """As on machines that share no disk: a killed one's trial waits for its folder."""
    count = 8
    more = ("--sleep", 0.05, "--trials", count)
    lines = [worker(tiny, counted, tmp_path / str(i), database, *more) for i in range(4)]
    crew = [Command(*line) for line in lines]
    wait_for(lambda: list((tmp_path / "0").rglob("epochs.jsonl")))
    os.kill(crew[0].pid, signal.SIGKILL)
    crew[0].communicate()
    for process in crew[1:]:
        code, _, err = ended(process)
        assert (code, err) == (0, ""), err
    code, said, err = ended(Command(*lines[0]))
    assert (code, err) == (0, ""), said
    complete = [t for t in trials(database) if t.state.name == "COMPLETE"]
    assert sorted(t.user_attrs["draw"] for t in complete) == list(range(count))
    finished = [run.path.name for run in find_runs([tmp_path]) if run.result() is not None]
    assert len(finished) == len(set(finished)) == count


def test_a_server_that_is_not_there_is_told(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/none"
    line = ["tune", "--plugin", tiny, "-t", "tiny", "-m", "dwa", "--out", tmp_path]
    said = refused(mtbench(*line, "--storage", url), "...@127.0.0.1:1/none: cannot be opened")
    assert "secret" not in said


def test_a_server_that_goes_away_is_told(
    server: str, database: str, tiny: Path, counted: Path, tmp_path: Path
) -> None:
    line = worker(tiny, counted, tmp_path / "out", database, "--sleep", 0.1, "--trials", 6)
    process = Command(*line)
    wait_for(lambda: list(tmp_path.rglob("epochs.jsonl")))
    import psycopg

    name = database.rpartition("/")[2]
    plain = server.replace("+psycopg", "")
    with psycopg.connect(f"{plain}/postgres", autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")
    code, said, err = ended(process)
    assert code == 2, said
    assert err.startswith("error: --storage postgresql+psycopg://...@127.0.0.1")
    assert "is lost (" in err
    assert err.count("\n") == 1


def test_a_driver_that_is_not_installed_is_told(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    line = ["tune", "--plugin", tiny, "-t", "tiny", "-m", "dwa", "--out", tmp_path]
    answer = mtbench(*line, "--storage", "postgresql+psycopg://me@127.0.0.1:1/none")
    refused(answer, "pip install 'mtbench-toolkit[postgresql]'")
