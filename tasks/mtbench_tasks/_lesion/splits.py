"""From cases to batches: patient-level splits, labels by reader."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtbench.training.task import Batch, Split
from mtbench_tasks._lesion.augment import augment
from mtbench_tasks._lesion.cases import Case, Reading
from mtbench_tasks._lesion.grid import Prepared
from mtbench_tasks._lesion.radiomics import Standardiser

TRUTH = "ground truth"
FRACTIONS = (0.6, 0.15, 0.25)
"""Of the patients, for training, validation and test."""
PUBLISHED = (0.8, 0.2, 0.0)
"""Of the patients that are left where the source says which ones are for the test."""

Sample = tuple[int, int]
"""A case by its number, and one reading of its `Case.said` by its own."""


def split_patients(cases: Sequence[Case], rng: np.random.Generator) -> list[list[int]]:
    """Return the case indices of training, validation and test, no patient in two of them.

    Patients are dealt out within each category (their most suspicious one), so that rare grades
    occur in every part. Where a source holds some cases out, their patients are the test.
    """
    grade: dict[str, int] = {}
    for case in cases:
        known = [r.category for r in case.readings if r.category is not None]
        grade[case.patient] = max([grade.get(case.patient, -1), *known])
    part = {case.patient: 2 for case in cases if case.held_out}
    fractions = PUBLISHED if part else FRACTIONS
    for value in sorted(set(grade.values())):
        patients = sorted(p for p, g in grade.items() if g == value and p not in part)
        shuffled = [patients[i] for i in rng.permutation(len(patients))]
        # A random remainder: the odd patient of a small grade falls to each part in its turn.
        edges = np.cumsum(fractions)[:-1] * len(patients) + rng.random()
        for position, patient in enumerate(shuffled):
            part[patient] = int(np.searchsorted(edges, position + 0.5))
    return [[i for i, c in enumerate(cases) if part[c.patient] == p] for p in range(3)]


def join_patients(cases: Sequence[Case], images: Sequence[str]) -> list[Case]:
    """Return the cases, patients who share an image made one: no split may divide them.

    Args:
        cases: any.
        images: for each case the hash of its image's content.
    """
    joined: dict[str, str] = {}

    def first(patient: str) -> str:
        while (other := joined.setdefault(patient, patient)) != patient:
            patient = other
        return patient

    owner: dict[str, str] = {}
    for case, image in zip(cases, images, strict=True):
        pair = first(case.patient), first(owner.setdefault(image, case.patient))
        joined[max(pair)] = min(pair)
    return [replace(case, patient=first(case.patient)) for case in cases]


class Opinion(NamedTuple):
    """What one rater says of a case: a category (-1: none), a mask (1, S, S) on the grid."""

    category: int
    mask: Tensor | None


class CaseSplit(Split):
    """Samples of one part of the data, on the grid.

    A batch holds ``inputs`` (B, 1, S, S), ``mask`` (B, 1, S, S), ``has_mask`` (B,), ``category``
    (B,), -1 where unknown, and ``radiomics`` (B, R), NaN where unknown.

    Args:
        cases: all cases of the collection.
        prepared: these on the grid.
        samples: which cases, and for each the reading of `Case.said` that its labels come from.
        radiomics: (N, R) standardised targets of the samples.
        high: for low/high: the grade index from which a category counts as high; None for grades.
        strength: of the augmentation.
        standardise: what made the targets of the raw radiomics.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        prepared: Prepared,
        samples: Sequence[Sample],
        radiomics: NDArray[np.float64],
        high: int | None,
        strength: float,
        standardise: Standardiser | None = None,
    ) -> None:
        self.standardise = standardise
        self.strength, self._prepared, self._high = strength, prepared, high
        self.cases = tuple(cases[i] for i, _ in samples)
        self.readings = tuple(cases[i].said[reading] for i, reading in samples)
        self._inputs = np.array([i for i, _ in samples], dtype=int)
        self._masks = np.array([prepared.rows[i][reading] for i, reading in samples], dtype=int)
        self.has_mask = torch.from_numpy(self._masks >= 0)
        self.category = torch.tensor([_category(r, high) for r in self.readings], dtype=torch.long)
        self.radiomics = torch.from_numpy(radiomics).float()

    def __len__(self) -> int:
        return len(self.cases)

    def groups(self) -> Sequence[Hashable]:
        """Return each sample's patient."""
        return [case.patient for case in self.cases]

    def opinions(self, position: int) -> dict[str, Opinion]:
        """Return what the readers, and the truth, say of a sample's case, by name."""
        case, rows = self.cases[position], self._prepared.rows[self._inputs[position]]
        return {
            TRUTH if reading is case.truth else reading.reader: Opinion(
                _category(reading, self._high),
                None if row < 0 else torch.from_numpy(self._prepared.masks[row]) > 0,
            )
            for reading, row in zip(case.said, rows, strict=True)
            if reading is not case.consensus
        }

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
