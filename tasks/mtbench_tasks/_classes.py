"""What tasks share whose objectives are classes: the cross-entropies, and the accuracy."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mtbench.training.data import known, labelled_loss
from mtbench.training.task import Batch, Meter, Task


class Accuracy(Meter):
    """The share of labelled samples whose class is named rightly, for each objective.

    Args:
        objectives: their names.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self.right = dict.fromkeys(objectives, 0)
        self.count = dict.fromkeys(objectives, 0)

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""
        for name, output in zip(self.right, outputs, strict=True):
            self.right[name] += int((output.argmax(1) == batch[name]).sum())
            self.count[name] += int(known(batch[name]).sum())

    def compute(self) -> dict[str, float]:
        """Return ``accuracy_OBJECTIVE`` of every objective."""
        return {
            f"accuracy_{name}": self.right[name] / count if count else math.nan
            for name, count in self.count.items()
        }


class Classification(Task):
    """A task whose K objectives are classes, each learnt by cross-entropy."""

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return each objective's cross-entropy."""
        return [
            labelled_loss(F.cross_entropy, output, batch[name])
            for name, output in zip(self.objectives, outputs, strict=True)
        ]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return Accuracy(self.objectives)
