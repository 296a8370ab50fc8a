"""What is asked of RLAR's boards, and what they answer.

The question is the difference in macro AUROC to the rows of `AGAINST`, of which `INTEREST` is the
smallest of interest, while Dice is not lower by more than `LOSS`. Differences are paired by
repetition; folds are judged by Nadeau and Bengio's corrected test
(`mtbench.comparing.judging.deciding`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mtbench.comparing.judging.deciding import ALPHA, FIRST, decide, smallest_effect
from mtbench.comparing.judging.leaderboard import Board, Recorded

METHOD, PLAIN, AGAINST = "rlar", "ew", ("ew", "ls")
CATEGORY, MASK = "auroc", "dice"
INTEREST = 0.02
"""The smallest difference in AUROC that matters."""
LOSS = 0.01
"""The largest loss of Dice that does not."""
POWER = 0.8
STUDIES = {
    "rlar_phantom": "the phantom", "rlar_readers": "other readers of the phantom",
    "rlar_ddti": "DDTI", "rlar_breast": "BrEaST-Lesions",
}  # fmt: skip
"""Suites that have to be there for the whole answer, and what they are of."""


class Interval(NamedTuple):
    """A mean and its confidence interval, infinite where it is too early for one."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class Answer(NamedTuple):
    """What is said of one question.

    Attributes:
        category: the difference in AUROC, positive where RLAR is higher.
        mask: that in Dice.
        category_told: what is told of the first.
        mask_told: of the second.
    """

    category: Interval
    mask: Interval
    category_told: str
    mask_told: str

    @property
    def told(self) -> str:
        """Both, in a few words."""
        return f"category: {self.category_told}; mask: {self.mask_told}"


class Question(NamedTuple):
    """A row of RLAR against another one.

    Attributes:
        row: RLAR's.
        other: the one that it is compared with.
        gains: (repetitions, 2), RLAR's AUROC and Dice minus the other's.
        answer: what they say.
        least: the difference in AUROC that is told with probability `POWER` after all repetitions.
        limit: the same after any number of them.
    """

    row: str
    other: str
    gains: NDArray[np.float64]
    answer: Answer
    least: float
    limit: float

    @property
    def early(self) -> bool:
        """Whether nothing is told yet."""
        return len(self.gains) < FIRST


class Study(NamedTuple):
    """A board, and what is asked of it.

    Attributes:
        name: what it is of.
        board: whose it is.
        tested: by row and repetition, AUROC and Dice.
        questions: one for each pair that is there.
        comparisons: how many are asked together.
    """

    name: str
    board: Board
    tested: dict[str, dict[int, tuple[float, float]]]
    questions: list[Question]
    comparisons: int

    @property
    def planned(self) -> int:
        """How many repetitions are planned."""
        return self.board.suite.planned if self.board.suite else 0


def answer(
    category: ArrayLike,
    mask: ArrayLike,
    planned: int | None = None,
    resplit: float = 0.0,
    comparisons: int = len(AGAINST),
    *,
    doubted: bool = False,
) -> Answer:
    """Return what paired differences say, positive where RLAR is higher.

    Args:
        category: (units,), of AUROC.
        mask: (units,), of Dice.
        planned: units; None where they are looked at once.
        resplit: the ratio of test to training samples where units are folds of one collection.
        comparisons: questions that are asked beside it, itself included.
        doubted: whether the other row's tuning did not even find the plain sum.
    """
    found, words = [], []
    for gains, margin in ((category, INTEREST), (mask, LOSS)):
        told = decide(
            -np.asarray(gains, float), margin=margin, planned=planned, comparisons=comparisons,
            test_train_ratio=resplit,
        )  # fmt: skip
        found.append(Interval(-float(told.difference), -float(told.high), -float(told.low)))
        words.append(str(told.told))
    category_told = words[0]
    if category_told == "equivalent":
        category_told = f"no difference of {INTEREST}"
    elif category_told == "not told apart":
        category_told = "undecided"
    elif category_told == "better" and doubted:
        category_told = "in doubt"
    kept = found[1].low > -LOSS
    mask_told = "kept" if kept else "lost" if found[1].high < -LOSS else "undecided"
    return Answer(found[0], found[1], category_told, mask_told)


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


def studies(found: Sequence[Board], against: Sequence[str]) -> list[Study]:
    """Return what is asked of each board of a suite that has rows to ask about."""
    made = []
    for board in found:
        if board.suite is None:
            continue
        suite = board.suite.suite
        alike = [set(b.title.split()) for b in found if b.suite and b.suite.suite == suite]
        words = [word for word in board.title.split() if word not in set.intersection(*alike)]
        name = ", ".join([STUDIES.get(suite, suite), *words]).replace("=", " ").replace("_", " ")
        # Runs of one's own may lie beside the suite's.
        own = board.suite.board
        rows = {
            row: cells
            for row, cells in board.cells.items()
            if any(claim.board == own for claim in cells[0].claims)
        }
        known = {row: tested(board, row) for row in rows}
        ours = [row for row, cells in rows.items() if cells[0].spec.method == METHOD]
        pairs = [(row, other) for row in ours for other in against if other in known]
        if not pairs:
            continue
        questions = [_ask(board, known, *pair, len(pairs)) for pair in pairs]
        made.append(Study(name, board, known, questions, len(pairs)))
    return made


def _ask(
    board: Board, known: dict[str, dict[int, tuple[float, float]]], row: str, other: str, asked: int
) -> Question:
    assert board.suite is not None
    units = sorted(known[row].keys() & known[other].keys())
    gains = np.array([np.subtract(known[row][u], known[other][u]) for u in units]).reshape(-1, 2)
    planned, resplit = board.suite.planned, board.suite.resplit or 0.0
    said = answer(*gains.T, planned, resplit, asked, doubted=other in board.doubted)
    least = limit = math.nan
    if len(units) >= FIRST:
        deviation = gains[:, 0].std(ddof=1)
        least = deviation * smallest_effect(planned, asked, POWER, test_train_ratio=resplit)
        reach = stats.norm.isf(ALPHA / asked / 2) + stats.norm.isf(1 - POWER)
        limit = float(deviation * reach * math.sqrt(resplit))
    return Question(row, other, gains, said, least, limit)


def rows(study: Study) -> list[str]:
    """Return RLAR's rows."""
    return list(dict.fromkeys(q.row for q in study.questions))


def course(cell: Recorded) -> NDArray[np.float64]:
    """Return the mean cosine of each epoch."""
    notes = [epoch.get("notes", {}) for epoch in cell.run.history()]
    return np.array([note["alignment"] for note in notes if "alignment" in note])
