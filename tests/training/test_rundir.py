"""Run directories: what is written is whole, and what is broken is explained."""

import errno
import fcntl
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtbench.errors import RunError
from mtbench.plugins.code import core_digest
from mtbench.training.cell.rundir import SEALED, RunDirectory, Spec, WriteError, find_runs
from mtbench.training.machine.cache import filling, writing
from mtbench.training.machine.locks import HeldError
from mtbench.training.trainer.record import is_outdated
from tests.processes import PROCESSES


def make(**changed: Any) -> Spec:
    fields: dict[str, Any] = {
        "task": "tiny", "task_params": {}, "method": "ew", "method_params": {}, "data": "d",
        "recipe": {"epochs": 1}, "seed": 0,
    }  # fmt: skip
    return Spec(**fields | changed)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
parameters = st.dictionaries(st.text(), scalars | st.lists(scalars, max_size=3), max_size=4)


@settings(max_examples=50, derandomize=True)
@given(parameters, parameters)
def test_a_spec_survives_its_file(task: dict[str, Any], method: dict[str, Any]) -> None:
    spec = make(task_params=task, method_params=method)
    text = json.dumps(spec.model_dump(mode="json"), indent=2)
    again = Spec.model_validate_json(text.encode())
    assert again.canonical() == spec.canonical()
    assert again.hash == spec.hash


def test_the_hash_is_of_the_content() -> None:
    one = make(method_params={"a": 1, "b": (1.0, 2.0)})
    assert one.hash == make(method_params={"b": [1.0, 2.0], "a": 1}).hash
    assert len(one.hash) == 12
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"data": "e"}, {"method": "uw"}, {"task": "other"}, {"precision": "bf16"},
        {"device": "cuda"}, {"plugins": {"x": "0"}}, {"recipe": {"epochs": 2}},
        {"task_params": {"a": None}}, {"method_params": {"a": 1}},
    ]  # fmt: skip
    assert len({make(**change).hash for change in [{}, *changes]}) == 1 + len(changes)


def test_a_directory_is_made_once(tmp_path: Path) -> None:
    spec = make(seed=3)
    run = RunDirectory.at(tmp_path, spec)
    assert run.path == tmp_path / "tiny" / "ew" / f"seed3-{spec.hash}"
    written = (run.path / "spec.json").stat().st_mtime_ns
    assert RunDirectory.at(tmp_path, spec).path == run.path
    assert (run.path / "spec.json").stat().st_mtime_ns == written
    assert run.spec() == spec
    assert run.result() is None
    assert run.load("checkpoint.pt") is None


