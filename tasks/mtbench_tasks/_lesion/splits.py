"""From cases to batches: patient-level splits, labels by reader."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtbench.task import Batch, Split
from mtbench_tasks._lesion.augment import augment
from mtbench_tasks._lesion.cases import Case, Reading
from mtbench_tasks._lesion.grid import Prepared

FRACTIONS = (0.6, 0.15, 0.25)
"""Of the patients, for training, validation and test."""

Sample = tuple[int, int]
"""A case by its number, and one of its readings by its own; after the last comes the truth."""


def split_patients(cases: Sequence[Case], rng: np.random.Generator) -> list[list[int]]:
    """Return the case indices of training, validation and test, no patient in two of them.

    Patients are dealt out within each category (their most suspicious one), so that rare grades
    occur in every part.
    """
    grade: dict[str, int] = {}
    for case in cases:
        known = [r.category for r in case.readings if r.category is not None]
        grade[case.patient] = max([grade.get(case.patient, -1), *known])
    part: dict[str, int] = {}
    for value in sorted(set(grade.values())):
        patients = sorted(p for p, g in grade.items() if g == value)
        shuffled = [patients[i] for i in rng.permutation(len(patients))]
        # A random remainder: the odd patient of a small grade falls to each part in its turn.
        edges = np.cumsum(FRACTIONS)[:-1] * len(patients) + rng.random()
        for position, patient in enumerate(shuffled):
            part[patient] = int(np.searchsorted(edges, position + 0.5))
    return [[i for i, c in enumerate(cases) if part[c.patient] == p] for p in range(3)]


def reading_of(case: Case, number: int) -> Reading:
    """Return a reading of a case by its number, the truth after the last."""
    return [*case.readings, *([case.truth] if case.truth else [])][number]


class CaseSplit(Split):
    """Samples of one part of the data, on the grid.

    A batch holds ``inputs`` (B, 1, S, S), ``mask`` (B, 1, S, S), ``has_mask`` (B,), ``category``
    (B,), -1 where unknown, and ``radiomics`` (B, R), NaN where unknown.

    Args:
        cases: all cases of the collection.
        prepared: these on the grid.
        samples: which cases, and for each the reading that its labels come from.
        radiomics: (N, R) standardised targets of the samples.
        high: for low/high: the grade index from which a category counts as high; None for grades.
        strength: of the augmentation.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        prepared: Prepared,
        samples: Sequence[Sample],
        radiomics: NDArray[np.float64],
        high: int | None,
        strength: float,
    ) -> None:
        self.strength, self._prepared = strength, prepared
        self.cases = tuple(cases[i] for i, _ in samples)
        self.readings = tuple(reading_of(cases[i], reading) for i, reading in samples)
        self._inputs = np.array([i for i, _ in samples], dtype=int)
        self._masks = np.array([prepared.rows[i][reading] for i, reading in samples], dtype=int)
        self.has_mask = torch.from_numpy(self._masks >= 0)
        self.category = torch.tensor([_category(r, high) for r in self.readings], dtype=torch.long)
        self.radiomics = torch.from_numpy(radiomics).float()

    def __len__(self) -> int:
        return len(self.cases)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the samples at `indices`, augmented if a generator is given."""
        at = indices.numpy()
        images = torch.from_numpy(self._prepared.inputs[self._inputs[at]])
        masks = torch.zeros(images.shape)
        known = self.has_mask[indices]
        drawn = self._prepared.masks[self._masks[at][known.numpy()]]
        masks[known] = torch.from_numpy(drawn).float()
        if generator is not None:
            images, masks = augment(images, masks, self.strength, generator)
        return {
            "inputs": images,
            "mask": masks,
            "has_mask": known,
            "category": self.category[indices],
            "radiomics": self.radiomics[indices],
        }


def _category(reading: Reading, high: int | None) -> int:
    if reading.category is None:
        return -1
    return reading.category if high is None else int(reading.category >= high)
