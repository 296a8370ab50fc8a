"""Where a scanner's screen shows the scan: found in the image alone.

A model card holds this module's code, so that who follows it sees the same views.
"""

import numpy as np
from numpy.typing import NDArray

from mtbench_tasks._lesion.cases import Image, View

# Grey values up to BLACK are background, JPEG noise included. Rows and columns of the sector are
# lit over more than LIT of their length, those of text hardly ever. A black strip of up to
# GAP_COLUMNS may part two views; a caption may begin three rows below the sector.
BLACK, LIT, GAP_COLUMNS, GAP_ROWS = 6, 0.2, 12, 2
# The step across a seam, in medians of the step between any two columns. Over the 480 images of
# DDTI: at most 2.2 without a seam (300 images), at least 3.1 with one (180).
SEAM = 2.6
# Of the rows, in how many the step across a seam is one of the largest tenth. Over the same images:
# at most 0.37 without a seam, at least 0.49 with one. A box of Doppler has edges too, but shorter.
ROWS = 0.43


def crop_sector(image: Image) -> View:
    """Find the scanned sector of a scanner's screen, from the image alone.

    The sector is the longest run of columns, then of rows, that are lit over more than a fifth of
    their length; text, scale and grey bar are not. An image without black bands above and below is
    no screen: it is returned whole, as is one with less than a sixteenth of it lit.

    Returns:
        The rows and the columns of `image` (H, W) to keep.
    """
    rows, columns = lit_box(image)
    height, width = image.shape
    is_screen = rows.start > 0 and rows.stop < height
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    if not is_screen or 16 * area < height * width:
        return slice(0, height), slice(0, width)
    return rows, columns


def split_views(image: Image) -> list[View]:
    """Crop a screen to its sector and cut it at the seam, if it shows two views.

    What is no screen is returned whole: an edge of anatomy in its middle is no seam.

    The step between columns x and x+1 is s(x) = mean over rows of |log(1+I(x+1)) - log(1+I(x))|.
    Speckle varies smoothly along a row, so within one view s is nearly constant; an image has a
    seam where s exceeds `SEAM` times its median in the middle tenth of the sector, and does so from
    top to bottom (`ROWS`).

    Returns:
        One or two (rows, columns) of `image` (H, W), left view first, without black bands.
    """
    rows, columns = crop_sector(image)
    sector = image[rows, columns]
    if sector.shape == image.shape:
        return [(rows, columns)]
    width = sector.shape[1]
    some = sector[:: max(1, len(sector) // 1024)]  # of a large image not every row is needed
    steps = np.abs(np.diff(np.log1p(some.astype(np.float32)), axis=1))
    step = steps.mean(axis=0)
    low, high = int(0.46 * width), int(0.56 * width)
    # 0.05: where hardly anything varies from column to column, the ratio means nothing.
    if width < 64 or step[low:high].max() < SEAM * max(float(np.median(step)), 0.05):
        return [(rows, columns)]
    seam = low + int(step[low:high].argmax()) + 1
    large = np.quantile(steps[:, :: max(1, width // 256)], 0.9)
    if (steps[:, seam - 1] > large).mean() < ROWS:
        return [(rows, columns)]
    views = []
    for left, right in ((0, seam), (seam, width)):
        r, c = lit_box(sector[:, left:right])
        y, x = rows.start, columns.start + left
        views.append((slice(y + r.start, y + r.stop), slice(x + c.start, x + c.stop)))
    return views


def lit_box(image: Image) -> View:
    """Return the rows and columns of the largest lit rectangle; all where nothing is lit."""
    lit = image > BLACK
    columns = _span(lit.mean(axis=0), GAP_COLUMNS)
    rows = _span(lit[:, columns].mean(axis=1), GAP_ROWS)
    return rows, _span(lit[rows].mean(axis=0), GAP_COLUMNS)


def _span(share: NDArray[np.float64], gap: int) -> slice:
    """The longest run with share > LIT, bridging gaps; everything where there is none."""
    edges = np.flatnonzero(np.diff(np.r_[0, (share > LIT).astype(int), 0]))
    if not len(edges):
        return slice(0, len(share))
    starts, stops = edges[::2], edges[1::2]
    apart = starts[1:] - stops[:-1] > gap
    starts, stops = starts[np.r_[True, apart]], stops[np.r_[apart, True]]
    longest = int((stops - starts).argmax())
    return slice(int(starts[longest]), int(stops[longest]))
