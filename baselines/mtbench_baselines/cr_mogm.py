"""CR-MOGM: a running average of any method's weights."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.wrapper import WeightingWrapper
from mtbench_baselines._checks import fraction

if TYPE_CHECKING:
    from optuna import Trial


class CRMOGM(WeightingWrapper):
    r"""Average the base's weights over the steps of training.

    .. math:: \lambda \leftarrow \alpha \lambda + (1 - \alpha) \hat\lambda

    with :math:`\hat\lambda` the base's weights for this step, and from its first weights on.
    Weights of a noisy Gramian correlate with the noise of the gradients that they are applied to;
    averaged ones do so less.

    Deviations: alpha is constant; the paper's analysis lets it tend to 1. The weight of an
    objective without a gradient is 0 in this step, and its average stays.

    Args:
        base: a method on the Gramian.
        seed: unused.
        alpha: memory; in [0, 1).

    Example:
        >>> from mtbench_baselines.mgda import MGDA
        >>> method = CRMOGM(MGDA(2), alpha=0.5)
        >>> for G in (torch.diag(torch.tensor([1.0, 4.0])), torch.eye(2)):
        ...     method.weights(G.double(), torch.ones(2))  # of (0.8, 0.2), then of (0.5, 0.5)
        tensor([0.8000, 0.2000], dtype=torch.float64)
        tensor([0.6500, 0.3500], dtype=torch.float64)
    """

    paper = (
        "Zhou et al., On the Convergence of Stochastic Multi-Objective Gradient Manipulation and "
        "Beyond, NeurIPS 2022"
    )
    checked_against = "torchjd 0.18"
    on_host = ("average", "started")

    average: Tensor
    started: Tensor

    def __init__(self, base: Balancer, seed: int = 0, *, alpha: float = 0.9) -> None:
        super().__init__(base, seed)
        fraction(self, alpha=alpha)
        self.alpha = alpha
        self.register_buffer(
            "average", torch.zeros(self.num_objectives, dtype=torch.float64, device="cpu")
        )
        self.register_buffer(
            "started", torch.zeros(self.num_objectives, dtype=torch.bool, device="cpu")
        )

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw 1 - alpha log-uniformly from [0.001, 1]."""
        return {"alpha": 1 - trial.suggest_float("one_minus_alpha", 1e-3, 1.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the averaged weights."""
        live = gramian.diagonal() > 0
        found = self.base.weigh(gramian, losses).to(gramian)
        average = torch.where(self.started, self.average, found)
        average = torch.where(live, self.alpha * average + (1 - self.alpha) * found, average)
        self.average.copy_(average)
        self.started |= live
        return average * live
