"""Calipers against ellipses, and against every pair of points; what is said of planes."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtbench_tasks._lesion.calipers import Caliper, calipers, record, volume


def ellipse(
    long_axis: float, short_axis: float, degrees: float, x: float = 0, y: float = 0
) -> np.ndarray:
    """Pixels whose middle lies within."""
    side = int(long_axis) + 12
    rows, columns = np.indices((side, side)) + 0.5 - side / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u = (columns - x) * cos + (rows - y) * sin
    v = (rows - y) * cos - (columns - x) * sin
    return (2 * u / long_axis) ** 2 + (2 * v / short_axis) ** 2 <= 1


@pytest.mark.parametrize("long_axis", [24.0, 37.5, 80.0, 151.3])
@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8])
def test_ellipses_are_measured_within_a_pixel(long_axis: float, ratio: float) -> None:
    errors = []
    for degrees in range(0, 180, 5):
        found = calipers(ellipse(long_axis, ratio * long_axis, degrees, degrees / 180, 0.3))
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        truth = {
            "long_axis": long_axis,
            "short_axis": ratio * long_axis,
            "width": math.hypot(cos, ratio * sin) * long_axis,
            "height": math.hypot(sin, ratio * cos) * long_axis,
        }
        errors += [abs(found[name].length - length) for name, length in truth.items()]
    assert max(errors) <= 1.000001


def boundary(mask: np.ndarray) -> list[tuple[float, float]]:
    """The middles of all sides between lesion and background."""
    padded = np.pad(mask, 1)
    found = []
    for row, column in np.argwhere(padded):
        x, y = column - 1, row - 1
        found += [(x + 0.5, y + 0.0)] * (not padded[row - 1, column])
        found += [(x + 0.5, y + 1.0)] * (not padded[row + 1, column])
        found += [(x + 0.0, y + 0.5)] * (not padded[row, column - 1])
        found += [(x + 1.0, y + 0.5)] * (not padded[row, column + 1])
    return found


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1))
def test_the_long_axis_is_the_farthest_pair_and_the_short_one_the_longest_across(
    seed: int, height: int, width: int, share: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask[0, 0] = True
    found = calipers(mask)
    points = boundary(mask)
    farthest = max(math.dist(p, q) for p, q in combinations(points, 2))
    axis = found["long_axis"]
    assert axis.length == pytest.approx(farthest)
    assert {axis.start, axis.end} <= set(points)
    along = np.subtract(axis.end, axis.start) / axis.length
    turn = np.stack([along, (-along[1], along[0])])
    # Where lines between any two points cross a line across the axis: the farthest apart of these.
    flat = [turn @ p for p in points]
    longest = 0.0
    for u in {round(float(p[0]), 9) for p in flat}:
        crossed = [
            p[1] + (u - p[0]) / (q[0] - p[0]) * (q[1] - p[1]) if abs(p[0] - q[0]) > 1e-6 else p[1]
            for p in flat
            for q in flat
            if min(p[0], q[0]) - 1e-9 <= u <= max(p[0], q[0]) + 1e-9
        ]
        longest = max(longest, max(crossed) - min(crossed))
    across = found["short_axis"]
    assert across.length == pytest.approx(longest, abs=1e-5)
    assert np.subtract(across.end, across.start) @ along == pytest.approx(0, abs=1e-9)


def test_an_empty_mask_has_no_calipers() -> None:
    assert calipers(np.zeros((4, 5), bool)) == {}
    found = record({}, (0, 0, 5, 4), (1, 1), 0.1)
    assert found["long_axis_mm"] == 0
    assert found["calipers"] == {}


def test_end_points_are_those_of_the_stored_image() -> None:
    """A view at (30, 10) of an image whose stored rows were half as many as are shown."""
    found = record({"width": Caliper((2, 6), (12, 6))} | dict.fromkeys(
        ("long_axis", "short_axis", "height"), Caliper((0, 0), (0, 0))
    ), (30, 10, 90, 90), (1.0, 0.5), 0.1)  # fmt: skip
    assert found["width_mm"] == 1.0
    assert found["calipers"]["width"] == {
        "px": [[32, 8], [42, 8]],
        "mm": [[3.2, 1.6], [4.2, 1.6]],
    }


@pytest.mark.parametrize(("size", "found"), [(9.9961, 9.99), (10.0, 10.0), (1.15, 1.15)])
def test_a_length_is_never_more_than_measured(size: float, found: float) -> None:
    """9.9961 mm had been 10.0, where ACR TI-RADS advises biopsy; 1.15 is 114.99... hundredths."""
    one = dict.fromkeys(("long_axis", "short_axis", "height", "width"), Caliper((0, 0), (size, 0)))
    assert record(one, (0, 0, 90, 90), (1.0, 1.0), 1.0)["long_axis_mm"] == found


def view(plane: str | None, **axes: float) -> dict[str, Any]:
    return {"plane": plane, **axes}


def test_the_volume_is_the_ellipsoids() -> None:
    across = view("transverse", long_axis_mm=20.0, short_axis_mm=10.0)
    along = view("longitudinal", long_axis_mm=30.0, short_axis_mm=11.0)
    found = volume([along, across])
    assert found is not None
    # A sphere of 20 mm has 4.189 mL; the ellipsoid's axes multiply to 6000 mm3.
    assert found["ml"] == pytest.approx(4 / 3 * math.pi * 10 * 5 * 15 / 1000, abs=1e-3)
    for views in (
        [across], [along], [across, across, along], [across, view(None, long_axis_mm=30.0)],
        [across, view("longitudinal", long_axis_px=300.0)],
        [across, view("longitudinal", long_axis_mm=0.0)],
    ):  # fmt: skip
        assert volume(views) is None
