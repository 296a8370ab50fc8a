"""Equal weights: the plain sum of the losses."""

from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step


class EqualWeights(Scalarizer):
    r"""Minimise :math:`\sum_k L_k`, the plain multitask baseline.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> EqualWeights(2).backward(Step([x[0] ** 2, 3 * x[1]], shared=[x]))
        tensor([1., 1.])
        >>> x.grad
        tensor([2., 3.])
    """

    paper = "the common baseline; stated e.g. in Caruana, Machine Learning 28, 1997"
    checked_against = "torchjd 0.18"

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the sum, and weights of one."""
        return step.total(), step.ones
