"""Boards together, on records written by hand."""

import math
import re

import numpy as np
import pandas as pd

from mtbench.comparing.judging.leaderboard import Board, Recorded, overall, overall_markdown
from mtbench.training.cell.result import Result
from mtbench.training.cell.rundir import RunDirectory, Spec
from tests.comparing.test_leaderboard import DIVERGED, result


def board(
    data: str, ranks: dict[str, float], *, complete: bool = True, known: bool = False,
    delta: dict[str, float] | None = None,
) -> Board:  # fmt: skip
    """A board with ranks, which are its test metric; a label's first word is its method."""
    rows = pd.DataFrame(
        {
            "method": list(ranks), "mean_rank": list(ranks.values()),
            "delta_m": [(delta or {}).get(label, math.nan) for label in ranks],
            "complete": [complete or i > 0 for i in range(len(ranks))],
        }
    )  # fmt: skip
    cells = {}
    for label in ranks:
        spec = Spec(
            task="t", task_params={}, method=label.split()[0], method_params={}, data=data,
            recipe={}, seed=0,
        )  # fmt: skip
        ended = Result(**result(spec, val={"error": ranks[label] if known else 0.5}))
        run = RunDirectory.__new__(RunDirectory)
        cells[label] = [Recorded(run, spec, ended, test={"error": ranks[label]})]
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
    assert found.rank.tolist() == [[2, 1], [1, 2]]
    assert found.note.startswith("No order of two methods can be told")
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


RANKS = {"uw": 1.0, "ew": 2.0, "ls": 3.0}


def test_ranks_are_of_what_the_test_and_the_verdicts_are_of() -> None:
    """Of delta-m, where all boards have it; mean ranks over metrics may say otherwise."""
    delta = {"uw": 9.0, "ew": 2.0, "ls": 3.0}
    found = overall([board(one, RANKS, delta=delta) for one in "abcdefgh"])
    assert found is not None
    assert found.ranked_by == "Δm"
    assert found.methods == ["ew", "ls", "uw"]
    assert found.rank.tolist() == [[1, 2, 3]] * 8
    assert "Ranks by Δm among these methods." in overall_markdown(found)
    some = overall([board("a", RANKS, delta=delta), board("b", RANKS)])
    assert some is not None
    assert (some.ranked_by, some.methods) == ("mean rank", ["uw", "ew", "ls"])


def test_boards_with_data_of_their_own_are_blocks() -> None:
    found = overall([board(one, RANKS) for one in "abcdefgh"])
    assert found is not None
    assert np.ptp(found.rank, axis=0).max() == 0
    assert re.search(
        r"^Over 8 boards .*more than chance.*apart \(Nemenyi's test, 5 %\)$", found.note
    )
    few = overall([board(one, RANKS) for one in "ab"])
    assert few is not None
    assert "for 3 methods it takes at least 3 boards with data of their own, found 2" in few.note


def test_boards_that_share_data_count_as_one() -> None:
    turned = {"uw": 3.0, "ew": 2.0, "ls": 1.0}
    found = overall([board("a", RANKS), board("b", RANKS), board("a", turned)])
    assert found is not None
    assert found.boards == ["on a, on a", "on b"]
    assert dict(zip(found.methods, found.rank.T.tolist(), strict=True)) == {
        "uw": [2.0, 1.0], "ew": [2.0, 2.0], "ls": [2.0, 3.0],
    }  # fmt: skip
    assert found.remarks == ["These share data and count as one: on a, on a"]
    assert overall([board("a", RANKS), board("a", RANKS)]) is None


def test_known_functions_are_left_out() -> None:
    boards = [board("a", RANKS), board("b", RANKS), board("front", RANKS, known=True)]
    found = overall(boards)
    assert found is not None
    assert found.boards == ["on a", "on b"]
    assert found.remarks == ["Left out, for nothing is learnt there from samples: on front"]
    assert overall(boards[1:]) is None


def test_methods_of_the_same_numbers_count_once() -> None:
    boards = [board(one, {**RANKS, "imtl": 2.0}) for one in "ab"]
    found = overall(boards)
    assert found is not None
    assert found.methods == ["uw", "ew", "ls"]
    assert found.remarks == ["What has the same numbers everywhere counts once: imtl as ew"]
    for one in boards:  # where nothing was measured, nothing is the same
        for name in ("ew", "imtl"):
            one.cells[name] = [
                Recorded(c.run, c.spec, Result(**result(c.spec, **DIVERGED)))
                for c in one.cells[name]
            ]
    apart = overall(boards)
    assert apart is not None
    assert {"ew", "imtl"} <= set(apart.methods)
    boards[1] = board("b", {**RANKS, "imtl": 4.0})
    again = overall(boards)
    assert again is not None
    assert "imtl" in again.methods
