"""Every kind of file that a clinic hands in reads right, or is told.

Small twins of what went wrong are made here; where ``../shared/cases/clinical`` is there, the files
themselves are read too.
"""

import io
import os
import struct
import tracemalloc
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import imagehash
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from PIL import ImageDraw, ImageFilter
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    UltrasoundImageStorage,
)
from scipy import ndimage

from mtbench.errors import DataError
from mtbench_tasks._lesion import categories, dicom_out, doubts, manifest, pictures, predicting
from mtbench_tasks._lesion.cases import Case, Collection, Reading
from mtbench_tasks._lesion.categories import place, said, scale_of
from mtbench_tasks._lesion.doubts import alike, examine, parts, perceptual, survey
from mtbench_tasks._lesion.files import (
    ImageFile,
    MaskFile,
    frames,
    is_image,
    read_geometry,
    read_mask,
    read_picture,
)
from mtbench_tasks._lesion.nifti import inspect
from mtbench_tasks._names import spelt_alike
from mtbench_tasks.thyroid import Thyroid

Mtbench = Callable[..., tuple[int, str, str]]
SHARED = Path(__file__).parents[3] / "shared" / "cases" / "clinical"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the handed files are not here")

HEIGHT, WIDTH = 60, 80


def scan() -> Any:
    """Speckle with a bright L at the top left: no turn and no mirror leaves it as it is."""
    image = np.random.default_rng(0).normal(110, 25, (HEIGHT, WIDTH)).clip(20, 220)
    image[4:24, 4:8] = image[20:24, 4:18] = 255
    return image.astype(np.uint8)


def lesion() -> Any:
    """An ellipse at the lower left."""
    y, x = np.indices((HEIGHT, WIDTH))
    return ((x - 26) / 14) ** 2 + ((y - 40) / 11) ** 2 <= 1


def saved(path: Path, values: Any, **how: Any) -> Path:
    Pil.fromarray(values).save(path, **how)
    return path


def dicom(path: Path, values: Any, **said: Any) -> Path:
    """Write an ultrasound DICOM by pydicom; `said` are its entries."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = said.pop("syntax", ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UltrasoundImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    colour = values.ndim >= 3 and values.shape[-1] == 3
    many = values.ndim - colour == 3
    data.Rows, data.Columns = values.shape[many : many + 2]
    data.SamplesPerPixel = 3 if colour else 1
    if colour:
        data.PlanarConfiguration = 0
    if many:
        data.NumberOfFrames = len(values)
    bits = 8 * values.itemsize
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation = bits - 1, int(values.dtype.kind == "i")
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    data.PixelData = said.pop("pixels", None) or values.tobytes()
    for name, value in said.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def nifti(
    path: Path, values: Any, directions: tuple[int, ...], origin: Any = (0, 0, 0),
    spacing: tuple[float, float] = (0.1, 0.1),
) -> Path:  # fmt: skip
    image = sitk.GetImageFromArray(values[None])
    image.SetSpacing((*spacing, 1.0))
    image.SetDirection([float(d) for d in directions])
    image.SetOrigin([*map(float, origin), 0.0][:3])
    sitk.WriteImage(image, str(path))
    return path


def dice(a: Any, b: Any) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


# Masks


def ring() -> Any:
    """The outline of the lesion, two pixels wide."""
    return lesion() & ~np.array(
        Pil.fromarray(lesion().astype(np.uint8) * 255).filter(ImageFilter.MinFilter(5))
    ).astype(bool)


def test_a_mask_with_grey_edges_counts_from_half(tmp_path: Path) -> None:
    full = Pil.fromarray(lesion().astype(np.uint8) * 255)
    soft = np.asarray(full.filter(ImageFilter.GaussianBlur(1.5)))
    mask, told = read_mask(saved(tmp_path / "soft.png", soft))
    assert dice(mask, lesion()) > 0.97
    assert (soft > 0).sum() > 1.3 * lesion().sum()
    assert told == []
    small = full.resize((WIDTH // 2, HEIGHT // 2), Pil.Resampling.BILINEAR)
    again = np.asarray(small.resize((WIDTH, HEIGHT), Pil.Resampling.BICUBIC))
    assert dice(read_mask(saved(tmp_path / "resized.png", again))[0], lesion()) > 0.95


@pytest.mark.parametrize("top", [60, 120, 255])
@pytest.mark.parametrize("quality", [30, 60, 90])
def test_a_mask_that_was_saved_as_jpeg(tmp_path: Path, top: int, quality: int) -> None:
    file = saved(tmp_path / "m.jpg", lesion().astype(np.uint8) * top, quality=quality)
    mask, told = read_mask(file)
    assert dice(mask, lesion()) > 0.97
    assert told == []


@pytest.mark.parametrize("values", [(1, 2), (128, 255), (85, 170)])
def test_several_labels_are_refused_unless_one_is_named(
    tmp_path: Path, values: tuple[int, int]
) -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:58, 5:60] = values[0]
    labels[lesion()] = values[1]
    file = saved(tmp_path / "labels.png", labels)
    with pytest.raises(DataError, match=rf"several labels \({values[0]}, {values[1]}\): say in co"):
        read_mask(file)
    np.testing.assert_array_equal(read_mask(file, None, values[1])[0], lesion())
    with pytest.raises(DataError, match="holds no 77"):
        read_mask(file, None, 77)


@pytest.mark.parametrize("values", [(1, 2), (2, 1), (128, 255)])
def test_a_nodule_that_is_small_in_its_gland_is_a_label(
    tmp_path: Path, values: tuple[int, int]
) -> None:
    """It is less than a hundredth of what is marked: the gland must not be taken for the lesion."""
    y, x = np.mgrid[:400, :600]
    nodule = (y - 150) ** 2 + (x - 260) ** 2 < 12**2
    labels = (((y - 150) / 90) ** 2 + ((x - 300) / 200) ** 2 < 1).astype(np.uint8) * values[0]
    labels[nodule] = values[1]
    assert nodule.sum() < 0.01 * (labels > 0).sum()
    file = saved(tmp_path / "labels.png", labels)
    with pytest.raises(DataError, match=r"several labels .*: say in column mask_value"):
        read_mask(file)
    np.testing.assert_array_equal(read_mask(file, None, values[1])[0], nodule)


def test_a_coarse_grey_edge_is_no_label(tmp_path: Path) -> None:
    """Of a mask that was made small and large again, each grey pixel is a square of its own."""
    y, x = np.mgrid[:160, :160]
    small = ((y - 80) ** 2 + (x - 80) ** 2 < 70**2).astype(np.uint8) * 255
    small[np.roll(small, 1, 1) < small] = 85
    coarse = small.repeat(4, 0).repeat(4, 1)
    assert 32 < (coarse == 85).sum() < 0.01 * (coarse > 0).sum()
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", coarse))[0], coarse == 255)


def test_several_labels_in_a_jpeg_are_refused(tmp_path: Path) -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:58, 5:70] = 128
    labels[lesion()] = 255
    with pytest.raises(DataError, match="several labels"):
        read_mask(saved(tmp_path / "labels.jpg", labels, quality=90))


def test_an_outline_is_filled_and_told(tmp_path: Path) -> None:
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[ring(), 0] = 255
    mask, told = read_mask(saved(tmp_path / "red.png", red))
    np.testing.assert_array_equal(mask, lesion())
    assert told == ["is an outline: what it encloses was filled"]


def test_of_blurred_labels_none_is_guessed(tmp_path: Path) -> None:
    """An edge from 255 to 0 passes 128: what is 128 there is no label."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:58, 5:70] = 128
    labels[lesion()] = 255
    labels = labels.repeat(4, 0).repeat(4, 1)
    blurred = np.asarray(Pil.fromarray(labels).filter(ImageFilter.GaussianBlur(1.2)))
    for file in (
        saved(tmp_path / "l.jpg", labels, quality=90), saved(tmp_path / "l.png", blurred)
    ):  # fmt: skip
        for value in (128, 255):
            with pytest.raises(DataError, match="blurred by JPEG or by resizing"):
                read_mask(file, None, value)
    alone = saved(tmp_path / "m.jpg", lesion().astype(np.uint8) * 255, quality=60)
    assert dice(read_mask(alone, None, 255)[0], lesion()) > 0.97
    with pytest.raises(DataError, match="holds no 128"):
        read_mask(alone, None, 128)


@pytest.mark.parametrize("kind", ["colours.png", "palette.png", "colours.jpg"])
def test_regions_of_different_colours_are_not_one_lesion(tmp_path: Path, kind: str) -> None:
    """VOC's palette has as much red in the one as green in the other."""
    place = np.zeros((HEIGHT, WIDTH), np.uint8)
    place[5:58, 5:70] = 2
    place[lesion()] = 1
    picture = Pil.fromarray(place).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    file = tmp_path / kind
    (picture if kind.startswith("p") else picture.convert("RGB")).save(file)
    for value in (None, 128):
        with pytest.raises(DataError, match=r"several colours \(red, green\)|blurred|holds no"):
            read_mask(file, None, value)
    one = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    one[lesion()] = (30, 200, 90)
    assert dice(read_mask(saved(tmp_path / f"one.{kind[-3:]}", one))[0], lesion()) > 0.97


