"""From what a mask's file holds to where the lesion is; what is no mask is refused."""

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil
from scipy import ndimage

from mtbench.errors import DataError
from mtbench_tasks._lesion.cases import Mask
from mtbench_tasks._lesion.doubts import SMALLEST

FEW = 32  # more different values than this are edges, noise or an image, and no list of labels
BETWEEN = 0.1  # share of pixels neither dark nor bright, from which a file is no mask but an image
REGION = 0.01  # of what is marked: a smaller patch of one value is an edge or a speck
RING = 1.5  # what an outline encloses, the outline included, is at least so much larger than it
CORE = 0.02  # of a mask: less is left of lines when two pixels of their border are taken away
BRIDGED = (2, 4, 8)  # pixels from each side of a gap
COLOURS = "black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"
"""By which of red, green and blue (1, 2, 4) are about as large as the largest."""
HUE = 0.05  # of what is marked: JPEG's colours bleed, and marks on a scan are smaller
EDGE = 3  # pixels of an edge
OUTLINE = "is an outline: what it encloses was filled"
HILL = 0.15  # of a plane's range: a dip that is less deep is JPEG's, and parts no two tops
PEAK = 3  # of the usual: so many pixels of one grey value are a label, not a slope
DOTS, SPARSE = 5, 0.35  # parts, and share of their box, from which and to which they may be dots
CORED, ENOUGH = 0.25, 200  # share and pixels: less within an edge are lines, or too few to judge by


def outlined(values: NDArray[Any], *, lossy: bool, value: int | None) -> tuple[Mask, list[str]]:
    """Return where the lesion is, (H, W), and what a person should know of it.

    A mask has a background, 0, and one value that is the lesion. What lies between them is an edge
    that was smoothed by resizing or by JPEG: it counts from half of the lesion's value on. Of a
    coloured mask the largest channel counts, unless transparent. An outline that is closed, by
    itself or by the image's border, is filled.

    Args:
        values: (H, W), or (H, W, 3 or 4) colours.
        lossy: whether zero need not be zero.
        value: which of several values is the lesion; None where there is one.

    Raises:
        DataError: it marks nothing or everything, is an image, is inverted, holds several labels
            or colours, or an outline that is not closed.
    """
    plane = _plane(values)
    try:
        mask, told = _outlined(values, plane, lossy=lossy, value=value)
        if not lossy or OUTLINE in told or not _is_thin(np.pad(mask, 2)):
            return mask, told
    except DataError:
        if not lossy:
            raise
    # In a JPEG a thin line is no longer as bright everywhere, and brightness is finer than colour.
    luma = np.asarray(Pil.fromarray(values[..., :3]).convert("L")) if values.ndim == 3 else plane
    for finer, share in ((luma, 0.5), (plane, 0.25), (luma, 0.25)):
        with suppress(DataError):
            mask, told = _outlined(values, finer, lossy=lossy, value=value, share=share)
            if OUTLINE in told:
                return mask, told
    mask, told = _outlined(values, plane, lossy=lossy, value=value)
    if (pieces := ndimage.label(mask, np.ones((3, 3)))[1]) > 1:
        raise DataError(f"is {pieces} pieces of a thin line: draw the outline anew, and fill it")
    return mask, told


def _outlined(
    values: NDArray[Any],
    plane: NDArray[Any],
    *,
    lossy: bool,
    value: int | None,
    share: float = 0.5,
) -> tuple[Mask, list[str]]:
    """Do what `outlined` does by one number per pixel, (H, W), from a share of the lesion's on."""
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        raise DataError("has values that are not finite")
    low, high = float(plane.min()), float(plane.max())
    if low == high:
        raise DataError(
            f"marks {'every' if high > 0 else 'no'} pixel; in a mask what is not zero is "
            "lesion, and an image without a contour has no mask"
        )
    if low < 0:
        raise DataError(f"has values from {low:g}; in a mask the background is zero")
    found, counts = _values(plane)
    soft = lossy or len(found) > FEW
    blurred = False
    if value is not None and not soft:
        if value not in found:
            raise DataError(f"holds no {value}, which is named as the lesion's value")
        mask: Mask = plane == value
    else:
        half, blurred = _half(plane, found, counts, soft=soft, value=value)
        mask = plane > 2 * share * half
    if len(colours := _hues(values, _plane(values), mask)) > 1:
        raise DataError(
            f"holds several colours ({', '.join(colours)}): give a mask in which the lesion is "
            "white, and all else black"
        )
    mask, told = _checked(mask)
    return mask, ["is blurred: it counts from half of its largest value on"] * blurred + told


