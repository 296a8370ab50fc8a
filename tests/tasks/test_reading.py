"""Reading new images: what comes in, what is measured, what is written."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional as F

from mtbench.errors import DataError
from mtbench.training.task import Trained
from mtbench_tasks._lesion import burnt, calipers, conformal, radiomics, reading, report
from mtbench_tasks._lesion.calibration import calibration_error, likeliest, temperature
from mtbench_tasks._lesion.conformal import LENGTHS
from mtbench_tasks._lesion.ensemble import Ensemble
from mtbench_tasks._lesion.files import is_image, read_picture
from mtbench_tasks._lesion.grid import to_input
from mtbench_tasks._lesion.network import Risk
from mtbench_tasks._lesion.ood import KEY, OutOfDistribution, features
from mtbench_tasks._lesion.pixels import Picture
from mtbench_tasks._lesion.reading import Reference
from mtbench_tasks._lesion.screen import split_views
from mtbench_tasks._lesion.source import whole

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
        return [plane, Risk(torch.tensor([logits]), torch.zeros(1, 3), torch.zeros(1, 0))]

    return predict


def nothing(_: Tensor) -> None:
    """Segment nothing."""


def read(
    predict: Any,
    image: np.ndarray,
    folder: Path,
    spacing: float | None = None,
    reference: Reference = Reference(),  # noqa: B008
    temperature: float | None = None,
    planes: tuple[calipers.Plane, ...] = (),
) -> Any:
    height, width = image.shape
    picture = Picture(image, (slice(0, height), slice(0, width)), None, ())
    boxes = reading.boxes(picture, split_views)
    place = (picture, boxes, folder / "a.png", folder / "a")
    fitted = {"calibration": {"temperature": temperature, "readings": 9 if temperature else 0}}
    ask = Ensemble(Trained(predict, "model", fitted))
    return reading.read(ask, *place, 96, GRADES, spacing, reference, planes)[0]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_eight_bit_images_are_read(tmp_path: Path, name: str, mode: str) -> None:
    pixels = np.full((30, 40), 60, np.uint8)
    pixels[10:20] = 200
    Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    found = read_picture(tmp_path / name).pixels
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), pixels, atol=20 if name == "a.jpg" else 1)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_other_modes_are_read(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[10:20] = 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, pixels)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_more_than_eight_bits_are_scaled_not_clipped(tmp_path: Path, kind: Any) -> None:
    file = tmp_path / "a.tif"
    ramp = np.linspace(0, 60_000, 1000).reshape(20, 50).astype(kind)
    Image.fromarray(ramp).save(file)
    found = read_picture(file).pixels.astype(int)
    assert (found.ravel()[:5] == 0).all()  # the lowest and the highest half per cent
    assert (found.ravel()[-5:] == 255).all()
    np.testing.assert_allclose(found, (ramp / 60_000 - 0.005) / 0.99 * 255, atol=2)


def test_what_is_no_image_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with pytest.raises(DataError, match=r"a\.png: no such image"):
        read_picture(file)
    file.write_text("no picture at all")
    with pytest.raises(DataError, match=r"a\.png: does not decode as an image .* give PNG"):
        read_picture(file)
    Image.fromarray(tissue()).save(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="does not decode"):
        read_picture(file)
    with pytest.raises(DataError, match="does not decode"):
        read_picture(tmp_path)


def test_the_record_and_the_pictures(tmp_path: Path) -> None:
    image = tissue(80, 120)

    def draw(grid: Tensor) -> None:
        assert grid.shape == (96, 96)
        grid[40:60, 20:60] = 5.0  # of 96: the image is placed at 64 x 96 in rows 16 to 80

    record = read(predictor(draw), image, tmp_path)
    json.dumps(record)
    assert set(record) == {
        "image", "use", "spacing_mm", "spacing_from", "pixel", "mask", "overlay",
        "views", "notes",
    }  # fmt: skip
    assert record["notes"] == []
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
    assert view["height_px"] == pytest.approx(25, abs=2)
    assert view["width_px"] == pytest.approx(50, abs=2)
    assert (view["plane"], view["taller_than_wide"]) == (None, None)
    with Image.open(record["overlay"]) as picture:
        overlay = np.asarray(picture)
    assert overlay.shape == (80, 120, 3)
    painted = (overlay == reading.CONTOUR).all(-1)
    assert painted[28:57, 23:77].sum() > 100  # the outline
    assert not painted[35:50, 35:65].any()  # not the inside
    drawn = (overlay == calipers.COLOUR).all(-1)
    for x, y in view["calipers"]["long_axis"]["px"]:
        assert drawn[round(y - 0.5), round(x - 0.5)]
    np.testing.assert_array_equal(overlay[60:, 80:, 0], image[60:, 80:])  # the rest is as it was


def test_axes_are_in_millimetres_where_the_spacing_is_known(tmp_path: Path) -> None:
    def draw(grid: Tensor) -> None:
        grid[40:60, 20:60] = 5.0

    [pixels] = read(predictor(draw), tissue(), tmp_path)["views"]
    [metric] = read(predictor(draw), tissue(), tmp_path, spacing=0.1)["views"]
    assert "long_axis_px" not in metric
    for name in ("long_axis", "short_axis", "height", "width"):
        assert metric[f"{name}_mm"] == pytest.approx(0.1 * pixels[f"{name}_px"], abs=0.01)


def test_a_small_second_region_is_noise(tmp_path: Path) -> None:
    def draw(grid: Tensor) -> None:
        grid[30:50, 10:40] = 5.0
        grid[60:70, 70:80] = 9.0  # surer, but smaller

    record = read(predictor(draw), tissue(), tmp_path)
    mask = np.asarray(Image.open(record["mask"]))
    assert mask[:, :60].any()
    assert not mask[:, 60:].any()
    assert record["views"][0]["others"] == []


def test_two_lesions_are_each_measured(tmp_path: Path) -> None:
    def draw(grid: Tensor) -> None:
        grid[30:50, 10:40] = 5.0
        grid[55:75, 65:80] = 9.0

    record = read(predictor(draw), tissue(), tmp_path, planes=("transverse",))
    [view] = record["views"]
    assert view["taller_than_wide"] is False
    [other] = view["others"]
    scale = 120 / 96
    assert view["width_px"] == pytest.approx(30 * scale, abs=2)
    assert (other["width_px"], other["height_px"]) == pytest.approx((15 * scale, 20 * scale), abs=2)
    assert other["taller_than_wide"] is True  # a transverse plane
    mask = np.asarray(Image.open(record["mask"])) > 0
    assert mask[:, :60].any()
    assert mask[:, 60:].any()


def test_nothing_found_is_an_answer(tmp_path: Path) -> None:
    record = read(predictor(nothing), tissue(), tmp_path)
    [view] = record["views"]
    assert (view["long_axis_px"], view["short_axis_px"]) == (0, 0)
    assert (view["height_px"], view["taller_than_wide"], view["radiomics"]) == (0, None, None)
    assert view["category"] is None
    assert reading.headline(view) == "No lesion found"
    [note] = record["notes"]
    assert note.startswith("nothing was segmented")
    assert not np.asarray(Image.open(record["mask"])).any()


def test_a_view_that_was_not_read_is_told(tmp_path: Path) -> None:
    """Two views one upon the other: only the larger one is found."""
    screen = np.zeros((360, 320), np.uint8)
    screen[10:180, 20:300] = tissue(170, 280, seed=1)
    screen[200:340, 20:300] = tissue(140, 280, seed=2)
    notes = read(predictor(nothing), screen, tmp_path)["notes"]
    [told] = [note for note in notes if "another view?" in note]
    assert "280 x 140 pixels from 20, 200 on are lit" in told
    screen[200:340, 60:300] = 0  # the grey bar is none
    notes = read(predictor(nothing), screen, tmp_path)["notes"]
    assert not any("another view?" in note for note in notes)


def test_a_split_screen_is_read_view_by_view(tmp_path: Path) -> None:
    screen = np.zeros((200, 320), np.uint8)
    screen[10:180, 20:160] = tissue(170, 140, seed=1)
    screen[10:180, 160:300] = tissue(170, 140, seed=2)

    def draw(grid: Tensor) -> None:
        grid[40:60, 40:60] = 5.0

    record = read(predictor(draw), screen, tmp_path)
    assert [view["box"] for view in record["views"]] == [[20, 10, 160, 180], [160, 10, 300, 180]]
    [note] = record["notes"]
    assert note.startswith("a split screen was cut into 2 views")
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
    assert record["views"][0]["long_axis_px"] == pytest.approx(math.hypot(*shape), abs=0.8)


# What it is set against


def standing(grid: Tensor) -> None:
    """A region that is taller than wide."""
    grid[30:70, 30:50] = 5.0


def test_a_temperature_softens_and_keeps_the_order(tmp_path: Path) -> None:
    soft = read(predictor(standing), tissue(), tmp_path, temperature=2.0)
    [view] = soft["views"]
    odds = 3**0.5
    assert view["probabilities"]["high"] == pytest.approx(odds / (1 + odds), abs=1e-4)
    assert view["category"] == "high"


def test_radiomics_are_those_of_the_outline_against_the_training(tmp_path: Path) -> None:
    plain = read(predictor(standing), tissue(), tmp_path)
    mask = np.asarray(Image.open(plain["mask"])) > 0
    wanted = radiomics.extract(tissue(), mask)
    found = plain["views"][0]["radiomics"]
    assert list(found) == [feature.name for feature in radiomics.FEATURES]
    for value, entry in zip(wanted, found.values(), strict=True):
        assert entry["value"] == pytest.approx(value, rel=1e-5)
        assert entry["z"] is None
    # A training whose mean lies half a deviation below, and one that is far away.
    for shift, z in ((0.5, 0.5), (-9, -radiomics.CLIP)):
        scale = np.abs(wanted) + 1
        known = radiomics.Standardiser(wanted - shift * scale, scale)
        record = read(predictor(standing), tissue(), tmp_path, None, Reference(known))
        for entry in record["views"][0]["radiomics"].values():
            assert entry["z"] == pytest.approx(z, abs=0.01)


@pytest.mark.parametrize(
    ("counts", "spacing", "compared"),
    [
        ({"outlines": 4, "of known spacing": 4}, 0.1, True),
        ({"outlines": 4, "of known spacing": 0}, None, True),
        ({"outlines": 4, "of known spacing": 0}, 7.0, True),  # no spacing of ultrasound
        ({"outlines": 4, "of known spacing": 4}, None, False),
        ({"outlines": 4, "of known spacing": 1}, 0.1, False),
        ({}, None, True),  # written by earlier code
    ],
)
def test_radiomics_in_other_units_have_no_z(
    counts: dict[str, int], spacing: float | None, compared: bool, tmp_path: Path
) -> None:
    count = len(radiomics.FEATURES)
    known = {"mean": [0.0] * count, "scale": [1.0] * count, **counts}
    reference = Reference.of({"radiomics": known})
    record = read(predictor(standing), tissue(), tmp_path, spacing, reference)
    found = record["views"][0]["radiomics"]
    without = {name for name, entry in found.items() if entry["z"] is None}
    assert without == {f.name for f in radiomics.FEATURES if f.sized and not compared}
    assert any("have no z" in note for note in record["notes"]) != compared


@given(st.integers(0, 1000), st.floats(0.2, 5), st.integers(1, 60))
def test_the_temperature_is_the_likeliest(seed: int, factor: float, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    category = torch.multinomial((0.7 * logits).softmax(1), 1, generator=generator)[:, 0]
    found = likeliest(logits, category)

    def loss(t: float) -> float:
        return float(F.cross_entropy(logits / t, category))

    assert 1 / 20 <= found <= 20
    others = (0.2, 0.5, 1.0, 2.0, 5.0, min(20, found * 1.05), max(1 / 20, found / 1.05))
    assert all(loss(found) <= loss(t) + 1e-5 for t in others)
    # Logits in other units have a temperature in the same units.
    if 1 / 3 < found < 3:
        assert likeliest(factor * logits, category) == pytest.approx(factor * found, rel=1e-2)


def test_a_temperature_mends_what_it_should() -> None:
    """Logits three times too sure: T is 3, and the calibration error falls."""
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(4000, 5, generator=generator)
    category = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    sure = 3 * honest
    alone = [str(i) for i in range(4000)]
    found = temperature(sure, category, alone)
    assert found == pytest.approx(3, rel=0.1)
    assert (
        calibration_error(sure / found, category) < 0.03 < 0.1 < calibration_error(sure, category)
    )
    assert temperature(honest[:0], category[:0], []) == 1
    assert temperature(sure[:4], category[:4], alone[:4]) == 1  # four readings cannot tell
    assert temperature(honest, category, alone) == 1  # nothing to mend
    assert math.isnan(calibration_error(honest[:0], category[:0]))
    with_end = torch.tensor([[1.0, 0.0]] * 50), torch.zeros(50, dtype=torch.long)  # all right
    assert likeliest(*with_end) == pytest.approx(1 / 20, rel=0.01)
    assert temperature(*with_end, alone[:50]) == 1  # 73 % sure, and not 100 %
    noise = 0.2 * torch.randn(30, 2, generator=generator)
    mostly = with_end[0][:30] + noise, (torch.arange(30) % 10 == 0).long()
    assert temperature(*mostly, alone[:30]) < 1
    assert temperature(*mostly, [*alone[:19], *alone[8:19]]) == 1  # of 19 patients
    # Thirty patients tell nothing, nor do nine images of each that are alike.
    few = 1.4 * honest[120:150], category[120:150]
    assert temperature(*few, alone[:30]) == 1
    many = few[0].repeat(9, 1), few[1].repeat(9)
    assert temperature(*many, alone[:30] * 9) == 1
    assert temperature(*many, alone[:270]) > 1.5


# Not this kind of image


def necks(count: int, seed: int = 0) -> list[np.ndarray]:
    """Speckle that is darker with depth, each at its own gain."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        fall = np.linspace(rng.uniform(1.1, 1.4), rng.uniform(0.5, 0.7), 80)[:, None]
        found.append((rng.uniform(0.8, 1.1) * fall * tissue(seed=100 * seed + i)).clip(0, 255))
    return [image.astype(np.uint8) for image in found]


