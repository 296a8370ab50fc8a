"""The loader contract: what every source of thyroid ultrasound hands to the task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Progress = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""


@dataclass(frozen=True)
class Reading:
    """What one reader said of one image; either part may be missing.

    Attributes:
        reader: the reader's name.
        mask: (H, W) nodule mask, or None where the reader drew no usable contour.
        category: index into the source's `grades`, or None where none was given.
    """

    reader: str
    mask: Mask | None
    category: int | None


@dataclass(frozen=True)
class Case:
    """One ultrasound view, cropped to the scanned sector.

    Attributes:
        name: unique within its source.
        patient: the unit that splits must not divide.
        image: (H, W) grey values.
        readings: at least one; training and validation labels come from these.
        truth: the ground truth, where one exists (simulation); otherwise tests use the readings.
        spacing: millimetres per pixel (isotropic), or None where unknown.
        descriptors: the sonographic descriptors as the source words them.
    """

    name: str
    patient: str
    image: Image
    readings: tuple[Reading, ...]
    truth: Reading | None = None
    spacing: float | None = None
    descriptors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """All cases of a source.

    Attributes:
        cases: the usable cases.
        grades: category names from benign to malignant; `Reading.category` indexes it.
        fingerprint: identifies the content; equal fingerprints mean equal cases.
        report: (count, what, why) lines: what was used, repaired and dropped.
    """

    cases: tuple[Case, ...]
    grades: tuple[str, ...]
    fingerprint: str
    report: tuple[tuple[int, str, str], ...] = ()
