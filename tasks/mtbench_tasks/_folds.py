"""Test sets that are the same at every seed: folds of what has no published test part."""

import numpy as np
import torch
from numpy.typing import NDArray

from mtbench import seeding
from mtbench.errors import UsageError

FOLDS = 5

VALIDATION = 0.2
"""Of what is not tested."""


def checked(fold: int) -> int:
    """Return the fold.

    Raises:
        UsageError: there is none of this number.
    """
    if not 0 <= fold < FOLDS:
        raise UsageError(f"fold must be 0 to {FOLDS - 1}, found {fold}")
    return fold


def divide(count: int, fold: int, seed: int) -> list[NDArray[np.int64]]:
    """Return which of some groups train, validate and test.

    Each group is tested in one fold, at every seed. Of the others, the seed draws those of
    validation: what a seed changes is how a model comes about, not what it is judged by.

    >>> [len(part) for part in divide(100, fold=0, seed=3)]
    [64, 16, 20]
    """
    order = torch.randperm(count, generator=seeding.generator(0, "folds")).numpy()
    tested = np.arange(count) % FOLDS == fold
    rest = order[~tested]
    rest = rest[torch.randperm(len(rest), generator=seeding.generator(seed, "split")).numpy()]
    held = round(VALIDATION * len(rest))
    return [rest[held:], rest[:held], order[tested]]
