"""``mtbench data``."""

from pathlib import Path
from typing import Annotated

import typer

from mtbench.cli.options import Plugins

app = typer.Typer(help="Look at a task's data before training on it.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="A data source of the task, such as ddti.")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="The benchmark task.")]
Data = Annotated[Path | None, typer.Option(help="Where the data lies.")]


@app.command()
def inspect(
    source: Source, data: Data = None, task: TaskName = "thyroid", plugin: Plugins = None
) -> None:
    """Report what of a source is used, repaired and dropped, and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mtbench.plugins.registry import find
    from mtbench.training.task import Task

    rows = find("task", task, plugin or []).load(Task).inspect(source, data)
    table = Table("count", "what", "why", title=f"{source}: what is used, repaired and dropped")
    table.columns[0].justify = "right"
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


@app.command()
def verify(
    source: Source, data: Data = None, task: TaskName = "thyroid", plugin: Plugins = None
) -> None:
    """Read every file of a source: a line for each problem and exit code 2, or that all is well."""
    from mtbench.plugins.registry import find
    from mtbench.training.task import Task

    count, problems = find("task", task, plugin or []).load(Task).verify(source, data)
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.echo(f"problems: {len(problems)}")
        raise typer.Exit(2)
    typer.echo(f"{count} cases, all can be read")


@app.command()
def template(
    to: Annotated[Path, typer.Option(help="The file to write.")] = Path("cases.csv"),
    task: TaskName = "thyroid",
    plugin: Plugins = None,
) -> None:
    """Write a file that describes your own data, with examples, to be filled in."""
    from mtbench.errors import RunError
    from mtbench.plugins.registry import find
    from mtbench.training.task import Task

    text = find("task", task, plugin or []).load(Task).template()
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RunError(f"--to {to}: is there already; choose another name") from None
    except OSError as error:
        raise RunError(f"--to {to}: cannot be written ({error.strerror})") from error
    typer.echo(f"written: {to}")


@app.command()
def preview(
    source: Source,
    data: Data = None,
    to: Annotated[Path, typer.Option(help="The picture to write.")] = Path("preview.png"),
    task: TaskName = "thyroid",
    plugin: Plugins = None,
) -> None:
    """Draw a few cases of a source with their labels."""
    from mtbench.errors import RunError
    from mtbench.plugins.registry import find
    from mtbench.training.task import Task

    if to.suffix.lower() != ".png" or not to.resolve().parent.is_dir():
        raise RunError(f"--to {to}: must be a .png file in a folder that exists")
    find("task", task, plugin or []).load(Task).preview(source, data, to)
    typer.echo(f"written: {to}")
