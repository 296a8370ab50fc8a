"""What an image file holds, and how it becomes an upright picture of square pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil

from mtbench.errors import DataError
from mtbench_tasks._lesion.cases import Image, Mask, View

LARGEST = 100_000_000  # pixels: a header that promises more is broken, or a trap
RANGE = (0.5, 99.5)  # percentiles: what lies outside is noise, markers, dead pixels
PLAUSIBLE = (0.02, 0.5)  # millimetres per pixel: what ultrasound scanners and their exports have
SQUARE = 0.01  # sides of a pixel that differ less than this share count as equal
LONGEST = 10.0  # of a pixel's sides, the one in the other: beyond it a header is broken
PHOTOGRAPH, MARKS = 0.2, 0.01  # coloured shares: DDTI's scanner marks are below 0.002
ROWS = 1024  # of a block
COLOURED = 32  # grey levels between the channels of a pixel: JPEG's noise is less


@dataclass(frozen=True)
class Pose:
    """Where a picture's pixels lie in the room, as NIfTI says it (ITK's axes, millimetres).

    Attributes:
        right: (3,) the direction in which columns are counted.
        down: (3,) the direction in which rows are counted.
        centre: (3,) the middle of the picture.
        step: the finer side of a pixel.
        size: (2,) the picture's height and width.
    """

    right: NDArray[np.float64]
    down: NDArray[np.float64]
    centre: NDArray[np.float64]
    step: float
    size: NDArray[np.float64]


@dataclass(frozen=True)
class Geometry:
    """How pixels lie, as far as a file says; (H, W) is the picture as it is shown.

    Attributes:
        shape: (H, W).
        spacing: millimetres per pixel, down and across; None where unknown.
        aspect: a pixel's height over its width.
        sector: the part that was scanned; None where the file does not say.
        pose: where it lies in the room; None where the file does not say.
        told: what a person should know of it.
        patient: whose it is, as its header says; empty where that says nothing.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float] | None = None
    aspect: float = 1.0
    sector: View | None = None
    pose: Pose | None = None
    told: tuple[str, ...] = ()
    patient: str = ""

    @property
    def squared(self) -> tuple[int, int]:
        """(H, W) with square pixels of the finer side: none is lost."""
        height, width = self.shape
        if abs(self.aspect - 1) <= SQUARE:
            return self.shape
        return (round(height * max(self.aspect, 1)), round(width / min(self.aspect, 1)))

    @property
    def scale(self) -> float | None:
        """Millimetres per square pixel."""
        return None if self.spacing is None else min(self.spacing)

    @property
    def scanned(self) -> View:
        """The sector in square pixels; everything where the file does not say."""
        height, width = self.squared
        if self.sector is None:
            return slice(0, height), slice(0, width)
        down, across = height / self.shape[0], width / self.shape[1]
        rows, columns = self.sector
        return (
            slice(round(rows.start * down), round(rows.stop * down)),
            slice(round(columns.start * across), round(columns.stop * across)),
        )


@dataclass(frozen=True)
class Stored:
    """A decoded file.

    Attributes:
        values: (H, W), or (H, W, 3) 8-bit colours, or (H, W, 4) with opacity.
        geometry: how they lie.
        shown: the lowest and the highest value that are told apart; None: as `to_grey` finds.
        hidden: (H, W) where nothing was measured (DICOM's padding); None: nowhere.
        inverse: whether the lowest value is white, and not black.
        lossy: whether zero need not be zero.
    """

    values: NDArray[Any]
    geometry: Geometry
    shown: tuple[float, float] | None = None
    hidden: Mask | None = None
    inverse: bool = False
    lossy: bool = False


@dataclass(frozen=True)
class Picture:
    """An image to be read: upright, grey, its pixels square.

    Attributes:
        pixels: (H, W) grey values.
        scanned: the rows and columns that hold the scan.
        spacing: millimetres per pixel as the file says, else None.
        told: what a person should know of it.
        step: how many of the file's columns and rows a pixel is.
        patient: whose it is, as in `Geometry`.
    """

    pixels: Image
    scanned: View
    spacing: float | None
    told: tuple[str, ...]
    step: tuple[float, float] = (1.0, 1.0)
    patient: str = ""


