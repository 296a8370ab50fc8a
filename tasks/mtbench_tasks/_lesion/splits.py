"""From cases to batches: patient-level splits, labels by reader."""

import hashlib
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtbench.errors import UsageError
from mtbench.training.task import Batch, Progress, Split
from mtbench_tasks._lesion.augment import augment
from mtbench_tasks._lesion.cases import PARTS, Case, Collection, Reading, read
from mtbench_tasks._lesion.descriptors import Lexicon, labels
from mtbench_tasks._lesion.grid import Prepared
from mtbench_tasks._lesion.radiomics import FEATURES, Standardiser, extract_all
from mtbench_tasks._lesion.source import Source
from mtbench_tasks._names import spelt_alike

TRUTH = "ground truth"
FOLDS = "1/5"
"""Which of how many parts of the patients is the test, where neither source nor user says."""
VALIDATION = 0.2
"""Of the patients who are not tested."""

Sample = tuple[int, int]
"""A case by its number, and one reading of its `Case.said` by its own."""


def read_fold(text: str) -> tuple[int, int]:
    """Return k and K of the k-th of K folds.

    >>> read_fold("2/5")
    (2, 5)

    Raises:
        UsageError: there is no such fold.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    k, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= k <= count or count < 2:
        raise UsageError(f"fold must be k/K, the k-th of K parts, such as {FOLDS}; found {text!r}")
    return k, count


def split_patients(
    cases: Sequence[Case], rng: np.random.Generator, fold: str = FOLDS
) -> list[list[int]]:
    """Return the case indices of training, validation and test, no patient in two of them.

    Patients are dealt out within each category (their most suspicious one). Who is tested does not
    depend on `rng`: the source's patients for it, or, where it names none, the `fold`. `rng` draws
    the validation patients from all others, unless the source names these too; a patient of whom it
    names several parts is of the last.

    Args:
        cases: any.
        rng: draws the validation patients: of n patients of a grade n / 5 in expectation, and one
            at least of all.
        fold: k/K: the k-th of K parts, which each patient is in one of.
    """
    grade: dict[str, int] = {}
    part: dict[str, int] = {}
    for case in cases:
        known = [r.category for r in case.readings if r.category is not None]
        grade[case.patient] = max([grade.get(case.patient, -1), *known])
        if case.part is not None:
            part[case.patient] = max(part.get(case.patient, 0), PARTS.index(case.part))
    named = set(part.values())

    def free() -> Iterator[list[str]]:
        """Yield the patients who are to train, by grade, in an order of no meaning."""
        for value in sorted(set(grade.values())):
            yield sorted(
                (p for p, g in grade.items() if g == value and part.get(p, 0) == 0),
                key=lambda p: hashlib.sha256(p.encode()).digest(),
            )

    if PARTS.index("test") not in named:
        k, count = read_fold(fold)
        dealt = list(chain.from_iterable(free()))  # the deal goes on from grade to grade
        part |= dict.fromkeys(dealt[k - 1 :: count], PARTS.index("test"))
    if PARTS.index("val") not in named:
        for patients in list(free()):
            drawn = math.floor(VALIDATION * len(patients) + rng.random())
            for i in rng.permutation(len(patients))[:drawn]:
                part[patients[i]] = PARTS.index("val")
        left = list(chain.from_iterable(free()))
        if PARTS.index("val") not in part.values() and len(left) > 1:  # few patients, many grades
            part[left[rng.integers(len(left))]] = PARTS.index("val")
    return [[i for i, c in enumerate(cases) if part.get(c.patient, 0) == p] for p in range(3)]


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


def with_test_of(
    own: Collection, high: int, name: str, other: Collection, origin: Source
) -> Collection:
    """Return a collection to learn from, with all of another to test on.

    Its own cases that are meant for a test are left out. Where the grades differ, the other's are
    told as low or high: as the first of the own ones, or the first that is high. Patients who are
    called alike in both stay apart, and are told.

    Args:
        own: to learn from.
        high: the first of its grades that counts as high risk.
        name: of the other, which its cases' and patients' names begin with.
        other: to test on.
        origin: its source.
    """

    def graded(reading: Reading) -> Reading:
        if other.grades == own.grades or reading.category is None:
            return reading
        return replace(reading, category=high if reading.category >= origin.high else 0)

    learnt = [case for case in own.cases if case.part != "test"]
    tested = [
        replace(
            case,
            name=f"{name}: {case.name}",
            patient=f"{name}: {case.patient}",
            readings=tuple(map(graded, case.readings)),
            truth=None if case.truth is None else graded(case.truth),
            part="test",
        )
        for case in other.cases
    ]
    ours, theirs = (
        list(dict.fromkeys(c.patient for c in cases if c.patient != c.name))  # nobody named others
        for cases in (learnt, other.cases)
    )
    spelt = spelt_alike([*ours, *theirs])
    known = {spelt[patient] for patient in ours}
    doubts = list[str]()
    if both := [patient for patient in theirs if spelt[patient] in known]:
        doubts.append(
            f"test source {name}: {len(both)} of its {len(theirs)} patients, the first "
            f"{both[0]!r}, are called as some who are trained on: leave them out of one, or, if "
            "they are others, call them otherwise"
        )
    return replace(
        own,
        cases=(*learnt, *tested),
        fingerprint=f"{own.fingerprint} tested on {other.fingerprint}",
        problems=(*own.problems, *other.problems),
        doubts=(*doubts, *own.doubts, *other.doubts),
        remarks=(*own.remarks, *other.remarks),
    )


class Opinion(NamedTuple):
    """What one rater says of a case: a category (-1: none), a mask (1, S, S) on the grid."""

    category: int
    mask: Tensor | None


class CaseSplit(Split):
    """Samples of one part of the data, on the grid.

    A batch holds ``inputs`` (B, 1, S, S), ``mask`` (B, 1, S, S), ``has_mask`` (B,), ``category``
    (B,), -1 where unknown, ``radiomics`` (B, R), NaN where unknown; unless it is
    augmented, also the ``masks`` at the images' own resolutions, each (H, W), empty where there is
    none, and the ``spacing`` (B,), millimetres per pixel, NaN where unknown.

    Args:
        cases: all cases of the collection.
        prepared: these on the grid.
        samples: which cases, and for each the reading of `Case.said` that its labels come from.
        radiomics: (N, R) standardised targets of the samples.
        high: for low/high: the grade index from which a category counts as high; None for grades.
        strength: of the augmentation.
        standardise: what made the targets of the raw radiomics.
        lexicon: the descriptors whose terms a batch holds, as ``descriptors`` (B, D), -1 where
            unknown; by default none, and no such entry.
        keep: what is read of masks for `batch`, since it is asked again.
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
        lexicon: Lexicon = (),
        *,
        keep: bool = False,
    ) -> None:
        self.standardise, self._keep = standardise, keep
        self.strength, self._prepared, self._high = strength, prepared, high
        self.cases = tuple(cases[i] for i, _ in samples)
        self.readings = tuple(cases[i].said[reading] for i, reading in samples)
        self._inputs = np.array([i for i, _ in samples], dtype=int)
        self._masks = np.array([prepared.rows[i][reading] for i, reading in samples], dtype=int)
        self.has_mask = torch.from_numpy(self._masks >= 0)
        self.category = torch.tensor([_category(r, high) for r in self.readings], dtype=torch.long)
        known = [case.spacing or math.nan for case in self.cases]
        self.spacing = torch.tensor(known, dtype=torch.double)
        self.radiomics = torch.from_numpy(radiomics).float()
        self._terms = labels(self.cases, lexicon) if lexicon else None
        self._outlines: dict[int, tuple[NDArray[np.uint8], tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def groups(self) -> Sequence[Hashable]:
        """Return each sample's patient."""
        return [case.patient for case in self.cases]

    def hashes(self) -> list[str]:
        """Return the perceptual hashes of its images, of those that have one."""
        each = (self._prepared.hashes.get(i, []) for i in sorted(set(self._inputs.tolist())))
        return [found[0] for found in each if found]

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

    def images(self, indices: Tensor) -> Tensor:
        """Return a batch's ``inputs`` alone, not augmented: no mask is read."""
        return torch.from_numpy(self._prepared.inputs[self._inputs[indices.numpy()]])

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the samples at `indices`, augmented if a generator is given."""
        at, images = indices.numpy(), self.images(indices)
        masks = torch.zeros(images.shape)
        known = self.has_mask[indices]
        drawn = self._prepared.masks[self._masks[at][known.numpy()]]
        masks[known] = torch.from_numpy(drawn).float()
        if generator is not None:
            images, masks = augment(images, masks, self.strength, generator)
        batch: Batch = {
            "inputs": images,
            "mask": masks,
            "has_mask": known,
            "category": self.category[indices],
            "radiomics": self.radiomics[indices],
        }
        if self._terms is not None:
            batch["descriptors"] = self._terms[indices]
        if generator is None:
            batch["masks"] = [self._outline(i) for i in indices.tolist()]
            batch["spacing"] = self.spacing[indices]
        return batch

    def _outline(self, position: int) -> Tensor:
        """Return a sample's mask at its image's own resolution, (H, W), of none (0, 0).

        What is kept takes a bit a pixel.
        """
        contour = self.readings[position].contour
        if contour is None:
            return torch.zeros(0, 0, dtype=torch.bool)
        if not (self._keep and callable(contour)):
            return torch.from_numpy(read(contour))
        if position not in self._outlines:
            mask = read(contour)
            self._outlines[position] = np.packbits(mask), mask.shape
        bits, shape = self._outlines[position]
        mask = np.unpackbits(bits, count=math.prod(shape)).view(bool)
        return torch.from_numpy(mask).view(shape)


def _category(reading: Reading, high: int | None) -> int:
    if reading.category is None:
        return -1
    return reading.category if high is None else int(reading.category >= high)


def authority(cases: Sequence[Case]) -> str:
    """Return whose labels a test on these cases is against."""
    if all(case.truth for case in cases):
        return TRUTH
    return (
        "consensus of readers (STAPLE, majority)" if any(c.consensus for c in cases) else "reader"
    )


def radiomics_of(
    cases: Sequence[Case],
    prepared: Prepared,
    samples: Sequence[Sample],
    cache: Path | None,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return raw radiomics of samples, (N, R), NaN where there is no contour."""
    found = np.full((len(samples), len(FEATURES)), np.nan)
    pixels, contours, keys, spacings, where = [], [], [], [], []
    for position, (i, number) in enumerate(samples):
        contour = cases[i].said[number].contour
        if contour is not None and prepared.rows[i][number] >= 0:
            pixels.append(cases[i].pixels)
            contours.append(contour)
            keys.append(f"{prepared.images[i]} {prepared.contours[prepared.rows[i][number]]}")
            spacings.append(cases[i].spacing)
            where.append(position)
    found[where] = extract_all(pixels, contours, keys, spacings, cache=cache, progress=progress)
    return found
