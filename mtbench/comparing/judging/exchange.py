"""Results on their way from one folder of runs to another: export, import, merge.

An exported file is a zip: ``manifest.json`` (format, version, and for each cell its path and the
sha256 of each of its files) and the records of finished cells. It holds neither weights nor
pickles, nothing of it is ever executed, and importing trusts nothing that it says: all is checked
first, then staged in a hidden folder, then renamed into place.
"""

import hashlib
import io
import json
import re
import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from mtbench.comparing import claim
from mtbench.comparing.judging.leaderboard.cells import BUDGET, group_key
from mtbench.errors import RunError, UsageError, did_you_mean
from mtbench.training.cell.rundir import RunDirectory, Spec, find_runs, parse
from mtbench.training.task import Recipe, shadows
from mtbench.version import __version__

FORMAT, VERSION = "mtbench results", 1
RECORDS = ("epochs.jsonl", "result.json", "spec.json", claim.FILE, "test.json")
MAX_ARCHIVE, MAX_UNPACKED = 64 * 2**20, 256 * 2**20
MAX_MEMBERS = 65_535
MAX_RATIO = 200
"""Of a member's size to its compressed one, beyond the first MiB; records of epochs reach 50."""

_ENTRY = b"PK\x01\x02"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+-]{0,99}")
_RECIPE = TypeAdapter(Recipe)
_SHOWN = 3


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class _Header(_Record):
    format: str
    version: int
    mtbench: str


class _Listed(_Record, extra="forbid"):
    path: str
    files: dict[str, str]


class _Manifest(_Header, extra="forbid"):
    cells: list[_Listed]


class _Metric(_Record):
    objective: str | None
    higher_is_better: bool
    primary: bool
    chance: float | None = None


class _Cost(_Record):
    seconds_per_step: float
    train_seconds: float
    peak_mib: float
    passes: str
    parameters: int


class _Result(_Record):
    version: Literal[1]
    status: Literal["finished", "diverged"]
    task: str
    method: str
    reference: bool
    seed: int
    hash: str
    selection: str
    epochs: int
    metrics: dict[str, _Metric]
    notes: dict[str, Any]
    best_epoch: int | None = None
    val: dict[str, float] | None = None
    score: float | None = None
    cost: _Cost
    environment: dict[str, str | int]
    plugins: dict[str, str] = {}
    times: dict[str, float] = {}


class _Epoch(_Record):
    epoch: int
    train_loss: dict[str, float]
    val_loss: dict[str, float]
    val: dict[str, float]
    score: float
    update: dict[str, float]


class _Test(_Record):
    loss: dict[str, float]
    metrics: dict[str, float]


_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Finished:
    """What a finished cell says of itself.

    Attributes:
        origin: where it was read.
        spec: of ``spec.json``.
        result: of ``result.json``.
    """

    origin: str
    spec: Spec
    result: _Result


@dataclass(frozen=True)
class Cell(Finished):
    """A finished cell whose records were all checked.

    Attributes:
        files: the content of its records by name.
    """

    files: dict[str, bytes]

    @classmethod
    def of(cls, files: dict[str, bytes], origin: str) -> "Cell":
        """Return the cell of some records.

        Raises:
            RunError: one is absent, does not parse, or contradicts another.
        """
        for name in ("spec.json", "result.json"):
            if name not in files:
                raise RunError(f"{origin}: has no {name}")
        spec = _parse(Spec, files["spec.json"], f"{origin}/spec.json")
        result = _parse(_Result, files["result.json"], f"{origin}/result.json")
        _check_spec(spec, f"{origin}/spec.json")
        _check_result(result, spec, f"{origin}/result.json")
        _check_epochs(result, spec, files.get("epochs.jsonl", b""), origin)
        _check_test(result, spec, files.get("test.json"), f"{origin}/test.json")
        if claim.FILE in files:
            claim.parse(files[claim.FILE], f"{origin}/{claim.FILE}")
        return cls(origin, spec, result, files)

    @property
    def path(self) -> str:
        """Where it belongs below a folder of runs."""
        return self.spec.path

    @property
    def substance(self) -> str:
        """What two runs of one cell must agree on: all but how and when they were made."""
        made = {"cost", "environment", "plugins", "times"}
        result = self.result.model_dump(mode="json", exclude=made)
        return _json([result, json.loads(self.files.get("test.json", b"null"))])