def described(images: list[np.ndarray], size: int = 64) -> np.ndarray:
    """What images are like, without an encoder."""
    return np.array([features(to_input(image, size)[0], torch.zeros(0)) for image in images])


def strange() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    text = Image.new("L", (120, 80), 255)
    for y in range(2, 78, 12):
        ImageDraw.Draw(text).text((2, y), "no ultrasound at all", fill=0)
    y, x = np.mgrid[:80, :120]
    neck = necks(1, 9)[0]
    return {
        "noise": rng.integers(0, 256, (80, 120)).astype(np.uint8),
        "text": np.asarray(text),
        "blank": np.full((80, 120), 90, np.uint8),
        "photograph": (120 + 60 * np.sin(x / 30) + 50 * np.cos(y / 20)).astype(np.uint8),
        "upside down": np.ascontiguousarray(neck[::-1]),
        "inverted": 255 - neck,
        "on its side": np.ascontiguousarray(np.rot90(neck)),
    }


def test_what_is_not_like_the_training_is_told() -> None:
    known = OutOfDistribution.fit(described(necks(120)), described(necks(120, seed=4)))
    again = OutOfDistribution.of({KEY: json.loads(json.dumps(known.to_json()))})
    assert again is not None
    known = again
    fresh = [known.doubt(seen) is not None for seen in described(necks(100, seed=5))]
    assert np.mean(fresh) < 0.06
    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in necks(40, seed=6)]
    assert np.mean([known.doubt(seen) is not None for seen in described(mirrored)]) < 0.1
    for name, image in strange().items():
        said = known.doubt(described([image])[0])
        assert said is not None, name
        assert "does not look like the training's images" in said


