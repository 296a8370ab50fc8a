"""Anybody's images: files of every kind, the CSV, several readers, and all of it at once."""

import contextlib
import csv
import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil

import mtbench_tasks.thyroid as thyroid
from mtbench.errors import DataError, UsageError
from mtbench_tasks._lesion import manifest, pictures
from mtbench_tasks._lesion.agreement import MODEL, agreement, opinions
from mtbench_tasks._lesion.cases import Case, Collection, Reading
from mtbench_tasks._lesion.consensus import majority, staple, with_consensus
from mtbench_tasks._lesion.doubts import halved, survey
from mtbench_tasks._lesion.files import read_mask, read_picture
from mtbench_tasks._lesion.network import Risk
from mtbench_tasks._lesion.splits import (
    TRUTH,
    CaseSplit,
    Opinion,
    join_patients,
    split_patients,
    with_test_of,
)

Mtbench = Callable[..., tuple[int, str, str]]


def silent(what: str, done: int, total: int) -> None: ...


def picture(seed: int = 0, height: int = 40, width: int = 50) -> Any:
    """Noise with a bright square, and the mask of most of it: a whole one would be told."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(5, 15, 2)
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + 16, left : left + 18] = True
    image = (rng.normal(70, 10, mask.shape) + 80 * mask).clip(0, 255).astype(np.uint8)
    mask[top : top + 4, left : left + 4] = False
    return image, mask


def save(file: Path, values: Any, spacing: float | tuple[float, float] = 1.0, **said: str) -> Path:
    """Write an image by the library that its name asks for; `said` are DICOM entries."""
    file.parent.mkdir(exist_ok=True)
    if file.name.endswith((".dcm", ".nii", ".nii.gz")):
        colour = values.ndim == 3 and values.shape[2] == 3
        image = sitk.GetImageFromArray(values, isVector=colour)
        pair = spacing if isinstance(spacing, tuple) else (spacing, spacing)
        image.SetSpacing((*pair, 1.0)[: image.GetDimension()])
        for tag, text in said.items():
            image.SetMetaData(tag, text)
        sitk.WriteImage(image, str(file))
    else:
        Pil.fromarray(values).save(file)
    return file


# Files


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.dcm", "a.nii", "a.NII.GZ"])
def test_every_format_gives_the_same_pixels_and_mask(tmp_path: Path, name: str) -> None:
    image, mask = picture()
    file = save(tmp_path / name.lower(), image).rename(tmp_path / name)
    np.testing.assert_array_equal(read_picture(file).pixels, image)
    drawn = save(tmp_path / f"m{name.lower()}", mask.astype(np.uint8) * 3)
    np.testing.assert_array_equal(read_mask(drawn)[0], mask)


def test_dicom_needs_no_suffix(tmp_path: Path) -> None:
    image, _ = picture()
    file = save(tmp_path / "a.dcm", image).rename(tmp_path / "IM0001")
    np.testing.assert_array_equal(read_picture(file).pixels, image)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    image, _ = picture()
    deep = image.astype(np.uint16) * 100
    window = {"0028|1050": "9000", "0028|1051": "8001"}  # black at 13000, white at 5000
    for values in (image, deep):
        file = save(tmp_path / "a.dcm", values, **window if values is deep else {})
        file.write_bytes(file.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME1"))
        found = read_picture(file).pixels.astype(float)
        wanted = 255 - image.astype(float)
        if values is deep:
            wanted = 255 * ((13000 - deep.astype(float)) / 8000).clip(0, 1)
        np.testing.assert_allclose(found, wanted, atol=1)


def test_colour_becomes_luma(tmp_path: Path) -> None:
    colour = np.zeros((20, 30, 3), np.uint8)
    colour[..., 1] = 200
    for name in ("a.png", "a.dcm"):
        found = read_picture(save(tmp_path / name, colour)).pixels
        assert found.shape == (20, 30)
        assert set(found.ravel()) == {117}  # 0.587 * 200


def test_sixteen_bits_are_seen_through_the_window(tmp_path: Path) -> None:
    ramp = np.arange(4000, dtype=np.uint16).reshape(50, 80)
    window = {"0028|1050": "2000.5\\40", "0028|1051": "1001\\400"}  # black at 1500, white at 2500
    found = read_picture(save(tmp_path / "a.dcm", ramp, **window)).pixels.ravel()
    assert (found[:1500] == 0).all()
    assert (found[2500:] == 255).all()
    assert found[2000] == 128
    without = read_picture(save(tmp_path / "b.dcm", ramp)).pixels.ravel()
    assert without[2000] == 128
    assert (without[:20] == 0).all()
    assert without[1000] == 63  # (1000 - 20) / 3960
    small = (ramp % 256).astype(np.int16)  # eight bits in sixteen stay as they are
    np.testing.assert_array_equal(read_picture(save(tmp_path / "c.nii", small)).pixels, ramp % 256)


def test_masks_in_colour_with_alpha_in_a_palette_and_lossy(tmp_path: Path) -> None:
    _, mask = picture()
    white = np.where(mask, 255, 0).astype(np.uint8)
    red = np.stack([white, 0 * white, 0 * white], 2)
    for alpha in (white, np.full_like(white, 255)):
        file = save(tmp_path / "a.png", np.dstack([red, alpha]))
        np.testing.assert_array_equal(read_mask(file)[0], mask)
    clear = np.dstack([np.full_like(red, 255), white])  # white paper that is transparent
    np.testing.assert_array_equal(read_mask(save(tmp_path / "b.png", clear))[0], mask)
    Pil.fromarray(red).convert("P").save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png")[0], mask)
    Pil.fromarray(white).save(tmp_path / "a.jpg", quality=60)
    assert ((np.asarray(Pil.open(tmp_path / "a.jpg")) != 0) ^ mask).sum() > 20  # why 127
    assert (read_mask(tmp_path / "a.jpg")[0] ^ mask).sum() <= 4
    for value in (0, 7):
        with pytest.raises(DataError, match=r"e\.png: marks (no|every) pixel"):
            read_mask(save(tmp_path / "e.png", np.full((9, 9), value, np.uint8)))


def test_what_is_not_one_image_is_refused_in_one_line(tmp_path: Path) -> None:
    image, _ = picture()
    volume = np.stack([image] * 5)
    save(tmp_path / "v.nii.gz", volume)
    save(tmp_path / "v.dcm", volume)
    Pil.fromarray(image).save(
        tmp_path / "v.tif", save_all=True, append_images=[Pil.new("L", (9, 9))]
    )
    save(tmp_path / "nan.tif", np.full((9, 9), np.nan, np.float32))
    for name in ("cut.nii", "cut.nii.gz", "cut.dcm", "cut.png"):
        whole = save(tmp_path / name, image).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) - 300])
    (tmp_path / "text.nii").write_text("no image")
    for name, said in {
        "v.nii.gz": "has 50 x 40 x 5 pixels; one 2-D image",
        "v.dcm": "has 5 frames; say which one is meant .* the manifest's column frame",
        "v.tif": "has 2 frames, and one image is needed: save the one that is meant",
        "nan.tif": "not finite",
        "cut.nii": "cut off",
        "cut.nii.gz": "cut off",
        "cut.dcm": r"does not decode as DICOM \(.* \.\.\.\)",
        "cut.png": "does not decode",
        "text.nii": "does not decode as NIfTI",
    }.items():
        with pytest.raises(DataError, match=f"{name}: .*{said}") as error:
            read_picture(tmp_path / name)
        assert "\n" not in str(error.value)


def test_inspect_tells_how_many_images_are_broken(tmp_path: Path) -> None:
    image, mask = picture()
    for name in "abc":
        save(tmp_path / f"{name}.png", image)
        save(tmp_path / f"{name}_m.png", mask)
    (tmp_path / "b.png").write_bytes(b"no image")
    save(tmp_path / "c_m.png", np.zeros_like(mask))
    rows = [f"{name}.png,{name}_m.png,TR{i},{name}" for i, name in enumerate("abc", 2)]
    file = tmp_path / "cases.csv"
    file.write_text("\n".join(["image,mask,category,patient", *rows]))
    counts = {what: count for count, what, _ in thyroid.Thyroid.inspect("manifest", file)}
    assert (counts["images used"], counts["images that `run` leaves out"]) == ("3", "2")


@settings(max_examples=40, derandomize=True)
@given(
    st.sampled_from(["a.png", "a.bmp", "a.nii"]),
    st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_damaged_files_raise_nothing_but_data_errors(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    changes: list[tuple[int, int]],
    kept: float,
) -> None:
    file = save(tmp_path_factory.getbasetemp() / "damaged" / name, picture()[0])
    content = bytearray(file.read_bytes())
    for at, value in changes:
        content[at] = value
    file.write_bytes(content[: round(kept * len(content))])
    for reads in (read_picture, read_mask):
        with contextlib.suppress(DataError):
            reads(file)


def test_spacing_is_the_headers_if_it_says_any(tmp_path: Path) -> None:
    image, _ = picture()
    for name in ("a.dcm", "a.nii.gz"):
        assert read_picture(save(tmp_path / name, image, 0.09)).spacing == pytest.approx(0.09)
        assert read_picture(save(tmp_path / name, image)).spacing is None
    assert read_picture(save(tmp_path / "a.png", image)).spacing is None


# The CSV


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images with their masks, and what breaks a row."""
    for i in range(3):
        image, mask = picture(i)
        save(tmp_path / "images" / f"{i}.png", image)
        save(tmp_path / "masks" / f"{i}.png", mask.astype(np.uint8) * 255)
    return tmp_path