@dataclass(frozen=True)
class Package:
    """The content of an exported file.

    Attributes:
        file: its name.
        sha256: its digest.
        cells: what it holds.
    """

    file: str
    sha256: str
    cells: list[Cell]


@dataclass(frozen=True)
class Outcome:
    """What an export, import or merge did.

    Attributes:
        cells: paths of the cells that were written.
        identical: how many were there already.
        unfinished: how many were left out because they are unfinished.
        notes: what a reader must know, a line each.
    """

    cells: list[str]
    identical: int
    unfinished: int
    notes: list[str]


def export(roots: Sequence[Path], method: str, task: str | None, to: Path) -> Outcome:
    """Write a method's results as one file: the same results give the same bytes.

    Final cells go with the trials that are comparable with them; unfinished ones are left out.

    Args:
        roots: folders of runs.
        method: its name.
        task: only results on this one.
        to: the file.

    Raises:
        RunError: there is no finished final cell, a record is broken, or `to` cannot be written.
    """
    if to.suffix != ".mtbench" or not to.resolve().parent.is_dir():
        raise RunError(f"--to {to}: must be a .mtbench file in a folder that exists")
    seen: set[tuple[str, str]] = set()

    def wanted(spec: Spec) -> bool:
        seen.add((spec.method, spec.task))
        return spec.method == method and task in (None, spec.task)

    found, unfinished = _gather(roots, wanted)
    if not found and not unfinished:
        methods = {name for name, _ in seen}
        if task is not None and method in methods:
            tasks = did_you_mean(task, {t for name, t in seen if name == method})
            raise RunError(f"no runs of {method} on {task!r}; {tasks}")
        raise RunError(f"no runs of {method!r}; {did_you_mean(method, methods)}")
    boards = {group_key(cell.spec) for cell in found if cell.spec.stage == "final"}
    if not boards:
        raise RunError(
            f"{method} has no finished final cell ({len(unfinished)} unfinished cells, "
            f"{len(found)} trials); finish it first"
        )
    found = _unique(found)
    cells = [cell for cell in found if group_key(cell.spec) in boards]
    raw = _pack(cells)
    try:
        _unpack(raw)
    except RunError as error:
        raise RunError(f"{to}: importing would refuse it ({error}); choose a --task") from error
    temporary = to.with_name(f".{to.name}.tmp")
    try:
        temporary.write_bytes(raw)
        temporary.replace(to)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"--to {to}: cannot be written ({error.strerror})") from error
    notes = []
    if len(found) > len(cells):
        notes.append(f"{len(found) - len(cells)} trials left out: no final cell compares with them")
    return Outcome([cell.path for cell in cells], 0, len(unfinished), notes)


def import_(files: Sequence[Path], out: Path) -> Outcome:
    """Add exported results to a folder of runs: all of them, or none.

    A cell that came so is marked by ``imported.json``.

    Args:
        files: what `export` wrote.
        out: the folder of runs.

    Raises:
        RunError: a file is broken or contradicts itself, another file, or what is in `out`.
    """
    packages = [read(file) for file in files]
    cells = [cell for package in packages for cell in package.cells]
    source = {cell.spec.hash: p for p in reversed(packages) for cell in p.cells}
    moves, known, unfinished = _sift(cells, out)
    if unfinished:
        raise RunError(f"{unfinished[0]}: is unfinished here; finish or remove it first")
    new = [cell for cell, _ in moves]
    notes = [*_own_boards(new, known), *_short(new, known), *_hardware(new, known)]
    date = datetime.now(UTC).isoformat(timespec="seconds")

    def write(cell: Cell, folder: Path) -> None:
        folder.mkdir()
        package = source[cell.spec.hash]
        mark = {"file": package.file, "sha256": package.sha256, "date": date}
        (folder / "imported.json").write_text(json.dumps(mark, indent=2), encoding="utf-8")
        for name in sorted(cell.files, key="spec.json".__eq__):
            (folder / name).write_bytes(cell.files[name])

    _place(moves, out, write)
    return Outcome([cell.path for cell in new], len(cells) - len(new), 0, notes)


