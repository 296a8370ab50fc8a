"""Boards together, on records written by hand."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from mtbench.comparing.judging.leaderboard import Board, Cell, overall, overall_markdown
from mtbench.training.cell.rundir import RunDirectory, Spec


def board(data: str, ranks: dict[str, float], *, complete: bool = True) -> Board:
    """A board with ranks; a label's first word is its method."""
    rows = pd.DataFrame(
        {
            "method": list(ranks), "mean_rank": list(ranks.values()), "delta_m": math.nan,
            "complete": [complete or i > 0 for i in range(len(ranks))],
        }
    )  # fmt: skip
    cells = {}
    for label in ranks:
        spec = Spec(
            task="t", task_params={}, method=label.split()[0], method_params={}, data=data,
            recipe={}, seed=0,
        )  # fmt: skip
        cells[label] = [Cell(RunDirectory.__new__(RunDirectory), spec, {})]
    return Board(f"on {data}", {}, rows, [], cells=cells)


def test_ranks_are_among_the_common_methods() -> None:
    found = overall(
        [
            board("a", {"uw": 1.0, "only": 2.0, "ew": 3.0}),
            board("b", {"ew c=1": 1.0, "uw lr=1": 2.5}),
        ]
    )
    assert found is not None
    assert found.methods == ["ew", "uw"]
    assert found.mean_rank.tolist() == [[2, 1], [1, 2]]
    assert "2 blocks and 3 methods" in found.note or "at least" in found.note
    text = overall_markdown(found)
    assert "| ew | 1.50 | - | 2.0 | 1.0 |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_method_with_two_rows_or_no_rank_is_left_out() -> None:
    two = board("a", {"uw lr=1": 1.0, "uw lr=2": 2.0, "ew": 3.0, "ls": 4.0})
    other = board("b", {"uw": 1.0, "ew": 2.0, "ls": 3.0})
    found = overall([two, other])
    assert found is not None
    assert found.methods == ["ew", "ls"]
    assert overall([two, board("b", {"ew": 1.0, "ls": 3.0}, complete=False)]) is None
    assert overall([two]) is None


@pytest.mark.parametrize(
    ("data", "said"), [("aab", "share data"), ("abcdefgh", r"Friedman over 8 boards: p = .*apart")]
)
def test_boards_are_blocks_only_with_data_of_their_own(data: str, said: str) -> None:
    ranks = {"uw": 1.0, "ew": 2.0, "ls": 3.0}
    found = overall([board(one, ranks) for one in data])
    assert found is not None
    assert np.ptp(found.mean_rank, axis=0).max() == 0
    assert re.search(said, found.note)