def _half(
    plane: NDArray[Any],
    found: NDArray[Any],
    counts: NDArray[np.int64],
    *,
    soft: bool,
    value: int | None,
) -> tuple[float, bool]:
    """Return half of the value that is the lesion, and whether it was blurred beyond its edges.

    Args:
        plane: (H, W).
        found: its values, ascending.
        counts: how often each occurs.
        soft: whether edges are smooth.
        value: the lesion's, where it was named.

    Raises:
        DataError: it is an image, or there are several.
    """
    labels = _plateaus(plane) if soft else _regions(plane, found, counts)
    top = max(labels, default=float(found[-1]))
    blurred = False
    if soft:
        levels = np.array([0, *labels, top])
        known = np.abs(found[:, None] - levels).min(axis=1) < 0.15 * top
        within = _within(plane)
        flat = np.abs(within[:, None] - levels).min(axis=1) < 0.15 * top
        odd = counts[~known].sum() > BETWEEN * plane.size or 2 * np.count_nonzero(flat) < len(flat)
        blurred = (odd or len(labels) > 1) and _is_hill(plane)
        if blurred:
            labels, top = [], float(found[-1])
        elif odd:
            raise DataError("is an image, not a mask: much of it is neither black nor white")
    if len(labels) > 1:
        how = ", blurred by JPEG or by resizing: give it as it was drawn, as PNG, and"
        raise DataError(
            f"holds several labels ({', '.join(f'{label:g}' for label in labels)})"
            f"{how if soft else ':'} say in column mask_value which one is the lesion"
        )
    if value is not None and abs(value - top) > 0.15 * top:
        raise DataError(f"holds no {value}, which is named as the lesion's value")
    return top // 2 if plane.dtype.kind in "iu" else top / 2, blurred


def _is_hill(plane: NDArray[Any]) -> bool:
    """Return whether a plane is a mask that was blurred beyond its edges.

    Each of its regions above the half then falls from one top to the dark without a dip, and no
    grey value between is a plateau. An image has many tops.
    """
    from skimage.morphology import reconstruction

    plane = plane.astype(np.float32) / plane.max()
    rim = np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])
    if np.median(rim) > 0.1:
        return False
    domes = plane - reconstruction(np.maximum(plane - HILL, 0), plane) > 0.9 * HILL
    bins = np.histogram(plane, np.arange(0.2, 0.91, 0.05))[0]
    if bins[2:-2].max() > PEAK * np.median(bins):
        return False
    eight = np.ones((3, 3))
    return bool(ndimage.label(domes, eight)[1] == ndimage.label(plane > 0.5, eight)[1])


