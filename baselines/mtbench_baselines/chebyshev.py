"""Chebyshev scalarization: descend the worst weighted loss."""

from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import FINITE, POSITIVE, per_objective

if TYPE_CHECKING:
    from optuna import Trial


class Chebyshev(Balancer):
    r"""Minimise :math:`\max_k w_k (L_k - z_k)` over the shared parameters.

    w, (K,), are the preferences and z, (K,), the ideal losses. Every Pareto-optimal point minimises
    this for some w, which no weighted sum can say; ``stch`` is the smooth form, and the tie that
    makes this one jump from objective to objective is where the two differ.

    The shared parameters get :math:`w_m \nabla L_m` of the worst objective m; all heads get the
    gradient of their own loss, or those of the others would stand still. A loss of exactly 0 (no
    label in this batch) is never the worst, unless all are.

    Args:
        num_objectives: K.
        seed: unused.
        weights: w, K numbers above 0; by default all 1.
        ideal: z, K numbers; by default all 0.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> Chebyshev(2).backward(Step([x[0] ** 2, 3 * x[1]], shared=[x]))
        tensor([0., 1.])
        >>> x.grad
        tensor([0., 3.])
    """

    paper = "Bowman, 1976; Steuer and Choo, Math. Programming 26, 1983"
    passes = "F + H + E"
    checked_against = "a twin that differentiates torch.max of the losses"

    preferences: Tensor
    ideal: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        weights: tuple[float, ...] | None = None,
        ideal: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(num_objectives, seed)
        preferences = per_objective(self, POSITIVE, 1.0, weights=weights)
        aims = per_objective(self, FINITE, 0.0, ideal=ideal)
        for name, values in (("preferences", preferences), ("ideal", aims)):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw each weight log-uniformly from [0.1, 10]; scaled to the sum K, as with ``ls``."""
        drawn = [
            trial.suggest_float(f"weight_{k}", 0.1, 10.0, log=True) for k in range(num_objectives)
        ]
        return {"weights": tuple(w * num_objectives / sum(drawn) for w in drawn)}

    def balance(self, step: Step) -> Tensor:
        """Apply the weight of the worst objective, and 0 for the others."""
        preferences = self.preferences.to(step.values)
        distances = preferences * (step.values - self.ideal.to(step.values))
        worst = distances.masked_fill(step.values == 0, -inf).argmax(keepdim=True)
        weights = torch.zeros_like(preferences).scatter(0, worst, preferences[worst])
        step.release()
        step.backward(weights, "features")
        return weights
