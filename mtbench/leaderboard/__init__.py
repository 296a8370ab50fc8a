"""From finished cells to a table, and what it supports."""

from mtbench.leaderboard.across import Overall, overall
from mtbench.leaderboard.board import Board, boards
from mtbench.leaderboard.cells import Cell
from mtbench.leaderboard.formats import (
    LEGEND,
    notes,
    overall_markdown,
    readable,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)

__all__ = [
    "LEGEND",
    "Board",
    "Cell",
    "Overall",
    "boards",
    "notes",
    "overall",
    "overall_markdown",
    "readable",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
]