def merge(out: Path, roots: Sequence[Path], weights: bool = False) -> Outcome:
    """Copy the finished cells of other folders of runs into one; repeating it changes nothing.

    A cell that is unfinished in `out` is replaced by the finished one.

    Args:
        out: the folder that receives.
        roots: the folders that are copied.
        weights: copy ``best.pt`` and ``checkpoint.pt`` too.

    Raises:
        RunError: a record is broken, or two folders hold other results of one cell.
    """
    cells, unfinished = _gather(roots, lambda _: True)
    moves, known, _ = _sift(cells, out)
    new = [cell for cell, _ in moves]
    left = [".*", "spec.json", *([] if weights else ["best.pt", "checkpoint.pt"])]
    by_name = shutil.ignore_patterns(*left)

    def ignored(folder: str, names: list[str]) -> set[str]:
        """Return what is not copied: a link may lead anywhere, and a pipe has no end."""
        paths = [Path(folder) / name for name in names]
        odd = {p.name for p in paths if p.is_symlink() or not (p.is_file() or p.is_dir())}
        return by_name(folder, names) | odd

    def write(cell: Cell, folder: Path) -> None:
        shutil.copytree(cell.origin, folder, ignore=ignored)
        shutil.copy2(Path(cell.origin) / "spec.json", folder)

    _place(moves, out, write)
    notes = _hardware(new, known)
    return Outcome([cell.path for cell in new], len(cells) - len(new), len(unfinished), notes)


def read(file: Path) -> Package:
    """Return what an exported file holds, every check made that needs no other file.

    Raises:
        RunError: it is no such file, broken, or contradicts itself.
    """
    if file.exists() and not file.is_file():
        raise RunError(f"{file}: is no regular file: a pipe may never end")
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_ARCHIVE + 1)
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        cells = _cells(_unpack(raw))
    except RunError as error:
        raise RunError(f"{file}: {error}") from error
    except Exception as error:  # zipfile raises many kinds for a broken file
        raise RunError(
            f"{file}: no whole file of `mtbench export` ({type(error).__name__}: {error})"
        ) from error
    digest = hashlib.sha256(raw).hexdigest()
    return Package(
        file.name,
        digest,
        [replace(cell, origin=f"{file}: {cell.path}") for cell in cells],
    )


def _pack(cells: Iterable[Cell]) -> bytes:
    """Return an archive whose bytes depend on the cells' records (and zlib) alone."""
    cells = sorted(cells, key=lambda cell: cell.path)
    listed = [
        {"path": cell.path, "files": {k: _sha256(v) for k, v in sorted(cell.files.items())}}
        for cell in cells
    ]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "mtbench": __version__,
        "cells": listed,
    }
    members = {f"{cell.path}/{name}": raw for cell in cells for name, raw in cell.files.items()}
    members["manifest.json"] = json.dumps(manifest, indent=1).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(members.items()):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def _unpack(raw: bytes) -> dict[str, bytes]:
    """Return an archive's members by name, in bounded memory."""
    if len(raw) > MAX_ARCHIVE:
        raise RunError(f"larger than {MAX_ARCHIVE >> 20} MiB")
    if raw.count(_ENTRY) > MAX_MEMBERS:  # counted before zipfile makes an object of each
        raise RunError(f"more than {MAX_MEMBERS} members")
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = archive.infolist()
        for member in members:
            _must_be_plain(member)
        counts = Counter(member.filename for member in members)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise RunError(f"member {_show(twice[0])} is there twice")
        if sum(member.file_size for member in members) > MAX_UNPACKED:
            raise RunError(f"unpacks to more than {MAX_UNPACKED >> 20} MiB")
        found = {}
        for member in members:
            with archive.open(member) as stream:  # one more than promised, so that the CRC is read
                found[member.filename] = stream.read(member.file_size + 1)
        return found


def _must_be_plain(member: zipfile.ZipInfo) -> None:
    shown = _show(member.orig_filename)
    parts = member.filename.split("/")
    if member.orig_filename != member.filename or not all(map(_NAME.fullmatch, parts)):
        raise RunError(f"member {shown} is no plain relative name")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise RunError(f"member {shown} is a link or another special file")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RunError(f"member {shown} is compressed by method {member.compress_type}, not 0 or 8")
    if member.file_size > max(2**20, MAX_RATIO * member.compress_size):
        raise RunError(f"member {shown} unpacks to more than {MAX_RATIO} times its size")


