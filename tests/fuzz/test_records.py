"""Run folders, weights, suites and configurations of somebody else.

Exported files are in tests/comparing/test_exchange.py.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mtbench.comparing.judging import exchange, leaderboard, published, report
from mtbench.comparing.planning import suite
from mtbench.errors import RunError
from mtbench.integrations.record import Record
from mtbench.training.cell import weights
from mtbench.training.cell.config import Config
from mtbench.training.cell.rundir import RunDirectory, find_runs
from tests.comparing.report.made_up import PIXEL, write
from tests.fuzz.fuzzing import budget, damaged, in_time, scribbled, told

FILES = ("spec.json", "result.json", "test.json", "epochs.jsonl")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Finished cells of two methods, and a trial."""
    write(tmp_path / "runs", ["ls", "stl"], seeds=2, epochs=2, trials=1)
    return tmp_path / "runs"


def cell(runs: Path) -> Path:
    return next((runs / "made_up0" / "ls").glob("seed0-*"))


def page(runs: Path) -> str:
    """Return what a leaderboard shows, in every form."""
    boards = leaderboard.boards(list(find_runs([runs])), "ls", "ew")
    forms = (leaderboard.to_json(boards), leaderboard.to_csv(boards), report.render(boards))
    return "\n".join([*forms, *map(leaderboard.to_markdown, boards)])


def every_reader(runs: Path) -> list[object]:
    return [
        told(lambda: page(runs)),
        told(lambda: [Record.of(run) for run in find_runs([runs])]),
        told(lambda: exchange.export([runs], "ls", None, runs.parent / "x.mtbench")),
        told(lambda: exchange.merge(runs.parent / "merged", [runs])),
    ]


@pytest.mark.parametrize("name", FILES)
def test_scribbled_records(name: str, runs: Path) -> None:
    file = cell(runs) / name

    @budget(6)
    @given(scribbled(file.read_text()))
    def check(text: str) -> None:
        file.write_text(text, encoding="utf-8")
        every_reader(runs)

    check()


WRONG: tuple[Any, ...] = (None, [], {}, "x", "0.5", True, -1, 10**400, float("nan"), "\ud800")


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every entry of nested objects."""
    if not isinstance(value, dict):
        return []
    return [p for key, inner in value.items() for p in ((*path, key), *places(inner, (*path, key)))]


@pytest.mark.parametrize("name", FILES)
def test_records_with_values_of_other_types(name: str, runs: Path) -> None:
    file = cell(runs) / name
    good = json.loads(file.read_text().splitlines()[0] if name == FILES[3] else file.read_text())

    @budget(20)
    @given(st.sampled_from(places(good)), st.sampled_from(WRONG))
    def check(place: tuple[str, ...], value: Any) -> None:
        record = json.loads(json.dumps(good))
        inner = record
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        file.write_text(json.dumps(record))
        told(lambda: page(runs))
        told(lambda: [Record.of(run) for run in find_runs([runs])])

    check()


@pytest.mark.parametrize("text", ["", "[]", "null", "5", "[" * 100_000, "9" * 5000, "\0"])
@pytest.mark.parametrize("name", FILES[:3])
def test_what_is_no_record_is_not_counted(name: str, text: str, runs: Path) -> None:
    (cell(runs) / name).write_text(text)
    assert name in str(told(lambda: leaderboard.boards(list(find_runs([runs])), "ls", "ew")))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_records_are_regular_files(name: str, kind: str, runs: Path) -> None:
    file = cell(runs) / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file)
    every_reader(runs)


def test_a_link_in_a_run_folder_puts_no_other_file_on_the_page(runs: Path) -> None:
    secret = runs.parent / "secret"
    secret.write_text("a private key")
    (runs.parent / "private.png").write_bytes(b"\x89PNG\r\n\x1a\nprivate")
    before = page(runs)
    (cell(runs) / "a.png").symlink_to(secret)
    (cell(runs) / "b.png").symlink_to(runs.parent / "private.png")
    (cell(runs) / "c.png").mkdir()
    os.mkfifo(cell(runs) / "d.png")
    with in_time():
        assert page(runs) == before
    (cell(runs) / "e.png").write_bytes(b"<script>alert(1)</script>" + PIXEL.encode())
    assert "data:image/png" not in page(runs)


def test_loops_and_depth_of_run_folders(runs: Path) -> None:
    count = len(list(find_runs([runs])))
    (runs / "self").symlink_to(runs)
    deep = runs.joinpath(*["d"] * 900)
    deep.mkdir(parents=True)
    with in_time():
        assert len(list(find_runs([runs]))) == count


# Weights


class Trap:
    """What writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))


