"""Auto-Lambda: weights that descend the validation losses which the next step would lead to."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines._bilevel import Ahead, Bilevel
from mtbench_baselines._checks import positive

if TYPE_CHECKING:
    from optuna import Trial


class AutoLambda(Bilevel):
    r"""Descend :math:`\sum_j \lambda_j L_j`, and move lambda by what that does to other samples.

    With all parameters :math:`\theta`, heads too, and the validation losses V of the primary
    objectives P,

    .. math:: \theta' = \theta - \alpha \textstyle\sum_j \lambda_j \nabla L_j(\theta), \qquad
        \frac{\partial}{\partial \lambda_j} \sum_{k \in P} V_k(\theta')
        = -\alpha \sum_{k \in P} \langle \nabla V_k(\theta'), \nabla L_j(\theta) \rangle

    Adam moves lambda, from ``start`` each, by this gradient; then the model moves. An objective
    whose gradient helps the primary ones gains weight. Nothing keeps a weight above 0, as in the
    authors' code. Heads are weighted too.

    Deviations:
        - The products are computed; the authors estimate them by two more forward passes.
        - In the virtual step :math:`\alpha` is a constant; theirs is the model's learning rate, and
          momentum and weight decay take part.
        - An objective without a gradient in the batch keeps its weight and moments.

    Args:
        num_objectives: K.
        seed: unused.
        start: lambda at first; above 0.
        rate: alpha, the length of the virtual step; above 0.
        lr: Adam's learning rate for lambda; above 0.
        primary: P, by number from 0; by default all.
        share: of the training samples that are kept for validation and not trained on, in [0, 1);
            0, as in the paper, takes another batch of those that are.

    Example:
        The virtual step is along both gradients, and lowers both losses: both gain weight.

        >>> import torch
        >>> from mtbench import Step
        >>> x = torch.ones(2, requires_grad=True)
        >>> def step():
        ...     return Step([x[0] ** 2, -x[1]], shared=[x], validation=step)
        >>> AutoLambda(2, start=0.5, rate=0.1, lr=0.01).backward(step())
        tensor([0.5100, 0.5100], dtype=torch.float64)
    """

    paper = "Liu et al., TMLR 2022, arXiv 2202.03091, by the authors' code"
    passes = "2 F + 2 H + (1 + K) E"
    checked_against = "autograd through the virtual step"

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        start: float = 0.1,
        rate: float = 1e-3,
        lr: float = 1e-4,
        primary: tuple[int, ...] | None = None,
        share: float = 0.0,
    ) -> None:
        positive(self, start=start)
        super().__init__(num_objectives, seed, start, rate, lr, share)
        self.primary = tuple(range(num_objectives)) if primary is None else tuple(primary)
        if not self.primary or not set(self.primary) <= set(range(num_objectives)):
            raise UsageError(
                f"{self._called}: primary must be numbers from 0 to {num_objectives - 1}, at least "
                f"one, found {self.primary}"
            )

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw both rates log-uniformly."""
        return {
            "rate": trial.suggest_float("rate", 1e-4, 1e-1, log=True),
            "lr": trial.suggest_float("lr", 1e-5, 1e-2, log=True),
        }

    def current(self) -> Tensor:
        """Return lambda."""
        return self.state.clone()

    def slope(self, step: Step, ahead: Ahead) -> Tensor:
        """Return the products with the gradient of the primary objectives' sum."""
        chosen = [float(k in self.primary) for k in range(self.num_objectives)]
        return ahead.times(step, [step.total(chosen)])[0]
