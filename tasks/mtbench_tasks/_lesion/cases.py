"""The loader contract: what every source of ultrasound images hands to the task."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from mtbench.errors import DataError

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Progress = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""
View = tuple[slice, slice]
"""Rows and columns of an image."""

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

Array = TypeVar("Array", bound=NDArray[Any])


def read(array: Array | Callable[[], Array]) -> Array:
    """Return an array that is there, or is read now."""
    return array() if callable(array) else array


def digest(array: NDArray[Any]) -> str:
    """Return a hash of an array's type, shape and content."""
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


@dataclass(frozen=True)
class Reading:
    """What one reader said of one image; either part may be missing.

    Attributes:
        reader: the reader's name.
        contour: the (H, W) lesion mask, or what reads it; None where no usable one was drawn.
        category: index into the source's `grades`, or None where none was given.
    """

    reader: str
    contour: Mask | Callable[[], Mask] | None
    category: int | None

    @property
    def mask(self) -> Mask | None:
        """The lesion mask, (H, W), read now."""
        return None if self.contour is None else read(self.contour)


@dataclass(frozen=True)
class Case:
    """One ultrasound view, cropped to the scanned sector.

    Attributes:
        name: unique within its source.
        patient: the unit that splits must not divide.
        pixels: the (H, W) grey values, or what reads them: a large source is not held in memory.
        readings: at least one; training and validation labels come from these.
        truth: the ground truth, where one exists (simulation).
        consensus: what several readings come to together, where that is wanted.
        spacing: millimetres per pixel (isotropic), or None where unknown.
        descriptors: the sonographic descriptors as the source words them.
        part: what its source publishes it for; None: that is left to us.
    """

    name: str
    patient: str
    pixels: Image | Callable[[], Image]
    readings: tuple[Reading, ...]
    truth: Reading | None = None
    consensus: Reading | None = None
    spacing: float | None = None
    descriptors: Mapping[str, str] = field(default_factory=dict)
    part: Part | None = None

    @property
    def image(self) -> Image:
        """The grey values, (H, W), read now."""
        return read(self.pixels)

    @property
    def said(self) -> tuple[Reading, ...]:
        """The readings, then the consensus, then the truth, where there are these."""
        both = (self.consensus, self.truth)
        return (*self.readings, *(reading for reading in both if reading is not None))

    def mask(self, reading: Reading, shape: tuple[int, ...] | None) -> Mask | None:
        """Return the mask of one of its readings, read now.

        Raises:
            DataError: it cannot be read, or is not of the image's shape.
        """
        mask = reading.mask
        if mask is not None and shape is not None and mask.shape != shape:
            raise DataError(
                f"{self.name}: a mask has the image's rows and columns, {shape}; that of "
                f"{reading.reader} has {mask.shape}"
            )
        return mask

    def faults(self) -> list[str]:
        """Read everything; return what cannot be read or does not fit, a line each."""
        found: list[str] = []
        shape = None
        try:
            shape = self.image.shape
        except DataError as error:
            found.append(str(error))
        for reading in self.said:
            try:
                self.mask(reading, shape)
            except DataError as error:
                found.append(str(error))
        return found


@dataclass(frozen=True)
class Collection:
    """All cases of a source.

    Attributes:
        cases: the usable cases.
        grades: category names from benign to malignant; `Reading.category` indexes it.
        fingerprint: identifies the content; equal fingerprints mean equal cases.
        report: (count, what, why) lines: what was used, repaired and dropped.
        problems: a line for each thing that is broken and was left out.
        remarks: what else a person should know of these cases.
    """

    cases: tuple[Case, ...]
    grades: tuple[str, ...]
    fingerprint: str
    report: tuple[tuple[int, str, str], ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
