"""Which samples a step is made of."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mtbench import seeding
from mtbench.errors import UsageError
from mtbench.training.cell.fit import NO_HELD_OUT, UnfitError
from mtbench.training.machine.device import to_device
from mtbench.training.task import Batch, Split


class Batches:
    """The batches of a training split, each of which depends on seed, epoch and position alone.

    So every method gets the same ones, and a cell that was broken off goes on with the next. Of a
    method that holds samples out they are cut from the same order, without these.

    Args:
        split: what is learnt from.
        size: samples a batch; the last one of an epoch may have fewer.
        seed: of the cell.
        device: where batches are wanted.
        holds_out: the share of the samples, in whole groups, that no batch has but `validation`.

    Raises:
        UsageError: nothing can be held out, since all samples are of one group, or come again.

    Attributes:
        steps: batches an epoch.
    """

    def __init__(
        self, split: Split, size: int, seed: int, device: str, holds_out: float = 0.0
    ) -> None:
        self.split, self.size, self.seed, self.device = split, size, seed, device
        self._held = _held_out(split, holds_out, seed)
        self._samples = len(split) - int(self._held.sum())
        self.steps = math.ceil(self._samples / size)
        self._order, self._epoch = torch.empty(0), -1

    def at(self, epoch: int, position: int) -> Batch:
        """Return a batch."""
        if epoch != self._epoch:
            shuffle = seeding.generator(self.seed, "order", epoch)
            order = torch.randperm(len(self.split), generator=shuffle)
            self._order, self._epoch = order[~self._held[order]], epoch
        indices = self._order[position * self.size : (position + 1) * self.size]
        augmentation = seeding.generator(self.seed, "augmentation", epoch, position)
        return to_device(self.split.batch(indices, augmentation), self.device)

    def samples(self, position: int) -> int:
        """Return how many samples the batch at a position has."""
        return min(self._samples - position * self.size, self.size)

    def validation(self, epoch: int, position: int, number: int) -> tuple[Batch, int]:
        """Return one of a step's validation batches, and how many samples it has.

        It is drawn from what is held out, from all samples if nothing is.

        Args:
            epoch: of the step.
            position: of the step in its epoch.
            number: of the batch, among those of the step.
        """
        generator = seeding.generator(self.seed, "validation", epoch, position, number)
        pool = torch.arange(len(self.split))
        if self._held.any():
            pool = pool[self._held]
        indices = pool[torch.randperm(len(pool), generator=generator)[: self.size]]
        return to_device(self.split.batch(indices, generator), self.device), len(indices)


def _held_out(split: Split, share: float, seed: int) -> Tensor:
    """Return which samples are held out, (N,), in whole groups, drawn by the seed."""
    count = len(split)
    if share == 0:
        return torch.zeros(count, dtype=torch.bool)
    numbers: dict[Hashable, int] = {}
    if split.by_objective is not None:
        raise UnfitError(f"this method {NO_HELD_OUT}")
    own = split.groups()
    names: Sequence[Hashable] = range(count) if own is None else own
    groups = torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])
    order = torch.randperm(len(numbers), generator=seeding.generator(seed, "held out"))
    sizes = torch.bincount(groups)[order]
    before = sizes.cumsum(0) - sizes
    held = torch.isin(groups, order[:-1][before[:-1] < share * count])
    if not held.any():
        raise UsageError(
            "this method holds out training samples in whole groups, and all are of one group"
        )
    return held
