"""By which number of a validation epochs are chosen."""

import math
import statistics
from collections.abc import Mapping

from mtbench.training.task import Metric

SELECTION = "mean-primary"
"""The rule of ``select="best"``: the epoch with the largest mean of the primary validation metrics,
those that are better when lower counted negative, undefined ones left out; of equals, the first."""


def selection_score(values: Mapping[str, float], metrics: Mapping[str, Metric]) -> float:
    """Return the score of the `SELECTION` rule."""
    signed = [
        values[name] if metric.higher_is_better else -values[name]
        for name, metric in metrics.items()
        if metric.primary and not math.isnan(values[name])
    ]
    return statistics.fmean(signed) if signed else -math.inf