def _cells(members: dict[str, bytes]) -> list[Cell]:
    """Return the cells that the manifest lists, each file of them checked."""
    if "manifest.json" not in members:
        raise RunError("has no manifest.json: no file of `mtbench export`")
    raw = members.pop("manifest.json")
    header = _parse(_Header, raw, "manifest.json")
    if header.format != FORMAT:
        raise RunError(f"manifest.json: format must be {FORMAT!r}, found {_show(header.format)}")
    if header.version != VERSION:
        raise RunError(
            f"is of format version {header.version} (by mtbench {_show(header.mtbench)}), and "
            f"this mtbench {__version__} reads version {VERSION}"
        )
    listed = _parse(_Manifest, raw, "manifest.json").cells
    digests = {f"{x.path}/{name}": digest for x in listed for name, digest in x.files.items()}
    if len(digests) != sum(len(x.files) for x in listed):
        raise RunError("manifest.json: lists a cell twice")
    if extra := sorted(set(members) - set(digests)):
        raise RunError(f"member {_show(extra[0])} is not in the manifest")
    if absent := sorted(set(digests) - set(members)):
        raise RunError(f"member {_show(absent[0])} is in the manifest, but missing")
    cells = []
    for entry in listed:
        if other := sorted(set(entry.files) - set(RECORDS)):
            raise RunError(f"member {_show(f'{entry.path}/{other[0]}')} is no record of a cell")
        files = {name: members[f"{entry.path}/{name}"] for name in entry.files}
        for name, content in files.items():
            if _sha256(content) != entry.files[name]:
                raise RunError(f"member {_show(f'{entry.path}/{name}')} is not what was exported")
        cell = Cell.of(files, entry.path)
        if cell.path != entry.path:
            raise RunError(f"{_show(entry.path)}: its spec is that of {cell.path}")
        cells.append(cell)
    if not cells:
        raise RunError("holds no cell")
    return cells


def _parse(model: type[_Model], raw: bytes, where: str) -> _Model:
    """Return JSON as a model, refusing what any later reader of the file would stumble on."""
    try:
        parse(raw.decode())
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise RunError(f"{where}: not of version 1: {_first(error)}") from error
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise RunError(f"{where}: does not parse ({error})") from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"])) or "file"
    return f"{_show(place)}: {first['msg']}"


def _check_spec(spec: Spec, where: str) -> None:
    for kind, name in (("task", spec.task), ("method", spec.method)):
        if not _NAME.fullmatch(name):
            raise RunError(f"{where}: {kind} {_show(name)} is no plain name")
    if not 0 <= spec.seed < 2**63:
        raise RunError(f"{where}: seed must be in [0, 2^63)")
    try:
        recipe = _RECIPE.validate_json(json.dumps(spec.recipe), strict=True)
    except ValidationError as error:
        raise RunError(f"{where}: recipe: {_first(error)}") from error
    except UsageError as error:
        raise RunError(f"{where}: recipe: {error}") from error
    if not {"epochs", "batch_size"} <= set(spec.recipe) <= set(asdict(recipe)):
        raise RunError(f"{where}: recipe may have {', '.join(asdict(recipe))}, the first two must")


def _check_result(result: _Result, spec: Spec, where: str) -> None:
    for key in ("task", "method", "seed", "hash"):
        if getattr(result, key) != getattr(spec, key):
            raise RunError(
                f"{where}: {key} is {_show(getattr(result, key))}, in spec.json "
                f"{_show(getattr(spec, key))}"
            )
    for name in result.metrics:
        if shadows(name, result.metrics):
            raise RunError(f"{where}: metric {_show(name)} is called like a leaderboard's column")


def _check_epochs(result: _Result, spec: Spec, raw: bytes, origin: str) -> None:
    where = f"{origin}/epochs.jsonl"
    try:
        lines = raw.decode().splitlines()
    except ValueError as error:
        raise RunError(f"{where}: does not parse ({error})") from error
    epochs = [_parse(_Epoch, line.encode(), where) for line in lines]
    if [epoch.epoch for epoch in epochs] != list(range(result.epochs)):
        raise RunError(f"{where}: must have epochs 0 to {result.epochs - 1}, one a line")
    budget = spec.recipe["epochs"]
    if result.epochs > budget or (result.status == "finished" and result.epochs < budget):
        raise RunError(f"{origin}: trained {result.epochs} epochs of its {budget}")
    if result.status == "diverged":
        return
    if result.best_epoch is None or not 0 <= result.best_epoch < budget:
        raise RunError(f"{origin}/result.json: best_epoch must be one of its epochs")
    best = epochs[result.best_epoch]
    if json.dumps([best.val, best.score]) != json.dumps([result.val, result.score]):
        raise RunError(f"{origin}/result.json: val and score are not those of epoch {best.epoch}")


