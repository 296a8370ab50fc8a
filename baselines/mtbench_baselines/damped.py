"""damped: a ridge on the Gramian, before the base is asked."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.wrapper import WeightingWrapper
from mtbench_baselines._checks import nonnegative

if TYPE_CHECKING:
    from optuna import Trial


class Damped(WeightingWrapper):
    r"""Ask the base for the weights of a Gramian with a larger diagonal.

    .. math:: G + \delta\, \frac{\operatorname{tr} G}{K}\, I

    as if every gradient had, besides, a component of its own, orthogonal to all others:
    near-parallel and near-opposite gradients change weights less abruptly, and large weights cost
    something. The direction is that of the undamped gradients.

    An objective without a gradient is not given one, nor counted in K.

    Args:
        base: a method on the Gramian.
        seed: unused.
        damping: delta, in units of the mean squared norm; at least 0.

    Example:
        >>> import torch
        >>> from mtbench_baselines.mgda import MGDA
        >>> G = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).double()
        >>> MGDA(2).weights(G, torch.ones(2))
        tensor([0.7500, 0.2500], dtype=torch.float64)
        >>> Damped(MGDA(2), damping=0.5).weights(G, torch.ones(2))
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    paper = "Tikhonov's regularisation; for multitask Gramians e.g. in torchjd's UPGrad (reg_eps)"
    checked_against = "the definition"

    def __init__(self, base: Balancer, seed: int = 0, *, damping: float = 0.01) -> None:
        super().__init__(base, seed)
        nonnegative(self, damping=damping)
        self.damping = damping

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw delta log-uniformly from [0.0001, 1]."""
        return {"damping": trial.suggest_float("damping", 1e-4, 1.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the base's weights for the damped Gramian."""
        live = gramian.diagonal() > 0
        mean = gramian.trace() / live.sum().clamp(min=1)
        return self.base.weigh(gramian + torch.diag(self.damping * mean * live), losses)