def _plane(values: NDArray[Any]) -> NDArray[Any]:
    """Return one number per pixel; where all that is seen is black, the opacity."""
    if values.ndim == 2:
        return values
    red, green, blue = (values[..., channel] for channel in range(3))
    plane: NDArray[Any] = np.maximum(np.maximum(red, green), blue)
    if values.shape[2] == 3:
        return plane
    opacity = values[..., 3]
    return (plane.astype(np.uint16) * opacity // 255).astype(np.uint8) if plane.any() else opacity


def _hues(values: NDArray[Any], plane: NDArray[Any], mask: Mask) -> list[str]:
    """Return the clear colours of the regions that are marked; none where all is grey."""
    if values.ndim == 2:
        return []
    red, green, blue = (values[..., channel] for channel in range(3))
    if not ((red != green) | (red != blue)).any():
        return []
    on = [channel > 0.7 * plane for channel in (red, green, blue)]
    off = [channel < 0.3 * plane for channel in (red, green, blue)]
    mask = mask & np.logical_and.reduce([a | b for a, b in zip(on, off, strict=True)])
    hue = on[0] + 2 * on[1] + np.uint8(4) * on[2]
    likely = np.flatnonzero(np.bincount(hue[mask], minlength=8) > HUE * np.count_nonzero(mask))
    return [COLOURS[i] for i in likely if ndimage.binary_erosion(mask & (hue == i)).any()]


def _within(plane: NDArray[Any]) -> NDArray[Any]:
    """Return the values that lie within what is not dark, further in than most edges are wide."""
    support = plane > 0.1 * plane.max()
    inner = ndimage.binary_erosion(support, iterations=EDGE)
    lines = np.count_nonzero(inner) < CORED * np.count_nonzero(support)
    found: NDArray[Any] = plane[inner]
    return found[:0] if lines or len(found) < ENOUGH else found


def _values(plane: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the different values, ascending, and how often each occurs."""
    if plane.dtype != np.uint8:
        return np.unique(plane, return_counts=True)
    counts = np.array(Pil.fromarray(plane).histogram())
    found = np.flatnonzero(counts)
    return found, counts[found]


def _regions(plane: NDArray[Any], found: NDArray[Any], counts: NDArray[np.int64]) -> list[float]:
    """Return the values above 0 that fill a region: those of an edge fill none.

    A small region, such as a nodule in its gland, is one where it is an island: what surrounds an
    edge is lower on one side, and higher on the other.
    """
    lit = found > 0
    large = counts > REGION * counts[lit].sum()
    likely, small = found[lit & large], found[lit & ~large & (counts >= SMALLEST)]
    if len(likely) > 1:
        likely = [value for value in likely if ndimage.binary_erosion(plane == value).any()]
    return sorted(map(float, [*likely, *(value for value in small if _is_island(plane, value))]))


def _is_island(plane: NDArray[Any], value: float) -> bool:
    """Return whether a value fills a region, and all around it is lower, or all is higher."""
    region = plane == value
    if not ndimage.binary_erosion(region).any():
        return False
    around = plane[ndimage.binary_dilation(region) & ~region]
    return bool(around.max() < value or around.min() > value)


def _plateaus(plane: NDArray[Any]) -> list[float]:
    """Return the levels, of five above the dark, on which a part of the plane is even."""
    plane = plane.astype(np.float32)
    top = float(plane.max())
    even = ndimage.maximum_filter(plane, 3) - ndimage.minimum_filter(plane, 3) < 0.1 * top
    lit = plane > 0.2 * top
    bright = even & lit
    if np.count_nonzero(bright) < 0.1 * np.count_nonzero(lit):
        return []
    level = np.round(5 * plane[bright] / top)
    found, counts = np.unique(level, return_counts=True)
    labels = list[float]()
    for value in found[counts > 0.1 * counts.sum()]:
        label = float(np.median(plane[bright][level == value]))
        if labels and label - labels[-1] < 0.2 * top:  # one plateau on two levels
            labels.pop()
        labels.append(label)
    return labels


def _checked(mask: Mask) -> tuple[Mask, list[str]]:
    """Return a mask, its outline filled, with what is odd about it."""
    rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if rim.all():
        raise DataError(
            "marks all of the image's border: it looks inverted; in a mask what is not zero is "
            "lesion"
        )
    told = []
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part = np.pad(mask[box], 2)
    size = int(np.count_nonzero(part))
    walled = part.copy()
    top, left = rows[0] == 0, columns[0] == 0
    bottom, right = rows[-1] == mask.shape[0] - 1, columns[-1] == mask.shape[1] - 1
    ends = (top or bottom or left or right) and not (top and bottom) and not (left and right)
    if size > FEW and ends and _is_thin(part):
        # A lesion at the image's border, or in its corner, has no outline there.
        walled[:2] |= top
        walled[-2:] |= bottom
        walled[:, :2] |= left
        walled[:, -2:] |= right
    # What a row's ends enclose holds all that an outline does, and is quicker to find.
    lit = walled[walled.any(axis=1)]
    outside = sum(int(side.argmax(axis=1).sum()) for side in (lit, lit[:, ::-1]))
    most = lit.size - outside
    filled = (ndimage.binary_fill_holes(walled) if most > RING * size else part)[2:-2, 2:-2]
    if np.count_nonzero(filled) > RING * size:
        mask = mask.copy()
        mask[box] = filled
        told.append(OUTLINE)
    elif size > FEW and _is_open(part):
        raise DataError("is an outline that is not closed: close and fill it")
    elif size < SPARSE * (part.shape[0] - 4) * (part.shape[1] - 4) and _is_dotted(part):
        raise DataError("is a row of dots around an area: draw the outline through, and fill it")
    return mask, told


def _is_thin(mask: Mask) -> bool:
    """Return whether a mask, with two empty pixels around it, is lines."""
    middle = mask[2:-2, 2:-2]
    core = middle & mask[4:, 2:-2] & mask[:-4, 2:-2] & mask[2:-2, 4:] & mask[2:-2, :-4]
    return bool(np.count_nonzero(core) <= CORE * np.count_nonzero(mask))


def _is_open(mask: Mask) -> bool:
    """Return whether a mask is thin lines that enclose an area once their gaps are bridged."""
    if not _is_thin(mask):
        return False
    wide = np.pad(mask, max(BRIDGED))
    for reach in BRIDGED:
        thick = ndimage.binary_dilation(wide, iterations=reach)
        hole = ndimage.binary_fill_holes(thick).sum() - thick.sum()
        if hole > (RING - 1) * mask.sum():
            return True
    return False


def _is_dotted(mask: Mask) -> bool:
    """Return whether the parts of a mask, each joined to the next, enclose more than they are."""
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    if not DOTS <= count <= ENOUGH:
        return False
    centres = np.array(ndimage.center_of_mass(mask, regions, range(1, count + 1)))
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)
    np.fill_diagonal(apart, np.inf)
    reach = int(np.quantile(apart.min(axis=1), 0.9) / 2) + 1
    thick = ndimage.distance_transform_edt(~np.pad(mask, reach)) <= reach
    hole = ndimage.binary_fill_holes(thick).sum() - thick.sum()
    return bool(hole > RING * np.count_nonzero(mask))
