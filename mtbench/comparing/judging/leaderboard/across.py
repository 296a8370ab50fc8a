"""Several boards together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtbench.comparing.judging import statistics
from mtbench.comparing.judging.deciding import ALPHA
from mtbench.comparing.judging.leaderboard.board import Board

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Overall:
    """Methods that are ranked on every board, best first.

    Attributes:
        boards: titles.
        methods: names; a method with several rows on a board is left out.
        mean_rank: (boards, methods), each board's mean rank among these methods.
        delta_m: (boards, methods), percent, NaN without a single-task row.
        note: what Friedman's test over the boards says, or why there is none.
    """

    boards: list[str]
    methods: list[str]
    mean_rank: Floats
    delta_m: Floats
    note: str


def overall(found: Sequence[Board]) -> Overall | None:
    """Return the comparison over boards; every board counts the same.

    None if there is one board, or fewer than two methods are ranked on all.
    """
    tables = []
    for board in found:
        if board.rows.empty:
            return None
        # A suite's rows are called alike on all its tasks; others are known by their method.
        names = [
            row if board.suite else board.cells[row][0].spec.method for row in board.rows["method"]
        ]
        once = Counter(names)
        rows = board.rows.assign(method=names)
        alone = np.array([once[name] == 1 for name in names])
        rows = rows[rows["complete"].to_numpy(bool) & alone]
        tables.append(rows.set_index("method"))
    common = sorted(set.intersection(*(set(table.index) for table in tables)))
    if len(tables) < 2 or len(common) < 2:
        return None
    ranks = np.array([table.loc[common, "mean_rank"].rank().to_numpy(float) for table in tables])
    deltas = np.array([table.loc[common, "delta_m"].to_numpy(float) for table in tables])
    order = np.lexsort([common, ranks.mean(axis=0)])
    return Overall(
        [board.title for board in found],
        [common[i] for i in order],
        ranks[:, order],
        deltas[:, order],
        _note(found, deltas if np.isfinite(deltas).all() else ranks),
    )


def _note(found: Sequence[Board], costs: Floats) -> str:
    data = {next(iter(board.cells.values()))[0].spec.data for board in found}
    if len(data) < len(found):
        return "Boards share data, so they are no independent blocks: no test over them"
    ranking = statistics.friedman_nemenyi(costs, ALPHA)
    if ranking.note:
        return ranking.note
    if ranking.p > ALPHA:
        return f"Friedman over {len(found)} boards: p = {ranking.p:.3g}; no order can be told"
    return (
        f"Friedman over {len(found)} boards: p = {ranking.p:.3g}; two methods differ whose mean "
        f"ranks are {ranking.critical_difference:.2f} apart (Nemenyi, {ALPHA:g})"
    )
