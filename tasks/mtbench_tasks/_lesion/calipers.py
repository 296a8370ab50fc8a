"""Lengths between two points of a lesion's outline, which a person can check on the image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil
from PIL import ImageDraw
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from mtbench_tasks._lesion.cases import Mask

Point = tuple[float, float]
"""Columns and rows from the upper left corner of the first pixel, whose middle is (0.5, 0.5)."""

Plane = Literal["transverse", "longitudinal"]
PLANES: tuple[Plane, ...] = get_args(Plane)

COLOUR, DEPTH = (76, 201, 240), (190, 190, 190)
DRAWN = {"long_axis": "1", "short_axis": "2"}  # as a scanner numbers them


@dataclass(frozen=True)
class Caliper:
    """A length from one point to another, in pixels."""

    start: Point
    end: Point

    @property
    def length(self) -> float:
        """How far the points are apart."""
        return math.dist(self.start, self.end)


def calipers(mask: Mask) -> dict[str, Caliper]:
    r"""Return what is measured of a lesion; nothing of an empty mask.

    The outline runs through the middles of pixels' sides, as it is drawn. Its convex hull is what
    calipers touch.

    - ``long_axis``: the largest distance between two points, :math:`\max_{p, q} |p - q|`.
    - ``short_axis``: the longest line across it at a right angle.
    - ``height`` (depth) and ``width``: the extent down and across the image.

    >>> {name: round(found.length, 2) for name, found in calipers(np.ones((3, 7), bool)).items()}
    {'long_axis': 7.28, 'short_axis': 3.12, 'height': 3.0, 'width': 7.0}
    """
    if not mask.any():
        return {}
    hull = _hull(mask)
    distances = cdist(hull, hull)
    a, b = sorted(np.unravel_index(distances.argmax(), distances.shape))
    (left, top), (right, bottom) = hull.min(axis=0), hull.max(axis=0)
    return {
        "long_axis": _between(hull[a], hull[b]),
        "short_axis": _across(hull, int(a), int(b)),
        "height": _between((left, top), (left, bottom)),
        "width": _between((left, bottom), (right, bottom)),
    }


def _between(start: Sequence[float] | NDArray[Any], end: Sequence[float] | NDArray[Any]) -> Caliper:
    return Caliper((float(start[0]), float(start[1])), (float(end[0]), float(end[1])))


def _hull(mask: Mask) -> NDArray[np.float64]:
    """Return the corners of the outline's convex hull, (N, 2), in order around it."""
    rows = np.flatnonzero(mask.any(axis=1)).repeat(2)
    columns = mask[rows].argmax(axis=1)  # the first of each row, and the last: others lie between
    columns[1::2] = mask.shape[1] - 1 - mask[rows[1::2], ::-1].argmax(axis=1)
    pixels = np.stack([columns, rows], 1)
    sides = np.array([(0.5, 0), (0, 0.5), (1, 0.5), (0.5, 1)])
    points = (pixels[:, None] + sides).reshape(-1, 2)
    corners: NDArray[np.float64] = points[ConvexHull(points).vertices]
    return corners


def _across(hull: NDArray[np.float64], a: int, b: int) -> Caliper:
    """Return the longest line within a hull at a right angle to that from corner `a` to `b`.

    How long such a line is, is concave along the axis, and linear between corners: it is longest
    at one of them.
    """
    along = hull[b] - hull[a]
    along /= np.linalg.norm(along)
    turn = np.stack([along, (-along[1], along[0])])
    u, v = turn @ hull.T
    # The axis's ends lie farthest apart, so that u rises on the one side and falls on the other.
    sides = np.arange(a, b + 1), np.r_[b : len(hull), : a + 1][::-1]
    one, other = (np.interp(u, u[side], v[side]) for side in sides)
    at = int(np.abs(one - other).argmax())
    ends = np.array([(u[at], one[at]), (u[at], other[at])]) @ turn
    return _between(*ends)