def _check_test(result: _Result, spec: Spec, raw: bytes | None, where: str) -> None:
    tested = spec.stage == "final" and result.status == "finished"
    if tested != (raw is not None):
        rule = "is missing" if tested else f"a {spec.stage} cell that {result.status} has none"
        raise RunError(f"{where}: {rule}")
    if raw is not None:
        unknown = set(_parse(_Test, raw, where).metrics) - set(result.metrics)
        if unknown:
            raise RunError(f"{where}: {_show(min(unknown))} is no metric of result.json")


def _records(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in RECORDS if (path / name).is_file()}


def _gather(roots: Sequence[Path], wanted: Callable[[Spec], bool]) -> tuple[list[Cell], set[str]]:
    """Return the finished cells below the roots, and the hashes of those finished nowhere."""
    found: list[Cell] = []
    unfinished: set[str] = set()
    for run in find_runs(list(roots)):
        spec = run.spec()
        if not wanted(spec):
            continue
        if not run.path.name.endswith(f"-{spec.hash}"):
            raise RunError(f"{run.path}: its spec.json is of {spec.hash}; it was edited or moved")
        if (run.path / "result.json").exists():
            found.append(Cell.of(_records(run.path), str(run.path)))
        else:
            unfinished.add(spec.hash)
    return found, unfinished - {cell.spec.hash for cell in found}


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    """Return each cell once; those that are there with other results are refused."""
    found: dict[str, Cell] = {}
    conflicts = []
    for cell in cells:
        known = found.setdefault(cell.spec.hash, cell)
        if known is not cell and known.substance != cell.substance:
            conflicts.append((known.origin, cell.origin))
    _refuse(conflicts)
    return list(found.values())


def _sift(
    cells: Sequence[Cell], out: Path
) -> tuple[list[tuple[Cell, Path]], list[Finished], list[Path]]:
    """Return which cells `out` lacks and where they go, what is finished there, and what is not.

    Raises:
        RunError: `out` holds other results of a cell, or a cell of its board other metrics.
    """
    tasks = {cell.spec.task for cell in cells}
    present: dict[str, RunDirectory] = {}
    known: list[Finished] = []
    for run in find_runs([out]) if out.is_dir() else ():
        spec = run.spec()
        if spec.task in tasks:
            present[spec.hash] = run
            file = run.path / "result.json"
            _check_spec(spec, f"{run.path}/spec.json")
            if file.exists():
                result = _parse(_Result, file.read_bytes(), str(file))
                known.append(Finished(str(run.path), spec, result))
    finished = {cell.spec.hash for cell in known}
    moves, unfinished, conflicts = [], [], []
    for cell in _unique(cells):
        target = out / cell.path
        if cell.spec.hash in finished:
            here = present[cell.spec.hash].path
            if Cell.of(_records(here), str(here)).substance != cell.substance:
                conflicts.append((cell.origin, str(here)))
            continue
        if cell.spec.hash in present:
            target = present[cell.spec.hash].path
            unfinished.append(target)
        elif target.exists() or target.is_symlink():
            raise RunError(f"{target}: is in the way, and is no run directory of this cell")
        moves.append((cell, target))
    _refuse(conflicts)
    _must_declare_alike([cell for cell, _ in moves], known)
    return moves, known, unfinished


def _refuse(conflicts: Sequence[tuple[str, str]]) -> None:
    if conflicts:
        named = "; ".join(f"{a} and {b}" for a, b in conflicts[:_SHOWN])
        more = f" (and {len(conflicts) - _SHOWN} more)" if len(conflicts) > _SHOWN else ""
        raise RunError(f"other results of the same cell: {named}{more}; remove the wrong one")


def _traits(spec: Spec) -> dict[str, Any]:
    """Return by name what `group_key` says that cells must have in common to be compared."""
    return {
        **{f"{spec.task}.{key}": value for key, value in spec.task_params.items()},
        **{key: spec.recipe[key] for key in BUDGET},
        "data": spec.data,
        "precision": spec.precision,
    }


