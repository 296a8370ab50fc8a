"""``mtbench predict``."""

from pathlib import Path
from typing import Annotated

import typer

from mtbench.cli.options import Plugins


def predict(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    images: Annotated[list[str], typer.Argument(help="The files to read.")],
    out: Annotated[Path, typer.Option(help="Folder for pictures and predictions.json.")] = Path(
        "predictions"
    ),
    plugin: Plugins = None,
) -> None:
    """Apply a trained model to files; JSON goes to the terminal and to OUT/predictions.json.

    Options of the task's own are given like [bold]--spacing 0.1[/].
    """
    import json

    from mtbench import params
    from mtbench.cell import reload
    from mtbench.errors import RunError, UsageError, did_you_mean
    from mtbench.overrides import parse
    from mtbench.rundir import RunDirectory
    from mtbench.trainer import load_trained

    files, extra = _sort(images)
    directory = RunDirectory(run)
    _, task, method = reload(directory, plugin or [])
    if not files:
        raise UsageError("no file to predict on: give images after the run directory")
    by_name: dict[str, Path] = {}
    for file in files:  # what is written is named after the file
        if (other := by_name.setdefault(file.stem, file)) != file:
            raise UsageError(f"{other} and {file} would be written to the same files: rename one")
    if directory.result() is None:
        raise RunError(f"{run}: is not finished (no result.json); `mtbench run` goes on with it")
    given = parse([], extra)
    known = params.declared(task.predict)
    for key in given:
        if key not in known:
            raise UsageError(f"predict has no option --{key}: {did_you_mean(key, known)}")
    options = {
        key: params.convert(value, known[key].annotation, f"--{key}")
        for key, value in given.items()
    }
    predictor = load_trained(directory, task, method)
    try:
        out.mkdir(parents=True, exist_ok=True)
        records = task.predict(predictor, files, out, **options)
        text = json.dumps(records, indent=2)
        (out / "predictions.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror})") from error
    typer.echo(text)


def _sort(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return the files, and the ``--key value`` words that typer passed on between them."""
    files, extra = [], []
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            files.append(Path(word))
        else:
            extra += [word] if "=" in word else [word, *filter(None, [next(rest, None)])]
    return files, extra
