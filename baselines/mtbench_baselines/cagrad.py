"""CAGrad: the best worst-case improvement near the average gradient."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing import solvers
from mtbench.balancing.balancer import Weighting
from mtbench_baselines._checks import nonnegative

if TYPE_CHECKING:
    from optuna import Trial


class CAGrad(Weighting):
    r"""Follow the direction d that improves the worst objective most, in a ball around the mean.

    .. math:: \max_d \min_k \langle g_k, d\rangle \quad \text{s.t.}\quad \|d - g_0\| \le c\|g_0\|,
        \qquad g_0 = \tfrac1K \textstyle\sum_k g_k

    (paper, eq. 3), solved exactly by `mtbench.balancing.solvers.cagrad`. c = 0 is ``ew``; for c < 1
    the fixed points are those of the mean loss.

    Scale: the step is :math:`K d / (1 + c^2)`, as in the authors' code (``rescale=1``, then times K
    to match a sum of losses), so that c = 0 is the plain sum and not only parallel to it.

    Args:
        num_objectives: K.
        seed: unused.
        c: radius of the ball, in units of the mean's norm; at least 0.

    Example:
        Two orthogonal unit gradients: d = 3/2 g_0, times 2 / 1.25.

        >>> import torch
        >>> CAGrad(2).weights(torch.eye(2), torch.ones(2))
        tensor([1.2000, 1.2000], dtype=torch.float64)
    """

    paper = "Liu et al., NeurIPS 2021, arXiv 2110.14048, eq. 3 and Algorithm 1"
    checked_against = "scipy SLSQP in gradient space; torchjd 0.18 at scale 1; LibMTL 1.1.5, K = 3"

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
        # In numpy: after a solver's calls of it, one of torch's takes 10 microseconds.
        weights = solvers.cagrad(gramian, self.c).numpy()
        return torch.from_numpy(weights * (len(gramian) / (1 + self.c**2)))
