"""SI: the sum of the losses' logarithms, which no loss's unit can change."""

from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step

_LEAST = 1e-20


class ScaleInvariant(Scalarizer):
    r"""Minimise :math:`\sum_k \log L_k`, whose gradient is :math:`\sum_k \nabla L_k / L_k`.

    Multiplying a loss by a constant changes nothing.

    A loss of exactly 0 (no label in this batch) is left out. A loss that is negative has no
    logarithm: it is descended with weight :math:`1 / |L_k|`. Both are our decisions.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> ScaleInvariant(2).backward(Step([4 * x[0], 0.5 * x[1]], shared=[x]))
        tensor([0.2500, 2.0000], dtype=torch.float64)
        >>> x.grad
        tensor([1., 1.])
    """

    paper = "the scale-invariant baseline of Navon et al., ICML 2022, arXiv 2202.01017"
    checked_against = "its formula by autograd"

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return a sum with that gradient, and the weights 1 / L."""
        losses = step.values.double()
        weights = (1 / losses.abs().clamp(min=_LEAST)).masked_fill(losses == 0, 0)
        return step.total(weights), weights
