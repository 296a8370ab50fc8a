"""``mtbench data``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtbench import inert
from mtbench.cli.options import REFERENCE, Extra, Plugins, own, tasks

if TYPE_CHECKING:
    from mtbench.training.task import Task

app = typer.Typer(help="Look at a task's data before training on it.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="A data source of the task, such as ddti.")]
TaskName = Annotated[
    str, typer.Option("--task", "-t", help="The benchmark task.", autocompletion=tasks)
]
Data = Annotated[Path | None, typer.Option(help="Where the data lies.")]


@contextmanager
def _of(task: str, source: str, plugins: Sequence[Path]) -> "Iterator[type[Task]]":
    """Yield the task; where it has no such source, and a task is called so, that is told."""
    from mtbench.errors import UsageError
    from mtbench.plugins.registry import entries, find
    from mtbench.training.task import Task

    try:
        yield find("task", task, plugins).load(Task)
    except UsageError as error:
        if source == task or source not in entries("task", plugins):
            raise
        raise UsageError(
            f"{error}; {source} is a task: say --task {source}, and one of its sources (`mtbench "
            f"info {source}`)"
        ) from error


@app.command(cls=Extra)
def inspect(
    context: typer.Context,
    source: Source,
    data: Data = None,
    task: TaskName = REFERENCE,
    plugin: Plugins = None,
) -> None:
    """Report what of a source is used, repaired and dropped, and why, and what looks odd.

    A task has options of its own, given like [bold]--grades low,high[/]: `mtbench info TASK`
    lists them.
    """
    from rich.table import Table
    from rich.text import Text

    from mtbench.cli.terminal import terminal

    with _of(task, source, plugin or []) as kind:
        rows = kind.inspect(source, data, **own(kind.inspect, context, context.args))
    table = Table("count", "what", "why", title=f"{source}: what is used, repaired and dropped")
    table.columns[0].justify = "right"
    for row in rows:
        table.add_row(*(Text(inert.plain(str(cell))) for cell in row))
    terminal().print(table)


@app.command(cls=Extra)
def verify(
    context: typer.Context,
    source: Source,
    data: Data = None,
    task: TaskName = REFERENCE,
    plugin: Plugins = None,
) -> None:
    """Read every file of a source: a line for all that is broken (exit code 2) or looks odd.

    A task has options of its own, given like [bold]--grades low,high[/]: `mtbench info TASK`
    lists them.
    """
    with _of(task, source, plugin or []) as kind:
        found = kind.verify(source, data, **own(kind.verify, context, context.args))
    for line in (*found.problems, *(f"looks odd: {doubt}" for doubt in found.doubts)):
        typer.echo(inert.plain(line))
    odd = f"look odd: {len(found.doubts)}" if found.doubts else ""
    if found.problems:
        typer.echo("; ".join(filter(None, (f"problems: {len(found.problems)}", odd))))
        raise typer.Exit(2)
    typer.echo("; ".join(filter(None, (f"{found.cases} cases, all can be read", odd))))


@app.command(cls=Extra)
def export(
    context: typer.Context,
    source: Source,
    to: Annotated[Path, typer.Option(help="The folder to write: an empty one, or a new one.")],
    data: Data = None,
    task: TaskName = REFERENCE,
    plugin: Plugins = None,
) -> None:
    """Write a source's cases as other programs read them; the lesion tasks in nnU-Net's layout.

    What is left out gets a line each. A task has options of its own, given like
    [bold]--grades low,high[/]: `mtbench info TASK` lists them.
    """
    from mtbench.errors import RunError
    from mtbench.training.machine.cache import filling

    with _of(task, source, plugin or []) as kind:
        options = own(kind.export, context, context.args)
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise RunError(f"--to {to}: exists already; choose an empty or a new folder")
        with filling(to, "--to") as place:
            found = kind.export(source, data, place, **options)
    for line in found.problems:
        typer.echo(inert.plain(line))
    left = f"; left out: {len(found.problems)}" if found.problems else ""
    typer.echo(f"written: {found.cases} cases to {to}{left}")


@app.command()
def template(
    to: Annotated[Path, typer.Option(help="The file to write.")] = Path("cases.csv"),
    task: TaskName = REFERENCE,
    plugin: Plugins = None,
) -> None:
    """Write a file that describes your own data, with examples, to be filled in."""
    from mtbench.errors import RunError, writable
    from mtbench.plugins.registry import find
    from mtbench.training.task import Task

    text = find("task", task, plugin or []).load(Task).template()
    if to.exists():
        raise RunError(f"--to {to}: exists already; choose another name")
    with writable(f"--to {to}"), to.open("x", encoding="utf-8") as file:
        file.write(text)
    typer.echo(f"written: {to}")


@app.command()
def preview(
    source: Source,
    data: Data = None,
    to: Annotated[Path, typer.Option(help="The picture to write.")] = Path("preview.png"),
    task: TaskName = REFERENCE,
    plugin: Plugins = None,
) -> None:
    """Draw a few cases of a source with their labels."""
    from mtbench.errors import RunError

    if to.suffix.lower() != ".png" or not to.resolve().parent.is_dir():
        raise RunError(f"--to {to}: must be a .png file in a folder that exists")
    with _of(task, source, plugin or []) as kind:
        kind.preview(source, data, to)
    typer.echo(f"written: {to}")