def geometry(
    shape: tuple[int, int],
    spacing: tuple[float, float] | None,
    aspect: float = 1.0,
    sector: View | None = None,
    pose: Pose | None = None,
    told: tuple[str, ...] = (),
) -> Geometry:
    """Return how pixels lie, with what is odd about it.

    Raises:
        DataError: the pixels are no pixels.
    """
    if spacing is not None:
        aspect = spacing[0] / spacing[1] if min(spacing) > 0 else 0.0
    if not 1 / LONGEST <= aspect <= LONGEST:
        raise DataError(f"its pixels are {aspect:.3g} times as high as wide: the header is broken")
    found = Geometry(shape, spacing, aspect, sector, pose)
    height, width = found.squared
    if height * width > LARGEST:
        raise DataError(f"{width} x {height} pixels are too many")
    if found.squared != shape:
        sides = f"{aspect:.3g} times as high as wide"
        if spacing is not None:
            sides = f"{spacing[1]:.3g} x {spacing[0]:.3g} mm"
        told = (*told, f"pixels of {sides} were made square: {width} x {height}")
    return Geometry(shape, spacing, aspect, sector, pose, told)


def implausible(spacing: float | None) -> list[str]:
    """Return what is odd about a spacing: nothing, or a line."""
    if spacing is None or PLAUSIBLE[0] <= spacing <= PLAUSIBLE[1]:
        return []
    return [
        f"{spacing:.3g} mm per pixel is not what ultrasound has "
        f"({PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}): are lengths in other units?"
    ]


def picture(stored: Stored) -> Picture:
    """Return what was stored as an upright grey picture of square pixels.

    Colour becomes luma; opacity is ignored. Values that are whole numbers from 0 to 255 stay as
    they are; others are scaled as the file says, else from the 0.5th to the 99.5th percentile.

    Raises:
        DataError: values are not finite.
    """
    values, lies, told = stored.values, stored.geometry, list(stored.geometry.told)
    if values.ndim == 3:
        colours = _blocks(values[..., :3])
        grey = np.concatenate([np.asarray(Pil.fromarray(rows).convert("L")) for rows in colours])
        scanned = _blocks(values[lies.sector or ...][..., :3])
        coloured = sum(np.count_nonzero(np.ptp(rows, axis=2) > COLOURED) for rows in scanned)
        told += _colours(coloured / sum(rows[..., 0].size for rows in scanned))
    else:
        grey = to_grey(values, stored.shown, stored.hidden, inverse=stored.inverse)
    height, width = lies.squared
    if grey.shape != (height, width):
        grey = np.asarray(Pil.fromarray(grey).resize((width, height), Pil.Resampling.BILINEAR))
    scale = lies.scale
    rows, columns = lies.shape
    step = columns / width, rows / height
    told += implausible(scale)
    return Picture(grey, lies.scanned, scale, tuple(told), step, lies.patient)


def to_grey(
    values: NDArray[Any],
    shown: tuple[float, float] | None = None,
    hidden: Mask | None = None,
    *,
    inverse: bool = False,
) -> Image:
    """Return values (H, W) as 8 bits; hidden ones are black.

    Args:
        values: numbers of any type.
        shown: the lowest and the highest value that are told apart. Without it, 0 and 255 where
            all are whole numbers between these, else the percentiles `RANGE` of what is not hidden.
        hidden: (H, W) which ones are none.
        inverse: the highest is black.

    Raises:
        DataError: one of them is not finite.
    """
    if hidden is not None and hidden.any() and not hidden.all():
        seen = values[~hidden]
        values = np.where(hidden, seen.min(), values)
    else:
        seen, hidden = values, None
    if not np.isfinite(seen).all():
        raise DataError("has values that are not finite")
    if shown is None:
        whole = seen.min() >= 0 and seen.max() <= 255 and (seen == np.round(seen)).all()
        if whole and hidden is None and not inverse:
            plain: Image = values.astype(np.uint8)
            return plain
        shown = (0.0, 255.0) if whole else tuple(np.percentile(seen, RANGE))
    low, high = shown[::-1] if inverse else shown
    scaled = values.astype(np.float32)
    scaled -= low
    scaled *= 255 / (high - low if abs(high - low) > 1e-12 else 1e-12)
    grey: Image = np.round(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)
    if hidden is not None:
        grey[hidden] = 0
    return grey


def _blocks(values: NDArray[Any]) -> list[NDArray[Any]]:
    """Return rows by the block: of a large image, what each step makes of it is large too."""
    return np.array_split(values, 1 + len(values) // ROWS)


def _colours(share: float) -> list[str]:
    """Return what a share of coloured pixels within the sector means: nothing, or a line."""
    if share > PHOTOGRAPH:
        return [f"{share:.0%} of the pixels are coloured: is it a grey-scale ultrasound image?"]
    if share > MARKS:
        return [f"{share:.1%} of the pixels are coloured: is it Doppler, or was it drawn on?"]
    return []
