"""IMTL-G: the direction that improves all objectives alike, per unit of gradient."""

from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import equal_projections


class IMTLG(Weighting):
    r"""Follow the combination of the gradients that has equal projections on all of them.

    .. math:: \Bigl\langle \textstyle\sum_j w_j g_j,\ g_k / \|g_k\| \Bigr\rangle = \text{const}
        \quad\text{for all } k, \qquad \textstyle\sum_k w_k = 1

    The paper's closed form inverts a matrix of K - 1 differences. The same weights are those of the
    point nearest to the origin in the affine hull of the unit gradients, which exists for dependent
    gradients too: `mtbench.balancing.solvers.equal_projections`.

    Deviations: the constant is never negative and the weights are bounded. Where the paper's
    formula, from K = 3 on, has weights of both signs that nearly cancel in the sum or outweigh it,
    :math:`\sum_k |w_k|` is 10; the paper's step would be without bound, or make every objective
    worse.

    Scale: where no weight is negative, d is no longer than the longest gradient, and for equal
    gradients it is the mean, 1/K of ``ew``'s.

    Example:
        Lengths 1 and 2: the weights are as 1 to 1/2.

        >>> import torch
        >>> IMTLG(2).weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.ones(2))
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    paper = "Liu et al., ICLR 2021, openreview IMPnRXEWpvr"
    passes = "F + H + K E"
    checked_against = "the paper's closed form in gradient space; torchjd 0.18"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of the direction of equal projections."""
        return equal_projections(gramian)