def load(folder: Path, text: str, grades: tuple[str, ...] | None = None) -> Collection:
    (folder / "cases.csv").write_text(text, encoding="utf-8")
    return manifest.load(folder / "cases.csv", silent, grades)


def test_rows_of_one_image_are_readings_of_one_case(folder: Path) -> None:
    collection = load(
        folder,
        "Reader,image,mask,category,patient,spacing\n"
        "ann,images/0.png,masks/0.png,TR4,P1,0.1\n"
        "ben,./images/0.png,,tr2,,\n"
        "ann,images/1.png,masks/1.png,,P1,\n"
        "ann,images/2.png,,,P2,\n",
    )
    assert collection.problems == ()
    first, second = collection.cases
    assert [(r.reader, r.category) for r in first.readings] == [("ann", 3), ("ben", 1)]
    assert (first.patient, first.spacing, second.patient, second.spacing) == ("P1", 0.1, "P1", None)
    image, mask = picture(0)
    np.testing.assert_array_equal(first.image, image)
    assert first.readings[0].mask is not None
    np.testing.assert_array_equal(first.readings[0].mask, mask)
    assert first.readings[1].mask is second.readings[0].category is None
    report = {what: count for count, what, _ in collection.report}
    assert report["rows found"] == 4
    assert report["rows without mask and category"] == 1
    assert report["images with several readers"] == 1
    again = pickle.loads(pickle.dumps(first))  # other processes compute radiomics
    np.testing.assert_array_equal(again.image, image)


def test_an_image_is_one_however_its_place_is_spelt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"image,category,reader\nimages/0.png,4,a\n{folder}/images/0.png,3,b\n"
    found = load(folder, text)
    monkeypatch.chdir(folder)
    again = manifest.load(Path("cases.csv"), silent)
    assert len(found.cases) == len(again.cases) == 1
    assert again.fingerprint == found.fingerprint


def test_an_image_with_a_frame_and_without_is_told(folder: Path) -> None:
    found = load(folder, "image,category,frame\nimages/0.png,4,1\nimages/0.png,3,\n")
    [told] = [doubt for doubt in found.doubts if "frame 1" in doubt]
    assert "images/0.png has rows of frame 1 and rows of no frame" in told


