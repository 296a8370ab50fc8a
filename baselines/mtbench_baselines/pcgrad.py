"""PCGrad: project conflicting gradients onto each other's normal plane."""

import numpy as np
import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting


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
        orders = torch.rand(K, K, generator=self.generator, device="cpu").argsort(dim=1)
        return project(gramian, orders)


def project(gramian: Tensor, orders: Tensor) -> Tensor:
    """Return the weights (K,) for orders (K, K): row i is the order of i's projections."""
    G, turns = gramian.numpy(), orders.numpy()
    K = len(G)
    rows = np.arange(K)
    cosines = G / G.diagonal()[:, None]  # row j: <g_j, g_i> / |g_j|^2
    coefficients = np.eye(K)  # row i: g_i^PC in terms of the gradients
    for others in turns.T:  # all i at once, each with the j that is its turn
        inner = (coefficients * cosines[others]).sum(1)
        inner[others == rows] = 0
        coefficients[rows, others] -= np.minimum(inner, 0)
    return torch.from_numpy(coefficients.sum(0)).to(gramian)
