"""From one folder of runs to another: all is checked, staged in a hidden folder, and renamed."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mtbench.comparing import claim
from mtbench.comparing.judging.exchange.archive import pack, read, unpack
from mtbench.comparing.judging.exchange.records import (
    RECORDS,
    Checked,
    Finished,
    check_spec,
    parsed,
    show,
)
from mtbench.comparing.judging.leaderboard.cells import BUDGET, group_key
from mtbench.errors import RunError, did_you_mean, writable
from mtbench.training.cell.result import Result
from mtbench.training.cell.rundir import SEALED, RunDirectory, Spec, find_runs
from mtbench.training.machine.cache import writing

_SHOWN = 3

_WEIGHTS = "best.pt"
_BESIDE = ("fitted.json", "test.opened")
"""What a copy of a cell may have beside its records, and another one may lack."""


@dataclass(frozen=True)
class Moved:
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


def export(roots: Sequence[Path], method: str, task: str | None, to: Path) -> Moved:
    """Write a method's results as one file: the same results give the same bytes.

    Final cells go with the trials that are comparable with them; unfinished ones are left out, and
    so are notes on single cases.

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
    cells = [cell.public for cell in found if group_key(cell.spec) in boards]
    raw = pack(cells)
    try:
        unpack(raw)
    except RunError as error:
        raise RunError(f"{to}: importing would refuse it ({error}); choose a --task") from error
    with writable(f"--to {to}"), writing(to) as temporary:
        temporary.write_bytes(raw)
    notes = []
    if len(found) > len(cells):
        notes.append(f"{len(found) - len(cells)} trials left out: no final cell compares with them")
    return Moved([cell.path for cell in cells], 0, len(unfinished), notes)


def import_(files: Sequence[Path], out: Path) -> Moved:
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
    sifted = _sift(cells, out)
    if sifted.begun:
        raise RunError(f"{sifted.begun[0]}: is unfinished here; finish or remove it first")
    _refuse_rivals(sifted)
    new, known = [cell for cell, _ in sifted.moves], sifted.known
    notes = [*_own_boards(new, known), *_short(new, known), *_hardware(new, known)]
    date = datetime.now(UTC).isoformat(timespec="seconds")

    def write(cell: Checked, folder: Path) -> None:
        folder.mkdir()
        package = source[cell.spec.hash]
        mark = {"file": package.file, "sha256": package.sha256, "date": date}
        (folder / "imported.json").write_text(json.dumps(mark, indent=2), encoding="utf-8")
        _write(cell, folder)

    notes += _complete(sifted.same, {})
    _place(sifted.moves, out, write)
    return Moved([cell.path for cell in new], len(cells) - len(new), 0, notes)


def merge(out: Path, roots: Sequence[Path], weights: bool = False) -> Moved:
    """Copy the finished cells of other folders of runs into one; repeating it changes nothing.

    A cell that is unfinished in `out` is replaced by the finished one.

    Args:
        out: the folder that receives.
        roots: the folders that are copied.
        weights: copy ``best.pt`` too.

    Raises:
        RunError: a record is broken, two folders hold other results of one cell, or a process
            trains one in `out`.
    """
    cells, unfinished = _gather(roots, lambda _: True)
    sifted = _sift(cells, out)
    new = [cell for cell, _ in sifted.moves]
    beside = _beside(cells, (*_BESIDE, _WEIGHTS) if weights else _BESIDE)
    by_name = shutil.ignore_patterns(".*", "checkpoint.pt", *RECORDS, *_BESIDE, _WEIGHTS)
    odd: set[Path] = set()

    def ignored(folder: str, names: list[str]) -> set[str]:
        """Return what is not copied: a link may lead anywhere, and a pipe has no end."""
        left = by_name(folder, names) - {SEALED}
        paths = [Path(folder) / name for name in names if name not in left]
        links = {p for p in paths if p.is_symlink() or not (p.is_file() or p.is_dir())}
        odd.update(links)
        return left | {p.name for p in links}

    def write(cell: Checked, folder: Path) -> None:
        shutil.copytree(cell.origin, folder, ignore=ignored)
        for name, file in beside[cell.spec.hash].items():
            shutil.copyfile(file, folder / name)
        _write(cell, folder)

    notes = [*_complete(sifted.same, beside), *_hardware(new, sifted.known)]
    _place(sifted.moves, out, write)
    if odd:
        notes.append(f"links and special files are not copied: {len(odd)}, such as {min(odd)}")
    if weights:
        places = [*sifted.moves, *((here, Path(here.origin)) for here, _ in sifted.same)]
        trained = [place for cell, place in places if cell.result.status == "finished"]
        if bare := [place for place in trained if not (place / _WEIGHTS).exists()]:
            notes.append(f"no copy has {_WEIGHTS} of {len(bare)} cells, such as {min(bare)}")
    return Moved([cell.path for cell in new], len(cells) - len(new), len(unfinished), notes)