def test_what_spreadsheets_make_of_it_is_read(folder: Path) -> None:
    plain = load(folder, "image,mask,category,spacing\nimages/0.png,masks/0.png,4,0.25\n")
    (folder / "cases.csv").write_text(
        '"# a comment, with a comma";;;\n\nImage ;Mask;Category;Spacing\n'
        "images\\0.png;masks\\0.png;4.0;0,25\n;;;\n",
        encoding="utf-8-sig",
    )
    found = manifest.load(folder / "cases.csv", silent)
    assert found.problems == ()
    case, wanted = found.cases[0], plain.cases[0]
    assert (case.spacing, case.readings[0].category) == (0.25, 3)
    np.testing.assert_array_equal(case.image, wanted.image)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("none.png,,3", "line 3: none.png: there is no such file"),
        ("images/1.png,none.png,3", "line 3: none.png: there is no such file"),
        ("../images/1.png,,3", "line 3: ../images/1.png: '..' may lead out"),
        ("images\\..\\..\\1.png,,3", "'..' may lead out"),
        (f"{'x' * 300}.png,,3", "there is no such file"),
        ("images,,3", "line 3: images: there is no such file"),
        (",,3", "line 3: image: Field required"),
        ("images/1.png,,3,,,0", "line 3: spacing: Input should be greater than 0, found '0'"),
        ("images/1.png,,3,,,wide", "found 'wide'"),
        ("images/1.png,,3,,,inf", "found 'inf'"),
        ("images/1.png,,3,,,0_08", "spacing: must be a number without '_', found '0_08'"),
        ("images/1.png,,3,p,a,,1_2", "mask_value: must be a number without '_', found '1_2'"),
        ("images/1.png,,3,,,1,1,1,9", "line 3: has 9 cells, the header 8"),
        ("images/1.png,,3,p,a\nimages/1.png,,3,q,b", "line 3 and 4: images/1.png has one patient"),
        ("images/1.png,,3,p,a\nimages/1.png,,4,p,a", "one row per reader, found 'a' twice"),
        ("images/1.png,,3,p,a\nimages/1.png,,3,p,a", "one row per reader, found 'a' twice"),
        ("images/1.png,,3,p,a,,0", "line 3: mask_value: 0 is the background: leave"),
        ("images/1.png,,3,p,a,,255,0", "line 3: frame: Input should be greater than"),
    ],
)
def test_a_broken_row_is_a_line_and_the_rest_goes_on(folder: Path, rows: str, said: str) -> None:
    header = "image,mask,category,patient,reader,spacing,mask_value,frame"
    collection = load(folder, f"{header}\nimages/0.png,masks/0.png,4\n{rows}\n")
    assert [case.name for case in collection.cases] == ["images/0.png"]
    [problem] = collection.problems
    assert said in problem
    assert "\n" not in problem


def test_a_file_outside_is_reached_by_an_absolute_path_only(folder: Path, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    inside = folder / "images" / "0.png"
    assert load(below, f"image,category\n{inside},4\n").problems == ()
    assert load(below, f"image,category\n../{inside.name},4\n").cases == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; its first line names columns: image"),
        ("# only a comment\n", "is empty"),
        ("image,mask,category\n", "no row with a mask or a category"),
        ("image,mask,category\nimages/0.png,,\n", "no row with a mask or a category"),
        ("mask,category\nmasks/0.png,3\n", "has no column 'image', found: mask, category"),
        ("image,msk\nimages/0.png,3\n", "no column 'msk': did you mean 'mask'?"),
        ("image,mask,patients\nimages/0.png,3,p\n", "did you mean 'patient'?"),
        ("image,mask,grade\nimages/0.png,,3\n", "did you mean 'category'?"),
        ("image,category,raeder\nimages/0.png,3,a\n", "did you mean 'reader'?"),
        ("image,mask,image\na,b,c\n", "has column 'image' twice"),
        ("image,category,sex,Sex\nimages/0.png,3,f,m\n", "has column 'sex' twice"),
        ('image,category\n"images/0.png,3\n', "is no CSV"),
    ],
)
def test_what_is_no_manifest_is_explained(folder: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=r"cases\.csv: ") as error:
        load(folder, text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["gender", "year", "grade"])
def test_a_columns_name_that_is_a_bit_like_reader_is_its_own(folder: Path, column: str) -> None:
    found = load(folder, f"image,category,{column}\nimages/0.png,TR4,3\n")
    assert dict(found.cases[0].groups) == {column: "3"}


def test_files_that_are_no_text_or_not_there(folder: Path) -> None:
    for path, said in (
        (folder / "images" / "0.png", "no UTF-8 text"),
        (folder / "absent.csv", "No such file"),
        (folder, "directory"),
    ):
        with pytest.raises(DataError, match=said):
            manifest.load(path, silent)


def test_other_columns_and_missing_patients_are_remarked(folder: Path) -> None:
    collection = load(folder, "image,category,age,sex\nimages/0.png,4,61,f\nimages/1.png,3,,\n")
    assert "no patients are named: each image counts as one patient" in collection.doubts[0]
    assert collection.remarks == ("columns that `mtbench evaluate` alone looks at: age, sex",)
    assert [dict(case.groups) for case in collection.cases] == [{"age": "61", "sex": "f"}, {}]
    assert {case.patient for case in collection.cases} == {"images/0.png", "images/1.png"}


@pytest.mark.parametrize(
    ("ids", "told"),
    [("XXY", True), ("XYZ", False), ("XXX", False), ("XXX-", False), ("  Y", False)],
)
def test_one_patient_of_the_headers_who_is_two_here_is_told(
    tmp_path: Path, ids: str, told: bool
) -> None:
    """All images of one ID have been made anonymous; and whose ID it is, is told nobody."""
    rows = ["image,category,patient"]
    for i, known in enumerate(ids):
        file = tmp_path / f"{i}.{'png' if known == '-' else 'dcm'}"
        # Zeros before a number make no other patient of it.
        entry = {"0010|0020": "0" * i + f"98765{ord(known)}"} if known.isalpha() else {}
        save(file, picture(i)[0], **entry)
        rows.append(f"{file.name},TR{i + 1},P{i}")
    found = load(tmp_path, "\n".join(rows))
    words = "0.dcm and 1.dcm have one PatientID in their headers, and are patients P0 and P1 here"
    assert any(words in doubt for doubt in found.doubts) == told
    everything = repr((found.doubts, found.problems, found.remarks, found.report))
    assert "98765" not in everything


