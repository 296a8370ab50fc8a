"""PBI: progress along a preferred direction, with a penalty on leaving it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import FINITE, nonnegative, per_objective
from mtbench_baselines._preference import drawn, ray

if TYPE_CHECKING:
    from optuna import Trial

_ON_THE_RAY = 1e-6
_LEAST = 1e-300


class PenaltyBoundaryIntersection(Scalarizer):
    r"""Minimise the losses along a preferred direction r, and their distance from it.

    .. math:: d_1 + \theta\, d_2, \qquad f = L - z, \quad \hat r = r / \|r\|, \quad
        d_1 = \langle f, \hat r\rangle, \quad d_2 = \| f - d_1 \hat r \|

    Its gradient is :math:`\sum_k w_k \nabla L_k` with :math:`w = \hat r + \theta (f - d_1 \hat r) /
    d_2`. A loss that is small for its preference gets a negative weight, and is raised, until f is
    on the ray along r; there the function has a kink. So with a constant learning rate the losses
    end in a band around the ray, of the width of a step times theta, and not on the front.

    A loss of exactly 0 (no label in this batch) leaves f and r. Where d_2 is below one millionth of
    the length of f, which the losses' own rounding reaches, the penalty's gradient is 0. Both are
    our decisions (torchjd adds a constant to the square instead).

    Args:
        num_objectives: K.
        seed: unused.
        theta: weight of the penalty; at least 0. The paper takes 5.
        preference: r, K numbers above 0; by default all 1.
        reference: z, K numbers that the losses stay above; by default all 0.

    Example:
        L = (3, 1), r = (1, 1): d_1 = 4 / sqrt 2, d_2 = sqrt 2 along (1, -1).

        >>> x = torch.tensor([3.0, 1.0], requires_grad=True)
        >>> method = PenaltyBoundaryIntersection(2, theta=0.5)
        >>> method.backward(Step([x[0], x[1]], shared=[x]))  # (1.5, 0.5) / sqrt 2
        tensor([1.0607, 0.3536], dtype=torch.float64)
    """

    paper = "Zhang and Li (MOEA/D), IEEE Trans. Evol. Comput. 11(6), 2007"
    checked_against = "torchjd 0.18"
    finds_front = False

    preference: Tensor
    reference_point: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        theta: float = 5.0,
        preference: tuple[float, ...] | None = None,
        reference: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, theta=theta)
        wanted = ray(self, preference)
        origin = per_objective(self, FINITE, 0.0, reference=reference)
        self.theta = theta
        self.register_buffer("preference", wanted, persistent=False)
        self.register_buffer("reference_point", wanted.new_tensor(origin), persistent=False)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw theta, and each preference log-uniformly from [0.1, 10]."""
        return {
            "theta": trial.suggest_float("theta", 0.1, 10.0, log=True),
            "preference": drawn(trial, num_objectives),
        }

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return a sum with that gradient, and the weights w."""
        losses = step.values.to(self.preference)
        labelled = losses != 0
        f = (losses - self.reference_point).masked_fill(~labelled, 0)
        wanted = self.preference.masked_fill(~labelled, 0)
        toward = wanted / wanted.norm().clamp(min=_LEAST)
        across = f - (f @ toward) * toward
        distance = across.norm()
        off = distance > _ON_THE_RAY * f.norm()
        weights = torch.where(off, toward + self.theta * across / distance, toward)
        return step.total(weights), weights
