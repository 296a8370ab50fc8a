"""``mtbench leaderboard``."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from mtbench.cli.options import BASELINE, PLAIN, Plain, check_row

Format = Literal["table", "markdown", "csv", "json", "latex"]


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders that hold run directories.")],
    form: Annotated[Format, typer.Option("--format", "-f", help="How to write it.")] = "table",
    to: Annotated[Path | None, typer.Option(help="Write there instead of to the terminal.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a self-contained page: FOLDER/index.html."),
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="The row that the others are tested against.")
    ] = BASELINE,
    plain: Plain = PLAIN,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,..",
            help="Only these columns of a table, by the beginnings of their names.",
        ),
    ] = None,
    width: Annotated[
        Literal["column", "page"] | None,
        typer.Option(help="LaTeX only: what each table fits; a page's text by default."),
    ] = None,
    raw: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every metric of every cell as one tidy CSV."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the charts as PDF and SVG.")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="CSV only: times and memory too, which no rerun repeats.")
    ] = False,
) -> None:
    """Compare finished runs: effect, uncertainty, rank, cost. Opens the sealed test metrics."""
    from mtbench.cli.tables import print_boards
    from mtbench.cli.terminal import terminal
    from mtbench.comparing.judging import leaderboard as boards
    from mtbench.errors import UsageError
    from mtbench.training.cell.rundir import find_runs

    if form == "table" and to is not None:
        raise UsageError("--to needs --format markdown, csv, json or latex")
    if cost and form != "csv":
        raise UsageError("--cost is for --format csv; the other formats have the cost anyway")
    if width is not None and form != "latex":
        raise UsageError("--width is for --format latex")
    if columns is not None and form in ("csv", "json"):
        raise UsageError(f"--columns is for tables; {form} has every column")
    if to is not None and raw is not None and to.resolve() == raw.resolve():
        raise UsageError(f"--to and --raw are one file, {to}: the second would replace the first")
    found = boards.boards(list(find_runs(runs)), baseline, plain)
    rows = {row: cells[0].spec.method for board in found for row, cells in board.cells.items()}
    begun = (one.rpartition(" ")[0] for board in found for one in board.pending)
    rows |= {label: label.partition(" ")[0] for label in begun}
    check_row("--baseline", baseline, BASELINE, rows)
    check_row("--plain", plain, PLAIN, rows)
    wanted = None
    if columns is not None:
        names = [name for part in columns.split(",") if (name := part.strip())]
        if not names:
            raise UsageError(f"--columns names no column, found {columns!r}")
        wanted = [re.sub("^- ", "− ", name) for name in names]  # keyboards have no minus
        boards.check_columns(found, wanted)
    if raw is not None:
        _write(raw, boards.to_raw(found), "--raw")
    if figures is not None:
        from mtbench.comparing.judging.report.figures import draw

        for file in draw(found, figures):
            typer.echo(f"figure: {file}", err=True)
    if html is not None:
        from mtbench.comparing.judging import report

        typer.echo(f"page: {report.write(found, html)}", err=True)
    if form == "table":
        print_boards(terminal(), found, wanted)
        return
    together = boards.overall(found)
    tail = [boards.overall_markdown(together)] if together else []
    text = {
        "markdown": lambda: "\n".join([*(boards.to_markdown(one, wanted) for one in found), *tail]),
        "latex": lambda: boards.to_latex(found, wanted, width or "page"),
        "csv": lambda: boards.to_csv(found, cost=cost),
        "json": lambda: boards.to_json(found) + "\n",
    }[form]()
    if to is None:
        typer.echo(text, nl=False)
        return
    _write(to, text, "--to")


def _write(file: Path, text: str, option: str) -> None:
    from mtbench.errors import writable

    with writable(f"{option} {file}"):
        file.write_text(text, encoding="utf-8")