@pytest.mark.parametrize("centre", [(30, 4), (2, 40), (4, 4), (58, 76)])
def test_an_outline_that_ends_at_the_border_is_filled(
    tmp_path: Path, centre: tuple[int, int]
) -> None:
    y, x = np.indices((HEIGHT, WIDTH))
    whole = ((x - centre[1]) / 22) ** 2 + ((y - centre[0]) / 18) ** 2 <= 1
    line = whole & ~ndimage.binary_erosion(whole, iterations=2, border_value=1)
    mask, told = read_mask(saved(tmp_path / "m.png", line.astype(np.uint8) * 255))
    np.testing.assert_array_equal(mask, whole)
    assert told == ["is an outline: what it encloses was filled"]
    across = np.zeros_like(whole)
    across[:, 30:33] = True  # a line from border to border encloses nothing
    mask, _ = read_mask(saved(tmp_path / "l.png", across.astype(np.uint8) * 255))
    np.testing.assert_array_equal(mask, across)


def test_an_outline_with_a_gap_is_refused(tmp_path: Path) -> None:
    gap = ring()
    gap[:, 24:28] &= np.arange(HEIGHT)[:, None] > 40
    with pytest.raises(DataError, match="an outline that is not closed"):
        read_mask(saved(tmp_path / "gap.png", gap.astype(np.uint8) * 255))


def large(radius: float = 45) -> Any:
    """A disc in a large image."""
    y, x = np.indices((200, 240))
    return (x - 110) ** 2 + (y - 100) ** 2 <= radius**2


@pytest.mark.parametrize("colour", [(0, 255, 0), (255, 0, 0), (0, 0, 255), (0, 128, 0)])
@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_a_thin_outline_in_a_jpeg_is_filled_or_refused(
    tmp_path: Path, colour: tuple[int, int, int], quality: int
) -> None:
    picture = np.zeros((200, 240, 3), np.uint8)
    picture[large() & ~ndimage.binary_erosion(large())] = colour
    file = saved(tmp_path / "m.jpg", picture, quality=quality)
    refused = ""
    try:
        mask, told = read_mask(file)
    except DataError as error:
        refused = str(error)
    if refused:  # what JPEG has left of the line is not enough
        assert quality <= 50
        assert colour != (0, 255, 0)
        assert "pieces of a thin line" in refused or "not closed" in refused
        return
    assert dice(mask, large()) > 0.97
    assert told == ["is an outline: what it encloses was filled"]


@pytest.mark.parametrize(("radius", "blur"), [(8, 3), (8, 5), (15, 5), (25, 8), (45, 8)])
def test_a_mask_that_was_blurred_is_read_and_told(
    tmp_path: Path, radius: float, blur: float
) -> None:
    full = Pil.fromarray(large(radius).astype(np.uint8) * 255)
    file = saved(tmp_path / "m.png", np.asarray(full.filter(ImageFilter.GaussianBlur(blur))))
    mask, told = read_mask(file)
    assert dice(mask, large(radius)) > 0.93
    assert told == ["is blurred: it counts from half of its largest value on"]


@pytest.mark.parametrize("smooth", [1, 2, 4, 8])
def test_a_smooth_image_or_a_part_of_it_is_no_blurred_mask(tmp_path: Path, smooth: int) -> None:
    rough = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(200, 240)), smooth)
    grey = (110 + 40 * rough / rough.std()).clip(0, 255).astype(np.uint8)
    for values in (grey, np.where(large(), grey, 0).astype(np.uint8)):
        with pytest.raises(DataError, match=r"is an image|several labels"):
            read_mask(saved(tmp_path / "m.png", values))


@pytest.mark.parametrize(("dots", "size"), [(8, 4), (16, 2), (16, 3), (40, 2)])
def test_dots_around_an_area_are_no_lesions(tmp_path: Path, dots: int, size: int) -> None:
    picture = Pil.new("L", (240, 200))
    draw = ImageDraw.Draw(picture)
    for angle in np.linspace(0, 2 * np.pi, dots, endpoint=False):
        x, y = 110 + 60 * np.cos(angle), 100 + 45 * np.sin(angle)
        draw.ellipse((x - size, y - size, x + size, y + size), fill=255)
    with pytest.raises(DataError, match="is a row of dots around an area"):
        read_mask(saved(tmp_path / "m.png", np.asarray(picture)))


@pytest.mark.parametrize("seed", range(6))
def test_several_lesions_are_no_dots(tmp_path: Path, seed: int) -> None:
    rng, (y, x) = np.random.default_rng(seed), np.indices((200, 240))
    if seed < 2:  # in a ring
        angles = np.linspace(0, 2 * np.pi, 5 + 3 * seed, endpoint=False)
        centres = [(120 + 70 * np.cos(a), 100 + 70 * np.sin(a)) for a in angles]
    else:
        centres = [(rng.uniform(20, 220), rng.uniform(20, 180)) for _ in range(7)]
    mask = np.logical_or.reduce([(x - a) ** 2 + (y - b) ** 2 <= 13**2 for a, b in centres])
    found, _ = read_mask(saved(tmp_path / "m.png", mask.astype(np.uint8) * 255))
    np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize(
    "shade", [lambda m: m * 255, lambda m: np.full_like(m, 255), np.zeros_like],
    ids=["white on black", "white", "black"],
)  # fmt: skip
@pytest.mark.parametrize("opaque", [255, 100])
def test_a_mask_in_the_opacity(tmp_path: Path, shade: Callable[[Any], Any], opaque: int) -> None:
    mask = lesion().astype(np.uint8)
    picture = np.dstack([shade(mask)] * 3 + [mask * opaque])
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", picture))[0], lesion())
    soft = Pil.fromarray(mask * opaque).filter(ImageFilter.GaussianBlur(1))
    picture[..., 3] = np.asarray(soft)
    assert dice(read_mask(saved(tmp_path / "m.png", picture))[0], lesion()) > 0.97


@pytest.mark.parametrize("name", ["1.tif", "g4.tif", "1.bmp", "01.png", "16.png", "f.tif"])
def test_a_mask_of_any_depth(tmp_path: Path, name: str) -> None:
    picture = Pil.fromarray(lesion().astype(np.uint8) * 255).convert("1")
    if name == "01.png":
        picture = Pil.fromarray(lesion().astype(np.uint8))
    elif name == "16.png":
        picture = Pil.fromarray(lesion().astype(np.uint16) * 65535)
    elif name == "f.tif":
        picture = Pil.fromarray(lesion().astype(np.float32))
    picture.save(tmp_path / name, **({"compression": "group4"} if name == "g4.tif" else {}))
    mask, told = read_mask(tmp_path / name)
    np.testing.assert_array_equal(mask, lesion())
    assert told == []


def test_a_palette_of_one_colour_is_named(tmp_path: Path) -> None:
    picture = Pil.fromarray(lesion().astype(np.uint8), "L").convert("P")
    picture.putpalette([0, 0, 0] * 256)
    picture.save(tmp_path / "m.png")
    with pytest.raises(DataError, match="its palette makes all of its values one colour"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize("more", [-1, 1])
def test_a_mask_of_another_size_is_refused(more: int) -> None:
    other = np.zeros((HEIGHT + more, WIDTH), dtype=bool)
    other[20:40, 20:40] = True
    [fault] = examine(case(other)).faults
    assert f"({HEIGHT}, {WIDTH})" in fault
    assert f"({HEIGHT + more}, {WIDTH})" in fault


def test_a_broken_mask_is_told_with_its_reader_and_the_others_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path / "a.png", scan())
    (tmp_path / "m.png").write_bytes(b"broken")
    odd = replace(
        case(lesion(), MaskFile(tmp_path / "m.png", file), ring()), pixels=ImageFile(file)
    )
    [fault] = examine(odd).faults
    assert fault.startswith(f"a.png: reader 1's mask: {tmp_path / 'm.png'}: does not decode")
    drawn = list[Any]()
    monkeypatch.setattr(pictures, "_contour", lambda axes, mask, _: drawn.append((axes, mask)))
    pictures.preview(Collection((odd,), ("x",), ""), tmp_path / "p.png")
    [axes] = {axes for axes, _ in drawn}
    assert axes.get_title() == "a.png: ?, ?, ?\nreader 1's mask cannot be used"
    for (_, mask), wanted in zip(drawn, (lesion(), ring()), strict=True):
        np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize("angle", [0, 30, 90])
def test_a_long_thin_lesion_is_no_outline(tmp_path: Path, angle: int) -> None:
    picture = Pil.new("L", (HEIGHT, HEIGHT))
    ImageDraw.Draw(picture).rectangle((8, 28, 52, 31), fill=255)
    thin = np.asarray(picture.rotate(angle)) > 0
    mask, told = read_mask(saved(tmp_path / "thin.png", thin.astype(np.uint8) * 255))
    np.testing.assert_array_equal(mask, thin)
    assert told == []


def test_an_image_that_was_cut_out_along_its_lesion_is_no_mask(tmp_path: Path) -> None:
    rough = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH))
    grey = 110 + 60 * ndimage.gaussian_filter(rough, 2) / 0.14  # changes slowly, as speckle does
    cut = np.where(lesion(), grey.clip(20, 240), 0).astype(np.uint8)
    with pytest.raises(DataError, match="is an image, not a mask"):
        read_mask(saved(tmp_path / "roi.png", cut))


@pytest.mark.parametrize("drawn", ["red on it", "grey", "jpeg"])
def test_an_image_is_no_mask(tmp_path: Path, drawn: str) -> None:
    values = np.repeat(scan()[..., None], 3, axis=2)
    if drawn == "red on it":
        values[ring()] = (255, 0, 0)
    name = "image.jpg" if drawn == "jpeg" else "image.png"
    with pytest.raises(DataError, match="is an image, not a mask"):
        read_mask(saved(tmp_path / name, values if drawn == "red on it" else scan()))


