"""Tables on the terminal."""

from collections.abc import Sequence

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtbench.comparing import inert
from mtbench.comparing.judging import leaderboard

_BORDER = 3  # a column's frame and the space around it
_FRAME = 1  # the table's last one
_METRICS = 3
"""So many of a row's metrics are shown where there is no room for all."""

_OPTIONAL = ("peak MiB", "P(first)", "trials", "s/step")
_LATER = ("seeds", "cost ×")
"""Left out only where words would be cut otherwise."""


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
        room = console.width - _FRAME

        def drop(column: str) -> None:
            nonlocal shown
            dropped = [name for name in shown.columns if name.startswith(column)]
            left_out.extend(dropped)
            shown = shown.drop(columns=dropped)

        if columns is None:
            for column in _OPTIONAL:
                if sum(_lines(shown)) > room:
                    drop(column)
            if len(board.primary) > _METRICS and sum(_lines(shown)) > room:
                shown = leaderboard.compact(board, shown)
                left_out.append("all metrics but those that are worst")
            for column in _LATER:
                if sum(_words(shown)) > room:
                    drop(column)
        table = _table(board.title, shown, room)
        console.print(table)
        if left_out:
            console.print(
                f"- too wide for this terminal: {', '.join(left_out)}; `mtbench leaderboard RUNS` "
                "with --html FOLDER, --columns or --format shows all",
                markup=False, highlight=False,
            )  # fmt: skip
    for note in leaderboard.notes(board):
        console.print(f"- {inert.plain(note)}", markup=False, highlight=False)


def _table(title: str, shown: pd.DataFrame, room: int) -> Table:
    table = Table(title=Text(inert.plain(title)), title_justify="left")
    least, most = _words(shown), _lines(shown)
    wanted, spare = sum(most) - sum(least), room - sum(least)
    for i, column in enumerate(shown.columns):
        # No word is cut where there is room for all: what is left goes where lines are longest.
        more = (most[i] - least[i]) * min(1, spare / wanted) if wanted else 0
        table.add_column(
            Text(inert.plain(column)),
            justify="left" if i == 0 else "right",
            no_wrap=i == 0,
            width=least[i] + int(more) - _BORDER if spare >= 0 else None,
        )
    for row in shown.itertuples(index=False):
        table.add_row(*(Text(inert.plain(str(cell))) for cell in row))
    return table


def _words(shown: pd.DataFrame) -> list[int]:
    """Return how wide each column is with a word a line, its border included."""
    return [_BORDER + max(cell_len(word) for word in " ".join(c).split()) for c in _cells(shown)]


def _lines(shown: pd.DataFrame) -> list[int]:
    """Return how wide each column is with a cell a line, its border included."""
    return [_BORDER + max(map(cell_len, column)) for column in _cells(shown)]


def _cells(shown: pd.DataFrame) -> list[list[str]]:
    return [[inert.plain(str(cell)) for cell in (name, *column)] for name, column in shown.items()]
