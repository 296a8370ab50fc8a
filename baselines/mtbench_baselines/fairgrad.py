"""FairGrad: alpha-fair shares of the improvement."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import fair_shares, shorten
from mtbench_baselines._checks import nonnegative, positive

if TYPE_CHECKING:
    from optuna import Trial


class FairGrad(Weighting):
    r"""Follow the direction whose improvements of the objectives are alpha-fair.

    .. math:: \max_{\|d\| \le \epsilon} \sum_k \frac{\langle g_k, d\rangle^{1-\alpha}}{1 - \alpha}
        \quad\Rightarrow\quad d = \textstyle\sum_k w_k g_k, \qquad
        (G w)_k = w_k^{-1/\alpha}, \quad w > 0

    with :math:`G = J J^\top`. alpha = 1 is Nash-MTL's direction; alpha to 0 is
    that of ``ew``, alpha to infinity makes all improvements equal. Solved to rounding while
    gradients' lengths differ by less than 1e3; how w stays bounded where they differ by more and
    point apart, or cancel: `mtbench.balancing.solvers.fair_shares`.

    Scale: the step is :math:`K d`, cut to the length max_norm, as in the authors' code; there a
    general least-squares solver with absolute tolerances finds w. :math:`\|d\|` grows as the
    gradients' scale to the power :math:`(1-\alpha)/(1+\alpha)`: for alpha > 1 they shrink, it
    grows, and the cut sets the length.

    Args:
        num_objectives: K.
        seed: unused.
        alpha: above 0; the authors' runs use 2.
        max_norm: the longest step; 0 for no limit.

    Example:
        One unit gradient and one of length 8: w = 1 and 64^(-2/3) = 1/16, times K = 2.

        >>> import torch
        >>> method = FairGrad(2, max_norm=0.0)
        >>> method.weights(torch.tensor([[1.0, 0.0], [0.0, 64.0]]), torch.ones(2))
        tensor([2.0000, 0.1250], dtype=torch.float64)
    """

    paper = "Ban and Ji, ICML 2024, arXiv 2402.15638, eq. 4"
    checked_against = "scipy's least_squares and SLSQP on the utility; torchjd 0.18"

    def __init__(
        self, num_objectives: int, seed: int = 0, *, alpha: float = 2.0, max_norm: float = 1.0
    ) -> None:
        super().__init__(num_objectives, seed)
        positive(self, alpha=alpha)
        nonnegative(self, max_norm=max_norm)
        self.alpha, self.max_norm = alpha, max_norm

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw alpha log-uniformly from [0.5, 10]."""
        return {"alpha": trial.suggest_float("alpha", 0.5, 10.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the fair weights, times K, cut to the longest step."""
        weights = fair_shares(gramian, 1 / self.alpha)
        return shorten(gramian, weights, self.max_norm, times=len(gramian))
