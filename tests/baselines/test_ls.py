"""The weighted sum's search: some of a few trials are nearly the plain sum."""

import math

import pytest

from mtbench.comparing.tuning.draws import Search, draw
from mtbench.plugins.method import Method


@pytest.mark.parametrize("K", [2, 11])
def test_few_trials_hold_weights_that_are_nearly_equal_and_others_that_are_not(K: int) -> None:
    trials = draw(Method.find("ls"), K, Search(None, None), 10, 1000)
    weights = [trial.params["weights"] for trial in trials[1:]]
    assert all(math.isclose(sum(w), K) and min(w) > 0 for w in weights)
    ratios = sorted(max(w) / min(w) for w in weights)
    assert ratios[0] < 1.6
    assert ratios[-1] > 4
    assert ratios[-1] <= 100 * (1 + 1e-9)
