"""gramian_ema: the base sees a running average of the Gramian."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.wrapper import WeightingWrapper
from mtbench_baselines._checks import fraction

if TYPE_CHECKING:
    from optuna import Trial


class GramianEMA(WeightingWrapper):
    r"""Ask the base for the weights of a running average of the Gramian, K x K numbers of memory.

    With :math:`a \in \{0, 1\}^K` saying which objectives have a gradient in this step, and M, c 0
    at the start:

    .. math:: M \leftarrow \beta M + (1 - \beta) G, \qquad c \leftarrow \beta c + (1 - \beta) a,
        \qquad \bar G_{ij} = \frac{M_{ij}}{\sqrt{c_i c_j}}

    c corrects for the start, and for steps without a gradient; G-bar is positive semidefinite
    always. The weights change slowly; the gradients that they are applied to are the present ones.
    An objective without a gradient is left out of what the base sees.

    Args:
        base: a method on the Gramian.
        seed: unused.
        beta: memory; in [0, 1).

    Example:
        >>> from mtbench_baselines.mgda import MGDA
        >>> method = GramianEMA(MGDA(2), beta=0.5)
        >>> for G in (torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([4.0, 4.0]))):
        ...     method.weights(G.double(), torch.ones(2))  # of (1, 4), then of (3, 4)
        tensor([0.8000, 0.2000], dtype=torch.float64)
        tensor([0.5714, 0.4286], dtype=torch.float64)
    """

    paper = "ours; a running average as in Adam, of the Gramian"
    checked_against = "the definition"
    on_host = ("average", "presence")

    average: Tensor
    presence: Tensor

    def __init__(self, base: Balancer, seed: int = 0, *, beta: float = 0.9) -> None:
        super().__init__(base, seed)
        fraction(self, beta=beta)
        self.beta = beta
        K = self.num_objectives
        self.register_buffer("average", torch.zeros(K, K, dtype=torch.float64, device="cpu"))
        self.register_buffer("presence", torch.zeros(K, dtype=torch.float64, device="cpu"))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw 1 - beta log-uniformly from [0.001, 1]."""
        return {"beta": 1 - trial.suggest_float("one_minus_beta", 1e-3, 1.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the base's weights for the averaged Gramian."""
        live = (gramian.diagonal() > 0).to(gramian)
        self.average.mul_(self.beta).add_((1 - self.beta) * gramian)
        self.presence.mul_(self.beta).add_((1 - self.beta) * live)
        scale = live * self.presence.clamp(min=1 - self.beta).rsqrt()
        return self.base.weigh(self.average * scale[:, None] * scale, losses)
