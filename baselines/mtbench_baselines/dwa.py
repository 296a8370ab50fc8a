"""DWA: weights from how fast each loss fell in the last epoch."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import positive

if TYPE_CHECKING:
    from optuna import Trial


class DynamicWeightAverage(Scalarizer):
    r"""Minimise :math:`\sum_k \lambda_k L_k`; the slower a loss falls, the larger its weight.

    .. math:: \lambda_k(t) = \frac{K \exp(r_k / T)}{\sum_j \exp(r_j / T)}, \qquad
        r_k = \frac{\bar L_k(t-1)}{\bar L_k(t-2)}

    with :math:`\bar L_k(t)` the mean of L_k over the steps of epoch t; :math:`\lambda = 1` in the
    first two epochs. Epochs are counted by `after_epoch`; a loop that does not call it is ``ew``.

    A step in which a loss is exactly 0 (no label in this batch) is no part of its mean; an epoch
    without any label leaves the objective's two means as they were; without two means, r_k is 1.
    The losses are meant to be positive: a ratio of means of opposite sign is taken as it is.

    Args:
        num_objectives: K.
        seed: unused.
        temperature: T; above 0. The larger, the more equal the weights.

    Example:
        Two epochs of one step each: the first loss halves, the second stays.

        >>> method = DynamicWeightAverage(2)
        >>> for losses in ([2.0, 1.0], [1.0, 1.0], [1.0, 1.0]):
        ...     x = torch.tensor(losses, requires_grad=True)
        ...     weights = method.backward(Step([x[0], x[1]], shared=[x]))
        ...     method.after_epoch()
        >>> weights  # 2 softmax(1/4, 1/2)
        tensor([0.8756, 1.1244], dtype=torch.float64)
    """

    paper = "Liu et al., CVPR 2019, arXiv 1803.10704"
    checked_against = "torchjd 0.18; LibMTL 1.1.5"

    sums: Tensor
    counts: Tensor
    last: Tensor
    before: Tensor

    def __init__(self, num_objectives: int, seed: int = 0, *, temperature: float = 2.0) -> None:
        super().__init__(num_objectives, seed)
        positive(self, temperature=temperature)
        self.temperature = temperature
        for name in ("sums", "counts", "last", "before"):  # a mean of 0: not known yet
            self.register_buffer(name, torch.zeros(num_objectives, dtype=torch.float64))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw T log-uniformly from [0.5, 10]."""
        return {"temperature": trial.suggest_float("temperature", 0.5, 10.0, log=True)}

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the weighted sum, and the weights."""
        losses = step.values.to(self.sums)
        self.sums += losses
        self.counts += losses != 0
        known = (self.last != 0) & (self.before != 0)
        rates = torch.where(known, self.last / self.before.masked_fill(~known, 1), 1)
        weights = self.num_objectives * (rates / self.temperature).softmax(dim=0)
        return step.total(weights), weights

    def after_epoch(self) -> None:
        """Turn the epoch's sums into means."""
        seen = self.counts > 0
        means = self.sums / self.counts.clamp(min=1)
        self.before.copy_(torch.where(seen, self.last, self.before))
        self.last.copy_(torch.where(seen, means, self.last))
        self.sums.zero_()
        self.counts.zero_()
