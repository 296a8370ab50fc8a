"""The losses of MTAN-style work; each is a mean over the pixels of the batch that have a label.

Where no pixel has one, a loss is zero, on the graph. What is not known may be NaN as well as 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mtbench.training.data import mean_where

IGNORED = -1
"""The label of a pixel whose class is not known."""


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of (B, C, H, W) logits with (B, H, W) labels."""
    # Torch's loss over planes is not deterministic on a GPU; that over a list of pixels is.
    pixels, label = logits.float().movedim(1, -1).flatten(0, -2), label.flatten()
    total = F.cross_entropy(pixels, label, ignore_index=IGNORED, reduction="sum")
    return total / (label != IGNORED).sum().clamp(min=1)


def depth_loss(depth: Tensor, truth: Tensor) -> Tensor:
    """Return the mean absolute error of depth, (B, 1, H, W)."""
    known = known_depth(truth)
    return mean_where(known, (depth.float() - torch.where(known, truth, 0)).abs())


def normals_loss(normals: Tensor, truth: Tensor) -> Tensor:
    """Return 1 minus the mean inner product of normals, (B, 3, H, W)."""
    known = known_normals(truth)
    inner = normals.float() * torch.where(known[:, None], truth, 0)
    return mean_where(known, 1 - inner.sum(1))


def known_depth(truth: Tensor) -> Tensor:
    """Return which pixels have a depth, in its own shape."""
    return truth > 0


def known_normals(truth: Tensor) -> Tensor:
    """Return which pixels have a normal, (B, H, W)."""
    return truth.abs().sum(1) > 0
