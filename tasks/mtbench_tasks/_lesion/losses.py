"""The losses of both objectives; a case without a label is left out of its objective.

Without any label a loss is zero, on the graph.
"""

import torch
from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from mtbench.training.data import known, mean_where

UNGRADED = -1
"""The category of a case whose grade is not known."""

_dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")


def segmentation_loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
    """Return Dice + cross-entropy over the cases with a mask."""
    logits, weight = logits.float(), has_mask[:, None, None, None].float()
    entropy = F.binary_cross_entropy_with_logits(logits, mask, weight=weight)  # over all cases
    share = has_mask.sum().clamp(min=1) / len(has_mask)
    return mean_where(has_mask, _dice(logits, mask)) + entropy / share


def grade_loss(logits: Tensor, category: Tensor, kind: str) -> Tensor:
    """Return the loss over the cases with a category."""
    logits, here = logits.float(), known(category)
    if kind == "ce":
        total = F.cross_entropy(logits, category, ignore_index=UNGRADED, reduction="sum")
        return total / here.sum().clamp(min=1)
    grades = torch.arange(logits.shape[1], device=logits.device)
    at_most = (category[:, None] <= grades).to(logits)  # `F.one_hot` would read the categories
    return mean_where(here, (logits.softmax(1).cumsum(1) - at_most).square().sum(1))


def guidance_loss(guided: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over the known entries."""
    here = ~target.isnan()
    target = torch.where(here, target, 0)
    return mean_where(here, F.mse_loss(guided.float(), target, reduction="none"))
