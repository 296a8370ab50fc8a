"""Learning rate annealing: bring the other objectives' gradients near the main one's peaks."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.engine import largest
from mtbench.balancing.step import Step
from mtbench_baselines._checks import fraction, index

if TYPE_CHECKING:
    from optuna import Trial


class LearningRateAnnealing(Balancer):
    r"""Descend :math:`L_m + \sum_{k \ne m} \lambda_k L_k`, by the size of gradients' entries.

    For physics-informed networks: the main objective m is the equation's residual, the others are
    boundary and initial conditions. With the gradient's entries :math:`g_{kn}`, :math:`n \le d`,

    .. math:: \hat\lambda_k = \frac{\max_n |g_{mn}|}{\tfrac1d \sum_n |\lambda_k g_{kn}|}, \qquad
        \lambda_k \leftarrow \beta \lambda_k + (1 - \beta)\, \hat\lambda_k

    from :math:`\lambda = 1`. As :math:`\lambda_k` is in the divisor too, it settles at the root of
    the ratio of largest to mean entry; without it, as in the preprint (eq. 40), at that ratio.

    Deviations: the paper's gradients are of all parameters, and heads are weighted too; here they
    are of the shared ones, and heads get the gradient of their own loss. The weights move in every
    step, which the paper allows; in the authors' code in every tenth, after the step, and there the
    mean is one of layers' means, biases left out. Where either gradient is zero or not finite a
    weight stays, which is our decision.

    Args:
        num_objectives: K.
        seed: unused.
        main: m, from 0.
        beta: memory, in [0, 1).

    Example:
        Peak 2 of the main one, mean (0 + 1) / 2 of the other: a tenth of the way from 1 to 4.

        >>> x = torch.ones(2, requires_grad=True)
        >>> LearningRateAnnealing(2).backward(Step([2 * x[0], x[1]], shared=[x]))
        tensor([1.0000, 1.3000], dtype=torch.float64)
    """

    paper = "Wang, Teng and Perdikaris, SISC 43(5), 2021, eq. 2.30 (preprint: arXiv 2001.04536)"
    passes = "F + H + K E"
    checked_against = "a plain twin"
    is_symmetric = False

    factors: Tensor
    others: Tensor

    def __init__(
        self, num_objectives: int, seed: int = 0, *, main: int = 0, beta: float = 0.9
    ) -> None:
        super().__init__(num_objectives, seed)
        index(self, main=main)
        fraction(self, beta=beta)
        self.main, self.beta = main, beta
        self.register_buffer("factors", torch.ones(num_objectives, dtype=torch.float64))
        self.register_buffer("others", torch.arange(num_objectives) != main, persistent=False)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw 1 - beta log-uniformly from [0.001, 1]."""
        return {"beta": 1 - trial.suggest_float("one_minus_beta", 1e-3, 1.0, log=True)}

    def balance(self, step: Step) -> Tensor:
        """Move the weights, and apply them."""
        step.release()
        jacobian = step.jacobian()
        peak = largest(jacobian[self.main, None])[0].to(self.factors)
        wide = torch.promote_types(jacobian.dtype, torch.float32)  # a sum may leave float16's range
        sums = torch.linalg.vector_norm(jacobian, 1, dim=1, dtype=wide).to(self.factors)
        goal = peak / (self.factors * sums / jacobian.shape[1])
        known = self.others & (goal > 0) & goal.isfinite()
        moved = self.beta * self.factors + (1 - self.beta) * goal
        self.factors.copy_(torch.where(known, moved, self.factors))
        weights = self.factors.clone()
        step.backward(weights)
        return weights
