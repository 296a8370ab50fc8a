"""A sweep that goes on where a question is open: repetitions are added until all is told.

A question is how a row compares with one of those that the suite asks about (``against``), on one
task. `judging.deciding` answers it at a level that holds however often it is asked; so looking
after every few repetitions, and stopping where the answer is there, costs no honesty.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mtbench.comparing.judging import leaderboard
from mtbench.comparing.judging.deciding import looks_of
from mtbench.comparing.planning.grid import Cell, Grid, Order
from mtbench.comparing.planning.survey import State
from mtbench.errors import UsageError
from mtbench.training.cell.rundir import find_runs

Sweep = Callable[[Grid], dict[Cell, State]]
"""Runs a grid's cells, and returns how they ended."""


def until_decided(
    order: Order,
    out: Path,
    plain: str,
    sweep: Sweep,
    tell: Callable[[int, Sequence[str]], None],
) -> dict[Cell, State]:
    """Sweep a suite, repetition by repetition, as long as a question is open.

    Args:
        order: the whole suite.
        out: the folder.
        plain: the row that a tuned one must not validate below.
        sweep: runs a part of it.
        tell: is told after each look how many repetitions there are, and which questions are open.

    Returns:
        how the cells ended that were run.

    Raises:
        UsageError: the suite asks nothing, or has nothing to repeat.
    """
    suite = order.suite
    if not suite.against:
        raise UsageError(f"suite {suite.name}: --until decided needs `against`: rows to compare")
    if suite.budget.repetitions < 2:
        raise UsageError(f"suite {suite.name}: --until decided needs `repetitions` in its budget")
    open_rows = {(entry.task, entry.label) for entry in Grid(order).entries}
    wanted = dict.fromkeys(open_rows, 0)
    states: dict[Cell, State] = {}
    for look in looks_of(suite.budget.repetitions):
        wanted |= dict.fromkeys(open_rows, look)
        part = Grid(replace(order, repetitions=dict(wanted)))
        states = sweep(part)
        questions = open_questions(suite.digest, out, plain)
        tell(look, [f"{row} against {other} on {task}" for task, row, other in questions])
        if not questions:
            break
        tasks = {task for task, _, _ in questions}
        open_rows = {(task, name) for task, *pair in questions for name in pair} | {
            (entry.task, entry.label)
            for entry in part.entries
            if entry.choice.method.reference and entry.task in tasks  # delta-m is measured by it
        }
    return states


def open_questions(digest: str, out: Path, plain: str) -> list[tuple[str, str, str]]:
    """Return what is not told of a suite's rows: task, row, and which it is compared with.

    A row that has failed in every repetition cannot be compared, and asks nothing.
    """
    return [
        (board.suite.task, str(pair["method"]), str(pair["against"]))
        for board in leaderboard.boards(list(find_runs([out])), plain=plain)
        if board.suite is not None and board.suite.digest == digest
        for pair in board.pairs.to_dict("records")
        if pair["open"]
    ]
