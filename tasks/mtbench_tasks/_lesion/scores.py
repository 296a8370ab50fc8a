"""The metrics of both objectives."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_f1_score,
    multiclass_recall,
)

from mtbench.training.task import Batch, Meter, Metric
from mtbench_tasks._lesion.grid import Placement


def metrics(grades: Sequence[str]) -> dict[str, Metric]:
    """Return what is measured, by name."""
    risk = {f"auroc[{grade}]": Metric("risk") for grade in grades} if len(grades) > 2 else {}
    return {
        "dice": Metric("segmentation", primary=True),
        "iou": Metric("segmentation"),
        "hd95": Metric("segmentation", higher_is_better=False),
        "hd95_mm": Metric("segmentation", higher_is_better=False),
        "auroc": Metric("risk", primary=True, chance=0.5),
        "balanced_accuracy": Metric("risk"),
        "macro_f1": Metric("risk"),
        "kappa": Metric("risk"),
        "calibration_error": Metric("risk", higher_is_better=False),
        "auroc_high": Metric("risk"),
        **risk,
    }


class LesionMeter(Meter):
    """Dice, IoU, 95 % Hausdorff distance; AUROC and the other scores of the category.

    Mask metrics are means over images, at each one's own resolution, to which the logits are
    interpolated; the distance is in its pixels, and in millimetres over those images whose spacing
    is known. An empty prediction is as far away as the image's diagonal. These masks are those
    before `ensemble.regions_of` leaves small regions out, as `predict` and `evaluate` do. AUROC is
    the mean, over the grades that occur and are not all there is, of one grade against the rest;
    ``auroc_high`` is that of the summed probability of the grades from `high` on.
    """

    def __init__(self, grades: Sequence[str], high: int) -> None:
        self.grades, self.high = tuple(grades), high
        self.overlaps: list[tuple[float, ...]] = []
        self.probabilities: list[Tensor] = []
        self.categories: list[Tensor] = []

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch; cases without a label are left out of its objective."""
        planes, known = outputs[0].float().cpu(), batch["has_mask"].tolist()
        spacing = batch["spacing"].tolist()
        for i in (i for i, here in enumerate(known) if here):
            plane, truth, mm = planes[i], batch["masks"][i], spacing[i]
            placement = Placement((truth.shape[0], truth.shape[1]), plane.shape[-1])
            dice, iou, distance = overlap(placement.from_grid(plane[0]) > 0, truth)
            self.overlaps.append((dice, iou, distance, mm * distance))
        graded = batch["category"] >= 0
        self.probabilities.append(outputs[1].logits[graded].float().softmax(1).cpu())
        self.categories.append(batch["category"][graded].cpu())

    def compute(self) -> dict[str, float]:
        """Return every metric of `metrics`."""
        found = dict.fromkeys(metrics(self.grades), math.nan)
        if self.overlaps:
            means = torch.tensor(self.overlaps, dtype=torch.double).nanmean(0).tolist()
            found.update(zip(("dice", "iou", "hd95", "hd95_mm"), means, strict=True))
        p, y = torch.cat(self.probabilities), torch.cat(self.categories)
        if len(y) == 0:
            return found
        count = len(self.grades)
        each = [_auroc(p[:, c], y == c) for c in range(count)]
        defined = [value for value in each if not math.isnan(value)]
        found["auroc"] = sum(defined) / len(defined) if defined else math.nan
        score = p[:, self.high :].double().sum(1).clamp(max=1)  # above 1 it is taken for logits
        found["auroc_high"] = _auroc(score, y >= self.high)
        if count > 2:
            found.update({f"auroc[{g}]": v for g, v in zip(self.grades, each, strict=True)})
        present = y.unique()
        recall = multiclass_recall(p, y, num_classes=count, average="none")
        f1 = multiclass_f1_score(p, y, num_classes=count, average="none")
        found["balanced_accuracy"] = float(recall[present].mean())
        found["macro_f1"] = float(f1[present].mean())
        found["kappa"] = kappa(torch.stack([p.argmax(1), y], 1), count)
        found["calibration_error"] = float(multiclass_calibration_error(p, y, num_classes=count))
        return found


def kappa(said: Tensor, grades: int) -> float:
    """Return the quadratic-weighted kappa of two raters' categories, (N, 2).

    It is NaN where both say one and the same throughout.
    """
    if len(said.unique()) < 2:
        return math.nan
    first, second = said.T
    return float(multiclass_cohen_kappa(first, second, num_classes=grades, weights="quadratic"))


def _auroc(score: Tensor, positive: Tensor) -> float:
    if positive.all() or not positive.any():
        return math.nan
    return float(binary_auroc(score, positive.long()))


def overlap(predicted: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """Return Dice, IoU and the Hausdorff distance of an image's masks, (H, W)."""
    both = int((predicted & truth).sum())
    either = int((predicted | truth).sum())
    seen = predicted.any() and truth.any()
    distance = _apart(predicted, truth) if seen else math.hypot(*truth.shape)
    return 2 * both / max(both + either, 1), both / max(either, 1), distance


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the 95 % Hausdorff distance of two masks' contours, (H, W), in pixels.

    It is MONAI's number: MONAI takes 5 ms for it, half of the time that a small cell needs.
    """
    # No k-d tree: scipy's dies at points on 0 where denormals are flushed, as they are here.
    masks = np.stack([one.numpy(), other.numpy()])
    (box,) = ndimage.find_objects(masks.any(0).astype(np.uint8))
    edges = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in masks]
    return max(
        float(np.percentile(ndimage.distance_transform_edt(~there)[here], 95))
        for here, there in (edges, edges[::-1])
    )
