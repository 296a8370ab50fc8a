"""From a probability to a decision: thresholds that are fixed on validation, before any test."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

SENSITIVE = 0.9
YOUDEN, KEPT = "Youden's index", f"sensitivity of {SENSITIVE:.0%}"


def points(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return the operating points of a validation set, with what they give there.

    One has the largest sum of sensitivity and specificity (Youden 1950), the other the largest
    threshold whose sensitivity is `SENSITIVE` or more. There is none where either kind is missing.

    >>> [p["threshold"] for p in points(np.array([0.1, 0.4, 0.6, 0.9]), np.array([0, 0, 1, 1]) > 0)]
    [0.6, 0.6]

    Args:
        score: (N,), the probability of a high risk.
        positive: (N,).
    """
    if positive.all() or not positive.any():
        return []
    wrong, right, thresholds = roc_curve(positive, score, drop_intermediate=False)
    places = {
        YOUDEN: 1 + int((right - wrong)[1:].argmax()),  # the first flags nobody
        KEPT: int((right >= SENSITIVE).argmax()),
    }
    return [
        {
            "rule": rule,
            "threshold": float(thresholds[at]),
            "sensitivity": float(right[at]),
            "specificity": float(1 - wrong[at]),
            "positive": int(positive.sum()),
            "negative": int((~positive).sum()),
        }
        for rule, at in places.items()
    ]


def shared(fitted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a model's operating points; of several that are asked together the mean thresholds.

    What these give on validation, nobody has measured.
    """
    each = [known.get("operating") for known in fitted]
    if not all(each):
        return []
    if len(each) == 1:
        return [dict(point) for point in each[0] or ()]
    return [
        {"rule": same[0]["rule"], "threshold": float(np.mean([p["threshold"] for p in same]))}
        for same in zip(*(found or [] for found in each), strict=True)
    ]