def test_weights_execute_no_code(runs: Path) -> None:
    sprung = runs.parent / "sprung"
    for name in ("best.pt", "checkpoint.pt"):
        torch.save({"model": Trap(sprung)}, cell(runs) / name)
        with pytest.raises(RunError, match="corrupt"):
            RunDirectory(cell(runs)).load(name)
    files = [runs.parent / name for name in ("a.pt", "b.pth", "c.safetensors", "d.bin")]
    torch.save({"model": {"w": Trap(sprung)}}, files[0])
    for file in files[1:]:
        file.write_bytes(pickle.dumps(Trap(sprung)))
    for place in (cell(runs), *files):
        with pytest.raises(RunError, match="does not load"):
            weights.fit(place, model())
    assert not sprung.exists()
    torch.load(files[0], weights_only=False)  # the trap is one
    assert sprung.exists()


def test_damaged_weights(runs: Path) -> None:
    torch.save({"model": model().state_dict()}, good := cell(runs) / "best.pt")
    save_file(model().state_dict(), flat := runs.parent / "m.safetensors")

    @budget(13)
    @given(damaged(good.read_bytes()), damaged(flat.read_bytes()))
    def check(pickled: bytes, raw: bytes) -> None:
        good.write_bytes(pickled)
        flat.write_bytes(raw)
        told(lambda: weights.fit(cell(runs), model()))
        told(lambda: weights.fit(flat, model()))

    check()
    for odd in ([], 5, {}, {"model": 5}, {"model": {}}, {"model": {"x": [1]}}):
        torch.save(odd, good)
        assert isinstance(told(lambda: weights.fit(cell(runs), model())), str)


# TOML


SUITE = """version = 1
name = "s"
title = "t"
methods = ["ew", "ls"]
tasks = [{name = "toy", set = {a = 1}, recipe = {epochs = 2}}]
budget = {trials = 2, seeds = 3}
search = {lr = [0.1, 0.2]}
"""
CONFIG = """version = 1
task = "toy"
method = "cagrad"
[method_params]
c = 0.4
[recipe]
epochs = 3
"""
PAPER = """version = 1
metrics = {a = true}
[[boards]]
title = "t"
source = "s"
columns = ["a", "delta_m"]
[boards.rows]
ew = [1, 2]
"""
READ: dict[str, tuple[str, Callable[[Path], object]]] = {
    "suite": (SUITE, lambda file: suite.load(str(file))),
    "config": (
        CONFIG,
        lambda file: Config.read(file).check(file, range(1), [], ["method", "task"]),
    ),
    "published": (PAPER, lambda file: published.load("toy", file).markdown("toy")),
}


@pytest.mark.parametrize("kind", READ)
def test_scribbled_toml(kind: str, tmp_path: Path) -> None:
    good, read = READ[kind]
    file = tmp_path / "x.toml"

    @budget(20)
    @given(scribbled(good))
    def check(text: str) -> None:
        file.write_text(text, encoding="utf-8")
        told(lambda: read(file))

    check()
    for text in ("a=" + "[" * 5000, "a=" + "9" * 5000, "[" + ".".join("a" * 3000) + "]", "\0", ""):
        file.write_text(good.replace("version = 1\n", f"version = 1\n{text}\n"))
        told(lambda: read(file))
