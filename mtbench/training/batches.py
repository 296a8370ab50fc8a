"""Which samples a step is made of."""

import math

import torch

from mtbench import seeding
from mtbench.training.device import to_device
from mtbench.training.task import Batch, Split


class Batches:
    """The batches of a training split, each of which depends on seed, epoch and position alone.

    So every method gets the same ones, and a cell that was broken off goes on with the next.

    Args:
        split: what is learnt from.
        size: samples a batch; the last one of an epoch may have fewer.
        seed: of the cell.
        device: where batches are wanted.

    Attributes:
        steps: batches an epoch.
    """

    def __init__(self, split: Split, size: int, seed: int, device: str) -> None:
        self.split, self.size, self.seed, self.device = split, size, seed, device
        self.steps = math.ceil(len(split) / size)
        self._order, self._epoch = torch.empty(0), -1

    def at(self, epoch: int, position: int) -> Batch:
        """Return a batch."""
        if epoch != self._epoch:
            shuffle = seeding.generator(self.seed, "order", epoch)
            self._order, self._epoch = torch.randperm(len(self.split), generator=shuffle), epoch
        indices = self._order[position * self.size : (position + 1) * self.size]
        augmentation = seeding.generator(self.seed, "augmentation", epoch, position)
        return to_device(self.split.batch(indices, augmentation), self.device)

    def samples(self, position: int) -> int:
        """Return how many samples the batch at a position has."""
        return min(len(self.split) - position * self.size, self.size)