def test_a_column_is_kept_where_its_filled_cells_agree(folder: Path) -> None:
    """What is said of an image once, in its first row, is said of it."""
    rows = [
        "image,category,reader,sex,scanner,composition",
        "images/0.png,TR4,a,F,GE,Solid",
        "images/0.png,TR3,b,,Philips,solid",
        "images/1.png,TR3,a,,GE,",
    ]
    found = load(folder, "\n".join(rows))
    assert [dict(c.groups) for c in found.cases] == [
        {"sex": "F", "composition": "Solid"}, {"scanner": "GE"}
    ]  # fmt: skip
    assert found.cases[0].descriptors["composition"] == "solid"
    [told] = [doubt for doubt in found.doubts if "differs" in doubt]
    assert "'scanner' differs between rows of one image in 1 of 2 images" in told
    assert told.endswith("the first: 0.png: GE, Philips")


@pytest.mark.parametrize(
    ("found", "grades"),
    [
        (["TR3", "tr5"], ("TR1", "TR2", "TR3", "TR4", "TR5")),
        (["5", "2"], ("1", "2", "3", "4", "5")),
        (["4C", "2"], ("2", "3", "4a", "4b", "4c", "5")),
        (["1", "4a"], ("1", "2", "3", "4a", "4b", "4c", "5")),
        (["Malignant"], ("benign", "malignant")),
        (["1", "0"], ("0", "1")),
        ([""], ("low", "high")),
    ],
)
def test_known_scales(folder: Path, found: list[str], grades: tuple[str, ...]) -> None:
    rows = "".join(f"images/{i}.png,masks/{i}.png,{c}\n" for i, c in enumerate(found))
    (folder / "cases.csv").write_text("image,mask,category\n" + rows)
    task = thyroid.Thyroid(source="manifest", data=folder / "cases.csv")
    assert task.grades == grades
    assert task.high == math.ceil(len(grades) / 2)
    assert task.dependent["grades"] == grades
    assert thyroid.Thyroid(source="manifest", grades=grades).grades == grades  # without the data


def test_an_unknown_scale_asks_for_the_grades(folder: Path) -> None:
    text = "image,category\nimages/0.png,good\nimages/1.png,bad\n"
    assert load(folder, text).grades == ("bad", "good")  # good enough for a look
    said = r"categories fit no known scale: good \(1\), bad \(1\).* give --grades"
    assert re.search(said, load(folder, text).problems[0])
    with pytest.raises(DataError, match=said):
        thyroid.Thyroid(source="manifest", data=folder / "cases.csv")
    collection = load(folder, text + "images/2.png,goood\n", ("good", "bad"))
    assert [case.readings[0].category for case in collection.cases] == [0, 1]
    assert "line 4: category 'goood' is not on the scale (did you mean 'good'?)" in str(
        collection.problems
    )
    with pytest.raises(UsageError, match="two or more, all different"):
        thyroid.Thyroid(source="manifest", grades=("a", "A"))
    with pytest.raises(UsageError, match="grades of source phantom are fixed"):
        thyroid.Thyroid(grades=("a", "b"))
    with pytest.raises(DataError, match="manifest needs --data PATH"):
        thyroid.Thyroid(source="manifest")


def test_the_fingerprint_is_of_content(folder: Path) -> None:
    text = "image,mask,category,reader\nimages/0.png,masks/0.png,4,a\nimages/0.png,,4,b\n"
    first = load(folder, text)
    assert load(folder, text.replace("\n", "\n\n")).fingerprint == first.fingerprint
    seen = {first.fingerprint}
    seen.add(load(folder, text.replace("4,a", "3,a")).fingerprint)
    other = "image,mask,category,reader\nimages/0.png,,4,a\nimages/0.png,masks/0.png,4,b\n"
    seen.add(load(folder, other).fingerprint)
    seen.add(load(folder, text, ("4", "5")).fingerprint)
    save(folder / "masks" / "0.png", picture(9)[1].astype(np.uint8))
    seen.add(load(folder, text).fingerprint)
    assert len(seen) == 5


def test_the_template_is_a_manifest(folder: Path) -> None:
    (folder / "images" / "0.png").rename(folder / "images" / "001.png")
    for i in (1, 2):
        (folder / "masks" / f"{i}.png").rename(folder / "masks" / f"001_{'ab'[i - 1]}.png")
    [case] = load(folder, manifest.template()).cases
    assert [(r.reader, r.category) for r in case.readings] == [("a", 3), ("b", 2)]
    assert case.spacing == 0.08
    for column in manifest.COLUMNS:
        assert f"# {column}: " in manifest.template()


# Patients


@settings(max_examples=75, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30))
def test_patients_who_share_an_image_are_one(pairs: list[tuple[int, int]]) -> None:
    blank = np.zeros((2, 2), np.uint8)
    cases = [Case(str(i), f"p{p}", blank, ()) for i, (p, _) in enumerate(pairs)]
    joined = join_patients(cases, [f"image {image}" for _, image in pairs])
    group = {i: {i} for i in range(len(pairs))}  # the connected components, the slow way
    for _ in pairs:
        for i, (p, image) in enumerate(pairs):
            for j, (q, other) in enumerate(pairs):
                if p == q or image == other:
                    group[i] |= group[j]
    for i in range(len(pairs)):
        for j in range(len(pairs)):
            assert (joined[i].patient == joined[j].patient) == (j in group[i])
    assert [case.name for case in joined] == [case.name for case in cases]


# Consensus


def square(top: int, left: int, size: int = 10) -> Any:
    mask = np.zeros((40, 50), dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.integers(0, 4), max_size=9))
def test_the_majority_is_most_frequent_and_rather_too_suspicious(said: list[int]) -> None:
    found = majority(said)
    if not said:
        assert found is None
        return
    assert found is not None
    for other in set(said) - {found}:
        assert (said.count(found), found) > (said.count(other), other)


def test_staple_by_hand() -> None:
    a, b, far = square(5, 5), square(5, 6), square(25, 30)
    np.testing.assert_array_equal(staple("x", [a, a]), a)
    np.testing.assert_array_equal(staple("x", [a, lambda: a, far]), a)  # two against one
    found = staple("x", [a, a | b, b & a])
    assert ((a & b) <= found).all()
    assert (found <= (a | b)).all()
    with pytest.raises(DataError, match="x: its readers' masks have no consensus"):
        staple("x", [a, square(14, 14)])  # they meet in a pixel
    with pytest.raises(DataError, match="x: its readers' masks differ in size"):
        staple("x", [a, a[:30]])


