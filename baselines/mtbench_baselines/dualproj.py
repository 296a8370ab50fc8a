"""DualProj: the mean gradient, projected to where it harms no objective."""

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import cone_projections


class DualProj(Weighting):
    r"""Follow the projection of the mean gradient on the gradients' dual cone.

    .. math:: \min_d \|d - g_0\| \quad\text{s.t.}\quad \langle g_k, d\rangle \ge 0
        \text{ for all } k, \qquad g_0 = \tfrac1K \textstyle\sum_k g_k

    GEM projects the gradient of a new task so that no old one loses (eq. 11); with objectives in
    the place of tasks and g_0 in that of the new gradient it is the A_DualProj that UPGrad's
    authors compare with. Exact: `mtbench.solvers.cone_projections`.

    Scale: the mean, 1/K of ``ew``'s step where g_0 harms nothing.

    Example:
        g_1 = (1, 0) and g_2 = (-4, 1) have the mean (-3/2, 1/2), which harms g_1.

        >>> DualProj(2).weights(torch.tensor([[1.0, -4.0], [-4.0, 17.0]]), torch.ones(2))
        tensor([2.0000, 0.5000], dtype=torch.float64)
    """

    paper = "Lopez-Paz and Ranzato, NeurIPS 2017, arXiv 1706.08840, eq. 11; arXiv 2406.16232"
    checked_against = "scipy's nnls in gradient space; torchjd 0.18 with its regularisation off"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of the projected mean."""
        K = len(gramian)
        return cone_projections(gramian, torch.full((1, K), 1 / K, dtype=torch.float64))[0]