def _beside(cells: Iterable[Checked], names: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Return by cell and name the first of its copies' files; unlike a folder's, links count."""
    found: dict[str, dict[str, Path]] = {}
    for cell in cells:
        files = {name: Path(cell.origin) / name for name in names}
        own = {name: file for name, file in files.items() if file.is_file()}
        found[cell.spec.hash] = own | found.get(cell.spec.hash, {})
    return found


def _records(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in RECORDS if (path / name).is_file()}


def _gather(
    roots: Sequence[Path], wanted: Callable[[Spec], bool]
) -> tuple[list[Checked], set[str]]:
    """Return the finished cells below the roots, and the hashes of those finished nowhere."""
    found: list[Checked] = []
    unfinished: set[str] = set()
    for run in find_runs(list(roots)):
        spec = run.spec()
        if not wanted(spec):
            continue
        if not run.path.name.endswith(f"-{spec.hash}"):
            raise RunError(f"{run.path}: its spec.json is of {spec.hash}; it was edited or moved")
        if (run.path / "result.json").exists():
            found.append(Checked.of(_records(run.path), str(run.path)))
        else:
            unfinished.add(spec.hash)
    return found, unfinished - {cell.spec.hash for cell in found}


def _write(cell: Checked, folder: Path) -> None:
    """Write a cell's records, ``spec.json`` last: without it a folder is no run directory."""
    for name in sorted(cell.files, key="spec.json".__eq__):
        (folder / name).write_bytes(cell.files[name])


def _complete(
    same: Sequence[tuple[Checked, Checked]], beside: Mapping[str, Mapping[str, Path]]
) -> list[str]:
    """Add to cells that are here what other copies have beside the results; tell it in a line.

    Args:
        same: the cell here, and the one that comes.
        beside: further files that come, by cell and name.

    Raises:
        RunError: one cannot be written, or another process works on it.
    """
    added: Counter[str] = Counter()
    for here, other in same:
        run = RunDirectory(Path(here.origin))
        files = beside.get(here.spec.hash, {})
        lacking = [name for name in files if not (run.path / name).exists()]
        if not lacking and here.united(other).files == here.files:
            continue
        with run.claim(), writable(str(run.path)):
            held = Checked.of(_records(run.path), here.origin)  # a sweep may have changed it
            for name, raw in held.united(other).files.items():
                if raw != held.files.get(name):
                    run.write_text(name, raw.decode())
                    added[name] += 1
            for name in lacking:
                with writing(run.path / name) as temporary:
                    shutil.copyfile(files[name], temporary)
                added[name] += 1
    told = ", ".join(f"{name} of {n}" for name, n in sorted(added.items()))
    return [f"added to cells that were there already: {told}"] if added else []


def _unique(cells: Iterable[Checked]) -> list[Checked]:
    """Return each cell once, with what all its copies say of it; other results are refused."""
    found: dict[str, Checked] = {}
    conflicts = []
    for cell in cells:
        if (known := found.get(cell.spec.hash)) is None:
            found[cell.spec.hash] = cell
        elif known.substance != cell.substance:
            conflicts.append((known.origin, cell.origin))
        else:
            found[cell.spec.hash] = known.united(cell)
    _refuse(conflicts)
    return list(found.values())


@dataclass(frozen=True)
class _Sifted:
    """What cells are to a folder.

    Attributes:
        moves: those that it lacks, and where each goes.
        same: those that are finished there: the cell there, and the one that comes.
        known: all that is finished there, of the cells' tasks.
        begun: those that are unfinished there.
        places: which cells are at a place of a suite there, at a seed: their folders by hash.
    """

    moves: list[tuple[Checked, Path]]
    same: list[tuple[Checked, Checked]]
    known: list[Finished]
    begun: list[Path]
    places: dict[tuple[tuple[Any, ...], int], dict[str, Path]]


def _sift(cells: Sequence[Checked], out: Path) -> _Sifted:
    """Return what cells are to a folder.

    Raises:
        RunError: `out` holds other results of a cell, or a cell of its board other metrics.
    """
    tasks = {cell.spec.task for cell in cells}
    begun: dict[str, Path] = {}
    finished: dict[str, Finished] = {}
    places: dict[tuple[tuple[Any, ...], int], dict[str, Path]] = {}
    for run in find_runs([out]) if out.is_dir() else ():
        spec = run.spec()
        if spec.task in tasks:
            file = run.path / "result.json"
            check_spec(spec, f"{run.path}/spec.json")
            if file.exists():
                result = parsed(Result, file.read_bytes(), str(file))
                finished[spec.hash] = Finished(str(run.path), spec, result)
            else:
                begun[spec.hash] = run.path
            for one in claim.read(run):
                places.setdefault((one.place, spec.seed), {})[spec.hash] = run.path
    found = _Sifted([], [], list(finished.values()), [], places)
    conflicts = []
    for cell in _unique(cells):
        target = out / cell.path
        if there := finished.get(cell.spec.hash):
            here = Checked.of(_records(Path(there.origin)), there.origin)
            if here.substance != cell.substance:
                conflicts.append((cell.origin, here.origin))
            found.same.append((here, cell))
            continue
        if cell.spec.hash in begun:
            target = begun[cell.spec.hash]
            found.begun.append(target)
        elif target.exists() or target.is_symlink():
            raise RunError(f"{target}: is in the way, and is no run directory of this cell")
        found.moves.append((cell, target))
    _refuse(conflicts)
    _must_declare_alike([cell for cell, _ in found.moves], found.known)
    return found


def _refuse_rivals(sifted: _Sifted) -> None:
    """Refuse cells in whose place of a suite the folder has others: boards count one of them.

    That may be a stranger's in the stead of one's own, whatever its method.
    """
    for cell in [*(cell for cell, _ in sifted.moves), *(cell for _, cell in sifted.same)]:
        for one in cell.claims:
            here = sifted.places.get((one.place, cell.spec.seed), {})
            if here and cell.spec.hash not in here:
                raise RunError(
                    f"{cell.origin}: is {show(one.label)} of suite {one.tag} at seed "
                    f"{cell.spec.seed}, and so is another cell, {min(here.values())}; a board "
                    "counts one of them: remove the one here, or import into another --out"
                )


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
        if board in here:
            continue
        others = [_traits(other) for other in here.values() if other.task == spec.task]
        differences = [
            [
                f"{key} {show(own)}, here {show(other.get(key))}"
                for key, own in _traits(spec).items()
                if _json(own) != _json(other.get(key))
            ]
            for other in others
        ]
        if differences:
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
    moves: Sequence[tuple[Checked, Path]], out: Path, write: Callable[[Checked, Path], object]
) -> None:
    """Write each cell in a hidden folder of `out`, then rename them all into place, or none.

    `write` writes ``spec.json`` last: a folder that was cut off before is no run directory.

    Raises:
        RunError: they cannot be written, or a process trains one that is to be replaced.
    """
    if not moves:
        return
    undo: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        source.rename(target)
        undo.append((source, target))

    with writable(str(out)):
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
                    with ExitStack() as held:
                        if target.exists():
                            held.enter_context(RunDirectory(target).claim())
                            move(target, replaced / target.name)
                        move(staged / target.name, target)
            except BaseException:
                for source, target in reversed(undo):
                    target.rename(source)
                raise


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
