"""PCGrad: project conflicting gradients onto each other's normal plane."""

import torch
from torch import Tensor

from mtbench.balancer import Weighting


class PCGrad(Weighting):
    r"""Sum the objectives' gradients after each has been projected away from those it opposes.

    For every i, with the other objectives j in random order, starting from
    :math:`g_i^{PC} = g_i`:

    .. math:: g_i^{PC} \leftarrow g_i^{PC} - \frac{\min(0, \langle g_i^{PC}, g_j\rangle)}
        {\|g_j\|^2}\, g_j

    g_j is the original gradient, also where j comes before i. The direction is
    :math:`\sum_i g_i^{PC}`; without a conflict it is that of ``ew``. Every projection stays in the
    span of the gradients, so coefficients on the Gramian suffice.

    Example:
        g_1 = (1, 0) and g_2 = (-1, 1) become (1/2, 1/2) and (0, 1).

        >>> method = PCGrad(2)
        >>> method.weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), torch.ones(2))
        tensor([2.0000, 1.5000])
    """

    paper = "Yu et al., NeurIPS 2020, arXiv 2001.06782, Algorithm 1"
    checked_against = "textbook twin in gradient space; torchjd 0.18; LibMTL 1.1.5"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return, per objective, how often its gradient is in the sum of the projected ones."""
        K = len(gramian)
        orders = torch.rand(K, K, generator=self.generator).argsort(dim=1)
        return project(gramian, orders)


def project(gramian: Tensor, orders: Tensor) -> Tensor:
    """Return the weights (K,) for orders (K, K): row i is the order of i's projections."""
    K = len(gramian)
    rows = torch.arange(K)
    coefficients = torch.eye(K, dtype=gramian.dtype)  # row i: g_i^PC in terms of the gradients
    for others in orders.T:  # all i at once, each with the j that is its turn
        inner = (coefficients * gramian[others]).sum(1).masked_fill(others == rows, 0)
        coefficients[rows, others] -= inner.clamp(max=0) / gramian.diagonal()[others]
    return coefficients.sum(0)
