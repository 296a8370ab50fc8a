"""The metrics of both objectives."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_f1_score,
    multiclass_recall,
)

from mtbench.training.task import Batch, Meter, Metric


def metrics(grades: Sequence[str]) -> dict[str, Metric]:
    """Return what is measured, by name."""
    risk = {f"auroc[{grade}]": Metric("risk") for grade in grades} if len(grades) > 2 else {}
    return {
        "dice": Metric("segmentation", primary=True),
        "iou": Metric("segmentation"),
        "hd95": Metric("segmentation", higher_is_better=False),
        "auroc": Metric("risk", primary=True),
        "balanced_accuracy": Metric("risk"),
        "macro_f1": Metric("risk"),
        "kappa": Metric("risk"),
        "calibration_error": Metric("risk", higher_is_better=False),
        "auroc_high": Metric("risk"),
        **risk,
    }


class LesionMeter(Meter):
    """Dice, IoU, 95 % Hausdorff distance; AUROC and the other scores of the category.

    Mask metrics are means over images, on the network's grid, the distance in its pixels; an empty
    prediction is as far away as the image's diagonal. AUROC is the mean, over the grades that occur
    and are not all there is, of one grade against the rest; ``auroc_high`` is that of the summed
    probability of the grades from `high` on.
    """

    def __init__(self, grades: Sequence[str], high: int) -> None:
        self.grades, self.high = tuple(grades), high
        self.overlaps: list[Tensor] = []
        self.probabilities: list[Tensor] = []
        self.categories: list[Tensor] = []

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch; cases without a label are left out of its objective."""
        known = batch["has_mask"]
        predicted, truth = (outputs[0][known] > 0).cpu(), (batch["mask"][known] > 0.5).cpu()
        if len(truth):
            self.overlaps.append(_overlap(predicted, truth))
        graded = batch["category"] >= 0
        self.probabilities.append(outputs[1].logits[graded].float().softmax(1).cpu())
        self.categories.append(batch["category"][graded].cpu())

    def compute(self) -> dict[str, float]:
        """Return every metric of `metrics`."""
        found = dict.fromkeys(metrics(self.grades), math.nan)
        if self.overlaps:
            means = torch.cat(self.overlaps).double().mean(0).tolist()
            found.update(zip(("dice", "iou", "hd95"), means, strict=True))
        p, y = torch.cat(self.probabilities), torch.cat(self.categories)
        if len(y) == 0:
            return found
        count = len(self.grades)
        each = [_auroc(p[:, c], y == c) for c in range(count)]
        defined = [value for value in each if not math.isnan(value)]
        found["auroc"] = sum(defined) / len(defined) if defined else math.nan
        found["auroc_high"] = _auroc(p[:, self.high :].sum(1), y >= self.high)
        if count > 2:
            found.update({f"auroc[{g}]": v for g, v in zip(self.grades, each, strict=True)})
        present = y.unique()
        recall = multiclass_recall(p, y, num_classes=count, average="none")
        f1 = multiclass_f1_score(p, y, num_classes=count, average="none")
        found["balanced_accuracy"] = float(recall[present].mean())
        found["macro_f1"] = float(f1[present].mean())
        if len(present) > 1:
            found["kappa"] = float(
                multiclass_cohen_kappa(p, y, num_classes=count, weights="quadratic")
            )
        found["calibration_error"] = float(multiclass_calibration_error(p, y, num_classes=count))
        return found


def _auroc(score: Tensor, positive: Tensor) -> float:
    if positive.all() or not positive.any():
        return math.nan
    return float(binary_auroc(score, positive.long()))


def _overlap(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return Dice, IoU and the Hausdorff distance of each image, (B, 3)."""
    both = (predicted & truth).sum((1, 2, 3))
    either = (predicted | truth).sum((1, 2, 3))
    dice = 2 * both / (both + either).clamp_min(1)
    iou = both / either.clamp_min(1)
    with warnings.catch_warnings():  # MONAI warns of empty masks, which are handled below
        warnings.simplefilter("ignore")
        distance = compute_hausdorff_distance(
            predicted, truth, include_background=True, percentile=95
        )
    diagonal = math.hypot(*truth.shape[-2:])
    distance = torch.nan_to_num(distance.flatten(), nan=diagonal, posinf=diagonal)
    return torch.stack([dice, iou, distance.to(dice)], 1)
