"""Uncertainty weighting: every objective's noise variance is learnt with the model."""

import torch
from torch import Tensor, nn

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step


class UncertaintyWeighting(Scalarizer):
    r"""Minimise :math:`\sum_k e^{-s_k} L_k + s_k / 2` over the model and s.

    :math:`s_k = \log \sigma_k^2` is objective k's log noise variance, (K,), 0 at the start as in
    the paper, and a trainable parameter: hand ``balancer.parameters()`` to the optimizer.

    The paper (eq. 7 and 10) has :math:`L / (2\sigma^2) + \log\sigma` for a regression with the
    squared error L, and :math:`L / \sigma^2 + \log\sigma` for a classification with the
    cross-entropy L. Both are the formula above if a regression's loss is half the squared error,
    its negative log likelihood at unit variance; the factor is the task's to choose. For a loss of
    another kind the formula is a heuristic, whose optimal weight is :math:`e^{-s_k} = 1 / 2L_k`.

    Deviation: where a loss is exactly 0 (no label in this batch) its s_k is left out too, which
    would otherwise fall for as long as labels are missing.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> method = UncertaintyWeighting(2)
        >>> method.backward(Step([x[0] ** 2, 3 * x[1]], shared=[x]))
        tensor([1., 1.])
        >>> method.log_variance.grad  # 1/2 - L_k
        tensor([-0.5000, -2.5000])
    """

    paper = "Kendall et al., CVPR 2018, arXiv 1705.07115, eq. 10"
    checked_against = "torchjd 0.18; LibMTL 1.1.5 (both with half the loss)"

    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__(num_objectives, seed)
        self.log_variance = nn.Parameter(torch.zeros(num_objectives))

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the joint negative log likelihood, and the weights exp(-s)."""
        weights = torch.exp(-self.log_variance)
        labelled = (step.values != 0).to(self.log_variance)
        return step.total(weights) + (labelled * self.log_variance).sum() / 2, weights
