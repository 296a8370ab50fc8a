"""IMTL-L: a learnt scale for every loss that brings all of them to 1."""

import torch
from torch import Tensor, nn

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step


class IMTLLoss(Scalarizer):
    r"""Minimise :math:`\sum_k e^{s_k} L_k - s_k` over the model and s.

    :math:`s_k`, (K,), 0 at the start, is a trainable parameter: hand ``balancer.parameters()`` to
    the optimizer. Its optimum is :math:`e^{s_k} = 1 / L_k`, where every scaled loss is 1. With s
    negated and the objective halved this is ``uw`` for half the losses.

    Where a loss is exactly 0 (no label in this batch) or negative, no scale would bring it to 1:
    its s_k is left alone in that step, which is our decision.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> method = IMTLLoss(2)
        >>> method.backward(Step([x[0] ** 2, 3 * x[1]], shared=[x]))
        tensor([1., 1.])
        >>> method.log_scale.grad  # L_k - 1
        tensor([0., 2.])
    """

    paper = "Liu et al., ICLR 2021 (openreview IMPnRXEWpvr), IMTL-L"
    checked_against = "torchjd 0.18"

    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__(num_objectives, seed)
        self.log_scale = nn.Parameter(torch.zeros(num_objectives))

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the scaled sum with its regulariser, and the scales."""
        learnt = torch.where(step.values > 0, self.log_scale, self.log_scale.detach())
        scales = learnt.exp()
        return step.total(scales) - learnt.sum(), scales
