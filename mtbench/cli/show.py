"""``mtbench leaderboard``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a leaderboard is written."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders that hold run directories.")],
    form: Annotated[Format, typer.Option("--format", "-f", help="How to write it.")] = Format.table,
    to: Annotated[Path | None, typer.Option(help="Write there instead of to the terminal.")] = None,
) -> None:
    """Compare finished runs: metrics over seeds, delta-m, rank, cost."""
    from rich.console import Console

    from mtbench import leaderboard as boards
    from mtbench.cli.tables import print_board
    from mtbench.errors import RunError, UsageError
    from mtbench.rundir import find_runs

    found = boards.boards(list(find_runs(runs)))
    if form is Format.table:
        if to is not None:
            raise UsageError("--to needs --format markdown, csv or json")
        for board in found:
            print_board(Console(), board)
        return
    if form is Format.markdown:
        text = "\n".join(boards.to_markdown(board) for board in found)
    else:
        text = boards.to_csv(found) if form is Format.csv else boards.to_json(found) + "\n"
    if to is None:
        typer.echo(text, nl=False)
        return
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"--to {to}: cannot be written ({error.strerror})") from error