def record(
    found: Mapping[str, Caliper], box: Sequence[int], pixel: Point, spacing: float | None
) -> dict[str, Any]:
    """Return lengths, to 0.01 and never more than measured, and calipers by their end points.

    These are in the image as it is shown, before its pixels were made square.

    Args:
        found: of `calipers`, in the square pixels of a view.
        box: where the view begins, (left, top, ...), in square pixels.
        pixel: how many of the file's columns and rows a square pixel is.
        spacing: millimetres per square pixel; None where unknown.
    """
    unit, scale = ("px", 1.0) if spacing is None else ("mm", spacing)
    names = ("long_axis", "short_axis", "height", "width")
    # Rounded up, 9.996 mm would reach a guideline's 10; 1.15 mm are 114.99999999999999 hundredths.
    lengths = {
        f"{name}_{unit}": math.floor(round(100 * found[name].length * scale, 6)) / 100
        if found
        else 0.0
        for name in names
    }
    ends = {}
    for name, caliper in found.items():
        square = np.array([caliper.start, caliper.end]) + box[:2]
        ends[name] = {
            "px": (square * pixel).round(2).tolist(),
            "mm": None if spacing is None else (square * spacing).round(3).tolist(),
        }
    return {**lengths, "calipers": ends}


def draw(picture: Pil.Image, views: Sequence[Mapping[str, Any]], pixel: Point, fewer: int) -> None:
    """Draw each view's calipers: the axes as numbered dots between crosses, depth and width beside.

    Args:
        picture: the image in colour, `fewer` times smaller.
        views: of a reading.
        pixel: how many of the file's columns and rows a square pixel is.
        fewer: by how much the picture was made smaller.
    """
    pen = ImageDraw.Draw(picture)
    reach = max(3, max(picture.size) // 150)
    for view in views:
        for name, found in view["calipers"].items():
            # A pixel's number is that of its middle.
            (x0, y0), (x1, y1) = np.array(found["px"]) / pixel / fewer - 0.5
            if name in DRAWN:
                steps = max(2, round(math.dist((x0, y0), (x1, y1)) / (2 * reach)))
                for share in np.linspace(0, 1, steps + 1)[1:-1]:
                    _dot(pen, x0 + share * (x1 - x0), y0 + share * (y1 - y0), reach / 6)
                for x, y in ((x0, y0), (x1, y1)):
                    pen.line((x - reach, y, x + reach, y), fill=COLOUR)
                    pen.line((x, y - reach, x, y + reach), fill=COLOUR)
                pen.text((x1 + reach, y1 - reach), DRAWN[name], fill=COLOUR, anchor="lb")
            else:
                away = (-2 * reach, 0) if name == "height" else (0, 2 * reach)
                tick = (reach, 0) if name == "height" else (0, reach)
                x0, x1, y0, y1 = x0 + away[0], x1 + away[0], y0 + away[1], y1 + away[1]
                pen.line((x0, y0, x1, y1), fill=DEPTH)
                for x, y in ((x0, y0), (x1, y1)):
                    pen.line((x - tick[0], y - tick[1], x + tick[0], y + tick[1]), fill=DEPTH)


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOUR)


def volume(views: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    r"""Return an ellipsoid's volume from a transverse and a longitudinal view of one lesion.

    :math:`V = \frac{\pi}{6} d_1 d_2 d_3`, with the long and the short axis of the transverse view
    and the long axis of the longitudinal one, as ACR TI-RADS measures a nodule (Tessler et al.
    2017, "Measurement and documentation").

    None where there is not one of each, or a lesion or its spacing is missing.
    """
    planes = {
        plane: [view for view in views if view["plane"] == plane and view.get("long_axis_mm")]
        for plane in PLANES
    }
    if any(len(found) != 1 for found in planes.values()):
        return None
    [across], [along] = planes.values()
    sides = [across["long_axis_mm"], across["short_axis_mm"], along["long_axis_mm"]]
    return {
        "ml": round(math.pi / 6 * math.prod(sides) / 1000, 3),
        "axes_mm": sides,
        "from": "pi/6 x long axis x short axis (transverse) x long axis (longitudinal)",
    }
