"""DiBS-MTL: the sum of the normalised gradients."""

from torch import Tensor

from mtbench.balancing.balancer import Weighting


class DiBSMTL(Weighting):
    r"""Follow the sum of the gradients' directions, which no monotonic change of a loss can alter.

    .. math:: d = \sum_k \frac{g_k}{\|g_k\|}

    This is the single-step DiBS-MTL. Each objective prefers the point at distance r along its
    descent direction; the bargain moves from the present point against
    :math:`\sum_k \|\theta - \theta_k^\ast\|\, g_k / \|g_k\|`, and in the first step all distances
    are r.

    Deviations: r and the bargain's step size, constants on top of the learning rate, are 1; the
    heads get unweighted gradients (the authors' code weights them as well); its variant with
    several bargaining steps is left out.

    Example:
        >>> import torch
        >>> DiBSMTL(2).weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.ones(2))
        tensor([1.0000, 0.5000])
    """

    paper = "Murthy et al., 2025, arXiv 2509.23948, the single-step method"
    checked_against = "the definition"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the inverse norms."""
        return 1 / gramian.diagonal().sqrt()
