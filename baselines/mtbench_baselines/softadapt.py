"""SoftAdapt: weights by a softmax of how fast losses change."""

from math import inf
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines._checks import one_of

if TYPE_CHECKING:
    from optuna import Trial

Variant = Literal["original", "normalised", "loss-weighted"]


class SoftAdapt(Scalarizer):
    r"""Minimise :math:`\sum_k w_k L_k`; the faster a loss rises, the larger its weight.

    .. math:: w_k = \frac{c_k\, e^{\beta s_k}}{\sum_j c_j\, e^{\beta s_j}}, \qquad
        s_k = L_k(t) - L_k(t - 1)

    with c = 1, or c = L in the variant ``loss-weighted``; ``normalised`` divides s by
    :math:`\sum_j |s_j|`, so that the losses' unit does not matter. In the first step s is 0. The
    weights add up to 1, so that equal ones are ``ew`` at 1/K of its length.

    A loss of exactly 0 (no label in this batch) has no weight and leaves the sums; L(t - 1) is the
    loss of the last step with a label. That is our decision.

    Deviations: the rate is the difference of two steps, and c the loss now; the authors' code fits
    a higher order to several epochs, has c their mean, and keeps the weights in between. In its
    present release ``normalised`` divides by the sum of the s, which may be 0, in the first one as
    here. The paper itself could not be read.

    Args:
        num_objectives: K.
        seed: unused.
        beta: how much rates count; below 0 it favours those that fall.
        variant: what the softmax is of.

    Example:
        The first loss halves, the second stays: softmax(-1, 0).

        >>> method = SoftAdapt(2, beta=1.0)
        >>> for losses in ([2.0, 1.0], [1.0, 1.0]):
        ...     x = torch.tensor(losses, requires_grad=True)
        ...     method.backward(Step([x[0], x[1]], shared=[x]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
        tensor([0.2689, 0.7311], dtype=torch.float64)
    """

    paper = "Heydari, Thompson and Mehmood, 2019, arXiv 1912.12355, by the authors' code"
    checked_against = "torch's softmax of the differences, in a loop of its own"

    last: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        beta: float = 0.1,
        variant: Variant = "original",
    ) -> None:
        super().__init__(num_objectives, seed)
        if not -inf < beta < inf:
            raise UsageError(f"{self._called}: beta must be finite, found {beta}")
        one_of(self, get_args(Variant), variant=variant)
        self.beta, self.variant = beta, variant
        zeros = torch.zeros(num_objectives, dtype=torch.float64)  # 0: no label seen yet
        self.register_buffer("last", zeros)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the variant, and beta log-uniformly from [0.01, 10]."""
        return {
            "beta": trial.suggest_float("beta", 1e-2, 10.0, log=True),
            "variant": trial.suggest_categorical("variant", get_args(Variant)),
        }

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the weighted sum, and the weights."""
        losses = step.values.to(self.last)
        seen = losses != 0
        rates = torch.where(seen & (self.last != 0), losses - self.last, 0)
        if self.variant == "normalised":
            rates = rates / rates.abs().sum().clamp(min=1e-300)
        logs = (self.beta * rates).clamp(-1e300, 1e300)
        if self.variant == "loss-weighted":
            logs = logs + losses.abs().masked_fill(~seen, 1).log()
        shares = logs.masked_fill(~seen, -inf).softmax(dim=0)
        weights = torch.where(seen, shares, 0)
        self.last.copy_(torch.where(seen, losses, self.last))
        return step.total(weights), weights
