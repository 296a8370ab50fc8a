"""Tables on the terminal."""

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mtbench.comparing.judging import leaderboard

_OPTIONAL = ("peak MiB", "P(first)", "trials", "cost ×", "p (Holm)", "P(beats", "s/step")


def print_board(console: Console, board: leaderboard.Board) -> None:
    """Print one board with its notes; what is too wide is left to other formats."""
    shown = leaderboard.readable(board)
    if not shown.empty:
        left_out: list[str] = []
        table = _table(board.title, shown)
        options = console.options.update(max_width=10_000)
        for column in _OPTIONAL:
            if Measurement.get(console, options, table).maximum <= console.width:
                break
            dropped = [name for name in shown.columns if name.startswith(column)]
            left_out += dropped
            shown = shown.drop(columns=dropped)
            table = _table(board.title, shown)
        console.print(table)
        if left_out:
            console.print(
                f"- too wide for this terminal: {', '.join(left_out)}; `mtbench leaderboard RUNS` "
                "with --html FOLDER or --format shows all",
                markup=False, highlight=False,
            )  # fmt: skip
    for note in leaderboard.notes(board):
        console.print(f"- {note}", markup=False, highlight=False)


def _table(title: str, shown: pd.DataFrame) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for i, column in enumerate(shown.columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in shown.itertuples(index=False):
        table.add_row(*(Text(str(cell)) for cell in row))
    return table
