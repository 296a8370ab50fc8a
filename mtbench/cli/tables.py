"""Tables on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtbench import leaderboard


def print_board(console: Console, board: leaderboard.Board) -> None:
    """Print one board with its notes."""
    shown = leaderboard.readable(board)
    if not shown.empty:
        table = Table(title=Text(board.title), title_justify="left")
        for i, column in enumerate(shown.columns):
            table.add_column(Text(column), justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in shown.itertuples(index=False):
            table.add_row(*(Text(str(cell)) for cell in row))
        console.print(table)
    for note in leaderboard.notes(board):
        console.print(f"- {note}", markup=False, highlight=False)
