"""``mtbench predict``."""

import hashlib
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from mtbench import inert
from mtbench.cli.options import Plugins, own, sort
from mtbench.version import __version__

END = "\n]\n"  # of a JSON array
UNFINISHED = ".unfinished"
"""A file beside `predictions.json` as long as it lacks something: which call was cut off."""


def predict(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(metavar="RUN", help="A finished run directory, or a packaged model.")
    ],
    files: Annotated[
        list[str],
        typer.Argument(help="Files to read, or folders of such; more models may stand before."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("predictions"),
    plugin: Plugins = None,
) -> None:
    """Apply a trained model to files; JSON goes to the terminal and to OUT/predictions.json.

    Several models, such as a run's seeds, are asked together. Folders are searched to the bottom;
    what the task does not read is passed over. A file that is broken is named, the others are read,
    and the exit code is 2. What was cut off goes on when the same command is given again. A task
    has options of its own, given like [bold]--spacing 0.1[/] or [bold]--mirror[/]: `mtbench info
    TASK`, such as `mtbench info thyroid`, lists them.
    """
    from mtbench.errors import DataError, UsageError, writable
    from mtbench.training.machine.locks import Lock
    from mtbench.training.trained import package

    named, extra = sort(files)
    models = [model, *takewhile(package.is_model, named)]
    named = named[len(models) - 1 :]
    if not named:
        raise UsageError("no file to predict on: give files or folders after the model")
    if late := next(filter(package.is_model, named), None):  # its pictures are no input
        raise UsageError(f"{late}: is a model; models come before the files")
    task, trained = package.load_all(models, plugin or [], "predict")
    options = own(task.predict, context, extra)
    found, passed_over = _gather(named, out, task.reads, [k for k in task.apart if k in options])
    for key, value in options.items():  # such as another view: it would be of each image
        if isinstance(value, Path) and value.is_file() and len(found) > 1:
            raise UsageError(
                f"--{key} {value}: is one file, and {len(found)} are read: give a folder that has "
                "one of the same name for each"
            )
    written, unfinished = out / "predictions.json", out / UNFINISHED
    also = [value for value in options.values() if isinstance(value, Path)]
    call = _digest([*models, *(path for path, _ in found), *also], options, out)
    with writable(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
    # Two at once would each go on with the other's records.
    with Lock(out / ".lock").hold(f"--out {out}"):
        begun = _begun(written, unfinished, call)
        errors = [record["error"] for record in begun if "error" in record]
        done, broken = len(begun), len(errors)
        try:
            if begun:
                typer.echo(
                    f"goes on: the first {done} of {len(found)} files had been read", err=True
                )
                for error in errors:
                    typer.echo(f"error: {inert.plain(error)}", err=True)
            else:
                unfinished.unlink(missing_ok=True)
            for path, place in found[done:]:
                to = out / place
                to.parent.mkdir(parents=True, exist_ok=True)
                here = {
                    key: value / place.with_name(path.name)
                    if isinstance(value, Path) and value.is_dir()
                    else value
                    for key, value in options.items()
                }
                try:
                    record = task.predict(trained, path, to, **here)
                except DataError as error:
                    if len(found) == 1:
                        raise
                    broken += 1
                    record = {"image": str(path), "error": str(error)}
                    typer.echo(f"error: {inert.plain(str(error))}", err=True)
                _append(written, record, first=not done)
                if not done:
                    unfinished.write_text(call)
                done += 1
            unfinished.unlink()
        except KeyboardInterrupt:
            if done:
                typer.echo(
                    f"the first {done} of {len(found)} files are in {written}; the same command "
                    "goes on from there",
                    err=True,
                )
            raise
        records = written.read_text("utf-8")
    typer.echo(records, nl=False)
    if passed_over:
        typer.echo(f"passed over: {passed_over} files that are no input of this task", err=True)
    if broken:
        raise DataError(
            f"{broken} of {len(found)} files could not be read: they are named above; what was "
            f"read of the other {len(found) - broken} is in {out}"
        )


def _append(file: Path, record: Mapping[str, Any], *, first: bool) -> None:
    """Add a record to a JSON array in a file: after each it is whole, whatever happens next."""
    from mtbench.errors import PluginError

    try:
        text = textwrap.indent(json.dumps(record, indent=2), "  ")
    except TypeError as error:
        raise PluginError(
            f"the task's predict returns what JSON cannot hold ({error}): it must return numbers, "
            "texts, lists and dictionaries"
        ) from error
    if first:
        file.write_text(f"[\n{text}{END}", encoding="utf-8", newline="\n")
        return
    with file.open("r+b") as stream:
        stream.seek(-len(END), os.SEEK_END)
        stream.write(f",\n{text}{END}".encode())


def _digest(paths: Sequence[Path], options: Mapping[str, Any], out: Path) -> str:
    """Return a hash of a call: by what, of what as it is now, and how it predicts.

    A model's folder may hold `out`, which changes all the time. Archives and copies set the time at
    which a file was modified, and nobody sets that of its change.
    """
    home = out.resolve()
    files = [
        file
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file() and not file.resolve().is_relative_to(home)
    ]
    stats = [(str(file), file.stat()) for file in files]
    known = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]
    said = [__version__, known, {key: str(value) for key, value in options.items()}]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _begun(file: Path, unfinished: Path, call: str) -> list[dict[str, Any]]:
    """Return the records that the same call had written before it was cut off."""
    try:
        if unfinished.read_text() != call:
            return []
        records: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return records


def _gather(
    named: Sequence[Path], out: Path, reads: Callable[[Path], bool], apart: Sequence[str]
) -> tuple[list[tuple[Path, Path]], int]:
    """Return each file to read and its place below OUT, and how many files of folders are not.

    Args:
        named: files and folders.
        out: where what is read of them goes.
        reads: whether the task is for a file.
        apart: of `Task.apart` what is given.

    Raises:
        UsageError: a file is absent or within OUT, two have one place, or one has that of another's
            further readings, or folders have none.
    """
    from mtbench.errors import UsageError

    home = out.resolve()
    by_place: dict[Path, Path] = {}
    passed_over = 0
    for word in named:
        if not word.exists():
            raise UsageError(f"{word}: no such file or folder")
        if word.resolve().is_relative_to(home):
            raise UsageError(f"--out {out}: holds {word}, which is read; choose another folder")
        inside = [f for f in sorted(word.rglob("*")) if f.is_file()] if word.is_dir() else None
        for file in [word] if inside is None else inside:
            below = Path(word.name) if inside is None else file.relative_to(word)
            if inside is not None:
                hidden = any(part.startswith(".") for part in below.parts)
                if hidden or file.resolve().is_relative_to(home):
                    continue
                if not reads(file):
                    passed_over += 1
                    continue
            place = below.with_name(_stem(below.name))
            if (other := by_place.setdefault(place, file)) != file:
                raise UsageError(
                    f"{other} and {file} would be written to the same files: rename one, or read "
                    "them into different folders"
                )
    if not by_place:
        raise UsageError(f"{named[0]}: holds no file that this task reads")
    for place, file in by_place.items():
        for other in (by_place[whole] for whole in _wholes(place, apart) if whole in by_place):
            raise UsageError(
                f"{file} has the name of what --{' or --'.join(apart)} writes of {other}: rename "
                "one, or read them into different folders"
            )
    return [(file, place) for place, file in by_place.items()], passed_over


def _wholes(place: Path, apart: Sequence[str]) -> Iterator[Path]:
    """Yield the places of files of which a further reading would have this one.

    >>> [whole.name for whole in _wholes(Path("a/clip_frame12_second"), ["frame", "second"])]
    ['clip_frame12', 'clip']
    """
    further = re.compile(rf"(.+)_({'|'.join(apart)})\d*", re.DOTALL)
    name = place.name
    while apart and (found := further.fullmatch(name)):
        name = found[1]
        yield place.with_name(name)


def _stem(name: str) -> str:
    """Return a file's name without what says its format.

    >>> [_stem(name) for name in ("a.png", "b.nii.gz", "1.2.840.113619", ".x")]
    ['a', 'b', '1.2.840.113619', '.x']
    """
    path = Path(name.removesuffix(".gz"))
    return path.stem if path.suffix[1:2].isalpha() else path.name
