"""The metrics of MTAN-style work, over all labelled pixels of a split."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mtbench.training.task import Batch, Meter, Metric
from mtbench_tasks._dense.losses import IGNORED, known_depth, known_normals

WITHIN = (11.25, 22.5, 30.0)
"""Degrees."""

BINS = 180_000
"""Of the angles' histogram, which finds the median to a thousandth of a degree."""


def metrics(normals: bool) -> dict[str, Metric]:
    """Return what is measured, by name; delta-m averages over all of them, as the papers' does."""
    found = {
        "miou": Metric("segmentation", primary=True),
        "pixel_accuracy": Metric("segmentation", primary=True),
        "abs_err": Metric("depth", higher_is_better=False, primary=True),
        "rel_err": Metric("depth", higher_is_better=False, primary=True),
    }
    if normals:
        found["normal_mean"] = Metric("normals", higher_is_better=False, primary=True)
        found["normal_median"] = Metric("normals", higher_is_better=False, primary=True)
        found |= {f"within_{limit:g}": Metric("normals", primary=True) for limit in WITHIN}
    return found


class DenseMeter(Meter):
    r"""Scores of segmentation, depth and normals, each over all labelled pixels seen.

    With :math:`n_{cj}` the number of pixels of class c called j, ``miou`` is the mean over classes
    of :math:`n_{cc} / (\sum_j n_{cj} + \sum_j n_{jc} - n_{cc})`, those left out that neither occur
    nor are predicted, and ``pixel_accuracy`` is :math:`\sum_c n_{cc} / \sum n`. ``abs_err`` and
    ``rel_err`` are the means of :math:`|\hat d - d|` and :math:`|\hat d - d| / d`. Of the angle
    between normals, in degrees: ``normal_mean``, ``normal_median``, and ``within_T``, the share
    below T.

    Deviation: most published code averages the scores of depth and normals over batches, which
    weighs pixels unequally and makes the median depend on the batch size; here every pixel counts
    the same.

    Args:
        classes: C.
        normals: whether there are any.
    """

    def __init__(self, classes: int, normals: bool) -> None:
        self.classes, self.normals = classes, normals
        self.confusion = torch.zeros(classes, classes, dtype=torch.long)
        self.depth = torch.zeros(3, dtype=torch.float64)  # sum of |e|, sum of |e| / d, pixels
        self.angles = torch.zeros(BINS, dtype=torch.long)
        self.angle_sum = 0.0
        self.below = torch.zeros(len(WITHIN), dtype=torch.long)

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""
        label = batch["segmentation"]
        if (label != IGNORED).any():
            self.confusion += multiclass_confusion_matrix(
                outputs[0].argmax(1), label, self.classes, ignore_index=IGNORED, validate_args=False
            ).cpu()
        known = known_depth(batch["depth"])
        truth = batch["depth"][known].double()
        error = (outputs[1].float()[known].double() - truth).abs()
        self.depth += torch.stack([error.sum(), (error / truth).sum(), known.sum().double()]).cpu()
        if self.normals:
            known = known_normals(batch["normals"])
            cosine = (outputs[2].float() * batch["normals"]).sum(1)[known].double()
            angle = cosine.clamp(-1, 1).acos().rad2deg().cpu()
            self.angle_sum += float(angle.sum())
            self.below += torch.stack([(angle < limit).sum() for limit in WITHIN])
            place = (angle * (BINS / 180)).long().clamp(max=BINS - 1)
            self.angles += torch.bincount(place, minlength=BINS)

    def compute(self) -> dict[str, float]:
        """Return every metric of `metrics`."""
        found = dict.fromkeys(metrics(self.normals), math.nan)
        n = self.confusion.double()
        if n.sum() > 0:
            right, union = n.diag(), n.sum(0) + n.sum(1) - n.diag()
            found["miou"] = float((right / union)[union > 0].mean())
            found["pixel_accuracy"] = float(right.sum() / n.sum())
        absolute, relative, pixels = self.depth.tolist()
        if pixels:
            found["abs_err"], found["rel_err"] = absolute / pixels, relative / pixels
        if count := int(self.angles.sum()):
            found["normal_mean"] = self.angle_sum / count
            found["normal_median"] = self._median(count)
            for limit, below in zip(WITHIN, self.below.tolist(), strict=True):
                found[f"within_{limit:g}"] = below / count
        return found

    def _median(self, count: int) -> float:
        """Return the mean of the two middle angles, each as its bin's centre."""
        ranks = torch.tensor([(count - 1) // 2, count // 2])
        bins = torch.searchsorted(self.angles.cumsum(0), ranks, right=True)
        return float((bins + 0.5).double().mean()) * 180 / BINS
