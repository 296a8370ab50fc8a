"""GLS: the geometric mean of the losses."""

from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step

_LEAST = 1e-20


class GeometricLoss(Scalarizer):
    r"""Minimise :math:`G = \bigl(\prod_k L_k\bigr)^{1/K}`, the geometric mean.

    Its gradient is :math:`\sum_k w_k \nabla L_k` with

    .. math:: w_k = \frac{G}{K L_k}

    so the direction is that of ``si``, and the length falls with the losses.

    A loss of exactly 0 (no label in this batch) would make G zero and hide all others: the mean is
    taken over the rest. Of a negative loss the absolute value counts in w. Both are our decisions.

    Example:
        >>> import torch
        >>> x = torch.tensor([4.0, 1.0], requires_grad=True)
        >>> GeometricLoss(2).backward(Step([x[0], x[1]], shared=[x]))  # G = 2
        tensor([0.2500, 1.0000], dtype=torch.float64)
    """

    paper = "Chennupati et al., CVPR Workshops 2019, arXiv 1904.08492"
    checked_against = "torchjd 0.18; LibMTL 1.1.5"

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return a sum with that gradient, and the weights w."""
        losses = step.values.double()
        sizes = losses.abs().clamp(min=_LEAST)
        labelled = losses != 0
        count = labelled.sum().clamp(min=1)
        mean = (sizes.log().masked_fill(~labelled, 0).sum() / count).exp()
        weights = (mean / (count * sizes)).masked_fill(~labelled, 0)
        return step.total(weights), weights
