"""The loader contract: what every source of ultrasound images hands to the task."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from mtbench.errors import DataError

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
View = tuple[slice, slice]
"""Rows and columns of an image."""

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

Array = TypeVar("Array", bound=NDArray[Any])


def read(array: Array | Callable[[], Array]) -> Array:
    """Return an array that is there, or is read now."""
    return array() if callable(array) else array


class Told(ABC):
    """What reads an array and knows what is odd about where it came from."""

    def __call__(self) -> Any:
        """Return the array, read now."""
        return self.look()[0]

    @abstractmethod
    def look(self) -> tuple[Any, list[str]]:
        """Return the array, read now, and a line for each thing a person should know."""


def look(array: Array | Callable[[], Array]) -> tuple[Array, list[str]]:
    """Return an array, read now if need be, and what a person should know of it."""
    return array.look() if isinstance(array, Told) else (read(array), [])


@dataclass(frozen=True)
class United(Told):
    """The masks of one reader's lesions in one image, as one.

    Attributes:
        parts: (H, W) masks, or what reads them.
    """

    parts: tuple["Mask | Callable[[], Mask]", ...]

    def look(self) -> tuple[Mask, list[str]]:
        """Return where any of them is, (H, W), and what is odd about them.

        Raises:
            DataError: one cannot be read, or they differ in size.
        """
        found = [look(part) for part in self.parts]
        shapes = {mask.shape for mask, _ in found}
        if len(shapes) > 1:
            raise DataError(f"one reader's masks of one image differ in size: {sorted(shapes)}")
        united: Mask = np.logical_or.reduce([mask for mask, _ in found])
        return united, [text for _, told in found for text in told]


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
        pixels: the (H, W) grey values of a simulation, or what reads a file's.
        readings: at least one; training and validation labels come from these.
        truth: the ground truth, where one exists (simulation).
        consensus: what several readings come to together, where that is wanted.
        spacing: millimetres per pixel (isotropic), or None where unknown.
        descriptors: the sonographic descriptors as the source words them.
        part: what its source publishes it for; None: that is left to us.
        groups: what it may be looked at by, such as the scanner or the patient's sex.
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
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def image(self) -> Image:
        """The grey values, (H, W), read now."""
        return read(self.pixels)

    @property
    def said(self) -> tuple[Reading, ...]:
        """The readings, then the consensus, then the truth, where there are these."""
        both = (self.consensus, self.truth)
        return (*self.readings, *(reading for reading in both if reading is not None))

    def mask(self, reading: Reading, image: Image | None) -> tuple[Mask, list[str]]:
        """Return the mask of one of its readings that has one, read now, and what is odd about it.

        Args:
            reading: whose.
            image: its image, None where that cannot be read.

        Raises:
            DataError: it cannot be read, or is not of the image's shape; whose it is, is said.
        """
        assert reading.contour is not None
        try:
            mask, told = look(reading.contour)
        except DataError as error:
            raise DataError(f"{self.name}: {reading.reader}'s mask: {error}") from error
        if image is not None and mask.shape != image.shape:
            raise DataError(
                f"{self.name}: a mask has the image's rows and columns, {image.shape}; that of "
                f"{reading.reader} has {mask.shape}"
            )
        return mask, told


@dataclass(frozen=True)
class Collection:
    """All cases of a source.

    Attributes:
        cases: the usable cases.
        grades: category names from benign to malignant; `Reading.category` indexes it.
        fingerprint: identifies the content; equal fingerprints mean equal cases.
        report: (count, what, why) lines: what was used, repaired and dropped.
        problems: a line for each thing that is broken and was left out.
        doubts: a line for each thing that looks odd, and was used.
        remarks: what else a person should know of these cases.
    """

    cases: tuple[Case, ...]
    grades: tuple[str, ...]
    fingerprint: str
    report: tuple[tuple[int, str, str], ...] = ()
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
