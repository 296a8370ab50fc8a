"""Fixed weights: the linear scalarization that every method has to beat, tuned."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines._checks import NONNEGATIVE, per_objective

if TYPE_CHECKING:
    from optuna import Trial


class LinearScalarization(Scalarizer):
    r"""Minimise :math:`\sum_k w_k L_k` with constant weights.

    Args:
        num_objectives: K.
        seed: unused.
        weights: w, K numbers, at least 0, not all 0, taken as they are; by default all 1.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> method = LinearScalarization(2, weights=(0.5, 2.0))
        >>> method.backward(Step([x[0] ** 2, 3 * x[1]], shared=[x]))
        tensor([0.5000, 2.0000])
        >>> x.grad
        tensor([1., 6.])
    """

    paper = "the common baseline; its tuning: Xin et al., NeurIPS 2022, arXiv 2209.11379"
    checked_against = "torchjd 0.18"

    recorded: Tensor

    def __init__(
        self, num_objectives: int, seed: int = 0, *, weights: tuple[float, ...] | None = None
    ) -> None:
        super().__init__(num_objectives, seed)
        values = per_objective(self, NONNEGATIVE, 1.0, weights=weights)
        if not any(values):
            raise UsageError(f"{self._called}: weights must not all be 0, found {values}")
        self.fixed = values
        self.register_buffer("recorded", torch.tensor(values), persistent=False)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw weights between 0.1 and 10, log-uniformly, and how much of that range they use.

        With :math:`w_k = v_k^s` and s between 0 and 1, some trials have weights that are nearly
        equal. Of many weights drawn freely, a few trials hold none that are, and a tuned sum would
        lose against the plain one. They are scaled to the sum K, as with ``ew``.
        """
        spread = trial.suggest_float("spread", 0.0, 1.0)
        drawn = [
            trial.suggest_float(f"weight_{k}", 0.1, 10.0, log=True) ** spread
            for k in range(num_objectives)
        ]
        return {"weights": tuple(w * num_objectives / sum(drawn) for w in drawn)}

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the weighted sum, and the weights."""
        return step.total(self.fixed), self.recorded.to(step.values)
