"""The losses of MTAN-style work; each is a mean over the pixels of the batch that have a label.

Where no pixel has one, a loss is zero, on the graph. What is not known may be NaN as well as 0.
"""

from torch import Tensor
from torch.nn import functional as F

IGNORED = -1
"""The label of a pixel whose class is not known."""


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of (B, C, H, W) logits with (B, H, W) labels."""
    known = label != IGNORED
    if not known.any():
        return logits.sum() * 0
    # Torch's loss over planes is not deterministic on a GPU; that over a list of pixels is.
    return F.cross_entropy(logits.float().movedim(1, -1)[known], label[known])


def depth_loss(depth: Tensor, truth: Tensor) -> Tensor:
    """Return the mean absolute error of depth, (B, 1, H, W)."""
    known = known_depth(truth)
    if not known.any():
        return depth.sum() * 0
    return (depth.float()[known] - truth[known]).abs().mean()


def normals_loss(normals: Tensor, truth: Tensor) -> Tensor:
    """Return 1 minus the mean inner product of normals, (B, 3, H, W)."""
    known = known_normals(truth)
    if not known.any():
        return normals.sum() * 0
    inner = normals.float().movedim(1, -1)[known] * truth.movedim(1, -1)[known]
    return 1 - inner.sum(-1).mean()


def known_depth(truth: Tensor) -> Tensor:
    """Return which pixels have a depth, in its own shape."""
    return truth > 0


def known_normals(truth: Tensor) -> Tensor:
    """Return which pixels have a normal, (B, H, W)."""
    return truth.abs().sum(1) > 0