def _must_declare_alike(cells: Sequence[Finished], known: Sequence[Finished]) -> None:
    """Refuse cells of one board that disagree on which metrics count, and in which direction."""
    declared: dict[str, Finished] = {}
    for cell in [*known, *cells]:
        first = declared.setdefault(group_key(cell.spec), cell)
        if first.result.metrics != cell.result.metrics:
            raise RunError(f"{cell.origin}: declares other metrics than {first.origin}")


def _own_boards(cells: Sequence[Finished], known: Sequence[Finished]) -> list[str]:
    """Return a line for each board that the cells open, saying by what it differs."""
    here = {group_key(cell.spec): cell.spec for cell in known}
    new = {group_key(cell.spec): cell.spec for cell in cells}
    notes = []
    for board, spec in new.items():
        differences = [
            [
                f"{key} {_show(own)}, here {_show(_traits(other).get(key))}"
                for key, own in _traits(spec).items()
                if _json(own) != _json(_traits(other).get(key))
            ]
            for other in here.values()
            if other.task == spec.task
        ]
        if board not in here and differences:
            nearest = min(differences, key=len)
            notes.append(f"{spec.task}: forms a board of its own: {'; '.join(nearest)}")
    return notes


def _short(cells: Sequence[Finished], known: Sequence[Finished]) -> list[str]:
    """Return a line for each method among the cells that lacks seeds or trials others have."""
    seeds: dict[tuple[str, str], set[int]] = {}
    trials: Counter[tuple[str, str]] = Counter()
    for spec in {cell.spec.hash: cell.spec for cell in [*known, *cells]}.values():
        key = group_key(spec), spec.method
        trials[key] += spec.stage == "trial"
        seeds.setdefault(key, set()).update([spec.seed] if spec.stage == "final" else [])
    notes = []
    rows_of = {(group_key(cell.spec), cell.spec.method): cell.spec.task for cell in cells}
    for (board, method), task in sorted(rows_of.items()):
        rows = [key for key in seeds if key[0] == board]
        if lacking := set().union(*(seeds[row] for row in rows)) - seeds[board, method]:
            shown = ", ".join(map(str, sorted(lacking)))
            notes.append(f"{task}: {method} lacks seeds that others have here: {shown}")
        most = max(trials[row] for row in rows)
        if (own := trials[board, method]) < most:
            notes.append(f"{task}: {method} has {own} tuning trials, others here have {most}")
    return notes


def _hardware(cells: Sequence[Finished], known: Sequence[Finished]) -> list[str]:
    """Return a line for each property of the machine that varies on the cells' tasks."""
    tasks = {cell.spec.task for cell in cells}
    values: dict[tuple[str, str], dict[str, set[str]]] = {}
    for cell in [*known, *cells]:
        machine = {"device": cell.spec.device} | cell.result.environment
        for key in ("device", "platform", "threads", "torch"):
            found = values.setdefault((cell.spec.task, key), {})
            found.setdefault(str(machine.get(key)), set()).add(cell.spec.method)
    return [
        f"{task}: seconds a step are not comparable, {key} differs: "
        + "; ".join(f"{value} ({', '.join(sorted(who))})" for value, who in sorted(found.items()))
        for (task, key), found in sorted(values.items())
        if len(found) > 1 and task in tasks
    ]


def _place(
    moves: Sequence[tuple[Cell, Path]], out: Path, write: Callable[[Cell, Path], object]
) -> None:
    """Write each cell in a hidden folder of `out`, then rename them all into place, or none.

    `write` writes ``spec.json`` last: a folder that was cut off before is no run directory.
    """
    if not moves:
        return
    undo: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        source.rename(target)
        undo.append((source, target))

    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".incoming-", dir=out) as name:
            staged, replaced = Path(name) / "new", Path(name) / "old"
            for folder in (staged, replaced):
                folder.mkdir()
            for cell, target in moves:
                write(cell, staged / target.name)
            try:
                for _, target in moves:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if target.exists():
                        move(target, replaced / target.name)
                    move(staged / target.name, target)
            except BaseException:
                for source, target in reversed(undo):
                    target.rename(source)
                raise
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror or error})") from error


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _show(value: object) -> str:
    """Return a value of unknown origin, safe and short enough for a line."""
    return repr(value)[:80]
