"""MGDA: descend along the shortest convex combination of the gradients."""

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import min_norm
from mtbench.balancing.step import Space
from mtbench_baselines._checks import one_of
from mtbench_baselines._norms import divisors

if TYPE_CHECKING:
    from optuna import Trial

Normalise = Literal["none", "l2", "loss", "loss+"]


class MGDA(Weighting):
    r"""Follow :math:`\sum_k w_k g_k`, the shortest vector in the gradients' convex hull.

    .. math:: \min_{w \ge 0,\ \sum_k w_k = 1} \Bigl\| \sum_k w_k\, g_k / n_k \Bigr\|^2

    The minimum is a common descent direction, or 0 where the parameters are Pareto stationary
    (Désidéri 2012). With ``normalise`` the weights are found for gradients divided by n_k and
    applied to the gradients themselves, as in Sener and Koltun's code:
    ``none`` 1, ``l2`` :math:`\|g_k\|`, ``loss`` :math:`|L_k|`, ``loss+`` :math:`|L_k| \|g_k\|`.

    Deviations: the minimum is exact (the paper's Frank-Wolfe is approximate); with ``normalise``
    the direction is the paper's code's, no longer the shortest vector; n_k = 0 counts as 1.

    Args:
        num_objectives: K.
        seed: unused.
        normalise: what gradients are divided by before the weights are sought.
        space: ``features`` is MGDA-UB (paper, section 3.3): the gradients are those at the
            features, and one encoder backward suffices.

    Example:
        >>> method = MGDA(2)
        >>> method.weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.ones(2))
        tensor([0.8000, 0.2000], dtype=torch.float64)
        >>> MGDA(2, normalise="l2").weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.ones(2))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    paper = "Désidéri, C. R. Math. 350, 2012; Sener and Koltun, NeurIPS 2018, arXiv 1810.04650"
    passes = "F + H + K E; with space=features, F + H + E"
    checked_against = "closed form at K = 2; torchjd 0.18 at scale 1; LibMTL 1.1.5, K = 2"

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        normalise: Normalise = "none",
        space: Space = "shared",
    ) -> None:
        super().__init__(num_objectives, seed)
        one_of(self, get_args(Normalise), normalise=normalise)
        one_of(self, get_args(Space), space=space)
        self.normalise, self.space = normalise, space

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the normalisation."""
        return {"normalise": trial.suggest_categorical("normalise", get_args(Normalise))}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the min-norm weights of the normalised gradients."""
        if self.normalise != "none":
            scale = torch.ones_like(losses)
            if self.normalise in ("l2", "loss+"):
                scale = scale * gramian.diagonal().sqrt()
            if self.normalise in ("loss", "loss+"):
                scale = scale * divisors(losses)
            gramian = gramian / torch.outer(scale, scale)
        return min_norm(gramian)