def test_files_are_replaced_not_written_into(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_text("a.txt", "first, and long")
    run.save("a.pt", {"x": torch.arange(3)})
    with (tmp_path / "a.txt").open() as text, (tmp_path / "a.pt").open("rb") as tensors:
        before = tensors.read()
        run.write_text("a.txt", "größer")
        run.save("a.pt", {"x": torch.ones(2)})
        assert text.read() == "first, and long"  # who has it open keeps the old file, whole
        tensors.seek(0)
        assert tensors.read() == before
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größer"
    state = run.load("a.pt")
    assert state is not None
    assert torch.equal(state["x"], torch.ones(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.txt"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    run.write_text("result.json", "{}")
    run.save("best.pt", {"x": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"result\.json: cannot be written \(No space"):
        run.write_text("result.json", "{" * 10_000)
    with pytest.raises(WriteError, match=r"best\.pt: cannot be written \(No space"):
        run.save("best.pt", {"x": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "result.json"]
    assert (tmp_path / "result.json").read_text() == "{}"
    assert run.load("best.pt") == {"x": 1}


def test_a_result_that_appears_while_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, look = RunDirectory(tmp_path), os.stat

    def finished_after(path: Any, **options: Any) -> os.stat_result:
        try:
            return look(path, **options)
        finally:
            (tmp_path / "result.json").write_text("{}")

    monkeypatch.setattr(os, "stat", finished_after)
    assert run.result() is None  # another process has finished the cell a moment too late
    with pytest.raises(RunError, match="is no result"):
        run.result()


def test_a_seal_that_is_a_link_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.png").touch()
    (tmp_path / "run" / SEALED).symlink_to(tmp_path / "mine")
    RunDirectory(tmp_path / "run").unseal()
    assert (tmp_path / "mine" / "letter.png").exists()


class Nasty:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.save("best.pt", {"model": Nasty(tmp_path / "touched")})
    with pytest.raises(RunError, match=r"best\.pt: corrupt"):
        run.load("best.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_a_cut_checkpoint_is_explained(tmp_path: Path, kept: float) -> None:
    run = RunDirectory(tmp_path)
    run.save("best.pt", {"x": torch.arange(1000)})
    whole = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "best.pt").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(RunError, match=r"best\.pt: corrupt, does not load .* delete the folder"):
        run.load("best.pt")


def test_a_damaged_checkpoint_is_explained(tmp_path: Path) -> None:
    """torch itself reads weights of which some bytes are others."""
    run = RunDirectory(tmp_path)
    run.save("best.pt", {"x": torch.arange(1000)})
    content = bytearray((tmp_path / "best.pt").read_bytes())
    content[content.index(torch.arange(400, 404).numpy().tobytes())] ^= 1
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(RunError, match=r"best\.pt: corrupt, does not load \(BadZipFile\)"):
        run.load("best.pt")


@pytest.mark.parametrize("content", [b"", b'{"status": ', b"\xff\xfe\x00"])
def test_a_broken_result_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(RunError, match=r"result\.json: does not parse .* delete it"):
        RunDirectory(tmp_path).result()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"spec\.json: not a spec: .*; remove its folder to train the cell again"),
        ("[]", r"spec\.json: not a spec: no JSON object; remove"),
        ("{}", r"task: Field required"),
        (make().model_dump_json().replace('"version":1', '"version":2'), r"version: "),
        (make().model_dump_json()[:-1] + ', "more": 1}', r"more: "),
        (make().model_dump_json().replace("fp32", "fp8"), r"precision: "),
    ],
)
def test_a_broken_spec_is_explained(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(RunError, match=said):
        RunDirectory(tmp_path).spec()


def test_no_run_directory_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run directory"):
        RunDirectory(tmp_path).spec()
    with pytest.raises(RunError, match=r"no run directory"):
        RunDirectory(tmp_path / "absent").spec()


def test_a_moved_run_directory_is_refused(tmp_path: Path) -> None:
    one, two = make(seed=1), make(seed=2)
    first = RunDirectory.at(tmp_path, one)
    second = tmp_path / "tiny" / "ew" / f"seed2-{two.hash}"
    first.path.rename(second)
    with pytest.raises(RunError, match=rf"is of another cell \({one.hash}, wanted {two.hash}\)"):
        RunDirectory.at(tmp_path, two)
    assert RunDirectory(second).spec() == one


def test_one_holds_a_cell_and_others_are_told_who(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path, make())
    again = RunDirectory(run.path)
    assert run.holder() is None
    with run.claim():
        assert run.holder() == f"process {os.getpid()} on {platform.node()}"
        with pytest.raises(HeldError, match=rf"process {os.getpid()} on .* works on it; wait"):
            again.claim().__enter__()
        assert again.holder() is not None  # looking takes nothing away
        (run.path / "fits").mkdir()
        (run.path / "result.json").write_text("{}")
        run.clear()
        assert run.result() is None
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", "spec.json"]
        with pytest.raises(HeldError):
            again.claim().__enter__()
        (run.path / "spec.json").unlink()  # who makes the cell at that moment does not wait
        assert RunDirectory.at(tmp_path, make()).path == run.path
    assert run.holder() is None
    with again.claim():
        pass


def test_who_looks_is_in_nobodys_way(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path, make())
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.001):
            run.holder()

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(200):
        with run.claim():
            pass
    stop.set()
    looker.join()


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.at(tmp_path, make())

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(RunError, match=r"\.lock: its file system has no locks"):
        run.claim().__enter__()
    assert run.holder() is None  # `status` looks, and goes on


def begin(out: Path, barrier: Barrier) -> None:
    for seed in range(30):
        barrier.wait()
        RunDirectory.at(out, make(seed=seed))


def test_processes_that_make_the_same_cell_do_not_meet(tmp_path: Path) -> None:
    barrier = PROCESSES.Barrier(3)
    others = [PROCESSES.Process(target=begin, args=(tmp_path, barrier)) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0, 0]
    assert len(list(find_runs([tmp_path]))) == 30
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_stays(tmp_path: Path) -> None:
    file = tmp_path / "whole.npy"
    (theirs := tmp_path / ".mtbench-notes.txt").touch()
    os.utime(theirs, (0, 0))
    with writing(file) as killed, writing(file) as living:
        for path, hours in ((killed, 25), (living, 1)):
            path.touch()
            os.utime(path, (time.time() - 3600 * hours,) * 2)
        with writing(file) as own:
            own.touch()
        assert set(tmp_path.iterdir()) == {file, living, theirs}
        killed.touch()  # its own block is still to end, and moves it


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be written .* another --out"):
        RunDirectory.at(tmp_path / "file", make())


def test_runs_are_found_in_a_stable_order(tmp_path: Path) -> None:
    made = [RunDirectory.at(tmp_path / "a", make(seed=seed)).path for seed in (2, 0, 1)]
    other = RunDirectory.at(tmp_path / "b", make(method="uw")).path
    (tmp_path / "a" / "tiny" / "report.md").touch()
    found = [run.path for run in find_runs([tmp_path])]
    assert found == [*sorted(made), other]
    assert [run.path for run in find_runs([tmp_path / "b", tmp_path / "a"])] == [
        other,
        *sorted(made),
    ]
    assert [run.path for run in find_runs([other])] == [other]
    assert list(find_runs([])) == []
    for nothing in (tmp_path / "absent", other / "spec.json"):
        with pytest.raises(RunError, match="no such folder"):
            list(find_runs([nothing]))


def test_runs_behind_links_are_found_once(tmp_path: Path) -> None:
    made = RunDirectory.at(tmp_path / "a", make()).path
    other = RunDirectory.at(tmp_path / "b", make(method="uw")).path.parent
    (made.parent.parent / "uw").symlink_to(other)
    (made.parent.parent / "loop").symlink_to(tmp_path / "a")
    assert [run.path.parent.name for run in find_runs([tmp_path / "a"])] == [made.parent.name, "uw"]


def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, scan = RunDirectory.at(tmp_path, make()).path, os.scandir

    def denied(path: str) -> Any:
        if Path(path) == made.parent:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(RunError, match=rf"{made.parent}: cannot be read \(Permission denied\)"):
        list(find_runs([tmp_path]))


@pytest.mark.parametrize("name", ["spec.json", "result.json", "fitted.json", "epochs.jsonl"])
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    run = RunDirectory(tmp_path)
    run.write_text(name, '{"a": {"b": 1, "b": 2}}')
    read = {"epochs.jsonl": "history", "spec.json": "spec", "result.json": "result"}
    with pytest.raises(RunError, match=rf"{name}: .*key 'b' is there twice"):
        getattr(run, read.get(name, "fitted"))()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "epoch: None is no int"),
        ('{"epoch": 0, "train_loss": {}, "val_loss": {}}', "val: None is no dict"),
        ('{"epoch": 0, "train_loss": [1], "val_loss": {}}', r"train_loss: \[1\] is no dict"),
    ],
)
def test_epochs_of_another_form_are_explained(tmp_path: Path, text: str, said: str) -> None:
    run = RunDirectory(tmp_path)
    run.write_text("epochs.jsonl", text)
    with pytest.raises(RunError, match=rf"jsonl: does not parse \({said}\); delete result.json"):
        run.history()


