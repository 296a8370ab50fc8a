"""``mtbench predict``."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from mtbench.cli.options import Plugins, own, sort


def predict(
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
    and the exit code is 2. Options of the task's own are given like [bold]--spacing 0.1[/].
    """
    import json

    from mtbench.errors import DataError, RunError, UsageError
    from mtbench.training.trained import package

    named, extra = sort(files)
    models = [model, *takewhile(package.is_model, named)]
    named = named[len(models) - 1 :]
    if not named:
        raise UsageError("no file to predict on: give files or folders after the model")
    if late := next(filter(package.is_model, named), None):  # its pictures are no input
        raise UsageError(f"{late}: is a model; models come before the files")
    task, trained = package.load_all(models, plugin or [])
    found, passed_over = _gather(named, out, task.reads)
    options = own(task.predict, "predict", extra)
    for key, value in options.items():  # such as another view: it would be of each image
        if isinstance(value, Path) and value.is_file() and len(found) > 1:
            raise UsageError(
                f"--{key} {value}: is one file, and {len(found)} are read: give a folder that has "
                "one of the same name for each"
            )
    records: list[dict[str, Any]] = []
    broken = 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, place in found:
            to = out / place
            to.parent.mkdir(parents=True, exist_ok=True)
            try:
                records.append(task.predict(trained, path, to, **options))
            except DataError as error:
                if len(found) == 1:
                    raise
                broken += 1
                records.append({"image": str(path), "error": str(error)})
                typer.echo(f"error: {error}", err=True)
        text = json.dumps(records, indent=2)
        (out / "predictions.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror})") from error
    typer.echo(text)
    if passed_over:
        typer.echo(f"passed over: {passed_over} files that are no input of this task", err=True)
    if broken:
        raise DataError(
            f"{broken} of {len(found)} files could not be read, the others are in {out}"
        )


def _gather(
    named: Sequence[Path], out: Path, reads: Callable[[Path], bool]
) -> tuple[list[tuple[Path, Path]], int]:
    """Return each file to read and its place below OUT, and how many files of folders are not.

    Raises:
        UsageError: a file is absent or within OUT, two have one place, or folders have none.
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
    return [(file, place) for place, file in by_place.items()], passed_over


def _stem(name: str) -> str:
    """Return a file's name without what says its format.

    >>> [_stem(name) for name in ("a.png", "b.nii.gz", "1.2.840.113619", ".x")]
    ['a', 'b', '1.2.840.113619', '.x']
    """
    path = Path(name.removesuffix(".gz"))
    return path.stem if path.suffix[1:2].isalpha() else path.name
