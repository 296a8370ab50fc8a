"""RLAR's verdict: is the category better than with a plain and a tuned sum, and the mask no worse?

What counts was stated before anything was run. The question is the difference in macro AUROC to
`ew` and to tuned `ls`, of which 0.02 is the smallest of interest, while Dice is not lower by more
than 0.01. Differences are paired by repetition; folds are judged by Nadeau and Bengio's corrected
test (`mtbench.comparing.judging.deciding`). Intervals hold for all questions of a board together,
at any look: a line below the table says how many these are, for other ROWs are other questions.

Usage: python benchmarks/rlar_verdict.py RUNS [ROW ...]     against other rows than `ew` and `ls`
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mtbench.comparing.judging.deciding import decide
from mtbench.comparing.judging.leaderboard import Board, boards
from mtbench.training.cell.rundir import find_runs

METHOD, AGAINST = "rlar", ("ew", "ls")
CATEGORY, MASK = "auroc", "dice"
INTEREST = 0.02
"""The smallest difference in AUROC that matters."""
LOSS = 0.01
"""The largest loss of Dice that does not."""


class Answer(NamedTuple):
    """What is said of one question.

    Attributes:
        category: the mean difference in AUROC, and its interval.
        mask: that in Dice.
        told: in words.
    """

    category: tuple[float, float, float]
    mask: tuple[float, float, float]
    told: str


def answer(
    category: ArrayLike,
    mask: ArrayLike,
    planned: int | None = None,
    resplit: float = 0.0,
    comparisons: int = len(AGAINST),
) -> Answer:
    """Return what paired differences say, positive where RLAR is higher.

    Args:
        category: (units,), of AUROC.
        mask: (units,), of Dice.
        planned: units; None where they are looked at once.
        resplit: the ratio of test to training samples where units are folds of one collection.
        comparisons: questions that are asked beside it, itself included.
    """
    found, words = [], []
    for gains, margin in ((category, INTEREST), (mask, LOSS)):
        told = decide(
            -np.asarray(gains, float), margin=margin, most=planned, comparisons=comparisons,
            resplit=resplit,
        )  # fmt: skip
        found.append((-float(told.difference), -float(told.high), -float(told.low)))
        words.append(str(told.told))
    kept = found[1][1] > -LOSS
    said = {"equivalent": f"no difference of {INTEREST}", "not told apart": "not told"}
    mask_said = "mask kept" if kept else "mask lost" if found[1][2] < -LOSS else "mask not told"
    return Answer(found[0], found[1], f"category {said.get(words[0], words[0])}, {mask_said}")


def tested(board: Board, row: str) -> dict[int, tuple[float, float]]:
    """Return AUROC and Dice of each repetition, the mean of its cells; none of a diverged one."""
    cells: dict[int, list[tuple[float, float]]] = {}
    for cell in board.cells[row]:
        if not cell.diverged:
            pair = (cell.test.get(CATEGORY, np.nan), cell.test.get(MASK, np.nan))
            # Equal rows, or earlier code, may have claimed it too: for the same repetition.
            own = next(o for o in cell.claims if board.suite and o.board == board.suite.board)
            cells.setdefault(own.repetition, []).append(pair)
    means = {unit: np.mean(pairs, axis=0) for unit, pairs in cells.items()}
    return {unit: (mean[0], mean[1]) for unit, mean in means.items() if np.isfinite(mean).all()}


def main(out: Path, against: Sequence[str]) -> None:
    """Print a Markdown table of a folder's boards."""
    print("| board | row | against | pairs | AUROC | Dice | told |\n|---|---|---|---|---|---|---|")
    asked = {}
    for board in boards(list(find_runs([out]))):
        if board.suite is None:
            continue
        known = {row: tested(board, row) for row in board.cells}
        ours = [row for row, cells in board.cells.items() if cells[0].spec.method == METHOD]
        pairs = [(row, other) for row in ours for other in against if other in known]
        asked[board.title] = len(pairs)
        for row, other in pairs:
            units = sorted(known[row].keys() & known[other].keys())
            if not units:
                continue
            gains = np.array([np.subtract(known[row][u], known[other][u]) for u in units])
            found = answer(
                gains[:, 0], gains[:, 1], board.suite.planned, board.suite.resplit or 0.0,
                len(pairs),
            )  # fmt: skip
            shown = [
                f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
                for mean, low, high in (found.category, found.mask)
            ]
            count = f"{len(units)} of {board.suite.planned}"
            print(f"| {' | '.join([board.title, row, other, count, *shown, found.told])} |")
    for title, number in asked.items():
        print(f"\n{title}: 95 % intervals that hold for {number} questions together")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or AGAINST)
