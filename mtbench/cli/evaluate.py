"""``mtbench evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from mtbench import inert
from mtbench.cli.options import Plugins, own, sort


def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="A finished run directory, or a packaged model; several are asked together.",
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="The data to judge it on.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("evaluation"),
    plugin: Plugins = None,
) -> None:
    """Judge a trained model on data that it has not seen: tables here, a page and files in OUT.

    A task has options of its own, given like [bold]--source ddti[/] or [bold]--mirror[/]:
    `mtbench info TASK`, such as `mtbench info thyroid`, lists them.
    """
    from rich.table import Table
    from rich.text import Text

    from mtbench.cli.terminal import terminal
    from mtbench.errors import UsageError
    from mtbench.training.machine.cache import filling
    from mtbench.training.trained import package

    named, extra = sort(models)
    if not named:
        raise UsageError("no model to evaluate: give a run directory or a packaged model")
    task, trained = package.load_all(named, plugin or [], "evaluate")
    options = own(task.evaluate, context, extra)
    with filling(out, "--out") as folder:
        found = task.evaluate(trained, data, folder, **options)
    console = terminal()
    for title, head, rows in found.tables:
        table = Table(*head, title=title, title_justify="left")
        for place, column in enumerate(table.columns):
            column.justify = "right" if place else "left"
            column.overflow = "fold"  # a name that is cut may be another's
        for row in rows:
            table.add_row(*(Text(inert.plain(cell)) for cell in row))
        console.print(table)
    for note in found.notes:
        typer.echo(f"note: {inert.plain(note)}")
    for file in found.files:
        moved = file.is_relative_to(folder)
        typer.echo(f"written: {out / file.relative_to(folder) if moved else file}")
