"""COSMOS: a weighted sum that also turns the losses towards the preference."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import nonnegative
from mtbench_baselines._preference import drawn, ray

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-20


class COSMOS(Scalarizer):
    r"""Minimise a preference's weighted sum, less the cosine between losses and preference.

    .. math:: \sum_k r_k L_k - \lambda\, c, \qquad
        c = \frac{\langle r, L\rangle}{\|r\| \|L\|}

    Its gradient is :math:`\sum_k w_k \nabla L_k` with

    .. math:: w_k = r_k - \frac{\lambda}{\|L\|} \Bigl(\frac{r_k}{\|r\|} - c
        \frac{L_k}{\|L\|}\Bigr)

    A loss that is small for its preference may get a negative weight, and is raised; the smaller
    the losses, the stronger the turn. So the end need not be on the front.

    **This is the objective alone.** The paper draws r anew for every batch and hands it to the
    model as an input, so that one model holds the whole front; here r is fixed, and a run ends at
    one point. To trace a front, run several preferences.

    A loss of exactly 0 (no label in this batch) leaves L and r, which is our decision.

    Args:
        num_objectives: K.
        seed: unused.
        penalty: lambda; at least 0. The paper's lies between 0.01 and 8, by data set.
        preference: r, K numbers above 0, taken as they are; by default all 1/K.

    Example:
        L = (4, 3), r = (1, 1)/2: c = 7 / (5 sqrt 2), the turn is (-0.0170, 0.0226).

        >>> x = torch.tensor([4.0, 3.0], requires_grad=True)
        >>> COSMOS(2, penalty=1.0).backward(Step([x[0], x[1]], shared=[x]))
        tensor([0.5170, 0.4774], dtype=torch.float64)
    """

    paper = "Ruchte and Grabocka, ICDM 2021, arXiv 2103.13392, without its conditioning"
    checked_against = "torchjd 0.18"

    preference: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        penalty: float = 1.0,
        preference: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, penalty=penalty)
        self.penalty = penalty
        values = ray(self, preference, 1 / num_objectives)
        self.register_buffer("preference", values, persistent=False)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw lambda from the paper's range, and a preference on the simplex."""
        values = drawn(trial, num_objectives)
        return {
            "penalty": trial.suggest_float("penalty", 0.01, 8.0, log=True),
            "preference": tuple(r / sum(values) for r in values),
        }

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return a sum with that gradient, and the weights w."""
        losses = step.values.to(self.preference)
        wanted = self.preference.masked_fill(losses == 0, 0)
        size = losses.norm()
        toward, present = wanted / wanted.norm(), losses / size
        turn = toward - (toward @ present) * present
        weights = torch.where(size > _LEAST, wanted - self.penalty * turn / size, wanted)
        return step.total(weights), weights