def test_an_inverted_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it looks inverted"):
        read_mask(saved(tmp_path / "m.png", (~lesion()).astype(np.uint8) * 255))


def case(*readings: Any, image: Any = None) -> Case:
    image = scan() if image is None else image
    made = tuple(Reading(f"reader {i}", mask, None) for i, mask in enumerate(readings))
    return Case("a.png", "p", lambda: image, made)


def test_what_is_odd_of_masks_is_told() -> None:
    big = np.zeros((HEIGHT, WIDTH), dtype=bool)
    big[5:, 5:] = True
    dot = np.zeros_like(big)
    dot[30, 30] = True
    far = np.roll(lesion(), (-25, 35), (0, 1))
    box = np.zeros_like(big)
    box[20:40, 20:50] = True
    for masks, words in (
        ((lesion(),), None),
        ((big,), "reader 0's mask covers 86% of the image"),
        ((dot,), "reader 0's mask marks 1 pixel only"),
        ((lesion() | far,), "reader 0's mask has 2 parts that lie apart"),
        ((lesion(), far), "the masks of reader 0 and reader 1 do not meet: two lesions?"),
        ((lesion(), lesion()), None),
        ((box,), "is a rectangle: is it a box around the lesion"),
        ((lesion() | np.roll(dot, -25, 0),), "specks beside its lesion (1 px together)"),
    ):
        found = examine(case(*masks))
        assert found.faults == ()
        if words is None:
            assert found.doubts == ()
        else:
            [doubt] = found.doubts
            assert words in doubt


def test_a_picture_that_is_no_scan_is_told() -> None:
    mask = lesion().astype(np.uint8) * 255
    page = np.where(scan() > 120, 255, scan()).astype(np.uint8)
    assert "has 2 grey levels only: is it a mask?" in examine(case(image=mask)).doubts[0]
    assert "is white over 3" in examine(case(image=page)).doubts[0]
    window = np.pad(scan(), 10, constant_values=240)
    assert "is of one grey value (240) over 40%" in examine(case(image=window)).doubts[0]
    assert examine(case()).doubts == ()
    assert examine(replace(case(), pixels=window)).doubts == ()  # simulated: held, and not read


def test_a_blank_or_tiny_image_is_told() -> None:
    assert "is blank" in examine(case(image=np.full((40, 40), 7, np.uint8))).doubts[0]
    assert "too few" in examine(case(image=scan()[:20, :20])).doubts[0]
    assert "too few" in examine(case(image=scan()[:, :20])).doubts[0]


@settings(max_examples=25, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=4))
def test_parts_are_a_partition_without_specks(corners: list[tuple[int, int]]) -> None:
    mask = np.zeros((30, 30), dtype=bool)
    for y, x in corners:
        mask[y : y + 4, x : x + 4] = True
    found = parts(mask)
    assert not np.any(np.sum(found, axis=0) > 1)
    np.testing.assert_array_equal(np.logical_or.reduce(found), mask)  # all are large enough
    sizes = [part.sum() for part in found]
    assert sizes == sorted(sizes, reverse=True)
    speck = mask.copy()
    free = ~np.asarray(Pil.fromarray(mask).filter(ImageFilter.MaxFilter(3)))
    if free.any() and mask.sum() > 40:
        speck[tuple(np.argwhere(free)[0])] = True
        assert len(parts(speck)) == len(found)


# Geometry


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "8.tif", "16.tif", "lzw.tif"])
def test_every_orientation_is_shown_upright(tmp_path: Path, name: str, orientation: int) -> None:
    undo: dict[int, Callable[[Any], Any]] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.T, 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = np.ascontiguousarray(undo[orientation](scan()))
    if name == "16.tif":
        stored = stored.astype(np.uint16)
    if name.endswith(".tif"):
        how: dict[str, Any] = {"tiffinfo": {274: orientation}}
        how |= {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    else:
        exif = Pil.Exif()
        exif[274] = orientation
        how = {"exif": exif, "quality": 95} if name == "a.jpg" else {"exif": exif}
    found = read_picture(saved(tmp_path / name, stored, **how)).pixels
    assert found.shape == (HEIGHT, WIDTH)
    assert np.abs(found.astype(int) - scan()).mean() < (4 if name == "a.jpg" else 0.1)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize(("turned", "own", "told"), [
    (3, None, True), (3, 3, False), (3, 1, False), (1, None, False), (None, None, False),
    (6, None, False),  # as stored, the mask would be of another size
])  # fmt: skip
def test_a_mask_that_may_not_have_been_turned_is_told(
    tmp_path: Path, name: str, turned: int | None, own: int | None, told: bool
) -> None:
    def with_orientation(name: str, values: Any, orientation: int | None) -> Path:
        exif = Pil.Exif()
        if orientation is not None:
            exif[274] = orientation
        return saved(tmp_path / name, np.ascontiguousarray(values), exif=exif)

    image = with_orientation(name, np.rot90(scan()) if turned == 6 else scan(), turned)
    mask = with_orientation("m.png", lesion().astype(np.uint8) * 255, own)
    assert any("shown turned" in t for t in read_picture(image).told) == (turned in (3, 6))
    assert [t for t in read_mask(mask, image)[1] if "turns the image" in t] == [
        "the header (EXIF) of its image turns the image, and the mask has no such header: check "
        "that it was drawn on the image as shown, not as stored"
    ] * told


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_white_is_zero(tmp_path: Path, bits: int) -> None:
    kind = np.dtype(f"uint{bits}")
    stored = np.iinfo(kind).max - scan().astype(kind) * (1 if bits == 8 else 250)
    file = saved(tmp_path / "a.tif", stored.astype(kind))
    raw = file.read_bytes()
    # Tag 262 (short, one value): 1 becomes 0.
    entry = bytes((6, 1, 3, 0, 1, 0, 0, 0, 1, 0))
    assert raw.count(entry) == 1
    file.write_bytes(raw.replace(entry, entry[:-2] + bytes(2)))
    found = read_picture(file).pixels.astype(float)
    assert np.corrcoef(found.ravel(), scan().ravel())[0, 1] > 0.99


UPSIDE = (1, 0, 0, 0, -1, 0, 0, 0, 1)
SAME = (1, 0, 0, 0, 1, 0, 0, 0, 1)
NIBABEL = (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def test_nifti_directions_place_the_mask_on_the_image(tmp_path: Path) -> None:
    bottom = 0.1 * (HEIGHT - 1)
    upright = nifti(tmp_path / "a.nii.gz", scan(), SAME)
    flipped = nifti(tmp_path / "b.nii.gz", scan()[::-1].copy(), UPSIDE, (0, bottom, 0))
    mask = nifti(tmp_path / "m.nii.gz", lesion().astype(np.uint8), SAME)
    turned = nifti(tmp_path / "n.nii.gz", lesion().astype(np.uint8)[::-1].copy(), UPSIDE,
                   (0, bottom, 0))  # fmt: skip
    half = nifti(tmp_path / "h.nii.gz", lesion().astype(np.uint8)[::-1, ::-1].copy(), NIBABEL,
                 (0.1 * (WIDTH - 1), bottom, 0))  # fmt: skip
    for image in (upright, flipped):
        np.testing.assert_array_equal(read_picture(image).pixels, scan())
        for drawn in (mask, turned, half):
            np.testing.assert_array_equal(read_mask(drawn, image)[0], lesion())
    assert "turns its rows" in read_picture(flipped).told[0]
    png = saved(tmp_path / "m.png", lesion().astype(np.uint8) * 255)  # drawn on what is shown
    np.testing.assert_array_equal(read_mask(png, flipped)[0], lesion())


def test_nifti_as_nibabel_writes_it_is_taken_as_stored(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        read_picture(nifti(tmp_path / "a.nii", scan(), NIBABEL)).pixels, scan()
    )


def test_a_nifti_of_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    """SimpleITK would abort the process: a test cannot fail of it softly."""
    with pytest.raises(DataError, match="is no UTF-8, as NIfTI's reader needs it: rename it"):
        inspect(tmp_path / os.fsdecode(b"caf\xe9.nii"))


def test_nifti_that_is_not_packed_as_it_is_called(tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii", scan(), NIBABEL).rename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_picture(file).pixels, scan())


def test_nifti_with_swapped_axes_is_turned(tmp_path: Path) -> None:
    swapped = (0, 1, 0, 1, 0, 0, 0, 0, 1)
    file = nifti(tmp_path / "a.nii", np.ascontiguousarray(scan().T), swapped)
    np.testing.assert_array_equal(read_picture(file).pixels, scan())


def test_a_nifti_that_says_two_directions_is_told(tmp_path: Path) -> None:
    """An sform that turns the rows, where the qform does not."""
    file = nifti(tmp_path / "a.nii", scan(), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert read_picture(file).told == ()
    header = bytearray(file.read_bytes())
    struct.pack_into("<h", header, 254, 1)  # sform_code
    rows = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)
    for sign, words in ((1, None), (-1, "says two directions (qform and sform)")):
        for i, row in enumerate(rows):
            values = [sign * value if i == 1 else value for value in row]
            struct.pack_into("<4f", header, 280 + 16 * i, *values)
        file.write_bytes(header)
        told = " ".join(read_picture(file).told)
        assert (words is None and not told) or words in told


def test_a_mask_that_lies_elsewhere_or_askew_is_refused(tmp_path: Path) -> None:
    image = nifti(tmp_path / "a.nii.gz", scan(), SAME)
    away = nifti(tmp_path / "m.nii.gz", lesion().astype(np.uint8), SAME, (0, 3, 0))
    with pytest.raises(DataError, match=r"m\.nii\.gz: its header puts it 3 mm away"):
        read_mask(away, image)
    askew = nifti(tmp_path / "m.nii.gz", lesion().astype(np.uint8), (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))  # fmt: skip  # noqa: E501
    with pytest.raises(DataError, match="lies at an angle"):
        read_mask(askew, image)


@pytest.mark.parametrize("spacing", [(0.2, 0.2), (0.1, 0.102), (0.098, 0.1)])
def test_a_mask_of_other_pixels_is_refused(tmp_path: Path, spacing: tuple[float, float]) -> None:
    """Its middle is the image's, and it has as many."""
    image = nifti(tmp_path / "a.nii.gz", scan(), SAME)
    origin = [(0.1 - s) * (n - 1) / 2 for s, n in zip(spacing, (WIDTH, HEIGHT), strict=True)]
    mask = nifti(tmp_path / "m.nii.gz", lesion().astype(np.uint8), SAME, origin, spacing)
    with pytest.raises(DataError, match=r"m\.nii\.gz: its header makes it .* and its image is"):
        read_mask(mask, image)


def test_a_mask_on_the_grid_that_is_shown_is_taken(tmp_path: Path) -> None:
    """Of an image whose pixels are made square."""
    image = nifti(tmp_path / "a.nii.gz", scan()[:, ::2].copy(), SAME, spacing=(0.2, 0.1))
    mask = nifti(tmp_path / "m.nii.gz", lesion().astype(np.uint8), SAME, (-0.05, 0))
    np.testing.assert_array_equal(read_mask(mask, image)[0], lesion())


@pytest.mark.parametrize("kind", ["spacing", "aspect", "nifti"])
def test_pixels_that_are_not_square_are_made_so(tmp_path: Path, kind: str) -> None:
    """A circle of 20 mm, sampled at half the resolution across, is a circle again."""
    y, x = np.indices((HEIGHT, WIDTH // 2))
    circle = ((2 * x - 30) / 20) ** 2 + ((y - 30) / 20) ** 2 <= 1
    image = np.where(circle, 40, 160).astype(np.uint8)
    if kind == "nifti":
        volume = sitk.GetImageFromArray(image[None])
        volume.SetSpacing((0.2, 0.1, 1.0))
        sitk.WriteImage(volume, str(tmp_path / "a.nii"))
        file = tmp_path / "a.nii"
    elif kind == "spacing":
        file = dicom(tmp_path / "a.dcm", image, PixelSpacing=[0.1, 0.2])
    else:
        file = dicom(tmp_path / "a.dcm", image, PixelAspectRatio=[1, 2])
    found = read_picture(file)
    assert found.pixels.shape == (HEIGHT, WIDTH)
    assert found.spacing == (None if kind == "aspect" else pytest.approx(0.1))
    assert any("were made square: 80 x 60" in text for text in found.told)
    mask, _ = read_mask(saved(tmp_path / "m.png", circle.astype(np.uint8) * 255), file)
    assert mask.shape == (HEIGHT, WIDTH)
    rows, columns = np.nonzero(mask)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)
    assert found.pixels[mask].mean() < 50


def region(box: tuple[int, int, int, int], delta: float = 0.01, **more: Any) -> Dataset:
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = 1, 1
    item.RegionLocationMinX0, item.RegionLocationMinY0 = box[:2]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box[2:]
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = delta
    for name, value in more.items():
        setattr(item, name, value)
    return item


def test_regions_of_ultrasound_give_spacing_and_sector(tmp_path: Path) -> None:
    boxes = [region((10, 5, 69, 54)), region((0, 56, 79, 59), 9.0, RegionSpatialFormat=3)]
    file = dicom(tmp_path / "a.dcm", scan(), SequenceOfUltrasoundRegions=boxes)
    found = read_picture(file)
    assert found.spacing == pytest.approx(0.1)
    assert found.scanned == (slice(5, 55), slice(10, 70))
    np.testing.assert_array_equal(ImageFile(file)(), scan()[5:55, 10:70])
    png = saved(tmp_path / "m.png", lesion().astype(np.uint8) * 255)
    np.testing.assert_array_equal(MaskFile(png, file)(), lesion()[5:55, 10:70])


@pytest.mark.parametrize(
    ("regions", "spacing", "told"),
    [
        ([region((0, 0, 79, 59))], 0.1, "say 0.1 x 0.1 mm per pixel, its pixel spacing is 0.2"),
        ([region((0, 0, 30, 59)), region((40, 0, 79, 59), 0.02)], None, "different spacings"),
        ([region((0, 0, 159, 119))], 0.2, "is not within the image"),
        ([region((0, 0, 79, 59), PhysicalUnitsXDirection=4)], 0.2, None),
        ([region((0, 0, 79, 59), 1.0)], 10.0, "10 mm per pixel is not what ultrasound has"),
    ],
)
def test_what_speaks_against_regions_is_told(
    tmp_path: Path, regions: list[Dataset], spacing: float | None, told: str | None
) -> None:
    file = dicom(tmp_path / "a.dcm", scan(), SequenceOfUltrasoundRegions=regions,
                 PixelSpacing=[0.2, 0.2])  # fmt: skip
    found = read_picture(file)
    assert found.spacing == (None if spacing is None else pytest.approx(spacing))
    assert (told is None and not found.told) or told in " ".join(found.told)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.2, 0.2]}, "0.1 x 0.1 and 0.2 x 0.2"),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [1, 2]}, "by its aspect ratio"),
        ({"PresentationLUTShape": "INVERSE"}, "that it is inverted and that it is not"),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [2, 2]}, None),
        ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.1, 0.1]}, None),
    ],
)
def test_a_header_that_contradicts_itself_is_told(
    tmp_path: Path, said: dict[str, Any], words: str | None
) -> None:
    told = read_picture(dicom(tmp_path / "a.dcm", scan(), **said)).told
    assert len(told) == (words is not None)
    assert (words or "") in " ".join(told)


