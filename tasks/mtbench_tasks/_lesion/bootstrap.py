r"""What a model's answers are worth, with intervals: images of one patient are no independent ones.

Each number is computed under weights (R, N) of the N images: the first row is all ones, the others
say how often an image's patient was drawn when as many patients as there are were drawn with
replacement (the cluster bootstrap; Field and Welsh 2007, "Bootstrapping clustered data"). A
function of weights returns (R,) values, the first of which is the estimate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

RESAMPLES = 2000
LEVEL = (2.5, 97.5)  # percentiles: an interval of 95 %
DEFINED = 0.9  # of the resamples: where fewer have a value, an interval would be of other data
BINS = 10  # of probabilities


class Interval(NamedTuple):
    """An estimate and the limits of its interval; NaN where there is none."""

    value: float
    low: float
    high: float


def weights(patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the weights of images (1 + resamples, N), by their patients.

    >>> weights(["a", "a", "b"], resamples=2).shape
    (3, 3)
    """
    names, owner = np.unique(np.array(patients, dtype=str), return_inverse=True)
    count = len(names)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    return np.concatenate([np.ones((1, len(owner))), drawn[:, owner]])


def interval(values: Floats) -> Interval:
    """Return the estimate, (R,)'s first, and the percentile interval of the others.

    There is none where draws are undefined or all the same: of ten right answers out of ten, no
    draw has a wrong one, which is no certainty.
    """
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or len(drawn) < max(1, DEFINED * (len(values) - 1)):
        return Interval(float(values[0]), np.nan, np.nan)
    low, high = np.percentile(drawn, LEVEL)
    if np.isclose(low, high, rtol=1e-9, atol=0):  # the order of summing tells them apart
        low = high = np.nan
    return Interval(float(values[0]), float(low), float(high))


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Return a quotient, NaN where nothing is divided by nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(top / np.where(bottom > 0, bottom, np.nan))


def mean(values: Floats, w: Floats) -> Floats:
    """Return the mean of values (N,), those that are NaN left out."""
    known = np.isfinite(values)
    return ratio(w[:, known] @ values[known], w[:, known].sum(1))


def auroc(score: Floats, positive: Flags, w: Floats) -> Floats:
    r"""Return the area under the ROC curve: how likely a positive scores above a negative.

    .. math:: \frac{\sum_{ij} u_i v_j ([s_i > s_j] + [s_i = s_j] / 2)}{\sum_i u_i \sum_j v_j}

    with u the weights of the positive and v those of the negative; NaN without either.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1]) > 0, np.ones((1, 4))).item()
    0.875
    """
    levels, at = np.unique(score, return_inverse=True)
    up, down = (np.zeros((len(w), len(levels))) for _ in range(2))
    for into, flags in ((up, positive), (down, ~positive)):
        np.add.at(into.T, at[flags], w[:, flags].T)
    below = down.cumsum(1) - down / 2
    return ratio((up * below).sum(1), up.sum(1) * down.sum(1))


def confusion(truth: NDArray[np.int64], said: NDArray[np.int64], w: Floats, count: int) -> Floats:
    """Return how often each truth was said to be what, (R, count, count)."""
    cells = np.zeros((len(truth), count * count))
    cells[np.arange(len(truth)), truth * count + said] = 1
    return (w @ cells).reshape(-1, count, count)


def kappa(table: Floats, *, ordered: bool = True) -> Floats:
    """Return Cohen's kappa of confusion matrices (R, G, G): of grades with quadratic weights."""
    grades = np.arange(table.shape[1])
    apart = (grades[:, None] - grades) ** 2 if ordered else grades[:, None] != grades
    expected = table.sum(2)[:, :, None] * table.sum(1)[:, None, :]
    total = table.sum((1, 2))
    observed = (apart * table).sum((1, 2)) * total
    return 1 - ratio(observed, (apart * expected).sum((1, 2)))


def balanced_accuracy(table: Floats) -> Floats:
    """Return the mean recall of the grades that occur, of confusion matrices (R, G, G).

    NaN where a draw lacks one of them: without it, it would be another quantity.
    """
    recall = ratio(np.diagonal(table, axis1=1, axis2=2), table.sum(2))
    return _over_known(recall)


def macro_auroc(chances: Floats, truth: NDArray[np.int64], w: Floats) -> Floats:
    """Return the mean of each grade's AUROC against the rest, over those where it is defined.

    NaN where a draw lacks one of them, as in `balanced_accuracy`.

    Args:
        chances: (N, G) probabilities.
        truth: (N,) grades.
        w: the weights.
    """
    return _over_known(np.stack([auroc(p, truth == g, w) for g, p in enumerate(chances.T)], 1))


def rates(positive: Flags, flagged: Flags, w: Floats) -> dict[str, Floats]:
    """Return sensitivity, specificity and predictive values of what was flagged."""
    right, wrong = positive & flagged, ~positive & flagged
    missed, spared = positive & ~flagged, ~positive & ~flagged
    tp, fp, fn, tn = (w @ flags.astype(float) for flags in (right, wrong, missed, spared))
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "PPV": ratio(tp, tp + fp),
        "NPV": ratio(tn, tn + fn),
    }


def calibration_error(score: Floats, positive: Flags, w: Floats) -> Floats:
    """Return the mean distance of probability and frequency over `BINS` bins of equal width.

    It is too large on few images: chance parts the two in each bin. A draw adds that once more, so
    that its percentiles are no interval.
    """
    at = np.minimum((score * BINS).astype(int), BINS - 1)
    cells = np.zeros((len(score), BINS))
    cells[np.arange(len(score)), at] = score - positive
    return ratio(np.abs(w @ cells).sum(1), w.sum(1))


def net_benefit(score: Floats, positive: Flags, at: Floats, w: Floats) -> Floats:
    r"""Return the net benefit of acting on who is at or above each threshold, (R, T).

    .. math:: \frac{TP}{n} - \frac{FP}{n} \frac{t}{1 - t}

    (Vickers and Elkin 2006, "Decision curve analysis"). A score of ones gives that of acting on
    all; acting on nobody has 0.
    """
    flagged = score[:, None] >= at
    gain = np.where(positive[:, None], 1.0, -at / (1 - at)) * flagged
    return ratio(w @ gain, w.sum(1, keepdims=True))


def agreement(difference: Floats, w: Floats) -> dict[str, Floats]:
    """Return bias and limits of agreement of differences (N,) (Bland and Altman 1986)."""
    bias = mean(difference, w)
    count = w.sum(1)
    square = mean(difference**2, w) - bias**2
    spread = 1.96 * np.sqrt(np.maximum(square, 0) * ratio(count, count - 1))
    return {"bias": bias, "lower": bias - spread, "upper": bias + spread}


def _over_known(values: Floats) -> Floats:
    """Return the mean over the columns that are defined of all images, which are the first row."""
    known = values[:, np.isfinite(values[0])]
    return ratio(known.sum(1), np.array(known.shape[1]))