def test_what_the_training_is_like_takes_little_room() -> None:
    """Large encoders show hundreds of channels."""
    seen = np.random.default_rng(0).normal(size=(300, 100)) @ np.diag(np.logspace(0, 3, 100))
    known = OutOfDistribution.fit(seen, seen)
    text = json.dumps(known.to_json())
    assert len(text) < 3 * 100**2
    again = OutOfDistribution.of({KEY: json.loads(text)})
    assert again is not None
    np.testing.assert_allclose(again.whitening, known.whitening, rtol=1e-6)
    white = (seen - seen.mean(axis=0)) @ again.whitening.T
    np.testing.assert_allclose(np.cov(white.T), np.eye(100), atol=0.3)  # it is shrunk
    assert sum(again.doubt(row) is not None for row in seen) == 3


def test_a_reading_says_so(tmp_path: Path) -> None:
    images = necks(60)
    features = [radiomics.extract(image, tissue() > 0) for image in images[:1]]
    known = radiomics.Standardiser(np.zeros(len(features[0])), np.full(len(features[0]), 1e-3))
    reference = Reference(
        known, OutOfDistribution.fit(described(images, 96), described(images, 96))
    )
    fine = read(predictor(standing), necks(1, 7)[0], tmp_path, reference=reference)["notes"]
    odd = read(predictor(standing), strange()["noise"], tmp_path, reference=reference)["notes"]
    assert not any("does not look like" in note for note in fine)
    assert any("does not look like" in note for note in odd)
    assert any("radiomics lie far outside the training's" in note for note in fine)