def rewritten(file: Path, old: bytes, new: bytes) -> Path:
    """Change what a file says, to what no library writes."""
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new.ljust(len(old))))
    return file


@pytest.mark.parametrize(
    ("text", "spacing", "told"),
    [
        (b"0,17\\0,17", 0.17, ""),
        (b"unknown", None, "its pixel spacing is unknown, no two numbers above 0: not taken"),
        (b"0.17", None, "its pixel spacing is 0.17, no two numbers"),
    ],
)
def test_a_spacing_that_is_no_two_numbers(
    tmp_path: Path, text: bytes, spacing: float | None, told: str
) -> None:
    file = dicom(tmp_path / "a.dcm", scan(), PixelSpacing=["0.17", "0.17"])
    found = read_picture(rewritten(file, b"0.17\\0.17", text))
    assert found.spacing == (spacing and pytest.approx(spacing))
    assert len(found.told) == bool(told)
    assert told in " ".join(found.told)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"LO\x02\x00P1", b"ZZ\x02\x00P1"),  # of no kind of value that there is
        (b"LO\x02\x00P1", b"FD\x02\x00P1"),  # cut off
    ],
)
def test_a_value_that_breaks_when_it_is_read_is_one_line(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    ids = {"PatientID": "P1", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.4"}
    file = rewritten(dicom(tmp_path / "a.dcm", scan(), **ids), old, new)
    for read in (read_picture, read_geometry, read_mask, dicom_out.source):
        with pytest.raises(DataError, match=r"does not decode as DICOM \(.*\)") as error:
            read(file)
        assert "\n" not in str(error.value)


def test_a_count_of_frames_that_breaks_is_one_line(tmp_path: Path) -> None:
    file = dicom(tmp_path / "a.dcm", scan(), NumberOfFrames="1")
    rewritten(file, b"IS\x02\x001 ", b"ZZ\x02\x001 ")
    with pytest.raises(DataError, match=r"does not decode as DICOM \(.*\)"):
        frames(file)


def test_units_of_two_values_give_no_spacing(tmp_path: Path) -> None:
    box = region((0, 0, WIDTH - 1, HEIGHT - 1), PhysicalUnitsXDirection=[3, 3])
    found = read_picture(dicom(tmp_path / "a.dcm", scan(), SequenceOfUltrasoundRegions=[box]))
    assert found.spacing is None
    assert "not in centimetres" in found.told[0]


def test_an_aspect_ratio_that_is_no_two_numbers_is_told(tmp_path: Path) -> None:
    file = dicom(tmp_path / "a.dcm", scan(), PixelAspectRatio=["1", "2"])
    found = read_picture(rewritten(file, b"1\\2", b"1:2"))
    assert "its aspect ratio is 1:2, no two numbers: not taken" in " ".join(found.told)


def test_a_window_by_halves_or_with_commas(tmp_path: Path) -> None:
    plain, shown = read_picture(dicom(tmp_path / "a.dcm", scan())).pixels, {"WindowWidth": "99.5"}
    for name in ("WindowWidth", "WindowCenter"):
        np.testing.assert_array_equal(
            read_picture(dicom(tmp_path / "a.dcm", scan(), **{name: "99.5"})).pixels, plain
        )
    file = dicom(tmp_path / "a.dcm", scan(), **shown, WindowCenter="120.5")
    wanted = read_picture(file).pixels
    assert (wanted != plain).any()
    np.testing.assert_array_equal(read_picture(rewritten(file, b"120.5", b"120,5")).pixels, wanted)


def test_a_jpeg_that_says_rgb_and_holds_ycbcr(tmp_path: Path) -> None:
    colour = np.zeros((64, 64, 3), np.uint8)
    colour[:32], colour[32:] = (200, 40, 40), (40, 40, 200)
    stream = io.BytesIO()
    Pil.fromarray(colour).save(stream, "JPEG", quality=95)
    pixels = pydicom.encaps.encapsulate([stream.getvalue()])
    file = dicom(tmp_path / "a.dcm", colour, syntax=JPEGBaseline8Bit, pixels=pixels)
    found = read_picture(file).pixels.astype(int)
    wanted = np.asarray(Pil.fromarray(colour).convert("L")).astype(int)
    assert np.abs(found - wanted).max() < 8


def test_lookup_tables_padding_and_polarity(tmp_path: Path) -> None:
    ramp = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    table = Dataset()
    table.LUTDescriptor = [len(ramp.ravel()), 0, 16]
    values = np.where(ramp.ravel() < 2400, 0, 65535).astype(np.uint16)  # a step
    table.LUTData = values.tobytes()
    file = dicom(tmp_path / "a.dcm", ramp, VOILUTSequence=[table])
    step = np.where(ramp < 2400, 0, 255)
    np.testing.assert_array_equal(read_picture(file).pixels, step)
    file = dicom(tmp_path / "b.dcm", ramp, VOILUTSequence=[table],
                 PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    np.testing.assert_array_equal(read_picture(file).pixels, 255 - step)
    small = Dataset()  # eight bits an entry, as PS3.3 C.11.2.1.1 stores them
    small.LUTDescriptor, small.LUTData = [256, 0, 8], bytes(range(255, -1, -1))
    file = dicom(tmp_path / "d.dcm", scan(), VOILUTSequence=[small])
    np.testing.assert_array_equal(read_picture(file).pixels, 255 - scan())
    table.LUTData = values.tobytes()[: ramp.size]  # cut off, and not of eight bits
    with pytest.raises(DataError, match="does not decode as DICOM"):
        read_picture(dicom(tmp_path / "e.dcm", ramp, VOILUTSequence=[table]))
    padded = ramp + 1000
    padded[:10] = 65535
    for polarity in ("MONOCHROME2", "MONOCHROME1"):
        file = dicom(tmp_path / "c.dcm", padded, PixelPaddingValue=65535,
                     PhotometricInterpretation=polarity)  # fmt: skip
        found = read_picture(file).pixels
        assert (found[:10] == 0).all()
        assert np.ptp(found[10:]) == 255  # the padding has no part in the range
        plain = np.clip(scan(), 40, 200)  # such numbers stay as they are
        plain[:10] = 255
        file = dicom(tmp_path / "f.dcm", plain, PixelPaddingValue=255,
                     PhotometricInterpretation=polarity)  # fmt: skip
        found = read_picture(file).pixels
        assert (found[:10] == 0).all()
        turned = polarity == "MONOCHROME1"
        np.testing.assert_array_equal(found[10:], 255 - plain[10:] if turned else plain[10:])


def test_another_modality_is_told(tmp_path: Path) -> None:
    for name, told in (("CT", ("its header says that it is CT, and no ultrasound",)), ("US", ())):
        assert read_picture(dicom(tmp_path / "a.dcm", scan(), Modality=name)).told == told


def test_frames_are_told_and_one_is_read(tmp_path: Path) -> None:
    clip = np.stack([scan() // k for k in (1, 2, 4)])
    file = dicom(tmp_path / "a.dcm", clip)
    assert frames(file) == 3
    with pytest.raises(DataError, match=r"has 3 frames; say which one .*; a mask is to have one"):
        read_mask(file, file)
    np.testing.assert_array_equal(read_picture(file, 3).pixels, clip[2])
    for number in (0, 4):
        with pytest.raises(DataError, match=f"has no frame {number}: it has 3"):
            read_picture(file, number)


def test_a_deflated_dicom_is_refused(tmp_path: Path) -> None:
    """300 kB of it may be 600 MiB, which pydicom unpacks for the header alone."""
    file = dicom(tmp_path / "a.dcm", scan(), syntax=DeflatedExplicitVRLittleEndian)
    (bare := tmp_path / "b.dcm").write_bytes(file.read_bytes()[132:])
    for trap in (file, bare):
        for read in (frames, read_geometry, read_picture):
            with pytest.raises(DataError, match="is deflated as a whole, and may unpack"):
                read(trap)


def test_a_count_of_frames_takes_no_memory(tmp_path: Path) -> None:
    file = dicom(tmp_path / "a.dcm", scan(), NumberOfFrames="1000000")
    frames(file)  # imports
    tracemalloc.start()
    try:
        assert len(predicting.frames(file, "all")) == 1_000_000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_dicom_without_preamble(tmp_path: Path) -> None:
    file = dicom(tmp_path / "a.dcm", scan(), PixelSpacing=[0.1, 0.1])
    for cut, name in ((132, "IM1"), (132, "b.dcm")):
        bare = tmp_path / name
        bare.write_bytes(file.read_bytes()[cut:])
        assert is_image(bare)
        np.testing.assert_array_equal(read_picture(bare).pixels, scan())
    data = pydicom.dcmread(file)
    del data.file_meta
    data.save_as(tmp_path / "IM2", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert is_image(tmp_path / "IM2")
    np.testing.assert_array_equal(read_picture(tmp_path / "IM2").pixels, scan())


def shipped(name: str) -> Path:
    """Return a scanner's file that pydicom's package has; older releases have fewer."""
    file = get_testdata_file(name)
    if file is None:
        pytest.skip("another release of pydicom ships it")
    return Path(str(file))


@pytest.mark.parametrize(
    ("name", "shape", "spacing"),
    [
        ("examples_palette.dcm", (350, 800), None),  # cropped after its regions were written
        ("examples_rgb_color.dcm", (240, 320), None),
        ("examples_jpeg2k.dcm", (480, 640), None),
        ("JPEG2000.dcm", (1024, 256), 2.26),
        ("SC_rgb_jpeg_gdcm.dcm", (100, 100), None),
        ("MR_small_jpeg_ls_lossless.dcm", (64, 64), 0.3125),
        ("ExplVR_BigEnd.dcm", (60, 80), None),
    ],
)
def test_files_of_real_scanners(name: str, shape: tuple[int, int], spacing: float | None) -> None:
    found = read_picture(shipped(name))
    assert found.pixels.shape == shape
    assert np.ptp(found.pixels) > 100
    assert found.spacing == (None if spacing is None else pytest.approx(spacing))


def test_a_clip_of_a_real_scanner_whose_header_is_of_another_size() -> None:
    file = shipped("examples_ybr_color.dcm")
    assert frames(file) == 30
    found = read_picture(file, 15)
    assert found.spacing is None
    assert "is not within the image" in found.told[0]


# The CSV: categories


@pytest.mark.parametrize(
    ("cells", "grades", "why"),
    [
        (["TR 4", "TI-RADS 3", "TR-5", "tirads_2"], "TR1-TR5", ""),
        (["ACR TI-RADS 4", "4", "TR3"], "TR1-TR5", "4 is taken as TR4"),
        (["TI-RADS 4a", "TIRADS 5"], "2-5", ""),
        (["BI-RADS 4A", "3"], "2-5", ""),
        (["TR1"] * 5 + ["TR4"] * 15 + ["TR6"], "TR1-TR5", ""),
        (["TR4", "TR6"], None, "no known scale"),
        (["TR4", "4a", "TR5", "4"], None, "no known scale"),
        (["BI-RADS 4a", "TR3"], None, "of BI-RADS and of TI-RADS"),
        (["1", "2", "1", "2"], None, "1 and 2 only"),
        (["1", "2", "3"], "1-5", "numbers up to 3"),
    ],
)
def test_scales_are_known_by_what_is_meant(cells: list[str], grades: str | None, why: str) -> None:
    found = scale_of(cells)
    assert why in found.why
    assert bool(found.why) == bool(why)
    assert (f"{found.grades[0]}-{found.grades[-1]}" if found.grades else None) == grades


@given(
    st.sampled_from(categories.SCALES[0]),
    st.sampled_from(["", " ", "-", "_", "\u2010"]),
    st.sampled_from(["TR", "tr", "TI-RADS", "ti rads", "ACR TI-RADS", "\uff34\uff32"]),
)
def test_a_grade_is_itself_in_every_spelling(grade: str, between: str, name: str) -> None:
    scale = categories.SCALES[0]
    assert place(f"{name}{between}{grade[-1]}", scale) == scale.index(grade)


def test_a_grade_is_the_one_that_is_spelt_so() -> None:
    assert [place(g, ("good", "bad")) for g in ("Good", "BAD", "goood")] == [0, 1, None]
    assert place("4", ("4a", "4b")) is None
    for empty in ("NaN", "N/A", "-", " na ", "#N/A", "none", ""):
        assert said(empty) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty-four images of twelve patients and their masks."""
    for i in range(24):
        rng = np.random.default_rng(i)
        image = rng.normal(100, 30, (15, 20)).repeat(4, 0).repeat(4, 1).clip(20, 220)
        saved(tmp_path / f"{i}.png", image.astype(np.uint8))
        saved(tmp_path / f"m{i}.png", np.roll(lesion(), i // 2, 1).astype(np.uint8) * 255)
    return tmp_path


def table(folder: Path, **columns: Callable[[int], str]) -> Path:
    """Write the CSV; `columns` say what is in a row."""
    made: dict[str, Callable[[int], str]] = {
        "image": lambda i: f"{i}.png", "mask": lambda i: f"m{i}.png",
        "category": lambda i: f"TR{1 + i % 5}", "patient": lambda i: f"P{i // 2:02d}",
    }  # fmt: skip
    made |= columns
    rows = [",".join(made), *(",".join(cell(i) for cell in made.values()) for i in range(24))]
    (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "cases.csv"


SMALL = ("--image-size", 32, "--width", 4, "--epochs", 1, "--threads", 1)


@pytest.mark.parametrize(
    ("columns", "problem", "doubt"),
    [
        ({}, None, None),
        ({"category": lambda i: f"TR {1 + i % 5}"}, None, None),
        ({"category": lambda i: "NaN" if i % 5 == 0 else f"TR{1 + i % 5}"}, None, None),
        ({"category": lambda i: "TR6" if i == 7 else f"TR{1 + i % 5}"}, "'TR6' is not on", None),
        ({"category": lambda i: ("TR4", "4", "4A")[i % 3]}, "no known scale", None),
        ({"category": lambda i: str(1 + i % 2)}, "1 and 2 only", None),
        ({"patient": lambda i: f"{'Pp'[i % 2]}{i // 2:02d}"}, None, "'P00', 'p00' are spelt alike"),
        ({"patient": lambda i: f"{i // 2}" if i % 2 else f"{i // 2:04d}"}, None, "spelt alike"),
        ({"patient": lambda i: f"{i // 2}.0" if i % 2 else f"{i // 2}"}, None, "spelt alike"),
        ({"patient": lambda i: f"P{i}" if i % 2 else ""}, None, "12 of 24 rows name no patient"),
        ({"patient": lambda i: "unknown" if i % 2 else f"P{i}"}, None, "12 of 24 rows name no"),
        ({"patient": lambda i: "1.234E+11" if i % 2 else f"P{i}"}, None, "spreadsheet has shorten"),
        ({"patient": lambda i: f"P{i // 2}" if i % 2 else f"p-0{i // 2}"}, None, "spelt alike"),
        ({"patient": lambda i: ""}, None, "no patients are named"),
        ({"category": lambda i: "-1" if i == 3 else str(1 + i % 5)}, None, "number in 1 of 24"),
        ({"category": lambda i: "-1" if i % 2 else f"TR{1 + i % 5}"}, None, "number in 12 of 24"),
        ({"category": lambda i: ("-99", "2", "4a", "4b")[i % 4]}, None, "number in 6 of 24"),
        ({"category": lambda i: "-1"}, "no known scale", "all categories are -1"),
        ({"category": lambda i: ("-1", "0", "1")[i % 3]}, "no known scale", None),
        ({"category": lambda i: f"TR\u200b{1 + i % 5}.0"}, None, None),
        ({"category": lambda i: "TR4"}, None, "all categories are TR4"),
        ({"category": lambda i: ""}, None, "no case has a category"),
        ({"mask": lambda i: ""}, None, "no case has a mask"),
        ({"reader": lambda i: "Rr"[i % 2]}, None, "readers 'R' and 'r' are spelt alike"),
        ({"reader": lambda i: "\x1b[2J"}, None, None),
        ({"spacing": lambda i: "8"}, None, "8 mm per pixel is not what ultrasound has"),
        ({"spacing": lambda i: "0.08"}, None, None),
    ],
)
def test_verify_tells_what_run_does(
    mtbench: Mtbench, folder: Path, columns: Any, problem: str | None, doubt: str | None
) -> None:
    data = table(folder, **columns)
    code, printed, err = mtbench("data", "verify", "manifest", "--data", data)
    assert (code, err) == (2 if problem else 0, "")
    odd = [line for line in printed.splitlines() if line.startswith("looks odd: ")]
    assert bool(odd) == bool(doubt)
    assert (problem or "") in printed
    assert (doubt or "") in " ".join(odd)
    _, shown, _ = mtbench("data", "inspect", "manifest", "--data", data)
    assert ("problems" in shown) == bool(problem)
    assert ("look odd" in shown.replace("\n", "")) == bool(doubt)
    assert "\x1b" not in printed + shown  # names come from a stranger's table


def test_a_line_that_begins_with_a_hash_but_names_an_image_is_told(folder: Path) -> None:
    (folder / "#1.png").write_bytes((folder / "1.png").read_bytes())
    rows = "#1.png,m1.png,TR3\n#0.png,m0.png,TR4\n# 0.png is blurred\n2.png,m2.png,TR4\n"
    (folder / "c.csv").write_text("# mine\nimage,mask,category\n" + rows)
    collection = load(folder / "c.csv")
    assert len(collection.cases) == 1
    assert sum("begins with # and is left out" in doubt for doubt in collection.doubts) == 1
    (folder / "c.csv").write_text("image,mask,category\n./" + rows)
    assert len(load(folder / "c.csv").cases) == 2


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_file_is_found_in_another_unicode_form(folder: Path, form: Literal["NFC", "NFD"]) -> None:
    """macOS writes names decomposed, spreadsheets do not."""
    (folder / unicodedata.normalize(form, "M\u00fc.png")).write_bytes(
        (folder / "0.png").read_bytes()
    )
    for other in ("M\u00fc.png", "Mu\u0308.png"):
        (folder / "c.csv").write_text(f"image,category\n{other},TR4\n", encoding="utf-8")
        [only] = load(folder / "c.csv").cases
        assert only.image.shape == (HEIGHT, WIDTH)


def test_run_records_and_strict_stops(mtbench: Mtbench, folder: Path, tmp_path: Path) -> None:
    data = table(folder, patient=lambda i: f"{'Pp'[i % 2]}{i // 2:02d}")
    line = ("run", "-m", "ew", "--source", "manifest", "--data", data, *SMALL)
    code, _, err = mtbench(*line, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    [file] = (tmp_path / "out").rglob("result.json")
    text = file.read_text()
    assert '"looks odd": 12' in text
    assert "are spelt alike" in text
    code, _, err = mtbench(*line, "--strict", "--out", tmp_path / "strict")
    assert (code, err.count("\n")) == (2, 1)
    assert "are spelt alike" in err


def test_a_run_tells_what_is_odd_about_the_scale_that_it_found(folder: Path) -> None:
    data = table(folder, category=lambda i: str(1 + i % 5) if i % 2 else f"TR{1 + i % 5}")
    [doubt] = Thyroid(source="manifest", data=data).collection(lambda *_: None).doubts
    assert doubt.endswith("4 is taken as TR4")
    said = Thyroid(source="manifest", data=data, grades=categories.SCALES[0])
    assert said.collection(lambda *_: None).doubts == ()


@pytest.mark.parametrize("strict", [("--strict",), ("--strict", "true"), ("--strict=yes",)])
def test_strict_makes_of_what_looks_odd_a_problem(
    mtbench: Mtbench, folder: Path, strict: tuple[str, ...]
) -> None:
    line = ("data", "verify", "manifest", "--data", table(folder, spacing=lambda i: "8"))
    assert mtbench(*line)[0] == 0
    code, printed, err = mtbench(*line, *strict)
    assert (code, err) == (2, "")
    assert printed.startswith("looks odd: ")
    assert printed.endswith("problems: 24\n")
    assert mtbench("data", "verify", "manifest", "--data", table(folder), *strict)[0] == 0


def test_verify_is_of_the_grades_that_are_given(mtbench: Mtbench, folder: Path) -> None:
    line = ("data", "verify", "manifest", "--data", table(folder, category=lambda i: "ab"[i % 2]))
    code, printed, _ = mtbench(*line)
    assert code == 2
    assert "fit no known scale" in printed
    assert mtbench(*line, "--grades", "a,b")[:2] == (0, "24 cases, all can be read\n")
    code, _, err = mtbench(*line, "--grade", "a,b")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean '--grades'?" in err


ROWS = [["image", "mask", "category"], *([f"{i}.png", f"m{i}.png", "4,0"] for i in range(3))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_as_programs_write_them(
    folder: Path, encoding: str, separator: str, end: str
) -> None:
    """A decimal comma, and empty cells that a spreadsheet adds at the end of a row, too."""
    text = end.join(
        separator.join([*row, "", ""][: 3 if i == 0 else 5]) for i, row in enumerate(ROWS)
    )
    (folder / "c.csv").write_bytes(text.encode(encoding))
    collection = load(folder / "c.csv")
    assert collection.problems == ()
    assert collection.grades == ("1", "2", "3", "4", "5")
    assert [c.readings[0].category for c in collection.cases] == [3, 3, 3]
    assert [c.image.shape for c in collection.cases] == [(HEIGHT, WIDTH)] * 3


def test_what_excel_adds_is_understood(folder: Path) -> None:
    """Its line that names the separator, text in the place of a number, a unit."""
    rows = "".join(f'{i}.png;"=""TR{3 + i}""";"=""00{i}""";0,08 mm\n' for i in range(3))
    (folder / "c.csv").write_text("sep=;\nimage;category;patient;spacing\n" + rows)
    collection = load(folder / "c.csv")
    assert collection.problems == ()
    assert [c.patient for c in collection.cases] == ["000", "001", "002"]
    assert [c.readings[0].category for c in collection.cases] == [2, 3, 4]
    assert [c.spacing for c in collection.cases] == [0.08] * 3


@pytest.mark.parametrize("character", ["\x0b", "\x1c", "\x85", "\u2028"])
def test_a_row_ends_at_its_end(folder: Path, character: str) -> None:
    """Text that was copied from elsewhere holds such characters; half a row was another patient."""
    data = table(folder, patient=lambda i: f"P{i}" if i else f"Doe{character}Jane")
    found = load(data)
    assert not found.problems
    [patient] = {case.patient for case in found.cases if case.patient.startswith("Doe")}
    assert patient.endswith("Jane")


def test_a_name_that_is_nearly_right_is_told(folder: Path) -> None:
    text = "image,category\n0.PNG,TR4\n1,TR4\nother.png,TR4\n2.png,TR3\n"
    (folder / "c.csv").write_text(text)
    first, second, third = load(folder / "c.csv").problems
    assert first.endswith("; there is 0.png")
    assert second.endswith("; there is 1.png")
    assert third.endswith("other.png)")
    (folder / "Bilder").mkdir()
    (folder / "0.png").rename(folder / "Bilder" / "0.png")
    text = "image,category\nbilder/0.PNG,TR4\nbilder\\1.png,TR4\n1.png,TR4\n2.png,TR3\n"
    (folder / "c.csv").write_text(text)
    first, second = load(folder / "c.csv").problems
    assert first.endswith("; there is Bilder/0.png")
    assert second.endswith("1.png)")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(40), "is a workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(40), "is a workbook"),
        ("image,category\n0.png,TR4\n".encode("utf-16-le"), "characters of code 0"),
        ("image,patient\n0.png,M\u00fcller\n".encode("latin-1"), "is no UTF-8 text"),
        (b"image,image,category\n", "has column 'image' twice"),
        (b"Bild,Maske,Kategorie\n0.png,m0.png,4\n", "did you mean 'mask'?"),
        (b"0.png,m0.png,TR4\n", "has no column 'image'"),
        (b"0 0.5 0.5 " * 40, "found: 0 0.5 0.5"),
        (b'{"images": [{"file_name": "0.png"}]}', "is JSON or XML, as COCO's and CVAT's"),
        (b'\n<?xml version="1.0"?>\n<annotations/>', "is JSON or XML"),
        (b'image,category\n0.png,TR4\n"1.png,TR4\n', "is no CSV after line 2"),
    ],
)
def test_what_is_no_table_of_cases_is_refused(
    mtbench: Mtbench, folder: Path, content: bytes, words: str
) -> None:
    (folder / "c.csv").write_bytes(content)
    code, _, err = mtbench("data", "verify", "manifest", "--data", folder / "c.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert words in err
    assert len(err) < 500


def test_rows_that_were_copied_are_told(folder: Path) -> None:
    rows = "0.png,m0.png,TR4\n0.png,m0.png,TR4\n1.png,m0.png,TR3\n2.png,m2.png,TR3\n"
    (folder / "c.csv").write_text("image,mask,category\n" + rows)
    doubts = " ".join(load(folder / "c.csv").doubts)
    assert "has 2 rows of reader 'reader': they say the same" in doubts
    assert "c.csv: m0.png is the mask of 2 images" in doubts
    assert "m2.png" not in doubts


@pytest.mark.parametrize(
    ("words", "grades"),
    [
        (("2", "3", "4a", "4A", "TI-RADS 4b"), ("2", "3", "4a", "4b", "4c", "5")),
        (("TR4", "4.0", "tr-3", "TI-RADS 5"), ("TR1", "TR2", "TR3", "TR4", "TR5")),
        (("4a", "TR4", "4.0"), None),
        (("ACR 4", "ACR TR3", "'TR5'"), ("TR1", "TR2", "TR3", "TR4", "TR5")),
        (("EU-TIRADS 4", "EU-TIRADS: 3"), ("1", "2", "3", "4", "5")),
        (("C-TIRADS 4A", "C-TIRADS 5"), ("2", "3", "4a", "4b", "4c", "5")),
        (("Grade 4", "category 3"), ("1", "2", "3", "4", "5")),
        (("EU-TIRADS 4", "TR4"), None),
        (("II", "III", "IV", "V"), None),
        (("B", "M"), None),
    ],
)
def test_scales_in_many_spellings(words: tuple[str, ...], grades: tuple[str, ...] | None) -> None:
    assert scale_of(said(word) or "" for word in words).grades == grades


def test_a_template_that_was_not_filled_in_is_told_so(mtbench: Mtbench, tmp_path: Path) -> None:
    """No line but those of the files that are not there: all else follows from them."""
    data = tmp_path / "c.csv"
    data.write_text(manifest.template())
    code, printed, _ = mtbench("data", "verify", "manifest", "--data", data)
    *lines, last = printed.splitlines()
    assert (code, len(lines), last) == (2, 2, "problems: 2")
    assert all("there is no such file" in line for line in lines)
    code, _, err = mtbench("data", "inspect", "manifest", "--data", data)
    assert (code, err.count("\n")) == (2, 1)
    assert "none of its cases can be used; the first of 2 problems" in err


@pytest.mark.parametrize(
    ("units", "spacing", "told"), [(4, None, 1), (0, None, 1), (3, None, 0), (4, [0.1, 0.1], 0)]
)
def test_regions_in_other_units_give_no_spacing(
    tmp_path: Path, units: int, spacing: Any, told: int
) -> None:
    region = Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection = 1, units
    region.PhysicalUnitsYDirection = units
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.01
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = WIDTH - 1, HEIGHT - 1
    more = {} if spacing is None else {"PixelSpacing": spacing}
    found = read_picture(
        dicom(tmp_path / "a.dcm", scan(), SequenceOfUltrasoundRegions=[region], **more)
    )
    assert found.spacing == (None if told else pytest.approx(0.1))
    assert sum("are not in centimetres" in line for line in found.told) == told


@pytest.mark.parametrize("name", ["progressive.jpg", "a.png", "a.dcm", "a.nii.gz", "a.nii"])
@pytest.mark.parametrize("left", [0.5, 0.95])
def test_a_file_that_was_cut_off_is_told(tmp_path: Path, name: str, left: float) -> None:
    file = tmp_path / name
    if name.endswith((".jpg", ".png")):
        big = Pil.fromarray(scan()).resize((800, 600))
        big.save(file, **({"progressive": True} if name.endswith("g.jpg") else {}))
    elif name == "a.dcm":
        dicom(file, scan())
    else:
        nifti(file, scan(), SAME)
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])
    with pytest.raises(DataError, match=name):
        read_picture(file)


@pytest.mark.parametrize("name", ["16.png", "cmyk.jpg", "cmyk.tif", "big.dcm", "one.dcm"])
def test_images_of_rarer_kinds_show_the_same(tmp_path: Path, name: str) -> None:
    file, wide = tmp_path / name, scan().astype(np.uint16) * 200
    if name == "16.png":
        Pil.fromarray(wide).save(file)
    elif name.startswith("cmyk"):
        Pil.fromarray(scan()).convert("CMYK").save(file)
    elif name == "big.dcm":
        dicom(file, wide, syntax=ExplicitVRBigEndian, pixels=wide.astype(">u2").tobytes())
    else:
        dicom(file, 255 - scan(), PhotometricInterpretation="MONOCHROME1")
    found = read_picture(file)
    assert found.told == ()
    assert np.corrcoef(found.pixels.ravel(), scan().ravel())[0, 1] > 0.95


def test_a_mask_outside_of_the_scan_is_told_so(mtbench: Mtbench, folder: Path) -> None:
    """It was cut off with the screen's border, and no grid would show it."""
    region = Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection = 1, 3
    region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.01
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = WIDTH - 1, 25
    dicom(folder / "0.dcm", scan(), SequenceOfUltrasoundRegions=[region])
    data = table(folder, image=lambda i: "0.dcm" if i == 0 else f"{i}.png")
    code, printed, _ = mtbench("data", "verify", "manifest", "--data", data)
    assert code == 0
    assert "0.dcm: reader's mask lies outside of what was scanned: it is left out" in printed
    line = ("run", "-m", "ew", "--source", "manifest", "--data", data, *SMALL)
    assert mtbench(*line, "--out", folder / "out")[0] == 0
    [file] = (folder / "out").rglob("result.json")
    assert "lies outside of what was scanned" in file.read_text()
    assert "vanishes" not in file.read_text()


def test_too_few_cases_are_told(mtbench: Mtbench, folder: Path) -> None:
    data = table(folder, patient=lambda i: "P1")
    code, printed, _ = mtbench("data", "verify", "manifest", "--data", data)
    assert code == 2
    assert "too few to be split in three" in printed


def load(path: Path) -> Collection:
    return manifest.load(path, lambda *_: None)


def test_one_readers_masks_of_one_image_unite(folder: Path) -> None:
    """They are two lesions, and not two readers' opinions."""
    far = np.roll(lesion(), (-25, 35), (0, 1))
    saved(folder / "second.png", far.astype(np.uint8) * 255)
    rows = "0.png,m0.png,TR4,P\n0.png,second.png,TR4,P\n"
    (folder / "c.csv").write_text("image,mask,category,patient\n" + rows)
    collection = load(folder / "c.csv")
    assert collection.problems == ()
    [doubt] = collection.doubts
    assert "has 2 rows of reader 'reader': their masks unite" in doubt
    [only] = collection.cases
    [reading] = only.readings
    np.testing.assert_array_equal(reading.mask, lesion() | far)


def test_readings_of_no_reader_among_named_ones_are_told(folder: Path) -> None:
    head = "image,category,patient,reader\n"
    (folder / "c.csv").write_text(f"{head}0.png,TR4,P,anna\n1.png,TR3,Q,\n2.png,,R,\n")
    [doubt] = load(folder / "c.csv").doubts[:1]
    assert "1 of 2 readings name no reader: they count as those of one, called" in doubt
    (folder / "c.csv").write_text(f"{head}0.png,TR4,P,\n1.png,TR3,Q,\n")
    assert not any("name no reader" in doubt for doubt in load(folder / "c.csv").doubts)


def test_the_files_spacing_wins_over_the_tables(folder: Path) -> None:
    dicom(folder / "a.dcm", scan(), PixelSpacing=[0.1, 0.1])
    (folder / "c.csv").write_text("image,category,spacing\na.dcm,TR4,0.08\n0.png,TR3,0.08\n")
    collection = load(folder / "c.csv")
    assert [c.spacing for c in collection.cases] == [pytest.approx(0.1), 0.08]
    assert "spacing 0.08 is given, its header says 0.1, which is taken" in collection.doubts[1]


def test_spacings_of_some_images_only_are_remarked(folder: Path) -> None:
    (folder / "c.csv").write_text("image,category,spacing\n0.png,TR4,0.08\n1.png,TR3,\n")
    assert "spacing is known of 1 of 2 images" in " ".join(load(folder / "c.csv").remarks)


def test_frames_of_one_file_are_cases(folder: Path) -> None:
    clip = np.stack([scan() // k for k in (1, 2, 4)])
    dicom(folder / "a.dcm", clip)
    (folder / "c.csv").write_text("image,category,frame\na.dcm,TR4,1\na.dcm,TR3,3\n")
    first, second = load(folder / "c.csv").cases
    assert (first.name, second.name) == ("a.dcm frame 1", "a.dcm frame 3")
    np.testing.assert_array_equal(second.image, clip[2])


# Patients


@given(
    st.text("Pp0 12.", min_size=1, max_size=6).filter(str.strip),
    st.sampled_from([str.upper, str.lower, str.title, lambda n: f" {n}", lambda n: f"{n} "]),
)
def test_spellings_of_a_name_are_one_patient(name: str, spell: Callable[[str], str]) -> None:
    found = spelt_alike([name, spell(name)])
    assert found[spell(name)] == name


def test_other_names_are_other_patients() -> None:
    names = ["P1", "P2", "P10", "P01b", "10", "100", "1", "A-1", "B-1", "M\u00fcller", "Muller"]
    assert len(set(spelt_alike(names).values())) == len(names)
    pairs = {"M\u00fcller": "Mu\u0308ller", "7": "007", "12": "12.0", "\uff17a": "7A"}
    for a, b in pairs.items():
        assert spelt_alike([a, b])[b] == a


def textured(seed: int) -> Any:
    coarse = np.random.default_rng(seed).normal(size=(9, 12))
    big = np.asarray(Pil.fromarray(coarse.astype(np.float32)).resize((240, 180), 3))
    fine = np.random.default_rng(seed + 1000).normal(size=big.shape)
    return (110 + 35 * big + 12 * fine).clip(20, 255).astype(np.uint8)


def jpeg(image: Any) -> Any:
    stream = io.BytesIO()
    Pil.fromarray(image).save(stream, "JPEG", quality=60)
    return np.asarray(Pil.open(stream))


@pytest.mark.parametrize(
    "copy",
    [
        jpeg,
        lambda image: jpeg(image)[:, ::-1],
        lambda image: np.pad(image, ((20, 5), (30, 7))),
        lambda image: np.asarray(Pil.fromarray(image).resize((160, 120))),
        lambda image: (0.8 * image).astype(np.uint8),
    ],
)
def test_copies_across_patients_are_told(copy: Callable[[Any], Any]) -> None:
    images = [textured(seed) for seed in range(8)]
    images.append(np.ascontiguousarray(copy(images[3])))
    cases = [Case(f"{i}", f"p{i}", image, ()) for i, image in enumerate(images)]
    hashes = {i: perceptual(image) for i, image in enumerate(images)}
    [line] = alike(cases, hashes)
    assert line.startswith("3 and 8 look like one image")
    assert line.endswith("patients p3 and p8")
    same = [*cases[:8], Case("8", "p3", images[8], ())]
    assert list(alike(same, hashes)) == []


@given(st.integers(0, 2**32 - 1), st.integers(40, 140), st.integers(40, 140))
@settings(max_examples=20, derandomize=True)
def test_the_hashes_are_those_of_imagehash(seed: int, height: int, width: int) -> None:
    image = np.random.default_rng(seed).integers(20, 255, (height, width)).astype(np.uint8)
    small = Pil.fromarray(image).reduce(max(1, min(height, width) // 64))
    seen = small.resize((64, 64), Pil.Resampling.BOX)
    sides = seen, seen.transpose(Pil.Transpose.FLIP_LEFT_RIGHT)
    wanted = [np.packbits(imagehash.phash(side, 16).hash).tobytes().hex() for side in sides]
    assert list(perceptual(image)) == wanted


def test_copies_are_the_pairs_that_differ_in_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts, "BLOCK", 4)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (11, 2, 256)).astype(bool)
    for one, other, side, apart in ((0, 7, 0, 44), (1, 9, 0, 45), (2, 3, 1, 10), (8, 10, 1, 44)):
        bits[other, side] = bits[one, 0]
        bits[other, side, rng.permutation(256)[:apart]] ^= True
    hashes = {
        i: [np.packbits(side).tobytes().hex() for side in both] for i, both in enumerate(bits)
    }
    hashes[4] = []
    wanted = {
        (i, j, bool(side)) for i in range(11) for j in range(i + 1, 11) for side in (0, 1)
        if 4 not in (i, j) and (bits[i, 0] != bits[j, side]).sum() <= doubts.NEAR
    }  # fmt: skip
    assert {(0, 7, False), (2, 3, True), (8, 10, True)} == wanted
    assert set(doubts.copies(hashes)) == wanted


def test_the_survey_reads_everything_once() -> None:
    count = 0

    def read() -> Any:
        nonlocal count
        count += 1
        return scan()

    collection = Collection((Case("a", "p", read, (Reading("r", lesion(), None),)),), ("x",), "")
    assert survey(collection) == ([], [], 0)
    assert count == 1


# The handed files


@shared
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("20_mixed_categories", "no known scale"),
        ("21_unknown_category", "'TR6' is not on the scale"),
        ("22_nan_category", ""),
        ("24_int_1_2", "1 and 2 only"),
        ("40_same_patient_spelt_differently", "looks odd: "),
        ("41_excel_lost_zeros_half", "looks odd: "),
        ("45_patient_empty_half", "15 of 30 rows name no patient"),
        ("71_category_space_TR_4", ""),
    ],
)
def test_handed_tables(mtbench: Mtbench, name: str, said: str) -> None:
    code, printed, err = mtbench("data", "verify", "manifest", "--data", SHARED / f"csv/{name}.csv")
    assert err == ""
    assert said in printed
    assert (printed == "30 cases, all can be read\n") == (said == "")
    assert code == (2 if said and name.startswith("2") else 0)


@shared
def test_handed_masks() -> None:
    wanted = read_mask(SHARED / "masks/ref_mask.png")[0]
    for name, words in {
        "03_labels_0_128_255.png": r"several labels \(128, 255\)",
        "07_red_contour_on_ultrasound.png": "is an image, not a mask",
        "16_inverted.png": "looks inverted",
        "ref.png": "is an image, not a mask",
    }.items():
        with pytest.raises(DataError, match=words):
            read_mask(SHARED / "masks" / name)
    for name in ("08_red_contour_on_black.png", "13b_jpeg_of_0_120.jpg", "28_antialiased_soft.png"):
        assert dice(read_mask(SHARED / "masks" / name)[0], wanted) > 0.99
    dot = read_mask(SHARED / "masks/18_one_pixel.png")[0]
    assert "marks 1 pixel only" in examine(case(dot, image=np.zeros(dot.shape, np.uint8))).doubts[1]


@shared
def test_handed_geometry() -> None:
    image = read_picture(SHARED / "jpeg/ref.png").pixels.astype(int)
    mask = read_mask(SHARED / "jpeg/ref_mask.png")[0]
    for name in ("jpeg/05_exif3.jpg", "jpeg/05_exif6.jpg",
                 "nifti/10_array_flippedUD_affine_compensates.nii.gz"):  # fmt: skip
        assert np.abs(read_picture(SHARED / name).pixels - image).mean() < 2
    lying = SHARED / "nifti/mask_same.nii.gz"
    for name in ("03_3d_1slice", "10_array_flippedUD_affine_compensates"):
        found = read_mask(lying, SHARED / f"nifti/{name}.nii.gz")[0]
        np.testing.assert_array_equal(found, mask)
    with pytest.raises(DataError, match=r"puts it 23\.9 mm away"):
        read_mask(lying, SHARED / "nifti/09_flipped_y.nii.gz")
    for name, spacing, squared in (
        ("01_mono2_ps0.1", 0.1, (240, 320)), ("21_us_regions_cm", 0.1, (240, 320)),
        ("22_us_regions_conflict_ps", 0.1, (240, 320)), ("37_ps_anisotropic", 0.1, (240, 640)),
        ("38_pixel_aspect_2_1", None, (480, 320)),
    ):  # fmt: skip
        lies = read_geometry(SHARED / f"dicom/{name}.dcm")
        assert lies is not None
        assert lies.squared == squared
        assert lies.scale == (None if spacing is None else pytest.approx(spacing))
        assert bool(lies.told) == name.startswith(("22", "37", "38"))


def test_a_header_that_says_text_is_burnt_in_is_told(tmp_path: Path) -> None:
    for cell, count in (("YES", 1), ("NO", 0)):
        told = read_picture(dicom(tmp_path / "a.dcm", scan(), BurnedInAnnotation=cell)).told
        assert sum("text is burnt into the pixels" in line for line in told) == count
