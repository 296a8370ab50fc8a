"""Tables on the terminal."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mtbench.comparing import inert
from mtbench.comparing.judging import leaderboard

_METRICS = 3
"""So many of a row's metrics are shown where there is no room for all."""

_OPTIONAL = ("peak MiB", "P(first)", "trials", "cost ×", "s/step")


def print_board(
    console: Console, board: leaderboard.Board, columns: Sequence[str] | None = None
) -> None:
    """Print one board with its notes; what is too wide is left to other formats.

    Args:
        console: where to.
        board: what is shown.
        columns: which; by default as many as there is room for.
    """
    shown = leaderboard.readable(board, columns)
    if not shown.empty:
        left_out: list[str] = []
        options = console.options.update(max_width=10_000)

        def too_wide() -> bool:
            table = _table(board.title, shown)
            return bool(Measurement.get(console, options, table).maximum > console.width)

        for column in _OPTIONAL if columns is None else ():
            if not too_wide():
                break
            dropped = [name for name in shown.columns if name.startswith(column)]
            left_out += dropped
            shown = shown.drop(columns=dropped)
        if columns is None and len(board.primary) > _METRICS and too_wide():
            shown = leaderboard.compact(board, shown)
            left_out.append("all metrics but those that are worst")
        console.print(_table(board.title, shown))
        if left_out:
            console.print(
                f"- too wide for this terminal: {', '.join(left_out)}; `mtbench leaderboard RUNS` "
                "with --html FOLDER, --columns or --format shows all",
                markup=False, highlight=False,
            )  # fmt: skip
    for note in leaderboard.notes(board):
        console.print(f"- {inert.plain(note)}", markup=False, highlight=False)


def _table(title: str, shown: pd.DataFrame) -> Table:
    table = Table(title=Text(inert.plain(title)), title_justify="left")
    for i, column in enumerate(shown.columns):
        table.add_column(
            Text(inert.plain(column)), justify="left" if i == 0 else "right", no_wrap=i == 0
        )
    for row in shown.itertuples(index=False):
        table.add_row(*(Text(inert.plain(str(cell))) for cell in row))
    return table