def test_readers_of_different_lesions_come_to_all_of_them() -> None:
    """STAPLE would leave no pixel of equal ones, and of unequal ones the larger alone."""
    a, small = square(5, 5), square(25, 30, 6)
    np.testing.assert_array_equal(staple("x", [a, square(25, 30)]), a | square(25, 30))
    np.testing.assert_array_equal(staple("x", [a, small]), a | small)


def test_what_has_no_consensus_is_told_as_it_is_left_out() -> None:
    image = picture(height=40, width=50)[0]
    masks = square(5, 5), square(14, 14), square(5, 5)[:30]  # the first two meet in a pixel
    readings = [Reading(reader, mask, 0) for reader, mask in zip("abc", masks, strict=True)]
    cases = [Case(str(n), "p", image, tuple(readings[:n])) for n in (1, 2, 3)]
    problems, _, broken = survey(Collection(tuple(cases), ("1", "2"), ""))
    assert broken == 2
    assert (
        problems[0]
        == "2: consensus's mask: 2: its readers' masks have no consensus (STAPLE leaves no pixel)"
    )
    assert [p[:43] for p in problems[1:]] == ["3: a mask has the image's rows and columns,"]


def test_a_consensus_is_of_what_there_is() -> None:
    a, b, image = square(5, 5), square(5, 6), np.zeros((40, 50), np.uint8)
    alone = Case("x", "p", image, (Reading("a", a, 1),))
    assert with_consensus(alone) is alone
    both = with_consensus(Case("x", "p", image, (Reading("a", a, None), Reading("b", None, 2))))
    assert both.consensus is not None
    np.testing.assert_array_equal(both.consensus.mask, a)
    assert both.consensus.category == 2
    none = with_consensus(Case("x", "p", image, (Reading("a", a, None), Reading("b", b, None))))
    assert none.consensus is not None
    assert none.consensus.category is None
    assert [r.reader for r in none.said] == ["a", "b", "consensus"]


def test_a_mask_by_one_reader_and_a_grade_by_another_is_told() -> None:
    """One reader an image is learnt from: the other's half would not be, without a word."""
    mask, image = square(5, 5), np.zeros((40, 50), np.uint8)
    drawn, said, both = Reading("a", mask, None), Reading("b", None, 2), Reading("c", mask, 2)
    of = [(drawn, said), (drawn,), (said,), (both, said), (both, drawn), (drawn, drawn)]
    cases = [Case("x", "p", image, readings) for readings in of]
    [told] = halved(cases)
    assert told.startswith("1 of 6 images have the mask from one reader and the category from")
    assert told in survey(Collection(tuple(cases), ("1", "2", "3"), ""))[1]
    assert not list(halved(cases[1:]))


@pytest.fixture(scope="module")
def phantom_splits() -> dict[str, Any]:
    return {
        labels: thyroid.Thyroid(cases=24, image_size=32, labels=labels).setup(0, silent)  # type: ignore[arg-type]
        for labels in ("reader", "all", "consensus")
    }


def test_labels_are_those_asked_for(phantom_splits: dict[str, Any]) -> None:
    by_reader, every, agreed = (phantom_splits[k] for k in ("reader", "all", "consensus"))
    assert len({s.fingerprint for s in phantom_splits.values()}) == 1  # the data is the same
    for part in ("train", "val"):
        one, three, one_too = (getattr(s, part) for s in (by_reader, every, agreed))
        names = [case.name for case in one.cases]
        assert [case.name for case in one_too.cases] == names
        assert [case.name for case in three.cases] == [n for n in names for _ in range(3)]
        for i, case in enumerate(one.cases):
            said = [reading.category for reading in case.readings]
            assert one.category[i] in said
            assert three.category[3 * i : 3 * i + 3].tolist() == said
            assert one_too.category[i] == majority(said)
            areas = [int(reading.mask.sum()) for reading in case.readings]
            assert min(areas) <= one_too.readings[i].mask.sum() <= sum(areas)
        assert three.groups() == [case.patient for case in three.cases]
    assert len({reading.reader for reading in by_reader.train.readings}) == 3
    for splits in phantom_splits.values():
        for case, reading in zip(splits.test.cases, splits.test.readings, strict=True):
            assert reading is case.truth
        assert splits.notes["test labels"] == "ground truth"
        assert splits.notes["images"] == by_reader.notes["images"]


# Agreement


def flat(*columns: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, 8, dtype=torch.bool)
    mask[..., list(columns)] = True
    return mask


def test_agreement_by_hand() -> None:
    cases = [
        {"b": Opinion(0, flat(0, 1)), "a": Opinion(0, flat(1, 2)), MODEL: Opinion(2, flat(5))},
        {"b": Opinion(2, None), "a": Opinion(1, flat(3)), MODEL: Opinion(1, flat(3))},
        {"b": Opinion(2, flat(4)), "a": Opinion(2, flat(4)), MODEL: Opinion(0, flat())},
        {"a": Opinion(-1, flat(1)), MODEL: Opinion(0, flat(1, 2, 3)), TRUTH: Opinion(1, None)},
    ]
    table = agreement(cases, 3)
    assert list(zip(table.rater, table.other, strict=True)) == [
        ("a", "b"), ("a", MODEL), ("a", TRUTH), ("b", MODEL), ("b", TRUTH), (MODEL, TRUTH),
    ]  # fmt: skip
    rows = {(row.rater, row.other): row for row in table.itertuples()}
    # a says 0 1 2, b says 0 2 2. Observed: one case a step apart, 1/3. Expected from a's 1/3 each
    # and b's 1/3, 0, 2/3: (0 + 1 + 4)/9 + (8 + 2 + 0)/9 = 15/9. 1 - 3/15.
    ab = rows["a", "b"]
    assert (ab.graded, ab.drawn) == (3, 2)
    assert ab.kappa == pytest.approx(0.8)
    assert ab.dice == pytest.approx((0.5 + 1) / 2)
    # a says 0 1 2, the model 2 1 0: the opposite.
    model = rows["a", MODEL]
    assert model.kappa == pytest.approx(-1)
    assert model.dice == pytest.approx((0 + 1 + 0 + 0.5) / 4)
    assert rows["b", MODEL].drawn == 2
    assert rows["b", TRUTH].graded == rows["a", TRUTH].graded == rows["a", TRUTH].drawn == 0
    assert math.isnan(rows["a", TRUTH].dice)
    assert math.isnan(rows["a", TRUTH].kappa)


