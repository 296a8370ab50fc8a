"""From finished cells to a table, and what it supports."""

from mtbench.comparing.judging.leaderboard.across import Overall, overall
from mtbench.comparing.judging.leaderboard.board import Board, boards
from mtbench.comparing.judging.leaderboard.cells import Recorded
from mtbench.comparing.judging.leaderboard.formats import (
    LEGEND,
    check_columns,
    compact,
    legend,
    notes,
    overall_markdown,
    readable,
    short_titles,
    to_csv,
    to_json,
    to_markdown,
    to_raw,
)
from mtbench.comparing.judging.leaderboard.latex import Width, to_latex

__all__ = [
    "LEGEND",
    "Board",
    "Overall",
    "Recorded",
    "Width",
    "boards",
    "check_columns",
    "compact",
    "legend",
    "notes",
    "overall",
    "overall_markdown",
    "readable",
    "short_titles",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "to_raw",
]
