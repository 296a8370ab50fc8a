"""The rule of selection: no unit decides, and near a reference it orders as delta-m does."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtbench.comparing.judging.statistics import relative_change
from mtbench.training.task import Metric
from mtbench.training.trainer.selection import selection_score

BOTH = {
    "miou": Metric("seg", higher_is_better=True, primary=True),
    "degrees": Metric("normals", higher_is_better=False, primary=True),
    "note": Metric("seg", higher_is_better=True),
}
positive = st.floats(1e-6, 1e6)


def score(miou: float, degrees: float) -> float:
    return selection_score({"miou": miou, "degrees": degrees, "note": 1e9}, BOTH)


def test_by_hand() -> None:
    assert score(0.5, 25.0) == pytest.approx((math.log(0.5) - math.log(25)) / 2)
    # 10 % of the mIoU outweigh 2 % of the degrees, which the mean of raw numbers does not see.
    assert score(0.55, 25.5) > score(0.5, 25.0)
    assert 0.55 - 25.5 < 0.5 - 25.0


@given(st.tuples(positive, positive), st.tuples(positive, positive), st.floats(1e-3, 1e3))
def test_no_unit_counts(one: tuple, other: tuple, unit: float) -> None:
    """Degrees or radians: the difference between two epochs, hence their order, is the same."""
    there = score(*one) - score(*other)
    assert score(one[0], unit * one[1]) - score(other[0], unit * other[1]) == pytest.approx(
        there, abs=1e-9
    )


def test_near_a_reference_it_is_minus_delta_m() -> None:
    """Whatever the reference, which a run does not know; negative numbers too."""
    rng = np.random.default_rng(0)
    for reference in ([0.6, 20.0], [0.01, -3.0], [5.0, 1e-4]):
        near = np.array(reference) * (1 + 0.01 * rng.standard_normal((50, 2)))
        delta = relative_change(near, [reference], [True, False]).mean(axis=1)
        found = np.array([score(*row) for row in near])
        assert -100 * (found - score(*reference)) == pytest.approx(delta, abs=0.06)


def test_what_is_undefined_and_what_is_zero() -> None:
    assert score(math.nan, 2.0) == -math.log(2.0)
    assert score(math.nan, math.nan) == -math.inf
    assert math.inf > score(0.5, 0.0) > score(0.5, 1e-6)
    assert -math.inf < score(0.0, 1.0) < score(1e-6, 1.0)
    assert score(-0.1, 1.0) < score(-0.01, 1.0) < score(0.0, 1.0)
