"""Tables on the terminal."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtbench import inert
from mtbench.comparing.judging import leaderboard
from mtbench.errors import MtbenchError
from mtbench.plugins import params
from mtbench.plugins.registry import find
from mtbench.training.task import Task

_BORDER = 3  # a column's frame and the space around it
_FRAME = 1  # the table's last one
_METRICS = 3
"""So many of a row's metrics are shown where there is no room for all."""

_PART = re.compile(r" (?=\[)|(?<=,) (?![^\[]*\])")
"""Where a cell is best broken: before an interval, and between metrics."""

_OPTIONAL = ("peak MiB", "P(first)", "trials", "s/step")
_LATER = ("seeds", "cost ×")
"""Left out only where words would be cut otherwise."""


def print_boards(
    console: Console,
    found: Sequence[leaderboard.Board],
    columns: Sequence[str] | None = None,
    plugins: Sequence[Path] = (),
) -> None:
    """Print boards with their notes; what is too wide is left to other formats.

    A title names what a task does not have by default, and what sets boards apart.

    Args:
        console: where to.
        found: what is shown.
        columns: which; by default as many as there is room for.
        plugins: files of tasks: of one that is not known, the whole title is shown.
    """
    apart = leaderboard.short_titles([board.title for board in found])
    for board, short in zip(found, apart, strict=True):
        name, *words = board.title.split()
        usual = set() if board.suite else _defaults(name, plugins) - set(short.split())
        title = " ".join([name, *(word for word in words if word not in usual)])
        _print_board(console, board, title, columns)


def _defaults(task: str, plugins: Sequence[Path]) -> set[str]:
    """Return a task's default parameters as titles have them, none of a task that is not known."""
    try:
        usual = params.resolve(find("task", task, plugins).load(Task), {}, task)
    except MtbenchError:
        return set()
    return set(params.own_keys(usual).split())


def _print_board(
    console: Console, board: leaderboard.Board, title: str, columns: Sequence[str] | None
) -> None:
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
        while len(shown.columns) > 1 and sum(_words(shown)) > room:  # no number may be cut
            drop(shown.columns[-1])
        table = _table(title, shown, room)
        console.print(table)
        if left_out:
            console.print(
                f"- too wide for this terminal: {', '.join(left_out)}; `mtbench leaderboard RUNS` "
                "with --html FOLDER, --columns or --format shows all"
            )
    for note in leaderboard.notes(board):
        console.print(f"- {inert.plain(note)}")


def _table(title: str, shown: pd.DataFrame, room: int) -> Table:
    table = Table(title=Text(inert.plain(title)), title_justify="left")
    least, most = _parts(shown), _lines(shown)
    if sum(least) > room:
        least = _words(shown)
    wanted, spare = sum(most) - sum(least), room - sum(least)
    widths = []
    for i, column in enumerate(shown.columns):
        # No word is cut where there is room for all: what is left goes where lines are longest.
        more = (most[i] - least[i]) * min(1, spare / wanted) if wanted else 0
        widths.append(max(1, min(least[i] + int(more), room) - _BORDER))
        table.add_column(
            Text(inert.plain(column)),
            justify="left" if i == 0 else "right",
            overflow="fold",  # cut, accuracy_left is accuracy_right
            width=widths[i],
        )
    for row in zip(*_cells(shown, heads=False), strict=True):
        table.add_row(*(Text(_folded(text, w)) for text, w in zip(row, widths, strict=True)))
    return table


def _folded(text: str, width: int) -> str:
    r"""Return what has no room in a line with breaks between its parts, if these have.

    >>> _folded("1.7 [1.3, 2.1]", 10), _folded("1.7 [1.3, 2.1]", 5)
    ('1.7\n[1.3, 2.1]', '1.7 [1.3, 2.1]')
    """
    first, *others = _PART.split(text)
    if max(map(cell_len, (first, *others))) > width:
        return text
    lines = [first]
    for part in others:
        longer = f"{lines[-1]} {part}"
        lines[-1:] = [longer] if cell_len(longer) <= width else [lines[-1], part]
    return "\n".join(lines)


def _parts(shown: pd.DataFrame) -> list[int]:
    """Return how wide each column is with a number, an interval or a metric a line, likewise."""
    return [
        _BORDER + max(cell_len(part) for part in (*head.split(), *_PART.split(", ".join(column))))
        for head, *column in _cells(shown)
    ]


def _words(shown: pd.DataFrame) -> list[int]:
    """Return how wide each column is with a word a line, its border included."""
    return [_BORDER + max(cell_len(word) for word in " ".join(c).split()) for c in _cells(shown)]


def _lines(shown: pd.DataFrame) -> list[int]:
    """Return how wide each column is with a cell a line, its border included."""
    return [_BORDER + max(map(cell_len, column)) for column in _cells(shown)]


def _cells(shown: pd.DataFrame, *, heads: bool = True) -> list[list[str]]:
    first = 0 if heads else 1
    return [
        [inert.plain(str(cell)) for cell in (name, *column)][first:]
        for name, column in shown.items()
    ]
