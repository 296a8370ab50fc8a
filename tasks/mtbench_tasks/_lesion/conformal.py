r"""How sure a reading is: intervals that held on validation as often as they promise.

Split conformal prediction (Vovk et al. 2005; Lei et al. 2018): with s_1, ..., s_n how far the model
was off on validation, and q the :math:`\lceil 0.9 (n + 1) \rceil`-th smallest of them, a new image
of the same kind is off by at most q in 90 % of cases, whatever the model. Of a length
:math:`s = |\log(\hat{l} / l)|`, so the interval is :math:`\hat{l} e^{\pm q}`; of a category
:math:`s = 1 - \hat{p}_y`, so it holds the categories of probability 1 - q or more (Sadinle et al.
2019), and those between. Images that are asked about in several ways, by several models, have an
interval each; what is told is their hull, which holds at least as often.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtbench_tasks._lesion.calipers import calipers
from mtbench_tasks._lesion.cases import Mask
from mtbench_tasks._lesion.doubts import parts

LEVEL = 0.9
LENGTHS = ("long_axis", "short_axis")


def quantile(scores: Sequence[float]) -> float | None:
    """Return q of scores; None where they are too few to promise `LEVEL`.

    >>> quantile(range(1, 20)), quantile(range(1, 9))
    (18.0, None)
    """
    at = math.ceil(LEVEL * (len(scores) + 1))
    return None if at > len(scores) else float(sorted(scores)[at - 1])


def lengths(mask: Mask) -> dict[str, float] | None:
    """Return the axes of the largest part of a mask, in pixels; None of an empty one."""
    found = parts(mask)
    if not found:
        return None
    measured = calipers(found[0])
    return {name: measured[name].length for name in LENGTHS}


def fit(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]],
    chances: NDArray[np.float64],
    category: NDArray[np.int64],
) -> dict[str, Any]:
    """Return the quantiles, JSON-able, with how many validation readings each is of.

    Args:
        pairs: the model's lengths and the reader's, where both outline something.
        chances: (N, G) calibrated probabilities.
        category: (N,) what the reader said.
    """
    return {
        "level": LEVEL,
        "outlined": len(pairs),
        "graded": len(category),
        "category": quantile((1 - chances[np.arange(len(category)), category]).tolist()),
        **{
            name: quantile([abs(math.log(said[name] / known[name])) for said, known in pairs])
            for name in LENGTHS
        },
    }


def interval(
    looks: Sequence[tuple[Mapping[str, Any] | None, dict[str, float] | None, Sequence[float]]],
    grades: Sequence[str],
    spacing: float | None,
) -> dict[str, Any] | None:
    """Return the hull of the intervals of each look at a lesion; None where one has none.

    Args:
        looks: for each, what `fit` returned for its model, its lengths, its probabilities.
        grades: the categories.
        spacing: millimetres per pixel; None: lengths are in pixels.
    """
    if not looks or any(known is None for known, _, _ in looks):
        return None
    unit, scale = ("px", 1.0) if spacing is None else ("mm", spacing)
    ends: dict[str, Any] = {"level": LEVEL}
    for name in LENGTHS:
        each = [
            (0.0, 0.0) if found is None
            else (found[name] * math.exp(-known[name]), found[name] * math.exp(known[name]))
            for known, found, _ in looks
            if known is not None and known[name] is not None
        ]  # fmt: skip
        whole = len(each) == len(looks)
        ends[f"{name}_{unit}"] = (
            [round(scale * min(low for low, _ in each), 2),
             round(scale * max(high for _, high in each), 2)] if whole else None
        )  # fmt: skip
    within: set[int] = set()
    for known, _, chances in looks:
        if known is None or known["category"] is None:
            return ends | {"categories": None}
        likely = [g for g, p in enumerate(chances) if 1 - p <= known["category"]]
        within |= {*likely, int(np.argmax(chances))}
    return ends | {"categories": list(grades[min(within) : max(within) + 1])}
