"""RLAR's verdict follows the rule that was stated."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

verdict = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "rlar_verdict.py"))
spread = np.linspace(-0.01, 0.01, 20)


@pytest.mark.parametrize(
    ("category", "mask", "told"),
    [
        (0.03, 0.00, "category better, mask kept"),
        (0.03, -0.03, "category better, mask lost"),
        (0.03, -0.01, "category better, mask not told"),
        (-0.03, 0.03, "category worse, mask kept"),
        (0.01, 0.00, "category no difference of 0.02, mask kept"),
        (0.02, 0.00, "category better, mask kept"),
    ],
)
def test_the_rule(category: float, mask: float, told: str) -> None:
    assert verdict["answer"](category + spread, mask + spread, planned=20).told == told


def test_intervals_point_to_where_rlar_is_higher_and_folds_widen_them() -> None:
    plain, folds = (verdict["answer"](0.03 + spread, spread, 20, resplit) for resplit in (0, 0.3))
    mean, low, high = plain.category
    assert 0 < low < mean < high
    assert mean == pytest.approx(0.03)
    # Sqrt of 1 / n + resplit, by the corrected test.
    assert folds.category[2] - mean == pytest.approx((high - mean) * np.sqrt(1 + 20 * 0.3))


def test_few_pairs_tell_nothing() -> None:
    found = verdict["answer"]([0.1] * 5, [0.1] * 5, planned=20)
    assert found.told.startswith("category not told")


def test_a_cell_that_is_claimed_twice_counts_once() -> None:
    """By another suite, by a row that equals this one, or by code that counted rows otherwise."""
    claims = [
        SimpleNamespace(board=board, repetition=repetition)
        for board, repetition in (("another", 7), ("this", 3), ("this", 3))
    ]
    cell = SimpleNamespace(diverged=False, test={"auroc": 0.7, "dice": 0.8}, claims=claims)
    board = SimpleNamespace(suite=SimpleNamespace(board="this"), cells={"ew": [cell]})
    assert verdict["tested"](board, "ew") == {3: (0.7, 0.8)}
