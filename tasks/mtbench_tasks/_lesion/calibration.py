"""Probabilities that mean what they say."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

LARGEST = 20.0
"""Of a temperature, and of its inverse: on what a model gets all right or all wrong it has no
end."""
FEWEST = 20  # patients: of fewer a standard error says nothing


def temperature(logits: Tensor, category: Tensor, patients: Sequence[str]) -> float:
    r"""Return `likeliest`, or 1 where it gains no more than its standard error.

    With g_n what T takes off the negative log-likelihood of reading n, T is used if the mean of g
    exceeds its standard error, the readings of one of the P patients being no independent ones:
    :math:`\frac{1}{N} \sqrt{\frac{P}{P - 1} \sum_p (\sum_{n \in p} (g_n - \bar{g}))^2}`. Few
    patients cannot tell a temperature, nor can readings that are all right or all wrong: they are
    likeliest at an end, where a model says 0 or 100 %.
    """
    names, owner = np.unique(np.array(patients, dtype=str), return_inverse=True)
    if len(names) < FEWEST:
        return 1.0
    found = likeliest(logits, category)
    if abs(math.log(found)) > 0.99 * math.log(LARGEST):
        return 1.0
    z = logits.double()
    before, after = (F.cross_entropy(z / t, category, reduction="none") for t in (1.0, found))
    gain = before - after
    sums = np.bincount(owner, gain - gain.mean())
    error = math.sqrt(len(names) / (len(names) - 1)) * np.linalg.norm(sums) / len(gain)
    return found if gain.mean() > error else 1.0


def likeliest(logits: Tensor, category: Tensor) -> float:
    r"""Return the temperature T under which the given categories are most likely.

    :math:`T = \arg\min_T -\frac{1}{N} \sum_n \log \mathrm{softmax}(z_n / T)_{y_n}`, between
    1 / `LARGEST` and `LARGEST` (Guo et al. 2017, "On calibration of modern neural networks",
    section 4.2). It leaves the order of the categories as it is. The loss is convex in 1 / T.

    >>> import torch
    >>> logits = torch.tensor([[4.0, 0.0]] * 4)  # 98 % sure, and right three times out of four
    >>> round(likeliest(logits, torch.tensor([0, 0, 0, 1])), 2) == round(4 / math.log(3), 2)
    True

    Args:
        logits: (N, G), z.
        category: (N,), y, between 0 and G - 1; at least one.
    """
    z = logits.double()
    bound = math.log(LARGEST)
    found = minimize_scalar(
        lambda log: float(F.cross_entropy(z * math.exp(-log), category)),
        bounds=(-bound, bound),
        method="bounded",
    )
    return math.exp(found.x)


def calibration_error(logits: Tensor, category: Tensor) -> float:
    """Return the expected calibration error, in 15 bins; NaN without any category."""
    if not len(category):
        return math.nan
    p = logits.float().softmax(1)
    return float(multiclass_calibration_error(p, category, num_classes=p.shape[1]))