def test_pictures_take_any_name(folder: Path) -> None:
    """Neither a formula that is none, nor a letter that the font lacks, ends or clutters a run."""
    name = "$a_$b \u5f20"
    save(folder / f"{name}.png", picture()[0])
    pictures.preview(load(folder, f"image,category\n{name}.png,TR4\n"), folder / "preview.png")
    table = agreement([{name: Opinion(0, flat(0)), MODEL: Opinion(2, flat(1))}], 3)
    pictures.agreement(table, folder / "agreement.png")
    assert (folder / "preview.png").is_file()
    assert (folder / "agreement.png").is_file()


def test_opinions_are_those_of_the_readers_and_the_truth(phantom_splits: dict[str, Any]) -> None:
    for labels in ("reader", "consensus"):
        test = phantom_splits[labels].test
        assert isinstance(test, CaseSplit)
        said = test.opinions(0)
        assert list(said) == ["reader-1", "reader-2", "reader-3", TRUTH]
        assert [o.category for o in said.values()] == [r.category for r in [
            *test.cases[0].readings, test.cases[0].truth]]  # fmt: skip
        batch = test.batch(torch.tensor([0]))
        assert torch.equal(batch["mask"][0] > 0, said[TRUTH].mask)


def test_a_case_counts_once_whatever_it_is_learnt_from(phantom_splits: dict[str, Any]) -> None:
    """With all labels, a split holds a case once for each of its readings."""

    def model(inputs: torch.Tensor) -> list[Any]:
        logits = torch.zeros(len(inputs), 5)
        return [inputs, Risk(logits, torch.zeros(len(inputs), 1), torch.zeros(len(inputs), 0))]

    by_reader, every = (
        agreement(opinions(model, phantom_splits[labels].val), 5) for labels in ("reader", "all")
    )
    assert by_reader.equals(every)
    assert every["graded"][0] == len(phantom_splits["reader"].val)


# All of it


