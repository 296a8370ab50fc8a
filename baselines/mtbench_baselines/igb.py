"""IGB: weigh every logarithmic loss by how far it is from where it will end."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import at_least

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-20


class ImprovableGapBalancing(Scalarizer):
    r"""Minimise :math:`\sum_k w_k \log L_k`, w by the loss relative to an early epoch's.

    .. math:: w = K \operatorname{softmax}_k \bigl( L_k / \bar L_k \bigr)

    :math:`\bar L_k` is the mean of L_k over the steps of epoch ``base_epoch``; until that epoch has
    ended, w = 1, which is ``si``. The ratio stands for the improvable gap: the loss is taken to end
    at 0. This is IGB v1; v2 learns the weights by reinforcement.

    Epochs are counted by `after_epoch`; a loop that does not call it is ``si``.

    Deviations:
        - A loss of exactly 0 (no label in this batch) is left out of everything; K then counts
          those that remain. An objective without any label in the base epoch gets its mean from the
          first later epoch that has one, and the ratio 1 till then.
        - A loss that is negative has no logarithm: it is descended with weight w / abs(L).

    Args:
        num_objectives: K.
        seed: unused.
        base_epoch: which epoch's mean losses are the base, from 0.

    Example:
        Since the base epoch the first loss halved, the second did not move.

        >>> method = ImprovableGapBalancing(2, base_epoch=0)
        >>> for losses in ([2.0, 1.0], [1.0, 1.0]):
        ...     x = torch.tensor(losses, requires_grad=True)
        ...     weights = method.backward(Step([x[0], x[1]], shared=[x]))
        ...     method.after_epoch()
        >>> weights  # 2 softmax(1/2, 1), over losses of 1
        tensor([0.7551, 1.2449], dtype=torch.float64)
    """

    paper = "Dai, Fei and Lu, UAI 2023, arXiv 2307.15429, IGB v1"
    checked_against = "its formula by autograd"

    epoch: Tensor
    sums: Tensor
    counts: Tensor
    base: Tensor

    def __init__(self, num_objectives: int, seed: int = 0, *, base_epoch: int = 1) -> None:
        super().__init__(num_objectives, seed)
        at_least(self, 0, base_epoch=base_epoch)
        self.base_epoch = base_epoch
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        for name in ("sums", "counts", "base"):  # a base of 0: not known yet
            self.register_buffer(name, torch.zeros(num_objectives, dtype=torch.float64))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the base epoch from the first three."""
        return {"base_epoch": trial.suggest_int("base_epoch", 0, 2)}

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return a sum with the gradient of the weighted logarithms, and its weights w / L."""
        losses = step.values.to(self.sums)
        labelled = losses != 0
        self.sums += losses
        self.counts += labelled
        known = self.base != 0
        ratios = torch.where(known, losses / self.base.masked_fill(~known, 1), 1)
        shares = ratios.masked_fill(~labelled, -torch.inf).softmax(dim=0)
        improvable = (shares * labelled.sum()).nan_to_num()  # no label at all
        weights = torch.where(known.any(), improvable, labelled.to(losses))
        weights = weights / losses.abs().clamp(min=_LEAST)
        return step.total(weights), weights

    def after_epoch(self) -> None:
        """Take the base epoch's means, or one that is still missing."""
        fresh = (self.base == 0) & (self.counts > 0) & (self.epoch >= self.base_epoch)
        self.base.copy_(torch.where(fresh, self.sums / self.counts.clamp(min=1), self.base))
        self.sums.zero_()
        self.counts.zero_()
        self.epoch += 1
