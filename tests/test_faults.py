"""What goes wrong on a machine: nothing finished is lost or counted twice, and a line says what.

`tests.soak` kills at random moments; here it does so a few times.
"""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from mtbench import cli
from mtbench.cli.display import Display
from mtbench.comparing.planning.grid import Grid, Order
from mtbench.comparing.planning.suite import Suite
from mtbench.comparing.running.sweep import prepare
from mtbench.comparing.running.worker import Assignment
from mtbench.training.cell.rundir import RunDirectory, WriteError
from mtbench.training.trainer.record import CHECKPOINT_VERSION
from tests import soak
from tests.conftest import TINY
from tests.refusals import refused
from tests.soak import differences

Mtbench = Callable[..., tuple[int, str, str]]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "garbage": lambda _: b"\xff\xfe\x00garbage",
    "empty": lambda _: b"",
}


def words(out: Path) -> list[str]:
    return ["run", "--plugin", str(TINY), "--task", "tiny", "--method", "ew", "--epochs", "3",
            "--threads", "1", "--device", "cpu", "--out", str(out)]  # fmt: skip


def cell(out: Path) -> RunDirectory:
    [spec] = out.rglob("spec.json")
    return RunDirectory(spec.parent)


def train(out: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mtbench", *words(out)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    return int(leaving.value.code or 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A cell that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    assert train(out) == 0
    return cell(out)


@pytest.fixture(scope="module")
def _broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("broken_off")
    stop_after(1, out)
    return out


def stop_after(epoch: int, out: Path) -> None:
    def evaluated(_: Display, record: dict[str, Any]) -> None:
        if record["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "evaluated", evaluated)
        assert train(out) == 130


@pytest.fixture
def broken_off(_broken_off: Path, tmp_path: Path) -> RunDirectory:
    """A cell that was stopped after the second of three epochs."""
    shutil.copytree(_broken_off, tmp_path, dirs_exist_ok=True)
    assert cell(tmp_path).result() is None
    return cell(tmp_path)


@pytest.fixture
def finished(whole: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the whole one."""
    shutil.copytree(whole.path.parents[2], tmp_path, dirs_exist_ok=True)
    return cell(tmp_path)


def finish(mtbench: Mtbench, out: Path) -> RunDirectory:
    code, _, err = mtbench(*words(out))
    assert (code, err) == (0, "")
    return cell(out)


def unharmed(run: RunDirectory, whole: RunDirectory) -> None:
    assert not list(differences(whole.path, run.path))


def counted_once(mtbench: Mtbench, out: Path) -> None:
    code, text, _ = mtbench("leaderboard", out, "--format", "json")
    assert code == 0
    [board] = json.loads(text)
    [row] = board["rows"]
    assert row["seeds"] == 1


# Killed


def test_killed_at_random_moments() -> None:
    with pytest.raises(typer.Exit) as leaving:
        soak.main(kills=3, method=["moco", "rlar", "rotograd"], task=["tiny"])
    assert leaving.value.exit_code == 0


# The disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk, and this machine does not let it")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> Path:
    file = disk / "ballast"
    with suppress(OSError), file.open("wb", buffering=0) as stream:
        while stream.write(bytes(512)):
            pass
    return file


def test_the_disk_is_full_while_training(
    mtbench: Mtbench, disk: Path, whole: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = Display.evaluated

    def fill_then_go_on(self: Display, record: dict[str, Any]) -> None:
        fill(disk)
        evaluated(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "evaluated", fill_then_go_on)
        refused(mtbench(*words(disk)), "cannot be written", "No space left", "last checkpoint")
    run = cell(disk)
    assert not list(run.path.glob(".*.tmp"))
    state = run.load("checkpoint.pt")
    assert state is not None
    assert state["progress"]["epoch"] == 1  # the first epoch's, whole
    assert run.result() is None
    refused(mtbench(*words(disk)), "cannot be written", "No space left")  # and it is full still
    (disk / "ballast").unlink()
    unharmed(finish(mtbench, disk), whole)
    counted_once(mtbench, disk)


def test_the_disk_is_full_at_the_very_end(
    mtbench: Mtbench, disk: Path, whole: RunDirectory
) -> None:
    run = finish(mtbench, disk)
    before = (run.path / "result.json").read_bytes()
    for report in (disk / "tiny").glob("*.*"):  # it is written again
        report.unlink()
    ballast = fill(disk)
    refused(mtbench(*words(disk)), "No space left")
    assert (run.path / "result.json").read_bytes() == before
    ballast.unlink()
    unharmed(finish(mtbench, disk), whole)


def test_a_full_disk_is_no_fault_of_a_sweeps_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "version": 1, "name": "mine", "title": "t", "methods": ["ew"],
        "budget": {"trials": 0, "seeds": 1}, "tasks": [{"name": "tiny", "recipe": {"epochs": 1}}],
    }  # fmt: skip
    order = Order(Suite.model_validate(content), None, (TINY,))
    digest = Grid(order).digest
    prepare(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        for attempt in ("one", "two", "three"):  # more often than a cell may crash
            report = Assignment(order, tmp_path, attempt, None, digest)()
            assert isinstance(report.error, WriteError)
    report = Assignment(order, tmp_path, "four", None, digest)()
    assert report.error is None
    assert report.closed == (0,)
    assert not list(tmp_path.rglob("crash.json"))
    assert cell(tmp_path).result().status == "finished"


def test_a_read_only_folder(mtbench: Mtbench, disk: Path) -> None:
    finish(mtbench, disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused(mtbench(*words(disk)), str(disk), "cannot be written", "Read-only")
    counted_once(mtbench, disk)


# The clock


def test_the_wall_clock_jumps_back(
    mtbench: Mtbench, tmp_path: Path, whole: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert time.get_clock_info("perf_counter").monotonic  # which durations are taken from
    now = itertools.count(2e9, -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(now))
    run = finish(mtbench, tmp_path / "back")
    unharmed(run, whole)
    result = run.result()
    assert result is not None
    assert result.cost.train_seconds >= 0
    assert result.cost.seconds_per_step >= 0


# Company


def test_another_process_has_the_cell(
    mtbench: Mtbench, tmp_path: Path, broken_off: RunDirectory, whole: RunDirectory
) -> None:
    with broken_off.claim():
        refused(mtbench(*words(tmp_path)), f"process {os.getpid()}", "works on it")
    unharmed(finish(mtbench, tmp_path), whole)
    counted_once(mtbench, tmp_path)


# Broken files


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_checkpoint_makes_good(
    mtbench: Mtbench, tmp_path: Path, broken_off: RunDirectory, whole: RunDirectory, damage: str
) -> None:
    for name in ("epochs.jsonl", "steps.csv", "test.json", ".checkpoint.pt.tmp"):
        file = broken_off.path / name
        file.write_bytes(DAMAGES[damage](file.read_bytes() if file.exists() else b"half"))
    unharmed(finish(mtbench, tmp_path), whole)
    counted_once(mtbench, tmp_path)


def test_a_broken_checkpoint(
    mtbench: Mtbench, tmp_path: Path, broken_off: RunDirectory, whole: RunDirectory
) -> None:
    file = broken_off.path / "checkpoint.pt"
    good = file.read_bytes()
    for damage in DAMAGES.values():
        file.write_bytes(damage(good))
        refused(mtbench(*words(tmp_path)), str(file), "corrupt", "delete the folder")
    shutil.rmtree(broken_off.path)  # as advised
    unharmed(finish(mtbench, tmp_path), whole)


def test_a_checkpoint_of_a_newer_version(
    mtbench: Mtbench, tmp_path: Path, broken_off: RunDirectory, whole: RunDirectory
) -> None:
    state = broken_off.load("checkpoint.pt")
    assert state is not None
    newer = CHECKPOINT_VERSION + 1
    broken_off.save("checkpoint.pt", state | {"version": newer})
    said = refused(mtbench(*words(tmp_path)), str(broken_off.path / "checkpoint.pt"))
    assert f"is of version {newer}, and this mtbench reads version {CHECKPOINT_VERSION}" in said
    broken_off.save("checkpoint.pt", state)
    unharmed(finish(mtbench, tmp_path), whole)


def test_broken_selected_weights(
    mtbench: Mtbench, tmp_path: Path, broken_off: RunDirectory, whole: RunDirectory,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Without them there is no result: neither a partial one, nor one of other weights."""
    stop_after(2, tmp_path)  # the last: only the test is left
    capsys.readouterr()
    file = broken_off.path / "best.pt"
    good = file.read_bytes()
    for damage in DAMAGES.values():
        file.write_bytes(damage(good))
        refused(mtbench(*words(tmp_path)), str(file), "corrupt", "delete the folder")
    file.unlink()
    refused(mtbench(*words(tmp_path)), str(file), "are gone", "delete the folder")
    assert broken_off.result() is None
    shutil.rmtree(broken_off.path)  # as advised
    unharmed(finish(mtbench, tmp_path), whole)


@pytest.mark.parametrize("name", ["result.json", "test.json", "epochs.jsonl"])
def test_broken_records_of_a_finished_cell(
    mtbench: Mtbench, tmp_path: Path, finished: RunDirectory, whole: RunDirectory, name: str
) -> None:
    """A line names the file; as advised, the record is written again, and is the same."""
    file = finished.path / name
    good = file.read_bytes()
    line = words(tmp_path) if name == "epochs.jsonl" else ["leaderboard", tmp_path]
    for damage in ("cut", "garbage"):
        file.write_bytes(DAMAGES[damage](good))
        said = refused(mtbench(*line), str(file), "does not parse")
        assert "delete it" in said or "delete result.json" in said
    (finished.path / "result.json").unlink()
    unharmed(finish(mtbench, tmp_path), whole)
    counted_once(mtbench, tmp_path)


def test_a_broken_spec(mtbench: Mtbench, tmp_path: Path, finished: RunDirectory) -> None:
    file = finished.path / "spec.json"
    good = file.read_bytes()
    for damage in DAMAGES.values():
        file.write_bytes(damage(good))
        refused(mtbench(*words(tmp_path)), str(file), "not a spec")
        refused(mtbench("leaderboard", tmp_path), str(file), "not a spec")