# The page


def page(folder: Path, **more: Any) -> report.Page:
    known = radiomics.Standardiser(np.zeros(13), np.ones(13))
    record = read(
        predictor(standing), tissue(), folder, reference=Reference(known), temperature=2.0, **more
    )
    record["notes"] = ["a <note>"]
    fitted = {
        "validation": {"auroc": 0.61, "dice": 0.7, "graded": 30, "outlined": 40},
        "calibration": {
            "temperature": 2.0, "readings": 30, "error_before": 0.2, "error_after": 0.1
        }
    }  # fmt: skip
    record["scale"] = "high: BI-RADS 4 or 5"
    trained = Trained(predictor(standing), "the <model>", fitted)
    return report.compose(record, tissue(), trained, {"composition": "texture"})


def test_the_page_says_it_all(tmp_path: Path) -> None:
    made = page(tmp_path, spacing=0.1)
    text = report.html(made)
    assert text.count(reading.USE) == 2
    for words in (
        "a.png", "120 x 80 pixels", "0.1 mm/pixel", "the &lt;model&gt;", "a &lt;note&gt;",
        "temperature 2.00", "0.200 before", "AUROC 0.61 (30 graded readings)", "mm, by --spacing",
        "Dice 0.70 (40 outlines)", "Category high", "high: BI-RADS 4 or 5", "Long axis",
        "Taller than wide",
        "texture", "echogenicity", "shape", "margin", "echogenic foci", "edge sharpness",
    ):  # fmt: skip
        assert words in text, words
    [section] = made.sections
    assert dict(section.chances)["high"] == pytest.approx(0.634, abs=1e-3)
    assert section.picture.size == (120, 80)
    assert sum(len(rows) for _, rows in section.radiomics) == 13
    assert all(-1 <= row.share <= 1 for _, rows in section.radiomics for row in rows)
    assert re.fullmatch(r"\d+\.\d mm", dict(section.measurements)["1 Long axis"])
    assert "composition" not in text