def test_when_a_test_was_opened_survives_a_copy(tmp_path: Path) -> None:
    run, copy = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "copy")
    run.path.mkdir()
    run.write_text("test.json", '{"metrics": {}}')
    assert run.opened() is None
    before = time.time()
    run.open_test()
    shutil.copytree(run.path, copy.path)
    os.utime(copy.path / "test.opened", (9e9, 9e9))
    assert before <= run.opened() == copy.opened() < time.time()
    (copy.path / "test.opened").write_text("yesterday")
    with pytest.raises(RunError, match=r"test\.opened: is no time"):
        copy.opened()


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts what is read")
def test_whose_a_checkpoint_is_takes_no_reading_of_its_weights(tmp_path: Path) -> None:
    """Each open cell is asked at every start of a sweep, and may hold hundreds of megabytes."""
    run, size = RunDirectory(tmp_path), 1_000_000

    def reading(found: Callable[[], object]) -> int:
        def so_far() -> int:
            return int(Path("/proc/self/io").read_text().split()[1])

        before = so_far()
        found()
        return so_far() - before

    for code, outdated in (("another", True), (core_digest(), False)):
        run.save("checkpoint.pt", {"version": 1, "code": code, "w": torch.zeros(size)})
        assert is_outdated(run) is outdated
    assert reading(lambda: is_outdated(run)) < size  # bytes, of four a number
    assert reading(lambda: run.load("checkpoint.pt")) > 4 * size


def test_a_folder_that_could_not_be_filled_is_as_it_was(tmp_path: Path) -> None:
    new, empty, full = (tmp_path / name for name in ("new", "empty", "full"))
    empty.mkdir()
    full.mkdir()
    (full / "old").touch()

    def fill(folder: Path) -> None:
        with filling(folder, "--to") as place:
            (place / "file").touch()
            (place / "below").mkdir()
            raise KeyboardInterrupt

    for folder in (new, empty, full):
        with pytest.raises(KeyboardInterrupt):
            fill(folder)
    assert not new.exists()
    assert not list(empty.iterdir())
    assert (full / "old").exists()


def test_what_comes_into_a_folder_while_it_is_filled_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def fill(folder: Path, *, whole: bool) -> None:
        with filling(folder, "--to") as place:
            (place / "ours").touch()
            with filling(folder, "--to") as other:  # as another process does
                (other / "theirs").mkdir()
            if not whole:
                raise KeyboardInterrupt

    for number, folder in enumerate((tmp_path / "new", tmp_path / "third", Path())):
        whole = number != 1
        with pytest.raises(RunError if whole else KeyboardInterrupt) as told:
            fill(folder, whole=whole)
        said = f"--to {folder}: theirs has come into it meanwhile; choose another folder"
        assert str(told.value) == said * whole
        assert [path.name for path in folder.iterdir()] == ["theirs"]


def test_a_file_that_cannot_be_written_is_named_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told, filling(tmp_path / "new", "--to") as place:
        (place / "below" / "file").touch()
    assert told.value.filename == str(tmp_path / "new" / "below" / "file")
    assert not (tmp_path / "new").exists()
