"""Does the order of methods hold: from half the units to the other, between tasks, and in print?

Spearman's rank correlations of delta-m over all rows but the single-task one and those that are
trained for longer. Halves are drawn 1,000 times; the seeds of one repetition, which share what was
tuned, stay together. What papers report is set beside the board of the task that they report of.
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mtbench.comparing.judging import published
from mtbench.comparing.judging.leaderboard import Board, boards
from mtbench.comparing.judging.statistics import delta_m
from mtbench.training.cell.rundir import find_runs

HALVES = 1_000


def scores(board: Board) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int_]]:
    """Return each row's primary test metrics, (seeds, metrics), and the seeds' units.

    They are the seeds that all ranked rows have, and in which all metrics are defined.
    """
    ranked = board.rows["method"][board.rows["complete"]]
    cells_of = {row: board.cells[row] for row in ranked}
    usual = min(cell.spec.recipe["epochs"] for cells in cells_of.values() for cell in cells)
    tested = {
        row: {
            cell.spec.seed: cell.test
            for cell in cells
            if all(math.isfinite(cell.test.get(name, math.nan)) for name in board.primary)
        }
        for row, cells in cells_of.items()
        if all(cell.spec.recipe["epochs"] == usual for cell in cells)
    }
    seeds = sorted(set.intersection(*(set(found) for found in tested.values())))
    unit = {
        cell.spec.seed: one.repetition
        for row, cells in board.cells.items()
        for cell in cells
        if board.suite is not None and board.suite.study_is_unit
        for one in cell.claimed(board.suite, row)
    }
    found = {
        row: np.array([[found[seed][name] for name in board.primary] for seed in seeds])
        for row, found in tested.items()
    }
    return found, np.array([unit.get(seed, seed) for seed in seeds])


def correlation(first: dict[str, float], second: dict[str, float]) -> tuple[float, str]:
    """Return Spearman's, and it in words."""
    shared = sorted(first.keys() & second.keys())
    found = spearmanr([first[row] for row in shared], [second[row] for row in shared])
    rho = float(found.statistic)
    return rho, f"{rho:.2f} over {len(shared)} methods, p = {found.pvalue:.2g}"


class Study:
    """A board's rows against its single-task row, on any of its units."""

    def __init__(self, board: Board, reference: str) -> None:
        self.found, self.unit = scores(board)
        self.reference = self.found.pop(reference)
        self.higher = list(board.primary.values())
        self.units = np.unique(self.unit)

    def changes(self, units: NDArray[np.int_]) -> dict[str, float]:
        """Return each row's delta-m."""
        own = np.isin(self.unit, units)
        return {
            row: float(delta_m(x[own], self.reference[own], self.higher))
            for row, x in self.found.items()
        }

    def halves(self) -> list[float]:
        """Return the correlations between halves of the units."""
        generator, middle, found = np.random.default_rng(0), len(self.units) // 2, []
        for _ in range(HALVES):
            drawn = generator.permutation(self.units)
            first, second = self.changes(drawn[:middle]), self.changes(drawn[middle:])
            found.append(correlation(first, second)[0])
        return found


def main(out: Path) -> None:
    """Print what there is to say of a folder's boards."""
    by_task: dict[str, dict[str, float]] = {}
    for board in boards(list(find_runs([out]))):
        if board.reference is None or not board.cells:
            continue
        study = Study(board, board.reference)
        if len(study.units) < 2:
            print(f"\n{board.title}: left out, for its rows share {len(study.units)} units")
            continue
        whole = by_task[board.title] = study.changes(study.units)
        halves = study.halves()
        print(f"\n{board.title}: {len(study.units)} units")
        order = sorted(whole, key=whole.__getitem__)
        print("  " + ", ".join(f"{row} {whole[row]:.1f}" for row in order))
        print(f"  halves: {np.mean(halves):.2f}, in 5 % below {np.quantile(halves, 0.05):.2f}")
        name = board.title.split()[0]
        for paper in published.load(name).boards if name in published.shipped() else []:
            deltas = {row: paper.value(row, published.DELTA_M) for row in paper.rows}
            printed = {row: delta for row, delta in deltas.items() if not math.isnan(delta)}
            print(f"  {name} {paper.title!r}: {correlation(whole, printed)[1]}")
    print("\nbetween tasks:")
    for (one, first), (other, second) in itertools.combinations(by_task.items(), 2):
        print(f"  {one} and {other}: {correlation(first, second)[1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("runs", type=Path, help="a folder of runs; it opens their tests")
    main(parser.parse_args().runs)