def test_equal_readings_give_equal_files(tmp_path: Path) -> None:
    made = page(tmp_path)
    report.pdf(made, tmp_path / "1.pdf")
    report.pdf(made, tmp_path / "2.pdf")
    assert (tmp_path / "1.pdf").read_bytes() == (tmp_path / "2.pdf").read_bytes()
    assert b"/Count 1" in (tmp_path / "1.pdf").read_bytes()
    assert report.html(made) == report.html(page(tmp_path))


@pytest.mark.parametrize("count", [1, 6, 40])
def test_a_pdf_has_every_note_or_says_how_many_more(tmp_path: Path, count: int) -> None:
    note = "it does not look like " + 15 * "the training's images, "
    made = replace(page(tmp_path), notes=[f"{i} {note}" for i in range(count)])
    head = list(report._head(made))
    lines = [line for _, own in head for line in own]
    assert len(lines) <= report.ROOM
    shown = [" ".join(own) for label, own in head if label == "Note"]
    assert len(report._sheets(made, made.sections[0], "")) == 1 + (count > 1)
    whole = [text for text in shown if note.strip() in text]
    assert len(whole) == count or f"and {count - len(whole)} more: predictions.json" in shown[-1]


@pytest.mark.parametrize(
    ("pixels", "told"),
    [("grey", False), ("marks", False), ("doppler", True), ("photo", True), ("dicom", True)],
)
def test_colour_is_noticed(tmp_path: Path, pixels: str, told: bool) -> None:
    values = np.repeat(tissue()[..., None], 3, 2)
    if pixels == "marks":
        values[:4, :12] = (255, 255, 0)  # as scanners draw
    elif pixels == "doppler":
        values[30:45, 50:70] = (200, 60, 40)
    elif pixels != "grey":
        values[:] = (200, 60, 40)
    file = tmp_path / ("a.dcm" if pixels == "dicom" else "a.jpg")
    if pixels == "dicom":
        sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(file))
    else:
        Image.fromarray(values).save(file, quality=95)
    assert bool(read_picture(file).told) == told


