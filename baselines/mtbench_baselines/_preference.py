"""Preferences over objectives: read, drawn for tuning, and used by methods on the Gramian."""

from abc import abstractmethod
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer, Weighting
from mtbench_baselines._checks import POSITIVE, per_objective

if TYPE_CHECKING:
    from optuna import Trial


@cache
def _equal(num_objectives: int) -> Tensor:
    return torch.full((num_objectives,), 1 / num_objectives, dtype=torch.float64, device="cpu")


def ray(
    method: Balancer,
    preference: tuple[float, ...] | None,
    default: float = 1.0,
    device: str | None = None,
) -> Tensor:
    """Return a preference as numbers, (K,), float64, on a device or where tensors are made.

    Where there is none, it is `default` each.

    Raises:
        UsageError: not one finite number above 0 per objective.
    """
    values = per_objective(method, POSITIVE, default, preference=preference)
    return torch.tensor(values, dtype=torch.float64, device=device)


def drawn(trial: "Trial", num_objectives: int) -> tuple[float, ...]:
    """Draw each objective's preference log-uniformly from [0.1, 10]."""
    return tuple(
        trial.suggest_float(f"preference_{k}", 0.1, 10.0, log=True) for k in range(num_objectives)
    )


class Preferring(Weighting):
    """A weighting that may prefer some objectives to others; only the ratios count.

    An objective without a gradient leaves the preference too.

    Args:
        num_objectives: K.
        seed: unused.
        preference: K numbers above 0; by default all objectives are alike.
    """

    def __init__(
        self, num_objectives: int, seed: int = 0, *, preference: tuple[float, ...] | None = None
    ) -> None:
        super().__init__(num_objectives, seed)
        self.ray = None if preference is None else ray(self, preference, device="cpu")
        self.sees_zero_rows = preference is not None  # to know whose preferences are left

    @abstractmethod
    def preferred(self, gramian: Tensor, shares: Tensor) -> Tensor:
        """Return the weights of objectives that all have a gradient; `shares` add up to 1."""

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights; 0 without a gradient."""
        if self.ray is None:
            return self.preferred(gramian, _equal(len(gramian)))
        active = gramian.diagonal() > 0
        weights = torch.zeros_like(self.ray)
        if active.any():
            shares = self.ray[active]
            found = self.preferred(gramian[active][:, active], shares / shares.sum())
            weights[active] = found.to(weights)
        return weights