SMALL = ("--image-size", 32, "--width", 4, "--epochs", 1, "--threads", 1)
KINDS = (".png", ".dcm", ".nii.gz", ".tif", ".jpg")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of every kind, most read by two readers who differ."""
    folder = tmp_path_factory.mktemp("clinic")
    rows = [["image", "mask", "category", "patient", "reader"]]
    for i in range(40):
        image, mask = picture(i)
        name = f"images/{i:02d}{KINDS[i % 5]}"
        save(folder / name, image, 0.1)
        for reader in ("ann", "ben")[: 2 - (i % 4 == 0)]:
            drawn = f"masks/{i:02d}_{reader}.png"
            moved = np.roll(mask, 2 if reader == "ben" else 0, 1)
            save(folder / drawn, moved.astype(np.uint8) * 255)
            category = f"TR{min(5, 1 + i % 5 + (reader == 'ben' and i % 3 == 0))}"
            rows.append(
                [name, drawn if i % 7 else "", category if i % 11 else "", str(i // 2), reader]
            )
    with (folder / "cases.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return folder


def test_a_manifest_from_start_to_end(mtbench: Mtbench, data: Path, tmp_path: Path) -> None:
    source = ("manifest", "--data", data / "cases.csv")
    code, printed, err = mtbench("data", "inspect", *source)
    assert (code, err) == (0, "")
    assert "images with several readers" in printed
    assert mtbench("data", "verify", *source) == (0, "39 cases, all can be read\n", "")
    code, printed, err = mtbench("data", "preview", *source, "--to", tmp_path / "a.png")
    assert (code, err) == (0, "")
    with Pil.open(tmp_path / "a.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 20
    line = ["run", "-m", "ew", "-m", "rlar", "--source", *source, *SMALL, "--labels", "consensus"]
    code, printed, err = mtbench(*line, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    [run] = (tmp_path / "out").rglob("rlar/seed0-*")
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    notes = result["notes"]
    assert sum(notes["images"]) == 39
    assert notes["labels"] == "consensus"
    assert notes["readers"] == 2
    assert notes["test labels"] == "consensus of readers (STAPLE, majority)"
    assert "left out" not in notes
    with (run / "agreement.csv").open() as stream:
        table = {(row["rater"], row["other"]): row for row in csv.DictReader(stream)}
    assert set(table) == {("ann", "ben"), ("ann", MODEL), ("ben", MODEL)}
    assert 0.7 < float(table["ann", "ben"]["dice"]) < 0.95  # 16 of 18 columns
    assert 0.3 < float(table["ann", "ben"]["kappa"]) < 1
    assert int(table["ann", MODEL]["graded"]) > int(table["ann", "ben"]["graded"]) > 0
    assert (run / "agreement.png").stat().st_size > 5000
    spec = json.loads((run / "spec.json").read_text())
    assert spec["task_params"]["grades"] == ["TR1", "TR2", "TR3", "TR4", "TR5"]
    assert spec["task_params"]["data"] is None

    (data / "cases.csv").rename(data / "moved.csv")  # a trained model does not need it
    try:
        images = [data / "images" / "01.dcm", data / "images" / "00.png"]
        code, out, err = mtbench("predict", run, *images, "--out", tmp_path / "p")
    finally:
        (data / "moved.csv").rename(data / "cases.csv")
    assert (code, err) == (0, "")
    dicom, png = json.loads(out)
    assert "long_axis_mm" in dicom["views"][0]  # the header knows,
    assert "long_axis_px" in png["views"][0]  # a PNG does not
    assert list(dicom["views"][0]["probabilities"]) == ["TR1", "TR2", "TR3", "TR4", "TR5"]


def test_broken_files_are_counted_and_the_rest_goes_on(
    mtbench: Mtbench, data: Path, tmp_path: Path
) -> None:
    lines = (data / "cases.csv").read_text().splitlines()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    save(tmp_path / "small.png", np.eye(9, dtype=np.uint8))
    header, *rows = (line.replace("images", f"{data}/images").replace("masks", f"{data}/masks")
                     for line in lines)  # fmt: skip
    rows += [
        "broken.png,,TR4,x,ann",
        f"{data}/images/01.dcm,small.png,TR4,0,cat",
        "none.png,,TR4,z,ann",
    ]
    source = tmp_path / "cases.csv"
    source.write_text("\n".join([header, *rows, ""]))
    code, printed, err = mtbench("data", "verify", "manifest", "--data", source)
    assert (code, err) == (2, "")
    said = printed.splitlines()
    assert len(said) == 4
    assert "none.png: there is no such file" in said[0]
    assert "broken.png: does not decode as an image" in printed
    assert "that of cat has (9, 9)" in printed
    assert said[-1] == "problems: 3"
    code, printed, err = mtbench("data", "inspect", "manifest", "--data", source)
    assert (code, err) == (0, "")
    assert "problems" in printed
    code, printed, err = mtbench("data", "preview", "manifest", "--data", source, "--to",
                                 tmp_path / "a.png")  # fmt: skip
    assert (code, err) == (0, "")
    line = ["run", "-m", "ew", "--source", "manifest", "--data", source, *SMALL]
    code, printed, err = mtbench(*line, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    [file] = (tmp_path / "out").rglob("result.json")
    notes = json.loads(file.read_text())["notes"]
    assert notes["left out"] == 3
    assert len(notes["problems"]) == 3
    assert [f"problems: {text}" for text in notes["problems"]] == [
        line for line in printed.splitlines() if line.startswith("problems: ")
    ]
    assert sum(notes["images"]) == 38  # the image of the wrong mask goes with it
    code, printed, err = mtbench(*line, "--strict", "true", "--out", tmp_path / "strict")
    assert code == 2
    assert err.count("\n") == 1
    assert "none.png" in err
    assert "of 3 such" in err


def test_a_template_is_written_once(mtbench: Mtbench, tmp_path: Path) -> None:
    line = ("data", "template", "--to", tmp_path / "mine.csv")
    assert mtbench(*line)[0] == 0
    assert (tmp_path / "mine.csv").read_text() == manifest.template()
    code, _, err = mtbench(*line)
    assert (code, err.count("\n")) == (2, 1)
    assert "exists already" in err
    for words, said in (
        (("template", "--to", tmp_path / "no" / "a.csv"), "cannot be written"),
        (("template", "--task", "toy"), "toy has no template"),
        (("verify", "x", "--task", "toy"), "toy has no data to verify"),
    ):
        code, _, err = mtbench("data", *words)
        assert (code, err.count("\n")) == (2, 1)
        assert said in err


# Who is tested


@pytest.fixture
def eight(folder: Path) -> Path:
    """Eight images."""
    for i in range(3, 8):
        save(folder / "images" / f"{i}.png", picture(i)[0])
    return folder


def graded(name: str, category: int) -> Case:
    return Case(name, name, np.zeros((4, 4), np.uint8), (Reading("a", None, category),))


def held_out(folder: Path, *parts: str) -> Collection:
    """Cases 0.png, 1.png, ... of a patient each, with these splits."""
    rows = [f"images/{i}.png,{3 + i % 2},P{i},{part}" for i, part in enumerate(parts)]
    return load(folder, "\n".join(["image,category,patient,split", *rows]))


def test_a_centre_holds_its_own_patients_out(eight: Path) -> None:
    collection = held_out(eight, "training", "Train", "VAL", "validation", "test", "hold-out")
    assert [c.part for c in collection.cases] == ["train", "train", "val", "val", "test", "test"]
    for seed in (0, 1):
        parts = split_patients(collection.cases, np.random.default_rng(seed))
        assert parts == [[0, 1], [2, 3], [4, 5]]
    assert not any("split" in doubt for doubt in collection.doubts)
    other = held_out(eight, "train", "train", "val", "val", "test", "train")
    assert other.fingerprint != collection.fingerprint


def test_what_a_split_column_leaves_open_is_told(eight: Path) -> None:
    collection = held_out(eight, "", "", "test", "", "", "test")
    assert any("4 of 6 rows say no split: they count as train" in d for d in collection.doubts)
    train, val, test = split_patients(collection.cases, np.random.default_rng(0))
    assert test == [2, 5]
    assert sorted(train + val) == [0, 1, 3, 4]
    untested = held_out(eight, "train", "val", "train", "")
    assert any("no row is of split test: who is tested is drawn" in d for d in untested.remarks)
    same = load(eight, "image,category,patient,split\nimages/0.png,3,p,train\n"
                        "images/1.png,4,p,test\n")  # fmt: skip
    assert any("patient 'p' (of 1 such) has rows of several splits" in d for d in same.doubts)
    odd = held_out(eight, "train", "someday")
    assert any("split: Input should be 'train', 'val' or 'test'" in p for p in odd.problems)


def test_a_held_out_test_leaves_no_fold_to_choose(eight: Path) -> None:
    held_out(eight, "train", "val", "test")
    file = next(eight.glob("*.csv"))
    assert thyroid.Thyroid(source="manifest", data=file).origin.tested
    with pytest.raises(UsageError, match="who is tested is fixed by source manifest"):
        thyroid.Thyroid(source="manifest", data=file, fold="1/3")


def test_every_patient_of_a_manifest_is_tested_in_one_fold(eight: Path) -> None:
    collection = held_out(eight, *[""] * 6)
    tested = [
        i
        for k in (1, 2, 3)
        for i in split_patients(collection.cases, np.random.default_rng(k), f"{k}/3")[2]
    ]
    assert sorted(tested) == [0, 1, 2, 3, 4, 5]


def test_training_on_one_source_and_testing_on_another(eight: Path) -> None:
    here = ["image,category,patient"] + [f"images/{i}.png,{3 + i % 2},P{i}" for i in range(6)]
    there = ["image,category,patient"] + [f"{eight}/images/{i}.png,TR4,P0" for i in (6, 7)]
    for name, lines in (("here", here), ("there", there)):
        (eight / f"{name}.csv").write_text("\n".join(lines))
    task = thyroid.Thyroid(
        source="manifest", data=eight / "here.csv", grades=("TR1", "TR2", "TR3", "TR4", "TR5"),
        test_source="manifest", test_data=eight / "there.csv", image_size=32, width=2,
    )  # fmt: skip
    splits = task.setup(0, silent)
    assert isinstance(splits.test, CaseSplit)
    assert [case.name.rpartition("/")[2] for case in splits.test.cases] == ["6.png", "7.png"]
    assert {case.patient for case in splits.test.cases} == {"manifest: P0"}  # not our P0
    assert splits.notes["images"][0] + splits.notes["images"][1] == 6
    assert splits.test.category.tolist() == [3, 3]
    assert splits.notes["test source"] == "manifest"
    first = splits.notes["doubts"][0]
    assert first.startswith("test source manifest: 1 of its 1 patients, the first 'P0', are called")


def test_patients_with_an_image_that_is_tested_elsewhere_do_not_train(eight: Path) -> None:
    here = ["image,category,patient"] + [f"images/{i}.png,{3 + i % 2},P{i // 2}" for i in range(8)]
    (eight / "here.csv").write_text("\n".join(here))
    (eight / "0.png").write_bytes((eight / "images" / "0.png").read_bytes())
    (eight / "there.csv").write_text("image,category,patient\n0.png,TR4,Q")
    task = thyroid.Thyroid(
        source="manifest", data=eight / "here.csv", grades=thyroid.ultrasound.GRADES,
        test_source="manifest", test_data=eight / "there.csv", image_size=32, width=2,
    )  # fmt: skip
    splits = task.setup(0, silent)
    assert isinstance(splits.test, CaseSplit)
    assert [case.name for case in splits.test.cases] == ["manifest: 0.png"]
    assert splits.notes["images"][0] + splits.notes["images"][1] == 6
    assert splits.notes["problems"][0].startswith("manifest: 2 images, the first images/0.png, do")


@pytest.mark.parametrize("name", ["nowhere.png", "images/broken.png"])
def test_nobody_is_tested_in_the_place_of_those_who_cannot_be_read(eight: Path, name: str) -> None:
    (eight / "images" / "broken.png").write_bytes(b"none")
    head, lost = "image,category,patient,split", f"{name},TR4,Q,test"
    here = [head] + [f"images/{i}.png,TR{3 + i % 2},P{i},train" for i in range(8)]
    (eight / "here.csv").write_text("\n".join(here))
    (eight / "lost.csv").write_text(f"{head}\n{lost}")
    (eight / "both.csv").write_text("\n".join([*here, lost]))
    small: dict[str, Any] = {"source": "manifest", "image_size": 32, "width": 2}
    own = thyroid.Thyroid(data=eight / "both.csv", **small)
    other = thyroid.Thyroid(
        data=eight / "here.csv", grades=thyroid.ultrasound.GRADES, test_source="manifest",
        test_data=eight / "lost.csv", **small,
    )  # fmt: skip
    for task in (own, other):
        with pytest.raises(DataError, match=f"manifest: of the cases for test none .*{name}"):
            task.setup(0, silent)


def test_nobody_is_tested_in_the_place_of_those_who_have_no_label(eight: Path) -> None:
    rows = [f"images/{i}.png,{'TR4' * (i > 1)},{'train' if i > 1 else 'test'}" for i in range(8)]
    (eight / "bare.csv").write_text("\n".join(["image,category,split", *rows]))
    task = thyroid.Thyroid(source="manifest", data=eight / "bare.csv", image_size=32, width=2)
    with pytest.raises(DataError, match=r"for test none can be used.*none with a mask or a cat"):
        task.setup(0, silent)


def test_other_grades_are_tested_as_low_and_high() -> None:
    given = {"source": "ddti", "test_source": "phantom"}
    with pytest.raises(UsageError, match="give --target low-high"):
        thyroid.Thyroid(**given)
    ours = Collection((graded("a", 5), graded("b", 1)), thyroid.ddti.GRADES, "x")
    other = Collection((graded("c", 2), graded("d", 4)), thyroid.ultrasound.GRADES, "y")
    origin = thyroid.Thyroid(**given, target="low-high").elsewhere
    assert origin is not None
    both = with_test_of(ours, thyroid.HIGH, "phantom", other, origin[1])
    split = [c.readings[0].category for c in both.cases]
    assert split == [5, 1, 0, thyroid.HIGH]
    assert [c.part for c in both.cases] == [None, None, "test", "test"]


def test_a_manifest_of_another_scale_is_tested_as_low_and_high(eight: Path) -> None:
    """Its cells are on none of the model's grades: they are no slips that are left out."""
    rows = [f"images/{i}.png,{('benign', 'malignant')[i % 2]},P{i}" for i in range(6)]
    (eight / "there.csv").write_text("\n".join(["image,category,patient", *rows]))
    given = {"test_source": "manifest", "test_data": eight / "there.csv"}
    with pytest.raises(UsageError, match=r"benign, malignant, .* give --target low-high$"):
        thyroid.Thyroid(**given)
    elsewhere = thyroid.Thyroid(**given, target="low-high").elsewhere
    assert elsewhere is not None
    assert elsewhere[1].grades == ("benign", "malignant")
    with pytest.raises(DataError, match="source tn3k needs --test-data PATH"):
        thyroid.Thyroid(test_source="tn3k", target="low-high", cases=20).collection(silent)


def test_grades_that_nobody_gave_are_refused(eight: Path) -> None:
    with pytest.raises(DataError, match="none of its 1 categories, such as 'TR4', is one of a, b"):
        load(eight, "image,category\nimages/0.png,TR4\n", grades=("a", "b"))


def test_how_to_test_elsewhere_is_said(eight: Path) -> None:
    for wrong, said in (
        ({"test_data": eight}, "give both"),
        ({"test_source": "mine"}, "there is no source 'mine'"),
        ({"data": eight}, "--data: source phantom makes its own data and reads none.* --source"),
        (
            {"test_source": "phantom", "test_data": eight},
            "--test-data: source phantom makes its own .* --test-source manifest",
        ),
        ({"test_source": "tn3k"}, "give --target low-high and --test-data PATH"),
        ({"test_source": "phantom", "fold": "1/5"}, "fixed by source phantom"),
    ):
        with pytest.raises(UsageError, match=said):
            thyroid.Thyroid(**wrong)