def test_which_files_of_a_folder_are_images(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.jpeg", "c.tif", "d.nii.gz", "e.dcm", "f.csv", "g", "h.gz", "DICOMDIR"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM and more")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM and more")  # a list of other files
    found = {file.name for file in tmp_path.iterdir() if is_image(file)}
    assert found == {"a.PNG", "b.jpeg", "c.tif", "d.nii.gz", "e.dcm", "IM0001"}


# How sure a reading is


def test_an_interval_holds_as_often_as_it_promises() -> None:
    """Over new images of the same kind as validation's, whatever the model does."""
    rng = np.random.default_rng(0)
    grades = ("a", "b", "c", "d")

    def drawn(count: int) -> Any:
        true = rng.uniform(5, 30, count)
        said = true * np.exp(rng.standard_t(3, count) * 0.2 + 0.1)  # biased, with heavy tails
        chances = rng.dirichlet(np.ones(4), count)
        grade = np.where(rng.random(count) < 0.6, chances.argmax(1), rng.integers(0, 4, count))
        return true, said, chances, grade

    held = {"length": 0, "category": 0}
    patients = [str(i) for i in range(60)]
    for _ in range(100):
        true, said, chances, grade = drawn(60)
        pairs = [(patient, dict.fromkeys(LENGTHS, a), dict.fromkeys(LENGTHS, b))
                 for patient, a, b in zip(patients, said, true, strict=True)]  # fmt: skip
        known = conformal.fit(pairs, chances, grade, patients)
        for t, s, p, g in zip(*drawn(20), strict=True):
            found = conformal.interval([(known, dict.fromkeys(LENGTHS, s), p)], grades, 0.1)
            assert found is not None
            low, high = found["long_axis_mm"]
            held["length"] += low <= 0.1 * t <= high
            held["category"] += grades[g] in found["categories"]
    assert 0.87 < held["length"] / 2000 < 0.95
    assert held["category"] / 2000 > 0.87


