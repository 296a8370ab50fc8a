"""CoV-weighting: weigh every loss by how much it still varies."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import fraction

if TYPE_CHECKING:
    from optuna import Trial

_EPS = 1e-8


class CoVWeighting(Scalarizer):
    r"""Minimise :math:`\sum_k w_k L_k`, w_k the coefficient of variation of the loss ratio.

    With the loss ratio :math:`\ell_k^{(t)} = L_k^{(t)} / \mu_{L_k}^{(t-1)}`, the loss over its own
    mean so far,

    .. math:: w_k = \frac{c_k}{\sum_j c_j}, \qquad
        c_k = \frac{\sigma_{\ell_k}}{\mu_{\ell_k}}

    where the mean and the standard deviation, :math:`\sqrt{\mathrm{var} + 10^{-8}}`, are over all
    steps before this one (Welford's algorithm). A loss that has stopped to move has nothing left to
    learn. In the first two steps every weight is 1/K.

    Deviations:
        - c_k is taken by its absolute value: losses may be negative.
        - An objective whose loss is exactly 0 (no label in this batch) is left out of the weights
          and of its own statistics. Until each that is there has had two labels, all weigh alike.

    Args:
        num_objectives: K.
        seed: unused.
        decay: 0 for the mean over all steps; else that of a moving average, below 1. The standard
            deviation is over all steps either way, as in the authors' code.

    Example:
        Losses (1, 1), (3, 1) and (1, 1) have ratios (1, 1), (3, 1): only the first one varies.

        >>> method = CoVWeighting(2)
        >>> for value in (1.0, 3.0, 1.0):
        ...     step = Step([torch.tensor(value), torch.tensor(1.0)], shared=[])
        ...     _, weights = method.objective(step)
        >>> weights.round(decimals=2)  # 1/2 and 1e-4, the square root of epsilon, of their sum
        tensor([1., 0.], dtype=torch.float64)
    """

    paper = "Groenendijk et al., WACV 2021, arXiv 2009.01717"
    checked_against = "a twin that keeps the whole history"

    count: Tensor
    mean_loss: Tensor
    mean_ratio: Tensor
    spread: Tensor

    def __init__(self, num_objectives: int, seed: int = 0, *, decay: float = 0.0) -> None:
        super().__init__(num_objectives, seed)
        fraction(self, decay=decay)
        self.decay = decay
        zeros = torch.zeros(num_objectives, dtype=torch.float64)
        self.register_buffer("count", zeros)
        self.register_buffer("mean_loss", zeros.clone())
        self.register_buffer("mean_ratio", zeros.clone())
        self.register_buffer("spread", zeros.clone())  # sum of squared deviations of the ratio

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the mean over all steps, or a moving one."""
        return {"decay": trial.suggest_categorical("decay", [0.0, 0.9, 0.99])}

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the weighted sum, and the weights; take note of the losses."""
        losses = step.values.to(self.mean_loss)
        labelled = losses != 0
        weights = self._weights(labelled)
        self._note(losses, labelled)
        return step.total(weights), weights

    def _weights(self, labelled: Tensor) -> Tensor:
        deviation = (self.spread / self.count.clamp(min=1) + _EPS).sqrt()
        variation = deviation / self.mean_ratio.abs().clamp(min=_EPS)
        early = (self.count < 2).logical_and(labelled).any()
        variation = variation.masked_fill(early, 1).where(labelled, 0)
        return variation / variation.sum().clamp(min=1e-300)

    def _note(self, losses: Tensor, labelled: Tensor) -> None:
        fresh = (self.count == 0) | (self.mean_loss == 0)
        ratios = losses / self.mean_loss.where(~fresh, losses).where(labelled, 1)
        kept = self.count / (self.count + 1)
        if self.decay:
            kept = self.decay * (self.count > 0).to(kept)
        mean = kept * self.mean_ratio + (1 - kept) * ratios
        spread = self.spread + (ratios - self.mean_ratio) * (ratios - mean)
        self.spread.copy_(spread.where(labelled, self.spread))
        self.mean_ratio.copy_(mean.where(labelled, self.mean_ratio))
        mean_loss = kept * self.mean_loss + (1 - kept) * losses
        self.mean_loss.copy_(mean_loss.where(labelled, self.mean_loss))
        self.count += labelled
