"""MoDo: simplex weights that follow the min-norm point, on two samples of the gradients."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.engine import largest, products
from mtbench_baselines._tracked import Following

if TYPE_CHECKING:
    from optuna import Trial


class MoDo(Following):
    r"""Follow :math:`J^\top \lambda`, where lambda moves by a product of two independent Jacobians.

    From :math:`\lambda = \mathbf{1} / K` at the start, with Pi the Euclidean projection on the
    simplex:

    .. math:: \lambda \leftarrow \Pi_\Delta \bigl( \lambda - \gamma (J J'^\top + \rho I) \lambda
        \bigr), \qquad d = J^\top \lambda

    The noise of J and J', from two batches at the same parameters, is independent, and so
    :math:`J J'^\top`, unlike the Gramian of one batch, is unbiased.

    Deviations:
        - A step of training has one batch: J' is the Jacobian of the step before (at the first
          step, J itself). Its noise is independent; its parameters are one update old. torchjd 0.18
          leaves J J'^T to its caller.
        - d is of the present batch; the paper takes a third one, the authors' code the sum of two.
        - An objective without a gradient is left out, and its row of J' stays.

    Args:
        num_objectives: K.
        seed: unused.
        gamma: step size of lambda; above 0. It has the unit of 1 / gradient^2.
        rho: weight of the regularisation; at least 0.

    Example:
        Orthogonal gradients of lengths 1 and 2: lambda - gamma G lambda is (0.45, 0.3), projected.

        >>> method = MoDo(2, rho=0.0)
        >>> method.direction(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.ones(2))
        tensor([0.5750, 0.8500])
    """

    paper = "Chen et al., NeurIPS 2023 and JMLR 25, 2024, arXiv 2305.20057"
    checked_against = "torchjd 0.18, given both Jacobians"

    def __init__(
        self, num_objectives: int, seed: int = 0, *, gamma: float = 0.1, rho: float = 0.1
    ) -> None:
        super().__init__(num_objectives, seed, gamma, rho)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw gamma and rho log-uniformly."""
        return {
            "gamma": trial.suggest_float("gamma", 1e-4, 10.0, log=True),
            "rho": trial.suggest_float("rho", 1e-4, 1.0, log=True),
        }

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Move the weights, and return the combination of the gradients."""
        before = self.memory(jacobian)
        live, known = (torch.stack([largest(jacobian), largest(before)]) > 0).cpu()
        for k in (live & ~known).nonzero().flatten().tolist():
            before[k] = jacobian[k]
        product = products(jacobian.to(before), before).cpu()
        for k in live.nonzero().flatten().tolist():
            before[k] = jacobian[k]
        weights = self.follow(product, live)
        return weights.to(jacobian, non_blocking=True) @ jacobian
