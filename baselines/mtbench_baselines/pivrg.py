"""PIVRG: fair shares of the improvement, the larger for what has fallen behind."""

from math import inf, isfinite, log
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import fair_shares, shorten
from mtbench.errors import UsageError

if TYPE_CHECKING:
    from optuna import Trial


class PIVRG(Weighting):
    r"""Follow the direction whose improvements are fair, in shares set by the performance so far.

    .. math:: d = \textstyle\sum_k w_k g_k, \qquad (G w)_k = \sqrt{\omega_k / w_k}, \quad w > 0,
        \qquad \omega = K \operatorname{softmax}(\Delta / T)

    with :math:`G = J J^\top`, :math:`\Delta_k` the drop in performance of objective k against a
    model of its own, in percent, and the temperature
    :math:`T = \max\bigl((\max \Delta - \min \Delta) / \log b,\ T_0\bigr)`, so that no share is
    more than b times another. Equal drops give FairGrad's direction at alpha = 2.

    **The drop is our reading.** The authors' code takes the mean drop of the objective's metrics,
    those of the training outputs of the last epoch, which no method here sees. Ours is of the
    training loss: :math:`\Delta_k = 100\, (\bar L_k - R_k) / |R_k|`, with the mean loss of the last
    epoch and a reference R_k, for one the final training loss of ``stl``. Without references, in
    the first epoch, and in a loop that does not call `after_epoch`, omega is 1; it stays as it is
    over an epoch in which an objective had no gradient. The paper itself could not be read.

    Scale: the step is :math:`K d`, cut to the length max_norm, as with ``fairgrad``.

    Args:
        num_objectives: K.
        seed: unused.
        single_task: R, K numbers other than 0; none by default.
        bound: b, above 1.
        min_temperature: T_0, above 0, in percent.
        max_norm: the longest step; 0 for no limit.

    Example:
        Losses 2 and 1 against references of 1: drops of 100 % and 0 %, so shares as 2 to 1.

        >>> method = PIVRG(2, single_task=(1.0, 1.0), max_norm=0.0)
        >>> weights = method.weights(torch.eye(2).double(), torch.tensor([2.0, 1.0]))
        >>> method.after_epoch()
        >>> method.omega
        tensor([1.3333, 0.6667], dtype=torch.float64)
    """

    paper = "Qin et al., CVPR 2025, by the authors' code, without its metrics"
    checked_against = "scipy's least_squares on the equation; fairgrad at equal shares"
    sees_zero_rows = True
    on_host = ("omega", "total", "count")

    omega: Tensor
    total: Tensor
    count: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        single_task: tuple[float, ...] | None = None,
        bound: float = 2.0,
        min_temperature: float = 10.0,
        max_norm: float = 1.0,
    ) -> None:
        super().__init__(num_objectives, seed)
        if single_task is not None and len(single_task) != num_objectives:
            raise UsageError(
                f"pivrg: single_task must hold one number per objective ({num_objectives}), "
                f"found {single_task}"
            )
        if single_task is not None and not all(isfinite(r) and r for r in single_task):
            raise UsageError(f"pivrg: single_task must be finite and not 0, found {single_task}")
        if not 1 < bound < inf:
            raise UsageError(f"pivrg: bound must be finite and above 1, found {bound}")
        if not 0 < min_temperature < inf:
            raise UsageError(
                f"pivrg: min_temperature must be finite and above 0, found {min_temperature}"
            )
        if not 0 <= max_norm < inf:
            raise UsageError(f"pivrg: max_norm must be finite and at least 0, found {max_norm}")
        self.single_task, self.bound = single_task, bound
        self.min_temperature, self.max_norm = min_temperature, max_norm
        for name, value in (("omega", 1.0), ("total", 0.0), ("count", 0.0)):
            self.register_buffer(name, torch.full((num_objectives,), value, dtype=torch.float64))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the bound log-uniformly from [1.2, 10]."""
        return {"bound": trial.suggest_float("bound", 1.2, 10.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the fair weights, times K, cut to the longest step; count the losses."""
        active = gramian.diagonal() > 0
        self.total += losses * active
        self.count += active
        weights = torch.zeros(len(losses), dtype=torch.float64)
        if active.any():
            gramian = gramian[active][:, active]
            found = fair_shares(gramian, 0.5, self.omega[active].sqrt())
            weights[active] = shorten(gramian, found, self.max_norm, times=len(gramian))
        return weights

    def after_epoch(self) -> None:
        """Set the shares by the mean losses of the epoch."""
        if self.single_task is not None and self.count.all():
            reference = self.total.new_tensor(self.single_task)
            drop = 100 * (self.total / self.count - reference) / reference.abs()
            spread = (drop.max() - drop.min()).item()
            temperature = max(spread / log(self.bound), self.min_temperature)
            if isfinite(temperature):
                self.omega.copy_(len(drop) * torch.softmax(drop / temperature, dim=0))
        self.total.zero_()
        self.count.zero_()
