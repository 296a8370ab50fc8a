"""IMTL: equal projections on the shared parameters, and losses scaled to 1."""

from typing import get_args

import torch
from torch import Tensor, nn

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import equal_projections
from mtbench.balancing.step import Space, Step
from mtbench_baselines._checks import one_of


class IMTL(Weighting):
    r"""Balance the losses by learnt scales, and the scaled losses' gradients by their projections.

    Both halves of the paper at once. The losses are scaled to :math:`e^{s_k} L_k` (``imtl_l``); on
    the shared parameters the scaled losses' gradients are summed with the weights alpha that make
    the sum's projections on all of them equal (``imtl_g``,
    `mtbench.balancing.solvers.equal_projections`):

    .. math:: d = \sum_k \alpha_k e^{s_k} g_k, \qquad
        \langle d, g_k \rangle / \|g_k\| = \text{const}, \qquad \sum_k \alpha_k = 1

    while head k gets the gradient of :math:`e^{s_k} L_k`, and s_k that of
    :math:`e^{s_k} L_k - s_k`. The scales leave the direction of d as it is, since equal projections
    ask for directions only, and change its length (the solver's page says what becomes of a sum of
    weights that is not positive). :math:`s_k`, 0 at the start, is a trainable
    parameter: hand ``balancer.parameters()`` to the optimizer.

    Where a loss is exactly 0 (no label in this batch) or negative, its s_k is left alone, as with
    ``imtl_l``; an objective without a gradient is left out of d.

    Args:
        num_objectives: K.
        seed: unused.
        space: where projections are made equal; the paper takes ``features``, which costs one
            encoder backward, for an approximation of ``shared``.

    Example:
        Orthogonal gradients of lengths 1 and 2: d = (2/3, 2/3).

        >>> x = torch.ones(2, requires_grad=True)
        >>> method = IMTL(2)
        >>> method.backward(Step([x[0], 2 * x[1]], shared=[x]))
        tensor([0.6667, 0.3333], dtype=torch.float64)
        >>> method.log_scale.grad  # L_k - 1
        tensor([0., 1.])
    """

    paper = "Liu et al., ICLR 2021 (openreview IMPnRXEWpvr), Algorithm 1"
    passes = "F + H + K E; with space=features, F + H + E"
    checked_against = "torchjd 0.18 (IMTL-G on scaled gradients); LibMTL 1.1.5"
    sees_zero_rows = True

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        space: Space = "shared",
    ) -> None:
        super().__init__(num_objectives, seed)
        one_of(self, get_args(Space), space=space)
        self.space = space
        self.log_scale = nn.Parameter(torch.zeros(num_objectives))

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return alpha times the scales; 0 for an objective without a gradient."""
        scales = self.log_scale.detach().exp().to(gramian)
        return scales * equal_projections(gramian * torch.outer(scales, scales))

    def write(self, step: Step, weights: Tensor) -> None:
        """Apply the weights, scale the heads' gradients, and give s its own."""
        step.backward(weights, self.space, head_weights=self.log_scale.detach().exp())
        positive = (step.values > 0).to(self.log_scale)
        step.descend((positive * (self.log_scale.exp() * step.values - self.log_scale)).sum())