def test_an_interval_holds_on_all_images_of_a_patient() -> None:
    """Each of 19 patients has five images, on which the model errs alike."""
    rng = np.random.default_rng(0)
    patients = [str(i // 5) for i in range(95)]
    held = 0
    for _ in range(2000):
        off = rng.exponential(size=(20, 1)) * rng.uniform(0.1, 1, (20, 5))
        q = conformal.quantile(off[:19].ravel().tolist(), patients)
        held += q is not None and off[19].max() <= q
    assert 0.88 < held / 2000 < 0.92


def test_several_looks_are_told_by_their_hull() -> None:
    known = {"level": 0.9, "long_axis": math.log(2), "short_axis": None, "category": 0.6}
    one = known, {"long_axis": 10.0, "short_axis": 5.0}, (0.1, 0.1, 0.2, 0.6)
    other = known, {"long_axis": 12.0, "short_axis": 5.0}, (0.1, 0.5, 0.2, 0.2)
    grades = ("a", "b", "c", "d")
    assert conformal.interval([one], grades, 0.5) == {
        "level": 0.9, "long_axis_mm": [2.5, 10.0], "short_axis_mm": None, "categories": ["d"],
    }  # fmt: skip
    both = conformal.interval([one, other], grades, None)
    assert both is not None
    assert both["long_axis_px"] == [5.0, 24.0]
    assert both["categories"] == ["b", "c", "d"]  # and what is between
    missed = conformal.interval([one, (known, None, (0.1, 0.1, 0.2, 0.6))], grades, None)
    assert missed is not None
    assert missed["long_axis_px"] == [0.0, 20.0]
    assert conformal.interval([one, (None, one[1], one[2])], grades, None) is None


def test_a_reading_has_its_interval(tmp_path: Path) -> None:
    height, width = 80, 120
    known = {"level": 0.9, "long_axis": 0.1, "short_axis": 0.2, "category": 0.5, "outlined": 20,
             "graded": 20}  # fmt: skip
    picture = Picture(tissue(), (slice(0, height), slice(0, width)), None, ())
    for mirror in (False, True):
        ask = Ensemble(Trained(predictor(standing), "model", {"spread": known}), mirror)
        place = (picture, reading.boxes(picture, whole), tmp_path / "a.png", tmp_path / "a")
        record, _ = reading.read(ask, *place, 96, GRADES, 0.1, Reference())
        [view] = record["views"]
        low, high = view["interval"]["long_axis_mm"]
        if not mirror:
            assert low == pytest.approx(view["long_axis_mm"] * math.exp(-0.1), abs=0.02)
            assert high == pytest.approx(view["long_axis_mm"] * math.exp(0.1), abs=0.02)
        assert view["interval"]["categories"] == ["high"]
    assert read(predictor(nothing), tissue(), tmp_path)["views"][0]["interval"] is None


# Text in the image


def screen() -> Any:
    """A scan in a black frame, with a name above it and one within."""
    image = np.zeros((300, 420), np.uint8)
    image[40:280, 30:390] = tissue(240, 360) // 2
    drawn = Image.fromarray(image)
    pen = ImageDraw.Draw(drawn)
    pen.text((40, 8), "DOE, JOHN  M", fill=255, font_size=20)
    pen.text((150, 200), "DOE 12.03.1961", fill=255, font_size=20)
    return np.array(drawn)


SCAN = (slice(40, 280), slice(30, 390))


def test_what_is_lit_outside_the_scan_is_told() -> None:
    image, told = burnt.shown(screen(), [SCAN], "keep")
    assert np.array_equal(image, screen())
    assert told == [
        "text or marks lie outside of what was scanned, and may name the patient: the overlay "
        "shows it"
    ]
    clean = screen()
    clean[:40] = 0
    assert burnt.shown(clean, [SCAN], "keep")[1] == []
    assert burnt.shown(tissue(), [(slice(0, 80), slice(0, 120))], "keep")[1] == []  # no outside


def test_text_is_found_and_blackened() -> None:
    pytest.importorskip("rapidocr")
    image, told = burnt.shown(screen(), [SCAN], "find")
    assert np.array_equal(image, screen())
    assert told[0].startswith("text was found in 2 places")
    clean, told = burnt.shown(screen(), [SCAN], "blank")
    assert told[0].endswith("it is blackened")
    assert clean.max() < 130  # nothing white is left
    assert not clean[:40].any()
    untouched = np.ones(clean.shape, bool)
    untouched[190:235, 140:330] = False
    assert np.array_equal(clean[SCAN][untouched[SCAN]], screen()[SCAN][untouched[SCAN]])
    assert burnt.find(tissue(240, 360)) == []


def test_blackened_text_is_in_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    picture = Picture(screen(), (slice(0, 300), slice(0, 420)), None, ())
    ask = Ensemble(Trained(predictor(standing), "model", {}))
    place = (picture, [SCAN], tmp_path / "a.png", tmp_path / "a")
    line = (96, GRADES, None, Reference(), (), ())
    for text, white in (("keep", True), ("blank", False)):
        record, shown = reading.read(ask, *place, *line, text)  # type: ignore[arg-type]
        drawn = np.asarray(Image.open(record["overlay"]))
        assert ((drawn.min(axis=2) > 200).sum() > 50) == white == (shown.max() > 200)
