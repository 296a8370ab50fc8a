"""IMGrad: CAGrad, weighed by how far the mean gradient is from a common descent direction."""

from math import sqrt
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import cagrad, min_norm
from mtbench_baselines._checks import nonnegative

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-4


class IMGrad(Weighting):
    r"""Add to the mean gradient a combination for those objectives that it serves badly.

    With the mean gradient g_0, MGDA's direction m, and s their cosine,

    .. math:: \min_w\ (\tfrac32 - s)\, \langle g_w, g_0\rangle + s\, c\, \|g_0\| \|g_w\|, \qquad
        g_w = \sum_k w_k g_k, \quad w \ge 0, \quad \textstyle\sum_k w_k = 1

    .. math:: d = g_0 + c\, \|g_0\|\, \frac{g_w}{\|g_w\|}

    This is CAGrad's problem with the radius :math:`c s / (\tfrac32 - s)`, solved exactly by
    `mtbench.balancing.solvers.cagrad`; the combination is then taken at CAGrad's own length. The
    less the mean gradient agrees with a direction that is good for all, the more g_w is the
    gradient of the one objective that it serves worst. At s = 3/4 both methods are one. Fixed
    points are those of the mean loss, for c < 1.

    Scale: the step is :math:`K d / (1 + c^2)`, as for ``cagrad``.

    Deviations: the solutions are exact. A factor :math:`s / (\tfrac32 - s)` below 1e-4 counts as
    that. Our source is the authors' code for NYUv2; their code for Cityscapes differs, and the
    paper (eq. 11) has 1 in the place of 3/2.

    Args:
        num_objectives: K.
        seed: unused.
        c: how long the combination is, in units of the mean's norm; at least 0. The authors'
            runs have 0.8.

    Example:
        Gradients (1, 0) and (0, 2): m = (4, 2) / 5, at cosine 0.8 with g_0 = (1/2, 1); w = (1, 0),
        d = g_0 + (0.559, 0), times 2 / 1.25.

        >>> import torch
        >>> IMGrad(2).weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]).double(), torch.ones(2))
        tensor([1.6944, 0.8000], dtype=torch.float64)
    """

    paper = "Zhou et al., IJCAI 2025, arXiv 2503.08006, by the authors' code"
    checked_against = "scipy SLSQP on the code's objective; cagrad at s = 3/4"

    def __init__(self, num_objectives: int, seed: int = 0, *, c: float = 0.5) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, c=c)
        self.c = c

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw c from [0.1, 0.9]."""
        return {"c": trial.suggest_float("c", 0.1, 0.9)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of d, times K / (1 + c^2)."""
        K = len(gramian)
        G = gramian.double()
        pulls = G @ min_norm(G)
        along, mean_square = pulls.mean().item(), G.mean().item()
        shortest = pulls.min().item()  # ||m||^2: those with a weight all have it
        s = along / sqrt(mean_square * shortest) if min(mean_square, shortest) > 0 else 0.0
        s = min(max(s, 0.0), 1.0)
        factor = max(s / (1.5 - s), _LEAST)
        extra = (cagrad(G, self.c * factor) - 1 / K) / factor
        return (1 / K + extra) * (K / (1 + self.c**2))
