r"""How sure a reading is: intervals that held on validation as often as they promise.

Split conformal prediction (Vovk et al. 2005; Lei et al. 2018): with s_1, ..., s_n how far the model
was off on the n patients of validation, each by the worst of their images, and q the
:math:`\lceil 0.9 (n + 1) \rceil`-th smallest of them, in 90 % of cases no image of a new patient of
the same kind is off by more than q, whatever the model. Of a length
:math:`s = |\log(\hat{l} / l)|`, so the interval is :math:`\hat{l} e^{\pm q}`; of a category
:math:`s = 1 - \hat{p}_y`, so it holds the categories of probability 1 - q or more (Sadinle et al.
2019), and those between. Images that are asked about in several ways, by several models, have an
interval each; what is told is their hull, which holds at least as often.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtbench_tasks._lesion.calipers import calipers
from mtbench_tasks._lesion.cases import Mask
from mtbench_tasks._lesion.doubts import parts

LEVEL = 0.9
LENGTHS = ("long_axis", "short_axis")


def quantile(scores: Iterable[float], patients: Iterable[str]) -> float | None:
    """Return q of images' scores; None where the patients are too few to promise `LEVEL`.

    >>> quantile(range(1, 10), "abcdefghi"), quantile(range(1, 10), "abcdefghh")
    (9.0, None)
    """
    worst: dict[str, float] = {}
    for score, patient in zip(scores, patients, strict=True):
        worst[patient] = max(score, worst.get(patient, 0.0))
    at = math.ceil(LEVEL * (len(worst) + 1))
    return None if at > len(worst) else float(sorted(worst.values())[at - 1])


def lengths(mask: Mask) -> dict[str, float] | None:
    """Return the axes of the largest part of a mask, in pixels; None of an empty one."""
    found = parts(mask)
    if not found:
        return None
    measured = calipers(found[0])
    return {name: measured[name].length for name in LENGTHS}


def fit(
    pairs: Sequence[tuple[str, Mapping[str, float], Mapping[str, float]]],
    chances: NDArray[np.float64],
    category: NDArray[np.int64],
    patients: Sequence[str],
) -> dict[str, Any]:
    """Return the quantiles, JSON-able, with how many validation readings each is of.

    Args:
        pairs: the patient, the model's lengths and the reader's, where both outline something.
        chances: (N, G) calibrated probabilities.
        category: (N,) what the reader said.
        patients: (N,) of whom.
    """
    drawn = [patient for patient, _, _ in pairs]
    missing = 1 - chances[np.arange(len(category)), category]
    return {
        "level": LEVEL,
        "outlined": len(pairs),
        "graded": len(category),
        "patients": len({*drawn, *patients}),
        "category": quantile(missing.tolist(), patients),
        **{
            name: quantile((abs(math.log(a[name] / b[name])) for _, a, b in pairs), drawn)
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
