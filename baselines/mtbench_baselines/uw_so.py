"""UW-SO: softly optimal uncertainty weights, in closed form."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import positive

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-20


class SoftOptimalUncertainty(Scalarizer):
    r"""Minimise :math:`\sum_k w_k L_k` with inverse losses as weights, through a softmax.

    .. math:: w = \mathrm{softmax}\bigl(1 / (T L_1), \dots, 1 / (T L_K)\bigr)

    1/L_k is the weight at which the objective of ``uw`` is least over its variances (up to a
    factor). The weights are constants of the step. T is to be tuned: unlike with ``uw``, the unit
    of the losses matters, and a loss far below the others takes all the weight.

    A loss of exactly 0 (no label in this batch) has no weight; of a negative one the absolute value
    is taken; both are our decisions.

    Args:
        num_objectives: K.
        seed: unused.
        temperature: T; above 0.

    Example:
        Losses 1 and 1/2 at T = 1: the softmax of (1, 2).

        >>> x = torch.tensor([1.0, 0.5], requires_grad=True)
        >>> SoftOptimalUncertainty(2).backward(Step([x[0], x[1]], shared=[x]))
        tensor([0.2689, 0.7311], dtype=torch.float64)
    """

    paper = "Kirchdorfer et al., GCPR 2024, arXiv 2408.07985"
    checked_against = "its formula by autograd"

    def __init__(self, num_objectives: int, seed: int = 0, *, temperature: float = 1.0) -> None:
        super().__init__(num_objectives, seed)
        positive(self, temperature=temperature)
        self.temperature = temperature

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw T log-uniformly from [0.1, 100]."""
        return {"temperature": trial.suggest_float("temperature", 0.1, 100.0, log=True)}

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the weighted sum, and the weights."""
        losses = step.values.double()
        inverse = 1 / (self.temperature * losses.abs().clamp(min=_LEAST))
        weights = inverse.masked_fill(losses == 0, torch.finfo(inverse.dtype).min).softmax(dim=0)
        return step.total(weights), weights
