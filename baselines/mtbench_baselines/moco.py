"""MoCo: tracked gradients, and simplex weights that follow their min-norm point."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtbench.balancing.engine import gramian, largest
from mtbench_baselines._checks import share
from mtbench_baselines._tracked import Following

if TYPE_CHECKING:
    from optuna import Trial


class MoCo(Following):
    r"""Follow :math:`\sum_k \lambda_k y_k` for running averages y_k of the gradients.

    A gradient of a batch is noisy, and the min-norm weights of noisy gradients are biased. With the
    rows y_k of :math:`Y`, (K, d), 0 at the start, and :math:`\lambda = \mathbf{1} / K`:

    .. math:: Y \leftarrow Y - \beta (Y - J), \qquad
        \lambda \leftarrow \Pi_\Delta \bigl( \lambda - \gamma (Y Y^\top + \rho I) \lambda \bigr),
        \qquad d = Y^\top \lambda

    where Pi is the Euclidean projection on the simplex: one gradient step per step of training on
    :math:`\tfrac12 \|Y^\top \lambda\|^2 + \tfrac\rho2 \|\lambda\|^2`.

    Deviations:
        - Step sizes are constant; in the paper's analysis they fall with the number of steps.
        - y_k stays as it is while objective k has no gradient; before its first one, the objective
          is left out.

    Later releases of LibMTL (1.1.5 has no MoCo) scale each gradient to the length of its loss and
    put a softmax for the projection.

    Args:
        num_objectives: K.
        seed: unused.
        beta: how fast Y follows the gradients; in (0, 1].
        gamma: step size of lambda; above 0. It has the unit of 1 / gradient^2.
        rho: weight of the regularisation; at least 0.

    Example:
        Orthogonal gradients of lengths 1 and 2: lambda - gamma G lambda is (0.45, 0.3), projected.

        >>> import torch
        >>> method = MoCo(2, beta=1.0, gamma=0.1)
        >>> method.direction(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.ones(2))
        tensor([0.5750, 0.8500])
    """

    paper = "Fernando et al., ICLR 2023, arXiv 2210.12624, Algorithm 1"
    checked_against = "textbook twin; the min-norm point that lambda tends to"

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        beta: float = 0.5,
        gamma: float = 0.1,
        rho: float = 0.0,
    ) -> None:
        super().__init__(num_objectives, seed, gamma, rho)
        share(self, beta=beta)
        self.beta = beta

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw beta from [0.1, 1], gamma and rho log-uniformly."""
        return {
            "beta": trial.suggest_float("beta", 0.1, 1.0),
            "gamma": trial.suggest_float("gamma", 1e-3, 10.0, log=True),
            "rho": trial.suggest_float("rho", 1e-4, 1.0, log=True),
        }

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Track the gradients, move the weights, and return their combination."""
        tracked, seen = self.memory(jacobian), (largest(jacobian) > 0)[:, None]
        tracked.lerp_(jacobian.to(tracked), self.beta * seen.to(tracked))
        product = gramian([tracked])
        weights = self.follow(product, product.diagonal() > 0)
        return weights.to(tracked, non_blocking=True) @ tracked
