"""ReLoBRaLo: weights from how each loss changed, with a random look back to the beginning."""

from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import positive, unit_interval

if TYPE_CHECKING:
    from optuna import Trial


class ReLoBRaLo(Scalarizer):
    r"""Minimise :math:`\sum_k \lambda_k L_k`; the less a loss has fallen, the larger its weight.

    .. math:: \hat\lambda_k(t, t') = K \operatorname{softmax}_k \frac{L_k(t)}{T\, L_k(t')}, \qquad
        \lambda(t) = \alpha \bigl( \rho\, \lambda(t - 1) + (1 - \rho)\, \hat\lambda(t, 0) \bigr)
        + (1 - \alpha)\, \hat\lambda(t, t - 1)

    :math:`\rho` is 1 with probability ``lookback``, else 0: then the past is forgotten for the
    progress since the beginning. :math:`\lambda = 1` in the first step.

    The rule is the paper's eq. 11, which does not say how it begins. In an objective's second step
    alpha counts as 0, as in the authors' code: the average begins at the first progress, not at 1,
    which it would take 1 / (1 - alpha) steps to forget. One rho serves all objectives, as there.

    A loss of exactly 0 (no label in this batch) keeps its weight, and leaves the softmax, in which
    K is the number of the others. L(0) is the loss of the first step with a label, L(t - 1) that of
    the last one. That is our decision.

    Args:
        num_objectives: K.
        seed: seeds the look backs.
        temperature: T; above 0. The larger, the more equal the weights. The paper's choice for
            Burgers' equation, as the other two; for Helmholtz' it took 1e-5, and 0.99 twice.
        alpha: memory; in [0, 1].
        lookback: the mean of rho; in [0, 1].

    Example:
        The first loss halves, the second stays; without memory, 2 softmax(0.5, 1).

        >>> method = ReLoBRaLo(2, temperature=1.0, alpha=0.0)
        >>> for losses in ([2.0, 1.0], [1.0, 1.0]):
        ...     x = torch.tensor(losses, requires_grad=True)
        ...     method.backward(Step([x[0], x[1]], shared=[x]))
        tensor([1., 1.], dtype=torch.float64)
        tensor([0.7551, 1.2449], dtype=torch.float64)
    """

    paper = "Bischof and Kraus, CMAME 439, 2025, arXiv 2110.09813, eq. 11, and the authors' code"
    checked_against = "a textbook twin that keeps the whole history"

    factors: Tensor
    first: Tensor
    last: Tensor
    labels: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        temperature: float = 0.1,
        alpha: float = 0.999,
        lookback: float = 0.9999,
    ) -> None:
        super().__init__(num_objectives, seed)
        positive(self, temperature=temperature)
        unit_interval(self, alpha=alpha, lookback=lookback)
        self.temperature, self.alpha, self.lookback = temperature, alpha, lookback
        self.register_buffer("factors", torch.ones(num_objectives, dtype=torch.float64))
        for name in ("first", "last", "labels"):  # 0: no label seen yet
            self.register_buffer(name, torch.zeros(num_objectives, dtype=torch.float64))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw T, 1 - alpha and 1 - lookback log-uniformly."""
        return {
            "temperature": trial.suggest_float("temperature", 1e-5, 10.0, log=True),
            "alpha": 1 - trial.suggest_float("one_minus_alpha", 1e-3, 1.0, log=True),
            "lookback": 1 - trial.suggest_float("one_minus_lookback", 1e-4, 1.0, log=True),
        }

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Move the weights; return the weighted sum, and the weights."""
        losses = step.values.to(self.last)
        seen = losses != 0
        self.first.copy_(torch.where(self.first == 0, losses, self.first))
        last = torch.where(self.last == 0, losses, self.last)
        draw = torch.rand((), generator=self.generator, device="cpu").item()
        past = self.factors if draw < self.lookback else self._balanced(losses, self.first)
        alpha = self.alpha * (self.labels != 1).to(self.labels)
        moved = alpha * past + (1 - alpha) * self._balanced(losses, last)
        self.factors.copy_(torch.where(seen, moved, self.factors))
        self.labels += seen
        self.last.copy_(torch.where(seen, losses, self.last))
        weights = self.factors.clone()
        return step.total(weights), weights

    def _balanced(self, losses: Tensor, before: Tensor) -> Tensor:
        """Return the softmax of the relative losses, over those that are not 0."""
        seen = losses != 0
        ratios = (losses / before.masked_fill(~seen, 1)).clamp(-1e30, 1e30)
        shares = (ratios / self.temperature).masked_fill(~seen, -inf).softmax(dim=0)
        return torch.where(seen.any(), shares, 1) * seen.sum()
