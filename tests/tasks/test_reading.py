"""Reading new images: what comes in, what is measured, what is written."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from mtbench.errors import DataError
from mtbench_tasks._lesion import reading
from mtbench_tasks._lesion.network import Risk
from mtbench_tasks.thyroid.ddti import split_views

GRADES = ("low", "high")


def tissue(height: int = 80, width: int = 120, seed: int = 0) -> np.ndarray:
    """Speckle: smooth along rows, as scan lines are."""
    noise = gaussian_filter1d(np.random.default_rng(seed).normal(size=(height, width)), 3.0, axis=1)
    return np.clip(90 + 45 * noise / noise.std(), 20, 255).astype(np.uint8)


def predictor(
    draw: Callable[[Tensor], None], logits: tuple[float, float] = (0.0, math.log(3))
) -> Any:
    """A model that segments what `draw` sets positive; by default 'high' at 75 %."""

    def predict(inputs: Tensor) -> list[Any]:
        assert inputs.shape[:2] == (1, 1)
        plane = torch.full(inputs.shape, -5.0)
        draw(plane[0, 0])
        return [plane, Risk(torch.tensor([logits]), torch.zeros(1, 3))]

    return predict


def nothing(_: Tensor) -> None:
    """Segment nothing."""


def read(predict: Any, image: np.ndarray, folder: Path, spacing: float | None = None) -> Any:
    return reading.read(predict, image, folder / "a.png", folder, 96, GRADES, spacing, split_views)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_eight_bit_images_are_read(tmp_path: Path, name: str, mode: str) -> None:
    pixels = np.full((30, 40), 60, np.uint8)
    pixels[10:20] = 200
    Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    found = reading.load_image(tmp_path / name)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), pixels, atol=20 if name == "a.jpg" else 1)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_other_modes_are_read(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[10:20] = 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(reading.load_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_more_than_eight_bits_are_not_clipped_silently(tmp_path: Path, kind: Any) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(np.linspace(0, 60_000, 600).reshape(20, 30).astype(kind)).save(file)
    with pytest.raises(DataError, match=r"a\.tif: has .* save it with 8 bits"):
        reading.load_image(file)


def test_what_is_no_image_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with pytest.raises(DataError, match=r"a\.png: no such image"):
        reading.load_image(file)
    file.write_text("no picture at all")
    with pytest.raises(DataError, match=r"a\.png: does not decode as an image .* give PNG"):
        reading.load_image(file)
    Image.fromarray(tissue()).save(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="does not decode"):
        reading.load_image(file)
    with pytest.raises(DataError, match="does not decode"):
        reading.load_image(tmp_path)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (3, 7), (20, 20)])
def test_axes_of_a_rectangle(height: int, width: int) -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[5 : 5 + height, 8 : 8 + width] = True
    long_axis, short_axis = reading.axes(mask)
    diagonal = math.hypot(height, width)
    assert long_axis == pytest.approx(diagonal, abs=0.05)
    # The two other corners lie at height * width / diagonal to each side of the diagonal.
    assert short_axis == pytest.approx(2 * height * width / diagonal, abs=0.051)


@pytest.mark.parametrize("angle", [0, 20, 45, 90, 130])
def test_axes_of_an_ellipse_however_it_lies(angle: float) -> None:
    y, x = np.indices((120, 120)) - 60.0
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    mask = ((x * cos + y * sin) / 40) ** 2 + ((y * cos - x * sin) / 20) ** 2 <= 1
    long_axis, short_axis = reading.axes(mask)
    assert long_axis == pytest.approx(80, abs=2.5)
    assert short_axis == pytest.approx(40, abs=3)


def test_the_record_and_the_pictures(tmp_path: Path) -> None:
    image = tissue(80, 120)

    def draw(grid: Tensor) -> None:
        assert grid.shape == (96, 96)
        grid[40:60, 20:60] = 5.0  # of 96: the image is placed at 64 x 96 in rows 16 to 80

    record = read(predictor(draw), image, tmp_path)
    json.dumps(record)
    assert set(record) == {"image", "mask", "overlay", "views"}
    with Image.open(record["mask"]) as picture:
        mask = np.asarray(picture)
    assert Path(record["mask"]).parent == tmp_path
    assert mask.shape == image.shape  # the image's own resolution
    assert set(np.unique(mask)) == {0, 255}
    rows, columns = np.nonzero(mask)
    scale = 120 / 96
    for found, wanted in zip(
        (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1),
        ((40 - 16) * scale, (60 - 16) * scale, 20 * scale, 60 * scale),
        strict=True,
    ):
        assert found == pytest.approx(wanted, abs=1.5)
    [view] = record["views"]
    assert view["box"] == [0, 0, 120, 80]
    assert view["category"] == "high"
    assert view["probabilities"] == {"low": 0.25, "high": 0.75}
    assert view["long_axis_px"] == pytest.approx(math.hypot(25, 50), abs=2)
    assert 0 < view["short_axis_px"] <= view["long_axis_px"]
    with Image.open(record["overlay"]) as picture:
        overlay = np.asarray(picture)
    assert overlay.shape == (80, 120, 3)
    painted = (overlay == reading.CONTOUR).all(-1)
    assert painted[28:57, 23:77].sum() > 100  # the outline
    assert not painted[35:50, 35:65].any()  # not the inside
    np.testing.assert_array_equal(overlay[60:, 80:, 0], image[60:, 80:])  # the rest is as it was


def test_axes_are_in_millimetres_where_the_spacing_is_known(tmp_path: Path) -> None:
    def draw(grid: Tensor) -> None:
        grid[40:60, 20:60] = 5.0

    [pixels] = read(predictor(draw), tissue(), tmp_path)["views"]
    [metric] = read(predictor(draw), tissue(), tmp_path, spacing=0.1)["views"]
    assert "long_axis_px" not in metric
    for axis in ("long", "short"):
        assert metric[f"{axis}_axis_mm"] == pytest.approx(0.1 * pixels[f"{axis}_axis_px"], abs=0.01)


def test_only_the_largest_region_counts(tmp_path: Path) -> None:
    def draw(grid: Tensor) -> None:
        grid[30:50, 10:40] = 5.0
        grid[60:70, 70:80] = 9.0  # surer, but smaller

    record = read(predictor(draw), tissue(), tmp_path)
    mask = np.asarray(Image.open(record["mask"]))
    assert mask[:, :60].any()
    assert not mask[:, 60:].any()


def test_nothing_found_is_an_answer(tmp_path: Path) -> None:
    record = read(predictor(nothing), tissue(), tmp_path)
    [view] = record["views"]
    assert (view["long_axis_px"], view["short_axis_px"]) == (0, 0)
    assert not np.asarray(Image.open(record["mask"])).any()


def test_a_split_screen_is_read_view_by_view(tmp_path: Path) -> None:
    screen = np.zeros((200, 320), np.uint8)
    screen[10:180, 20:160] = tissue(170, 140, seed=1)
    screen[10:180, 160:300] = tissue(170, 140, seed=2)

    def draw(grid: Tensor) -> None:
        grid[40:60, 40:60] = 5.0

    record = read(predictor(draw), screen, tmp_path)
    assert [view["box"] for view in record["views"]] == [[20, 10, 160, 180], [160, 10, 300, 180]]
    mask = np.asarray(Image.open(record["mask"])) > 0
    assert mask.shape == screen.shape
    for left, top, right, bottom in (view["box"] for view in record["views"]):
        inside = mask[top:bottom, left:right]
        assert inside[85, 70]  # the middle of the view
        assert 0.02 < inside.mean() < 0.1
    assert not mask[:10].any()
    assert not mask[180:].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (3, 400)])
def test_odd_shapes_are_read(tmp_path: Path, shape: tuple[int, int]) -> None:
    def draw(grid: Tensor) -> None:
        grid[:] = 5.0

    record = read(predictor(draw), np.full(shape, 90, np.uint8), tmp_path)
    assert np.asarray(Image.open(record["mask"])).shape == shape
    assert record["views"][0]["long_axis_px"] == pytest.approx(math.hypot(*shape), abs=0.1)
