"""Results from one folder of runs to another: nothing in a stranger's file is trusted."""

import hashlib
import io
import json
import os
import shutil
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtbench import cli
from mtbench.comparing import claim
from mtbench.comparing.judging import exchange
from mtbench.comparing.judging.exchange import archive
from mtbench.comparing.judging.leaderboard import boards
from mtbench.comparing.judging.leaderboard.cells import read_cells
from mtbench.errors import RunError
from mtbench.training.cell.config import Chosen
from mtbench.training.cell.rundir import RunDirectory, Spec, find_runs
from mtbench.training.machine.locks import HeldError
from tests.comparing.test_entrants import claimed
from tests.comparing.test_leaderboard import DIVERGED
from tests.conftest import TINY
from tests.refusals import refused

Mtbench = Callable[..., tuple[int, str, str]]
Files = dict[str, bytes]
CHOSEN = Chosen(
    ruleset="exploratory", mode="tpe-median", by="x", score=1.0, trial=0, trials={"finished": 5},
    seed=9, search={}, cell="x", study="y",
)  # fmt: skip
RECORDS = ("epochs.jsonl", "result.json", "spec.json", "test.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods at two seeds; nobody may change it."""
    out = tmp_path_factory.mktemp("finished") / "runs"
    line = ["run", "--plugin", TINY, "--task", "tiny", "--threads", 1, "--epochs", 2, "--seeds", 2]
    with pytest.MonkeyPatch.context() as patch:
        words = ["mtbench", *line, "--out", out, "--method", "stl", "--method", "ew"]
        patch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    assert leaving.value.code == 0
    return out


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of ew's results."""
    file = tmp_path_factory.mktemp("exported") / "ew.mtbench"
    exchange.export([finished], "ew", None, file)
    return file.read_bytes()


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """The finished runs, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "runs"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def records(folder: Path, method: str = "") -> dict[str, bytes]:
    return {k: v for k, v in tree(folder).items() if Path(k).name in RECORDS and method in k}


def cell(out: Path, method: str = "ew", seed: int = 0) -> Path:
    [found] = out.glob(f"tiny/{method}/seed{seed}-*")
    return found


def forged(run: Path, result: dict[str, Any] | None = None, **changes: Any) -> tuple[str, Files]:
    """Return the path and records of a cell like another, consistent in itself."""
    files = {name: (run / name).read_bytes() for name in RECORDS}
    spec = Spec.model_validate(json.loads(files["spec.json"]) | changes)
    own = json.loads(files["result.json"]) | {
        "hash": spec.hash, "seed": spec.seed, "method": spec.method, "task": spec.task
    }  # fmt: skip
    files["spec.json"] = spec.model_dump_json().encode()
    files["result.json"] = json.dumps(own | (result or {})).encode()
    if spec.stage == "trial":
        del files["test.json"]
    return f"{spec.task}/{spec.method}/seed{spec.seed}-{spec.hash}", files


def put(out: Path, path: str, files: Files) -> Path:
    (out / path).mkdir(parents=True)
    for name, raw in files.items():
        (out / path / name).write_bytes(raw)
    return out / path


def zipped(cells: dict[str, Files], manifest: dict[str, Any] | None = None) -> dict[str, bytes]:
    """Return the members of a file, with whatever the manifest should say instead of the truth."""
    listed = [
        {"path": p, "files": {n: hashlib.sha256(r).hexdigest() for n, r in files.items()}}
        for p, files in cells.items()
    ]
    head = {"format": "mtbench results", "version": 1, "mtbench": "0", "cells": listed}
    members = {f"{p}/{n}": raw for p, files in cells.items() for n, raw in files.items()}
    return members | {"manifest.json": json.dumps(head | (manifest or {})).encode()}


def written(
    file: Path, members: dict[str, bytes], *more: tuple[str | zipfile.ZipInfo, bytes]
) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in [*members.items(), *more]:
            archive.writestr(name, raw)
    return file


def members(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# The way there and back


def test_results_travel_from_one_folder_to_another_and_onto_its_leaderboard(
    mtbench: Mtbench, finished: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "ew.mtbench", tmp_path / "other"
    code, said, err = mtbench("export", finished, "--method", "ew", "--to", file)
    assert (code, err) == (0, "")
    assert "cells: 2 exported" in said
    assert str(file) in said
    code, said, err = mtbench("import", file, "--out", out)
    assert (code, err) == (0, "")
    assert said == "cells: 2 imported\n"
    assert records(out) == records(finished, "/ew/")
    assert not list(out.glob(".*"))
    mark = json.loads((cell(out) / "imported.json").read_text())
    assert mark["file"] == "ew.mtbench"
    assert mark["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert mark["date"].endswith("+00:00")
    before = tree(out)
    assert mtbench("import", file, file, "--out", out)[1] == "cells: 0 imported, 4 there already\n"
    assert tree(out) == before
    code, said, err = mtbench("leaderboard", out)
    assert (code, err) == (0, "")
    assert " ew " in said


def test_an_export_holds_records_only_and_the_same_results_give_the_same_bytes(
    finished: Path, exported: bytes, tmp_path: Path
) -> None:
    again = tmp_path / "elsewhere" / "again.mtbench"
    again.parent.mkdir()
    exchange.export([shutil.copytree(finished, tmp_path / "copy")], "ew", "tiny", again)
    assert again.read_bytes() == exported
    assert [p.name for p in again.parent.iterdir()] == ["again.mtbench"]
    with zipfile.ZipFile(io.BytesIO(exported)) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert {Path(name).name for name in names} == {"manifest.json", *RECORDS}
    assert len(names) == 9


def test_trials_go_with_the_final_cells_that_they_compare_with(runs: Path, tmp_path: Path) -> None:
    recipe = json.loads((cell(runs) / "spec.json").read_text())["recipe"]
    tuned, files = forged(cell(runs), stage="trial", recipe=recipe | {"lr": 0.5})
    other = forged(cell(runs), stage="trial", recipe=recipe | {"batch_size": 16})
    put(runs, tuned, files)
    put(runs, *other)
    outcome = exchange.export([runs], "ew", None, tmp_path / "ew.mtbench")
    assert len(outcome.cells) == 3
    assert tuned in outcome.cells
    assert outcome.notes == ["1 trials left out: no final cell compares with them"]
    assert len(exchange.import_([tmp_path / "ew.mtbench"], tmp_path / "out").cells) == 3


def test_a_diverged_cell_travels_without_test_metrics_and_epochs(
    finished: Path, tmp_path: Path
) -> None:
    result = DIVERGED | {"reason": "non-finite loss", "epochs": 0}
    path, files = forged(cell(finished), result, seed=9)
    del files["test.json"], files["epochs.jsonl"]
    put(tmp_path / "runs", path, files)
    exchange.export([tmp_path / "runs"], "ew", None, tmp_path / "ew.mtbench")
    exchange.import_([tmp_path / "ew.mtbench"], tmp_path / "out")
    assert records(tmp_path / "out") == records(tmp_path / "runs")


def test_undefined_metrics_travel(finished: Path, tmp_path: Path) -> None:
    path, files = forged(cell(finished), seed=9)
    files["test.json"] = b'{"loss": {"sum": NaN}, "metrics": {"mae_sum": NaN, "within": Infinity}}'
    put(tmp_path / "runs", path, files)
    exchange.export([tmp_path / "runs"], "ew", None, tmp_path / "ew.mtbench")
    for _ in range(2):
        exchange.import_([tmp_path / "ew.mtbench"], tmp_path / "out")
    assert records(tmp_path / "out") == records(tmp_path / "runs")


# What cannot be exported


def test_unfinished_cells_are_left_out_and_counted(
    mtbench: Mtbench, runs: Path, tmp_path: Path
) -> None:
    (cell(runs) / "result.json").unlink()
    answer = mtbench("export", runs, "-m", "ew", "--to", tmp_path / "ew.mtbench")
    assert answer[1].startswith("cells: 1 exported, 1 unfinished, left out\n")
    (cell(runs, seed=1) / "result.json").unlink()
    before = tree(tmp_path)
    refused(
        mtbench("export", runs, "-m", "ew", "--to", tmp_path / "ew.mtbench"),
        "ew has no finished final cell (2 unfinished cells, 0 trials)",
    )
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "eww"), "no runs of 'eww'; did you mean 'ew'?"),
        (("-m", "ew", "-t", "tine"), "no runs of ew on 'tine'; did you mean 'tiny'?"),
        (("-m", "ew", "--to", "ew.zip"), "must be a .mtbench file in a folder that exists"),
        (("-m", "ew", "--to", "nowhere/ew.mtbench"), "must be a .mtbench file in a folder"),
    ],
)
def test_an_export_of_what_is_not_there_is_refused(
    mtbench: Mtbench, finished: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    to = () if "--to" in words else ("--to", tmp_path / "a.mtbench")
    refused(mtbench("export", finished, *words, *to), said)
    assert not list(tmp_path.iterdir())


def test_an_export_that_cannot_be_written_leaves_nothing(
    mtbench: Mtbench, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "ew.mtbench").mkdir()
    refused(
        mtbench("export", finished, "-m", "ew", "--to", tmp_path / "ew.mtbench"),
        "cannot be written (Is a directory)",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["ew.mtbench"]


def test_an_export_that_importing_would_refuse_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 8)
    with pytest.raises(RunError, match="more than 8 members"):
        exchange.export([finished], "ew", None, tmp_path / "ew.mtbench")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("test.json", None, "test.json: is missing"),
        ("test.json", "{", "test.json: does not parse"),
        ("epochs.jsonl", "", "epochs.jsonl: must have epochs 0 to 1, one a line"),
        ("result.json", '{"version": 2}', "result.json: not of version 1: version:"),
    ],
)
def test_a_broken_record_is_not_exported(
    runs: Path, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    file = cell(runs) / name
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(RunError, match=said):
        exchange.export([runs], "ew", None, tmp_path / "ew.mtbench")


# What a file may not be


def _unzipped(raw: bytes, change: Callable[[dict[str, bytes]], object]) -> dict[str, bytes]:
    found = members(raw)
    change(found)
    return found


def _link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def _bzip(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_BZIP2
    return info


EXTRA: dict[str, tuple[str | zipfile.ZipInfo, bytes, str]] = {
    "traversal": ("../evil.json", b"{}", "'../evil.json' is no plain relative name"),
    "deep traversal": ("tiny/../../evil", b"", "is no plain relative name"),
    "absolute": ("/etc/evil.json", b"{}", "'/etc/evil.json' is no plain relative name"),
    "drive": ("C:\\evil", b"", "is no plain relative name"),
    "folder": ("tiny/", b"", "is no plain relative name"),
    "hidden": (".bashrc", b"", "is no plain relative name"),
    "escape": ("\x1b[2Jevil", b"", "is no plain relative name"),
    "link": (_link("tiny/evil"), b"/etc/passwd", "'tiny/evil' is a link or another special file"),
    "method": (_bzip("evil"), b"", "'evil' is compressed by method 12"),
    "bomb": ("evil.json", b"0" * 2**22, "'evil.json' unpacks to more than 200 times its size"),
    "extra": ("tiny/ew/evil.pt", b"", "'tiny/ew/evil.pt' is not in the manifest"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXTRA)
def test_a_member_that_does_not_belong_is_refused(
    mtbench: Mtbench, exported: bytes, tmp_path: Path, kind: str
) -> None:
    name, raw, said = EXTRA[kind]
    file = written(tmp_path / "evil.mtbench", members(exported), (name, raw))
    refused(mtbench("import", file, "--out", tmp_path / "out"), said)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.mtbench"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(
    mtbench: Mtbench, exported: bytes, tmp_path: Path
) -> None:
    name = next(name for name in members(exported) if name.endswith("result.json"))
    file = written(tmp_path / "evil.mtbench", members(exported), (name, b"{}"))
    refused(mtbench("import", file, "--out", tmp_path / "out"), f"'{name}' is there twice")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MAX_MEMBERS", 8, "more than 8 members"),
        ("MAX_UNPACKED", 2**10, "unpacks to more than 0 MiB"),
        ("MAX_ARCHIVE", 2**10, "larger than 0 MiB"),
    ],
)
def test_sizes_are_bounded(
    mtbench: Mtbench, exported: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    limit: str, value: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(archive, limit, value)
    (tmp_path / "ew.mtbench").write_bytes(exported)
    refused(mtbench("import", tmp_path / "ew.mtbench", "--out", tmp_path / "out"), said)
    assert not (tmp_path / "out").exists()


def test_a_member_that_lies_about_its_size_is_not_inflated(tmp_path: Path) -> None:
    file = written(tmp_path / "evil.mtbench", {"manifest.json": b" " * 2**24})
    raw = bytearray(file.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 10)
    file.write_bytes(raw)
    with pytest.raises(RunError, match="no whole file of `mtbench export`"):
        exchange.import_([file], tmp_path / "out")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "BadZipFile"),
        (b"nothing of the kind", "BadZipFile"),
        (b"PK\x05\x06" + bytes(18), "has no manifest.json"),
    ],
)
def test_another_kind_of_file_is_refused(
    mtbench: Mtbench, tmp_path: Path, raw: bytes, said: str
) -> None:
    (tmp_path / "a.mtbench").write_bytes(raw)
    refused(mtbench("import", tmp_path / "a.mtbench", "--out", tmp_path / "out"), said)
    refused(mtbench("import", tmp_path / "b.mtbench", "--out", tmp_path / "out"), "cannot be read")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(
    mtbench: Mtbench, exported: bytes, tmp_path: Path, part: float
) -> None:
    (tmp_path / "a.mtbench").write_bytes(exported[: int(part * len(exported))])
    answer = mtbench("import", tmp_path / "a.mtbench", "--out", tmp_path / "out")
    refused(answer, "no whole file of `mtbench export`")
    assert not (tmp_path / "out").exists()


MANIFEST: dict[str, tuple[dict[str, Any], str]] = {
    "newer": ({"version": 2, "more": 1, "mtbench": "9.0"}, "format version 2 (by mtbench '9.0')"),
    "format": ({"format": "other"}, "format must be 'mtbench results', found 'other'"),
    "no version": ({"version": "1"}, "manifest.json: not of version 1: version:"),
    "no cells": ({"cells": []}, "is not in the manifest"),
    "more": ({"run": "rm -rf"}, "run: Extra inputs are not permitted"),
}


@pytest.mark.parametrize("kind", MANIFEST)
def test_another_manifest_is_refused(finished: Path, tmp_path: Path, kind: str) -> None:
    changes, said = MANIFEST[kind]
    file = written(tmp_path / "a.mtbench", zipped(dict([forged(cell(finished))]), changes))
    with pytest.raises(RunError) as error:
        exchange.import_([file], tmp_path / "out")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_empty_file_and_one_without_manifest_are_refused(tmp_path: Path) -> None:
    for content, said in ((zipped({}), "holds no cell"), ({"a": b""}, "has no manifest.json")):
        with pytest.raises(RunError, match=said):
            exchange.import_([written(tmp_path / "a.mtbench", content)], tmp_path / "out")


def test_a_record_that_was_changed_after_export_is_refused(
    mtbench: Mtbench, exported: bytes, tmp_path: Path
) -> None:
    content = members(exported)
    name = next(name for name in content if name.endswith("test.json"))
    content[name] = content[name].replace(b"1", b"0")
    file = written(tmp_path / "a.mtbench", content)
    refused(
        mtbench("import", file, "--out", tmp_path / "out"), f"'{name}' is not what was exported"
    )
    del content[name]
    written(file, content)
    refused(mtbench("import", file, "--out", tmp_path / "out"), f"'{name}' is in the manifest, but")
    assert not (tmp_path / "out").exists()


def test_a_cell_in_another_folder_than_its_spec_says_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    path, files = forged(cell(finished))
    for other in (path[:-1] + "x", f"tiny/stl/{Path(path).name}", "a"):
        file = written(tmp_path / "a.mtbench", zipped({other: files}))
        with pytest.raises(RunError, match=f"'{other}': its spec is that of {path}"):
            exchange.import_([file], tmp_path / "out")
    twice = zipped({path: files})
    manifest = json.loads(twice["manifest.json"])
    manifest["cells"] *= 2
    file = written(tmp_path / "a.mtbench", twice | {"manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(RunError, match="lists a cell twice"):
        exchange.import_([file], tmp_path / "out")
    file = written(tmp_path / "a.mtbench", zipped({path: files | {"best.pt": b""}}))
    with pytest.raises(RunError, match=r"best.pt' is no record of a cell"):
        exchange.import_([file], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _spec(**changes: Any) -> Callable[[Files], object]:
    """Return what changes a cell's spec, and its result's copy of it, without moving the cell."""

    def change(files: Files) -> None:
        spec = json.loads(files["spec.json"]) | changes
        files["spec.json"] = json.dumps(spec).encode()
        try:
            digest = Spec.model_validate(spec).hash
        except ValueError:
            return
        own = {key: spec[key] for key in ("task", "method", "seed")} | {"hash": digest}
        files["result.json"] = json.dumps(json.loads(files["result.json"]) | own).encode()

    return change


def _json(name: str, **changes: Any) -> Callable[[Files], object]:
    def change(files: Files) -> None:
        files[name] = json.dumps(json.loads(files[name]) | changes).encode()

    return change


def _raw(name: str, raw: bytes) -> Callable[[Files], object]:
    return lambda files: files.update({name: raw})


def _without(name: str) -> Callable[[Files], object]:
    return lambda files: files.pop(name)


RECIPE = {"epochs": 2, "batch_size": 8, "lr": 0.01, "weight_decay": 0.0001}
CONTENT: dict[str, tuple[Callable[[Files], object], str]] = {
    "no spec": (_without("spec.json"), "has no spec.json"),
    "no result": (_without("result.json"), "has no result.json"),
    "no test": (_without("test.json"), "test.json: is missing"),
    "no epochs": (_without("epochs.jsonl"), "epochs.jsonl: must have epochs 0 to 1"),
    "spec of more": (_spec(evil=1), "spec.json: not of version 1: evil:"),
    "spec of version 2": (_spec(version=2), "spec.json: not of version 1: version:"),
    "task with a path": (_spec(task="../../evil"), "task '../../evil' is no plain name"),
    "method with a path": (_spec(method=".."), "method '..' is no plain name"),
    "negative seed": (_spec(seed=-1), "seed must be in"),
    "huge seed": (_spec(seed=10**400), "spec.json"),
    "no recipe": (_spec(recipe={}), "recipe may have epochs, batch_size"),
    "recipe of more": (_spec(recipe=RECIPE | {"evil": 1}), "recipe may have epochs"),
    "recipe of text": (_spec(recipe=RECIPE | {"epochs": "2"}), "epochs: Input should be"),
    "recipe of nothing": (_spec(recipe=RECIPE | {"epochs": 0}), "epochs must be at least 1"),
    "short budget": (_spec(recipe=RECIPE | {"epochs": 3}), "trained 2 epochs of its 3"),
    "long budget": (_spec(recipe=RECIPE | {"epochs": 1}), "trained 2 epochs of its 1"),
    "tested trial": (_spec(stage="trial"), "a trial cell that finished has none"),
    "tested divergence": (_json("result.json", **DIVERGED), "that diverged has none"),
    "other seed": (_json("result.json", seed=5), "seed is 5, in spec.json 0"),
    "other hash": (_json("result.json", hash="0"), "hash is '0', in spec.json"),
    "result of text": (_json("result.json", cost={}), "result.json: not of version 1: cost"),
    "chosen score": (_json("result.json", score=9.0), "val and score are not those of epoch"),
    "best of none": (_json("result.json", best_epoch=7), "best_epoch must be one of its epochs"),
    "no metric": (_json("result.json", metrics={}), "metrics: Dictionary should have at least 1"),
    "epoch without a metric": (
        lambda files: files.update(
            {"epochs.jsonl": files["epochs.jsonl"].replace(b'"within"', b'"without"')}
        ),
        "epochs.jsonl: val of epoch 0 lacks 'within'",
    ),
    "foreign metric": (_json("test.json", metrics={"method": 1.0}), "'method' is no metric of"),
    "metric of text": (_json("test.json", metrics={"within": "1"}), "metrics.within: Input"),
    "shadowing metric": (
        _json(
            "result.json",
            metrics={"told": {"objective": "a", "higher_is_better": True, "primary": True}},
        ),
        "metric 'told' is called like a column of leaderboards",
    ),
    "chance of text": (
        _json(
            "result.json",
            metrics={
                "a": {"objective": "a", "higher_is_better": True, "primary": True, "chance": "half"}
            },
        ),
        "result.json: not of version 1: metrics.a.chance: Input should be",
    ),
    "key there twice": (
        _raw("test.json", b'{"loss": {}, "loss": {}, "metrics": {}}'),
        "test.json: does not parse (key 'loss' is there twice)",
    ),
    "odd claim": (_raw("suites.json", b'[{"suite": 1}]'), "suites.json: 0.suite: Input should be"),
    "no JSON": (_raw("result.json", b"import os"), "result.json: does not parse"),
    "no UTF-8": (_raw("result.json", b"\xff\xfe{}"), "result.json: does not parse"),
    "epochs without UTF-8": (_raw("epochs.jsonl", b"\xff"), "epochs.jsonl: does not parse"),
    "deep": (_raw("result.json", b"[" * 200_000), "result.json: does not parse"),
    "surrogate": (_json("result.json", selection="\ud800"), "result.json: does not parse"),
    "huge number": (_raw("test.json", b'{"loss": {"a": %s}}' % (b"1" * 9999)), "test.json: does"),
}


def test_a_pipe_and_a_folder_are_refused(mtbench: Mtbench, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mtbench")
    refused(mtbench("import", tmp_path / "a.mtbench"), "is no regular file")
    refused(mtbench("import", tmp_path), "is a folder", "`mtbench merge OUT FOLDER`")


@pytest.mark.parametrize("kind", CONTENT)
def test_records_that_contradict_themselves_are_refused(
    mtbench: Mtbench, finished: Path, tmp_path: Path, kind: str
) -> None:
    change, said = CONTENT[kind]
    path, files = forged(cell(finished))
    change(files)
    file = written(tmp_path / "a.mtbench", zipped({path: files}))
    refused(mtbench("import", file, "--out", tmp_path / "out"), said)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mtbench"]


def imported_whole_or_not_at_all(file: Path, wanted: dict[str, bytes]) -> None:
    out = file.parent / "out"
    try:
        exchange.import_([file], out)
    except RunError as error:
        said = str(error)
    else:
        assert records(out) == wanted
        return
    assert said.startswith(str(file))
    assert not out.exists()


@settings(max_examples=75, derandomize=True)
@given(st.data())
def test_flipped_bytes_are_refused_or_change_nothing(
    exported: bytes, finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(exported)
    place = st.integers(0, len(raw) - 1)
    if data.draw(st.booleans()):  # the directory at the end, where zip readers go astray
        place = st.integers(raw.index(b"PK\x01\x02"), len(raw) - 1)
    for at in data.draw(st.lists(place, min_size=1, max_size=4, unique=True)):
        raw[at] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("flipped") / "a.mtbench"
    file.write_bytes(raw)
    imported_whole_or_not_at_all(file, records(finished, "/ew/"))


ODD = st.sampled_from(
    [None, True, -1, 10**30, float("nan"), "", "../x", "\ud800", "\x1b[2J", [], {}, [[]], {"": 0}]
)


@settings(max_examples=75, derandomize=True)
@given(st.data())
def test_odd_values_under_right_hashes_are_refused_or_can_be_compared(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, files = forged(cell(finished))
    name = data.draw(st.sampled_from(["result.json", "test.json", "spec.json"]))
    content = node = json.loads(files[name])
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not (isinstance(node[key], dict) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    node[key] = data.draw(ODD)
    if name == "spec.json":
        _spec(**content)(files)
        with suppress(ValueError):
            spec = Spec.model_validate(content)
            path = f"{spec.task}/{spec.method}/seed{spec.seed}-{spec.hash}"
            path = path.encode(errors="replace").decode()
    else:
        files[name] = json.dumps(content).encode()
    file = tmp_path_factory.mktemp("odd") / "a.mtbench"
    written(file, zipped({path: files}))
    imported_whole_or_not_at_all(file, {f"{path}/{k}": v for k, v in files.items()})
    if (file.parent / "out").exists():
        boards(list(find_runs([file.parent / "out"])))


# What a file may not do to the runs that are there


def test_another_result_of_the_same_cell_is_refused(
    mtbench: Mtbench, exported: bytes, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "ew.mtbench").write_bytes(exported)
    shutil.rmtree(cell(runs, seed=1))
    test = json.loads((cell(runs) / "test.json").read_text())
    test["metrics"]["within"] = 0.99
    (cell(runs) / "test.json").write_text(json.dumps(test))
    before = tree(runs)
    path = cell(runs).relative_to(runs)
    refused(
        mtbench("import", tmp_path / "ew.mtbench", "--out", runs),
        f"other results of the same cell: {tmp_path / 'ew.mtbench'}: {path} and {cell(runs)}",
    )
    assert tree(runs) == before


def test_two_files_that_disagree_are_refused(
    finished: Path, exported: bytes, tmp_path: Path
) -> None:
    path, files = forged(cell(finished))
    files["test.json"] = files["test.json"].replace(b'within": 0.', b'within": 1.')
    a, b = tmp_path / "a.mtbench", tmp_path / "b.mtbench"
    a.write_bytes(exported)
    written(b, zipped({path: files}))
    with pytest.raises(RunError, match=f"same cell: {a}: {path} and {b}: {path}"):
        exchange.import_([a, b], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_bad_file_of_two_lets_neither_in(exported: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mtbench").write_bytes(exported)
    (tmp_path / "b.mtbench").write_bytes(exported[:-5])
    with pytest.raises(RunError, match=r"b.mtbench: no whole file"):
        exchange.import_([tmp_path / "a.mtbench", tmp_path / "b.mtbench"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_another_clock_and_machine_say_is_no_conflict(
    exported: bytes, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "ew.mtbench").write_bytes(exported)
    result = json.loads((cell(runs) / "result.json").read_text())
    result["cost"]["seconds_per_step"], result["environment"]["threads"] = 7.0, 64
    (cell(runs) / "result.json").write_text(json.dumps(result))
    assert exchange.import_([tmp_path / "ew.mtbench"], runs).identical == 2


@pytest.mark.parametrize("rest", ["spec.json", "junk"])
def test_an_unfinished_cell_here_is_not_overwritten_by_a_file(
    mtbench: Mtbench, exported: bytes, runs: Path, tmp_path: Path, rest: str
) -> None:
    (tmp_path / "ew.mtbench").write_bytes(exported)
    here = cell(runs)
    for file in here.iterdir():
        if file.name != rest:
            file.unlink()
    before = tree(runs)
    said = "is unfinished here" if rest == "spec.json" else "is in the way"
    refused(mtbench("import", tmp_path / "ew.mtbench", "--out", runs), f"{here}: {said}")
    assert tree(runs) == before


def test_metrics_that_are_declared_otherwise_are_refused(finished: Path, runs: Path) -> None:
    metrics = json.loads((cell(finished) / "result.json").read_text())["metrics"]
    metrics["mae_sum"]["higher_is_better"] = True
    path, files = forged(cell(finished), {"metrics": metrics}, seed=5)
    file = written(runs.parent / "a.mtbench", zipped({path: files}))
    with pytest.raises(RunError, match=f"{file}: {path}: declares other metrics than {runs}"):
        exchange.import_([file], runs)


def test_the_reader_is_told_what_is_short_and_what_stands_alone(
    mtbench: Mtbench, finished: Path, runs: Path
) -> None:
    spec = json.loads((cell(runs) / "spec.json").read_text())
    trial = forged(cell(runs, "stl"), stage="trial")
    elsewhere = forged(cell(runs, "stl"), task="elsewhere")
    put(runs, *trial)
    put(runs, *elsewhere)
    alone = forged(cell(finished), data="tiny-2", recipe=spec["recipe"])
    wide = forged(cell(finished), {"environment": {"threads": 64}}, method="uw")
    file = written(runs.parent / "a.mtbench", zipped(dict([alone, wide])))
    code, said, err = mtbench("import", file, "--out", runs)
    assert (code, err) == (0, "")
    assert "- tiny: forms a board of its own: data 'tiny-2', here 'tiny-1'" in said
    assert "- tiny: uw lacks seeds that others have here: 1" in said
    assert "- tiny: uw has 0 tuning trials, others here have 1" in said
    assert "threads differs: 1 (ew, stl); 64 (uw)" in said


def test_an_import_that_cannot_be_written_leaves_nothing(
    mtbench: Mtbench, exported: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ew.mtbench").write_bytes(exported)
    (tmp_path / "file").touch()
    answer = mtbench("import", tmp_path / "ew.mtbench", "--out", tmp_path / "file" / "out")
    refused(answer, "cannot be written")
    rename, calls = Path.rename, iter(range(9))

    def full(self: Path, target: Path) -> Path:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    answer = mtbench("import", tmp_path / "ew.mtbench", "--out", tmp_path / "out")
    refused(answer, "cannot be written (No space left on device)")
    assert tree(tmp_path / "out") == {}
    assert list(find_runs([tmp_path / "out"])) == []


# Merging


def test_runs_of_two_machines_are_merged(mtbench: Mtbench, finished: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "all", tmp_path / "other"
    path, files = forged(
        cell(finished), {"environment": {"threads": 64, "platform": "elsewhere"}}, method="uw"
    )
    put(other, path, files)
    shutil.copytree(cell(finished), other / cell(finished).relative_to(finished))
    unfinished, files = forged(cell(finished), seed=7)
    put(other, unfinished, {"spec.json": files["spec.json"]})
    code, said, err = mtbench("merge", out, finished, other)
    assert (code, err) == (0, "")
    assert said.startswith("cells: 5 copied, 1 there already, 1 unfinished, left out\n")
    assert "threads differs: 1 (ew, stl); 64 (uw)" in said
    assert "platform differs: " in said
    assert records(out) == records(finished) | records(other, "/uw/")
    assert not list(out.rglob("*.pt"))
    assert (cell(out) / "steps.csv").exists()
    before = tree(out)
    said = mtbench("merge", out, finished, other)[1]
    assert said.startswith("cells: 0 copied, 6 there already, 1 unfinished, left out\n")
    assert tree(out) == before
    assert not list(out.glob(".*"))


def test_weights_are_merged_when_asked_for(finished: Path, tmp_path: Path) -> None:
    exchange.merge(tmp_path / "all", [finished], weights=True)
    assert tree(tmp_path / "all") == {
        k: v
        for k, v in tree(finished).items()
        if k.startswith(("tiny/ew/", "tiny/stl/")) and not k.endswith("/.lock")
    }


def test_a_merge_keeps_sealed_figures_sealed(runs: Path, tmp_path: Path) -> None:
    (cell(runs) / ".sealed").mkdir()
    (cell(runs) / ".sealed" / "predictions.png").write_bytes(b"of test samples")
    exchange.merge(out := tmp_path / "all", [runs])
    assert [file.parent for file in out.rglob("*.png")] == [cell(out) / ".sealed"]
    RunDirectory(cell(out)).open_test()
    assert [file.parent for file in out.rglob("*.png")] == [cell(out)]


def test_a_merge_with_conflicts_names_them_and_copies_nothing(
    mtbench: Mtbench, finished: Path, runs: Path, tmp_path: Path
) -> None:
    test = cell(runs) / "test.json"
    test.write_text(test.read_text().replace('within": 0.', 'within": 1.'))
    said = "other results of the same cell: "
    refused(
        mtbench("merge", tmp_path / "all", finished, runs),
        f"{said}{cell(finished)} and {test.parent}",
    )
    assert not (tmp_path / "all").exists()
    shutil.rmtree(cell(runs, "stl"))
    before = tree(runs)
    refused(mtbench("merge", runs, finished), f"{said}{cell(finished)} and {test.parent}")
    assert tree(runs) == before


def test_a_merge_finishes_what_is_unfinished_here(finished: Path, runs: Path) -> None:
    (cell(runs) / "result.json").unlink()
    (cell(runs) / "leftover").touch()
    outcome = exchange.merge(runs, [finished])
    assert (len(outcome.cells), outcome.identical) == (1, 3)
    assert records(runs) == records(finished)
    assert not (cell(runs) / "leftover").exists()


def test_a_merge_passes_over_an_unfinished_copy_of_what_is_finished(
    finished: Path, runs: Path
) -> None:
    copy = shutil.copytree(cell(runs), runs / "tiny" / "later")
    (copy / "result.json").unlink()
    before = tree(runs)
    outcome = exchange.merge(runs, [finished])
    assert (outcome.cells, outcome.identical) == ([], 4)
    assert tree(runs) == before


def test_a_merge_that_fails_puts_everything_back(
    finished: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("ew", "stl"):
        (cell(runs, method) / "result.json").unlink()
    before, rename, calls = tree(runs), Path.rename, iter(range(99))

    def full(self: Path, target: Path) -> Path:
        if next(calls) == 3:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RunError, match="No space left on device"):
        exchange.merge(runs, [finished])
    assert tree(runs) == before


def test_a_cell_that_was_moved_is_not_merged(finished: Path, runs: Path, tmp_path: Path) -> None:
    cell(runs).rename(cell(runs).with_name("seed0-000000000000"))
    with pytest.raises(RunError, match="it was edited or moved"):
        exchange.merge(tmp_path / "all", [runs])


def test_what_was_cut_off_while_staging_is_no_run(finished: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "all", []

    def cut(self: Path, target: Path) -> Path:
        seen.extend(RunDirectory(p.parent).result() for p in out.rglob("spec.json"))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            exchange.merge(out, [finished])
    assert len(seen) == 4
    assert all(result is not None for result in seen)
    assert tree(out) == {}


def said_of(run: Path, suite: str = "", tuned: bool = False) -> Path:
    """Let a suite claim a cell, or say that exploratory tuning chose its parameters."""
    if suite:
        claimed(RunDirectory(run), suite=suite, digest=suite * 12)
    if tuned:
        CHOSEN.write(RunDirectory(run))
    return run


@pytest.mark.parametrize("held", [False, True], ids=["fresh", "there already"])
def test_what_any_copy_of_a_cell_says_of_it_is_merged(
    runs: Path, tmp_path: Path, held: bool
) -> None:
    """Else a board of a suite lacks it, or parameters of exploratory tuning are ranked."""
    out = tmp_path / "all"
    other = Path(shutil.copytree(runs, tmp_path / "other"))
    said_of(cell(runs), "a")
    said_of(cell(other), "b", tuned=True)
    if held:
        exchange.merge(out, [runs])
    notes = exchange.merge(out, [runs, other]).notes
    told = "added to cells that were there already: chosen.json of 1, suites.json of 1"
    assert (told in notes) == held
    joined, _ = read_cells(find_runs([runs, other]))
    [merged] = [one for one in read_cells(find_runs([out]))[0] if one.chosen]
    assert [one.suite for one in merged.claims] == ["a", "b"]
    assert [merged.claims] == [one.claims for one in joined if one.chosen]
    before = tree(out)
    assert exchange.merge(out, [other, runs]).notes == []
    assert tree(out) == before


def test_what_a_file_says_of_a_cell_here_is_imported(
    exported: bytes, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "ew.mtbench").write_bytes(exported)
    exchange.import_([tmp_path / "ew.mtbench"], out := tmp_path / "out")
    said_of(cell(runs), "a", tuned=True)
    exchange.export([runs], "ew", None, tmp_path / "more.mtbench")
    found = exchange.import_([tmp_path / "more.mtbench"], out)
    assert found.identical == 2
    assert "chosen.json of 1, suites.json of 1" in found.notes[0]
    assert [one.suite for one in claim.read(RunDirectory(cell(out)))] == ["a"]


def test_a_cell_that_is_worked_on_gets_nothing_added(runs: Path, tmp_path: Path) -> None:
    exchange.merge(out := tmp_path / "all", [runs])
    said_of(cell(runs), "a")
    with RunDirectory(cell(out)).claim(), pytest.raises(HeldError, match="works on it; wait"):
        exchange.merge(out, [runs])
    assert claim.read(RunDirectory(cell(out))) == []


def test_records_and_weights_that_are_links_are_merged(runs: Path, tmp_path: Path) -> None:
    """As git-annex, DVC and what finds duplicates make them; read-only, too."""
    (store := tmp_path / "store").mkdir()
    names = ("result.json", "test.json", "epochs.jsonl", "spec.json", "best.pt", "steps.csv")
    for name in names:
        (cell(runs) / name).rename(store / name)
        (store / name).chmod(0o444)
        (cell(runs) / name).symlink_to(store / name)
    out = tmp_path / "all"
    notes = exchange.merge(out, [runs], weights=True).notes
    assert notes == [
        f"links and special files are not copied: 1, such as {cell(runs) / 'steps.csv'}"
    ]
    assert records(out) == records(runs)
    for name in names[:-1]:
        assert not (cell(out) / name).is_symlink()
        assert (cell(out) / name).read_bytes() == (store / name).read_bytes()
    assert exchange.merge(out, [runs], weights=True).identical == 4


def test_weights_that_are_asked_for_later_are_added(
    mtbench: Mtbench, runs: Path, tmp_path: Path
) -> None:
    exchange.merge(out := tmp_path / "all", [runs])
    (cell(runs, "stl") / "best.pt").unlink()
    code, said, _ = mtbench("merge", out, runs, "--weights")
    assert (code, said) == (
        0,
        "cells: 0 copied, 4 there already\n"
        "- added to cells that were there already: best.pt of 3\n"
        f"- no copy has best.pt of 1 cells, such as {cell(out, 'stl')}\n",
    )
    assert (cell(out) / "best.pt").read_bytes() == (cell(runs) / "best.pt").read_bytes()


def test_weights_and_what_was_fitted_come_from_any_copy(runs: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs, tmp_path / "other"))
    (cell(runs) / "best.pt").unlink()
    (cell(other) / "fitted.json").write_text("{}")
    exchange.merge(out := tmp_path / "all", [runs, other], weights=True)
    assert {"best.pt", "fitted.json"} <= {file.name for file in cell(out).iterdir()}


def test_a_merge_does_not_replace_a_cell_that_is_trained(finished: Path, runs: Path) -> None:
    (cell(runs) / "result.json").unlink()
    shutil.rmtree(cell(runs, "stl"))
    before = tree(runs)
    with RunDirectory(cell(runs)).claim(), pytest.raises(HeldError, match="works on it; wait"):
        exchange.merge(runs, [finished])
    assert tree(runs) == before
    assert len(exchange.merge(runs, [finished]).cells) == 2


def test_a_cell_trained_on_the_same_data_elsewhere_is_the_same(runs: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs, tmp_path / "other"))
    result = json.loads((cell(runs) / "result.json").read_text())
    result["notes"] |= {"doubts": ["/elsewhere/mine.csv: looks odd"]}
    (cell(runs) / "result.json").write_text(json.dumps(result))
    assert exchange.merge(runs, [other]).identical == 4


@pytest.mark.parametrize("rest", ["finished", "begun"])
def test_a_file_takes_no_own_cell_its_place_in_a_suite(
    finished: Path, runs: Path, tmp_path: Path, rest: str
) -> None:
    said_of(cell(runs), "a")
    foreign = put(tmp_path / "foreign", *forged(cell(finished), method="uw"))
    claimed(RunDirectory(foreign), suite="a", digest="a" * 12, label="ew")
    exchange.export([tmp_path / "foreign"], "uw", None, file := tmp_path / "uw.mtbench")
    if rest == "begun":
        (cell(runs) / "result.json").unlink()
    before = tree(runs)
    said = f"is 'ew' of suite a@aaaaaa at seed 0, and so is another cell, {cell(runs)}; a board"
    with pytest.raises(RunError, match=said):
        exchange.import_([file], runs)
    assert tree(runs) == before
    (cell(runs) / "suites.json").unlink()
    assert len(exchange.import_([file], runs).cells) == 1
    assert exchange.import_([file], runs).identical == 1


def test_what_notes_say_of_single_cases_is_not_exported(runs: Path, tmp_path: Path) -> None:
    """It may name patients."""
    file = cell(runs) / "result.json"
    notes = {"images": [8, 2, 2], "looks odd": 1, "doubts": ["patients 'Doe, John' ... alike"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"notes": notes}))
    exchange.export([runs], "ew", None, to := tmp_path / "ew.mtbench")
    assert b"Doe" not in b"".join(members(to.read_bytes()).values())
    exchange.import_([to], out := tmp_path / "out")
    kept = RunDirectory(cell(out)).result()
    assert kept is not None
    assert kept.notes == {"images": [8, 2, 2], "looks odd": 1}
    assert exchange.import_([to], runs).identical == 2
