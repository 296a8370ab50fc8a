"""PIVRG: fair shares of the improvement, the larger for what has fallen behind."""

from collections.abc import Sequence
from math import inf, isfinite, log
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Judged, Weighting
from mtbench.balancing.solvers import fair_shares, shorten
from mtbench.errors import UsageError
from mtbench_baselines._checks import nonnegative, positive

if TYPE_CHECKING:
    from optuna import Trial


class PIVRG(Weighting):
    r"""Follow the direction whose improvements are fair, in shares set by the performance so far.

    .. math:: d = \textstyle\sum_k w_k g_k, \qquad (G w)_k = \sqrt{\omega_k / w_k}, \quad w > 0,
        \qquad \omega = K \operatorname{softmax}(\Delta / T)

    with :math:`G = J J^\top`, :math:`\Delta_k` the mean drop of objective k's metrics against the
    single-task row, in percent,

    .. math:: \Delta_k = \frac{100}{|M_k|} \sum_{m \in M_k} (-1)^{h_m} \frac{x_m - R_m}{|R_m|},
        \qquad T = \max\Bigl(\frac{\max \Delta - \min \Delta}{\log b},\ T_0\Bigr)

    :math:`h_m = 1` where higher is better: so no share is more than b times another. It is renewed
    after every epoch; in the first one, and without references, omega is 1. Equal drops give
    FairGrad's direction at alpha = 2. b and :math:`T_0` are the benchmark's, so tune them.

    References are the test or validation metrics of ``stl``, as a leaderboard shows them.

    Deviations, the first our decision; the paper itself could not be read:
        - Metrics are the primary ones of the validation split (`after_evaluation`); those of the
          authors' code are of the training outputs. An undefined one is left out, and omega stays
          where an objective has no other.
        - Metrics that judge no single objective have no part, nor a reference.

    Scale: the step is :math:`K d`, cut to the length max_norm, as with ``fairgrad``.

    Args:
        num_objectives: K.
        seed: unused.
        single_task: R, a number other than 0 for each primary metric of an objective, in the task's
            order; none by default.
        bound: b, above 1.
        min_temperature: T_0, above 0, in percent.
        max_norm: the longest step; 0 for no limit.

    Example:
        Errors 2 and 1 where single tasks have 1: drops of 100 % and 0 %, so shares as 2 to 1.

        >>> from mtbench import Judged
        >>> method = PIVRG(2, single_task=(1.0, 1.0))
        >>> kind = {"higher_is_better": False, "primary": True}
        >>> method.after_evaluation([Judged("a", 2.0, 0, **kind), Judged("b", 1.0, 1, **kind)])
        >>> method.omega
        tensor([1.3333, 0.6667], dtype=torch.float64)
    """

    paper = "Qin, Wang and Yan, CVPR 2025 (variance reduction), by the authors' code"
    checked_against = "scipy's least_squares on the equation; fairgrad at equal shares"
    sees_zero_rows = True
    on_host = ("omega",)

    omega: Tensor

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
        if single_task is not None and not all(isfinite(r) and r for r in single_task):
            raise UsageError(
                f"{self._called}: single_task must be finite and not 0, found {single_task}"
            )
        if single_task is not None and len(single_task) < num_objectives:
            raise UsageError(
                f"{self._called}: single_task must hold a number for each primary metric, at least "
                f"one for each of {num_objectives} objectives, found {single_task}"
            )
        if not 1 < bound < inf:
            raise UsageError(f"{self._called}: bound must be finite and above 1, found {bound}")
        positive(self, min_temperature=min_temperature)
        nonnegative(self, max_norm=max_norm)
        self.single_task, self.bound = single_task, bound
        self.min_temperature, self.max_norm = min_temperature, max_norm
        self.register_buffer("omega", torch.ones(num_objectives, dtype=torch.float64, device="cpu"))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the bound log-uniformly from [1.2, 10]."""
        return {"bound": trial.suggest_float("bound", 1.2, 10.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the fair weights, times K, cut to the longest step."""
        active = gramian.diagonal() > 0
        weights = torch.zeros(len(losses), dtype=torch.float64, device="cpu")
        if active.any():
            gramian = gramian[active][:, active]
            found = fair_shares(gramian, 0.5, self.omega[active].sqrt())
            weights[active] = shorten(gramian, found, self.max_norm, times=len(gramian))
        return weights

    def after_evaluation(self, metrics: Sequence[Judged]) -> None:
        """Set the shares by the metrics of the epoch.

        Raises:
            UsageError: there are more or fewer metrics than references, an objective has none, or a
                metric is of no objective that there is, or not a `Judged`.
        """
        for metric in metrics if isinstance(metrics, Sequence) else [metrics]:
            if not isinstance(metric, Judged):
                raise UsageError(
                    f"{self._called}: after_evaluation takes a sequence of mtbench.Judged, one for "
                    f"each metric, found {metric!r}"
                )
        if self.single_task is None:
            return
        own = [metric for metric in metrics if metric.primary and metric.objective is not None]
        known = {*range(self.num_objectives)}
        judged = {metric.objective for metric in own if metric.objective is not None}
        if unknown := sorted(judged - known):
            raise UsageError(
                f"{self._called}: objectives are numbered from 0 to {self.num_objectives - 1}, and "
                f"metrics judge {', '.join(map(str, unknown))}: give each metric its objective's "
                "number"
            )
        if missing := sorted(known - judged):
            raise UsageError(
                f"{self._called}: every objective must have a primary metric to set its share by, "
                f"and of those numbered from 0 these have none: {', '.join(map(str, missing))}; "
                "leave single_task out for equal shares, or choose another method"
            )
        if len(own) != len(self.single_task):
            raise UsageError(
                f"{self._called}: single_task must hold a number for each primary metric "
                f"({', '.join(metric.name for metric in own)}), found {self.single_task}"
            )
        drops: list[list[float]] = [[] for _ in range(self.num_objectives)]
        for metric, reference in zip(own, self.single_task, strict=True):
            change = 100 * (metric.value - reference) / abs(reference)
            if isfinite(change) and metric.objective is not None:
                drops[metric.objective].append(-change if metric.higher_is_better else change)
        if all(drops):
            drop = self.omega.new_tensor([fmean(found) for found in drops])
            spread = (drop.max() - drop.min()).item()
            temperature = max(spread / log(self.bound), self.min_temperature)
            self.omega.copy_(len(drop) * torch.softmax(drop / temperature, dim=0))
