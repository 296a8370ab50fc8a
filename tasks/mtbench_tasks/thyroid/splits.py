"""From cases to tensors: patient-level splits, the network's grid, labels by reader."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mtbench.task import Batch, Split
from mtbench_tasks.thyroid.augment import augment
from mtbench_tasks.thyroid.cases import Case, Image, Reading

FRACTIONS = (0.6, 0.15, 0.25)
"""Of the patients, for training, validation and test."""


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


@dataclass(frozen=True)
class Placement:
    """How an image lies on the network's square grid: scaled by its longer side, then padded.

    The scale is the same in both directions: taller-than-wide must stay so.

    Attributes:
        shape: (H, W) of the image.
        size: side of the grid.
    """

    shape: tuple[int, int]
    size: int

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the grid that the image covers."""
        longest = max(self.shape)
        height, width = (max(1, round(side * self.size / longest)) for side in self.shape)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return slice(top, top + height), slice(left, left + width)

    def to_grid(self, plane: NDArray[np.float32]) -> Tensor:
        """Return an (H, W) plane on the grid, (size, size), zero outside."""
        rows, columns = self.box
        grid = torch.zeros(self.size, self.size)
        grid[self.box] = F.interpolate(
            torch.from_numpy(plane)[None, None],
            size=(rows.stop - rows.start, columns.stop - columns.start),
            mode="bilinear",
            antialias=True,
        )[0, 0]
        return grid

    def from_grid(self, grid: Tensor) -> Tensor:
        """Return a (size, size) plane at the image's own resolution, (H, W)."""
        return F.interpolate(grid[self.box][None, None], size=self.shape, mode="bilinear")[0, 0]


def to_input(image: Image, size: int) -> Tensor:
    """Return an image as the network takes it, (1, size, size), 0 to 1."""
    shape = (image.shape[0], image.shape[1])
    return Placement(shape, size).to_grid((image / 255).astype(np.float32))[None]


class CaseSplit(Split):
    """Cases of one part of the data, on the grid and in memory.

    A batch holds ``inputs`` (B, 1, S, S), ``mask`` (B, 1, S, S), ``has_mask`` (B,), ``category``
    (B,), -1 where unknown, and ``radiomics`` (B, R), NaN where unknown.

    Args:
        cases: the cases.
        readings: for each case the reading that its labels come from.
        radiomics: (N, R) standardised targets.
        size: side of the grid.
        high: for low/high: the grade index from which a category counts as high; None for grades.
        strength: of the augmentation.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        readings: Sequence[Reading],
        radiomics: NDArray[np.float64],
        size: int,
        high: int | None,
        strength: float,
    ) -> None:
        self.strength = strength
        self.cases, self.readings = tuple(cases), tuple(readings)
        self.inputs = torch.stack([to_input(case.image, size) for case in cases])
        self.has_mask = torch.tensor([r.mask is not None for r in readings])
        self.masks = torch.stack([_mask(r, size) for r in readings])
        self.category = torch.tensor([_category(r, high) for r in readings])
        self.radiomics = torch.from_numpy(radiomics).float()

    def __len__(self) -> int:
        return len(self.cases)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the cases at `indices`, augmented if a generator is given."""
        images, masks = self.inputs[indices], self.masks[indices]
        if generator is not None:
            images, masks = augment(images, masks, self.strength, generator)
        return {
            "inputs": images,
            "mask": masks,
            "has_mask": self.has_mask[indices],
            "category": self.category[indices],
            "radiomics": self.radiomics[indices],
        }


def _mask(reading: Reading, size: int) -> Tensor:
    if reading.mask is None:
        return torch.zeros(1, size, size)
    shape = (reading.mask.shape[0], reading.mask.shape[1])
    return (Placement(shape, size).to_grid(reading.mask.astype(np.float32)) > 0.5)[None].float()


def _category(reading: Reading, high: int | None) -> int:
    if reading.category is None:
        return -1
    return reading.category if high is None else int(reading.category >= high)
