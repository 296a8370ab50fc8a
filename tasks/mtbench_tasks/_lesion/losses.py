"""The losses of both objectives; a case without a label is left out of its objective."""

from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.nn import functional as F

_dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)


def segmentation_loss(logits: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Return Dice + cross-entropy over the cases with a mask; zero, on the graph, without any."""
    if not known.any():
        return logits.sum() * 0
    logits, mask = logits[known].float(), mask[known]
    dice: Tensor = _dice(logits, mask)
    return dice + F.binary_cross_entropy_with_logits(logits, mask)


def grade_loss(logits: Tensor, category: Tensor, kind: str) -> Tensor:
    """Return the loss over the cases with a category; zero, on the graph, without any."""
    known = category >= 0
    if not known.any():
        return logits.sum() * 0
    logits, category = logits[known].float(), category[known]
    if kind == "ce":
        return F.cross_entropy(logits, category)
    at_most = F.one_hot(category, logits.shape[1]).cumsum(1)
    return (logits.softmax(1).cumsum(1) - at_most).square().sum(1).mean()


def guidance_loss(guided: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over the known entries; zero, on the graph, without any."""
    known = ~target.isnan()
    if not known.any():
        return guided.sum() * 0
    return F.mse_loss(guided[known].float(), target[known])
