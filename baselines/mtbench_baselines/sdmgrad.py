"""SDMGrad: the min-norm direction, pulled towards the mean gradient."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import min_norm
from mtbench_baselines._checks import nonnegative

if TYPE_CHECKING:
    from optuna import Trial


class SDMGrad(Weighting):
    r"""Follow the shortest direction that holds a fixed share of the mean gradient.

    .. math:: w = \operatorname*{arg\,min}_{w \ge 0,\ \sum_k w_k = 1} \tfrac12
        \bigl\| J^\top w + \lambda g_0 \bigr\|^2, \qquad
        d = \frac{J^\top w + \lambda g_0}{1 + \lambda}, \qquad g_0 = \tfrac1K \textstyle\sum_k g_k

    lambda = 0 is ``mgda``; as lambda grows, d tends to the mean. Where the minimum is not on the
    simplex's boundary, d improves every objective alike.

    d is the shortest vector in the hull of the points
    :math:`p_k = (g_k + \lambda g_0) / (1 + \lambda)`, found by
    `mtbench.balancing.solvers.min_norm`.

    Deviation: the paper's algorithm approaches w by some steps of projected gradient descent, from
    w of the step before, on products :math:`J J'^\top` of two independent batches, and applies it
    to a third. A step of training has one batch; on it, those steps tend to the minimum above.

    Args:
        num_objectives: K.
        seed: unused.
        strength: lambda, the pull of the mean gradient; at least 0.

    Example:
        Gradients (2, 0) and (0, 1): w would be (-1/10, 11/10) without its bounds, and is (0, 1).

        >>> SDMGrad(2, strength=1.0).weights(torch.diag(torch.tensor([4.0, 1.0])), torch.ones(2))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """

    paper = "Xiao et al., NeurIPS 2023, arXiv 2305.18409"
    checked_against = "torchjd 0.18, its inner loop run to the end; scipy SLSQP"

    def __init__(self, num_objectives: int, seed: int = 0, *, strength: float = 0.3) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, strength=strength)
        self.strength = strength

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw lambda log-uniformly from [0.01, 10]."""
        return {"strength": trial.suggest_float("strength", 1e-2, 10.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of d."""
        K = len(gramian)
        # Row k: (1 + lambda) p_k.
        mix = torch.eye(K, dtype=gramian.dtype, device="cpu") + self.strength / K
        mix = mix / (1 + self.strength)
        return mix.double().T @ min_norm(mix @ gramian @ mix.T)
