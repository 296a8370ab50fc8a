"""EDM: the direction that decreases all objectives alike, for the lengths of their gradients."""

from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import min_norm


class EDM(Weighting):
    r"""Follow the shortest convex combination of the gradients' directions.

    .. math:: \min_{w \ge 0,\ \sum_k w_k = 1} \Bigl\| \sum_k w_k u_k \Bigr\|^2, \quad
        u_k = \frac{g_k}{\|g_k\|}, \qquad
        d = \gamma \sum_k w_k u_k, \quad \frac1\gamma = \sum_k \frac{w_k}{\|g_k\|}

    d makes one angle with all gradients that have a weight, and a smaller one with the others. As
    gamma is chosen, d is a convex combination of the gradients themselves; the direction is that of
    ``unit+mgda``. ``mgda`` with ``normalise=l2`` applies w to the gradients instead. Where every
    objective has a weight, as always at K = 2, this is ``imtl_g``, which takes negative weights
    elsewhere.

    Deviations: the minimum is exact (the authors' Frank-Wolfe is approximate). The paper itself
    could not be read. For two objectives the rule is that of the authors' demonstration; for more
    it is that of others' code, which names the authors' as its source.

    Example:
        Gradients (1, 0) and (0, 2): w = (1, 1) / 2, gamma = 4/3, and d = (2, 2) / 3.

        >>> import torch
        >>> EDM(2).weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]).double(), torch.ones(2))
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    paper = "Katrutsa et al., 2020, arXiv 2007.06937, second-hand"
    checked_against = "scipy SLSQP in gradient space; unit+mgda for the direction"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of d."""
        lengths = gramian.diagonal().double().sqrt()
        weights = min_norm(gramian / lengths[:, None] / lengths) / lengths
        return weights / weights.sum()
