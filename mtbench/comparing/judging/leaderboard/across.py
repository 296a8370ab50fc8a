"""Several boards together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mtbench.comparing.judging import statistics
from mtbench.comparing.judging.deciding import ALPHA
from mtbench.comparing.judging.leaderboard.board import Board, is_replanned
from mtbench.comparing.judging.statistics import Floats


@dataclass(frozen=True)
class Overall:
    """Methods that are ranked on every board, best first.

    Attributes:
        boards: titles; several where boards share data.
        methods: names; a method with several rows on a board is left out.
        ranked_by: ``Δm``, or ``mean rank`` where a board has no single-task row.
        rank: (boards, methods), each board's ranks by that among these methods.
        delta_m: (boards, methods), percent, NaN without a single-task row.
        note: what Friedman's test says of these ranks, or why there is none.
        remarks: what does not count, and what is to be read with care.
    """

    boards: list[str]
    methods: list[str]
    ranked_by: str
    rank: Floats
    delta_m: Floats
    note: str
    remarks: list[str]


def overall(found: Sequence[Board]) -> Overall | None:
    """Return the comparison over boards.

    Ranks are by what verdicts are of: delta-m, where every board has it. Every board counts the
    same, those that share data together as one. Boards of known functions
    are left out: there validation is the test, and nothing has to be learnt from samples. Of
    methods with the same numbers in every cell, the first is kept.

    None if there is one block, or fewer than two methods are ranked on all.
    """
    if any(board.rows.empty for board in found):
        return None
    kept = [board for board in found if not _is_known(board)]
    tables = [_ranked(board) for board in kept]
    if not kept:
        return None
    common = sorted(set.intersection(*(set(table.index) for table in tables)))
    twins: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name in common:
        numbers = tuple(
            _numbers(board, table, name) for board, table in zip(kept, tables, strict=True)
        )
        if (first := seen.setdefault(numbers, name)) != name:
            twins[name] = first
    common = [name for name in common if name not in twins]
    blocks = _blocks(kept)
    if len(blocks) < 2 or len(common) < 2:
        return None
    means = np.array([table.loc[common, "mean_rank"].rank().to_numpy(float) for table in tables])
    deltas = np.array([table.loc[common, "delta_m"].to_numpy(float) for table in tables])
    means, deltas = (np.array([x[block].mean(axis=0) for block in blocks]) for x in (means, deltas))
    has_delta = bool(np.isfinite(deltas).all())
    costs = deltas if has_delta else means
    ranks = stats.rankdata(costs, axis=1)
    order = np.lexsort([common, ranks.mean(axis=0)])
    remarks = []
    if left_out := [board.title for board in found if _is_known(board)]:
        remarks.append(f"Left out, for nothing is learnt there from samples: {', '.join(left_out)}")
    if shared := [block for block in blocks if len(block) > 1]:
        titles = "; ".join(", ".join(kept[i].title for i in block) for block in shared)
        remarks.append(f"These share data and count as one: {titles}")
    if twins:
        pairs = ", ".join(f"{name} as {first}" for name, first in twins.items())
        remarks.append(f"What has the same numbers everywhere counts once: {pairs}")
    if any(is_replanned(one, other) for one in kept for other in kept):
        remarks.append(
            "A suite was changed: take all verdicts on a task from the board of the suite as it is "
            "now"
        )
    return Overall(
        [", ".join(kept[i].title for i in block) for block in blocks],
        [common[i] for i in order],
        "Δm" if has_delta else "mean rank",
        ranks[:, order],
        deltas[:, order],
        _note(costs),
        remarks,
    )


def _ranked(board: Board) -> pd.DataFrame:
    """Return the ranked rows by the names that boards have in common."""
    # A suite's rows are called alike on all its tasks; others are known by their method.
    names = [
        row if board.suite else board.cells[row][0].spec.method for row in board.rows["method"]
    ]
    once = Counter(names)
    rows = board.rows.assign(row=board.rows["method"], method=names)
    alone = np.array([once[name] == 1 for name in names])
    kept: pd.DataFrame = rows[rows["complete"].to_numpy(bool) & alone].set_index("method")
    return kept


def _is_known(board: Board) -> bool:
    cells = [cell for row in board.cells.values() for cell in row if not cell.diverged]
    return bool(cells) and all(
        cell.val and cell.val == {name: cell.test.get(name) for name in cell.val} for cell in cells
    )


def _numbers(board: Board, table: pd.DataFrame, name: str) -> tuple[Any, ...]:
    """Return all that was measured of a row; two NaN are the same. Of none, all is its own."""
    cells = board.cells[str(table.at[name, "row"])]
    if all(cell.diverged for cell in cells):
        return (name,)
    return tuple(sorted((cell.spec.seed, cell.measured) for cell in cells))


def _blocks(boards: Sequence[Board]) -> list[list[int]]:
    """Return which boards have data of their own together, in their order."""
    blocks: list[tuple[list[int], set[str]]] = []
    for i, board in enumerate(boards):
        members = [i]
        data = {cell.spec.data for row in board.cells.values() for cell in row}
        for block in [block for block in blocks if block[1] & data]:
            blocks.remove(block)
            members, data = block[0] + members, block[1] | data
        blocks.append((members, data))
    return sorted(members for members, _ in blocks)


def _note(costs: Floats) -> str:
    count, methods = costs.shape
    if methods < 3:
        return "No order of two methods can be told: Friedman's test takes three"
    ranking = statistics.friedman_nemenyi(costs, ALPHA)
    if count < ranking.needed:
        return (
            f"No order can be told: for {methods} methods it takes at least {ranking.needed} "
            f"boards with data of their own, found {count} (Friedman's test, then Nemenyi's)"
        )
    if ranking.p > ALPHA:
        return f"Over {count} boards no order can be told (Friedman's test, p = {ranking.p:.3g})"
    return (
        f"Over {count} boards the order is more than chance (Friedman's test, p = "
        f"{ranking.p:.3g}): two methods differ if their mean ranks are at least "
        f"{ranking.critical_difference:.2f} apart (Nemenyi's test, {100 * ALPHA:g} %)"
    )
