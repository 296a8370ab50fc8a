r"""Which epoch and which trial are taken: one number a validation, in which no unit counts.

A mean of raw metrics is decided by the one with the largest numbers: of NYUv2's nine, by degrees.
What is compared in the end is delta-m, a mean of *relative* changes against a single-task model;
so relative changes are what selects. A run knows no single-task model, and needs none: the
logarithm of a ratio is a difference, in which the reference is the same constant everywhere,

.. math:: \tfrac1M \sum_m (-1)^{1 - h_m} \log \frac{x_m}{r_m}
    = \tfrac1M \sum_m (-1)^{1 - h_m} \log x_m + \text{const},

with :math:`h_m = 1` where higher is better. To first order in the change this is minus delta-m /
100, whatever the reference r; further away the two differ: halving an error counts as much as
doubling it, which delta-m does not say. Choosing the log is ours.
"""

import math
from collections.abc import Mapping
from statistics import fmean

from mtbench.training.task import Metric

SELECTION = "log-primary"
"""The name of the rule, as results record it."""

LEAST = 1e-12
"""Of a metric's size: what is smaller counts as this."""


def selection_score(values: Mapping[str, float], metrics: Mapping[str, Metric]) -> float:
    """Return the score of a validation, higher is better; of equals, the first is taken.

    Undefined metrics are left out: on one validation split they are the same ones for all. Numbers
    below zero are ordered as delta-m orders them, by the change relative to their size.

    Args:
        values: of the metrics.
        metrics: what is known of each; only primary ones count.

    Returns:
        the score; minus infinity if nothing is defined.

    Example:
        >>> both = {"dice": Metric("mask", True, True), "error": Metric("risk", False, True)}
        >>> round(selection_score({"dice": 0.5, "error": 2.0}, both), 4)  # (log 0.5 - log 2) / 2
        -0.6931
    """
    signed = [
        _log(values[name]) if metric.higher_is_better else -_log(values[name])
        for name, metric in metrics.items()
        if metric.primary and not math.isnan(values[name])
    ]
    return fmean(signed) if signed else -math.inf


def _log(x: float) -> float:
    """Return log x, continued below zero: rising, and with the slope 1 / |x| of a relative change.

    >>> _log(-2.0) < _log(-1.0) < _log(0.0) < _log(1e-3) < _log(1.0) == 0.0
    True
    """
    size = max(abs(x), LEAST)
    return math.log(size) if x > 0 else 2 * math.log(LEAST) - math.log(size)
