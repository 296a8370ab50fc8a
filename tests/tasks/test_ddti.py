"""DDTI: every trap on folders written here, then the counts of the real data."""

import hashlib
import io
import json
import os
import pickle
import time
import zipfile
from collections import Counter
from pathlib import Path

import defusedxml.ElementTree as ElementTree
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw
from scipy.ndimage import gaussian_filter1d

from mtbench.errors import DataError
from mtbench_tasks._lesion.cases import Case, Collection
from mtbench_tasks._lesion.screen import crop_sector, split_views
from mtbench_tasks._lesion.splits import split_patients
from mtbench_tasks.thyroid import ddti, ddti_public
from mtbench_tasks.thyroid.ddti import GRADES, load

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MTBENCH_DATA", ROOT.parent / "shared" / "data")) / "ddti"

SECTOR = (slice(8, 309), slice(87, 472))  # of a single view
LEFT, RIGHT = slice(35, 280), slice(280, 526)  # columns of a split screen
SQUARE = [(200, 100), (240, 100), (240, 130), (200, 130)]  # 41 x 31 pixels, its border included
AREA = 41 * 31
REMOTE = [(400, 200), (420, 200), (420, 220), (400, 220)]  # in the right view of a split screen


def speckle(height: int, width: int, seed: int) -> np.ndarray:
    """Noise that varies smoothly along rows, as scan lines do."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    noise = gaussian_filter1d(noise, 3.0, axis=1)
    return np.clip(90 + 45 * noise / noise.std(), 20, 255).astype(np.uint8)


def screen(*, split: bool = False, seed: int = 0, caption: str = "TIRADS 5 (4C)") -> np.ndarray:
    """A scanner's screen: sector(s), grey bar, scale, parameters, caption."""
    canvas = Pillow.new("L", (560, 360))
    draw = ImageDraw.Draw(canvas)
    draw.text((120, 318), caption, fill=255)
    draw.text((540, 8), "P100\n12L6\n12.0\n31fps\n2DG\n92", fill=255)
    pixels = np.array(canvas)
    pixels[150:250, 10:16] = np.linspace(255, 40, 100)[:, None]
    if split:
        pixels[8:309, LEFT] = speckle(301, 245, seed)
        pixels[8:309, RIGHT] = speckle(301, 246, seed + 1000)
    else:
        pixels[SECTOR] = speckle(301, 385, seed)
    return pixels


def region(points: list[tuple[int, int]], kind: str = "freehand") -> dict[str, object]:
    listed = [{"x": x, "y": y} for x, y in points]
    return {"points": listed, "annotation": {}, "regionType": kind}


def write_image(folder: Path, name: str, pixels: np.ndarray | None = None) -> None:
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
    pixels = screen(seed=seed) if pixels is None else pixels
    Pillow.fromarray(pixels).save(folder / f"{name}.jpg", quality=95)


def write_case(
    folder: Path, number: int, marks: dict[int, str] | None = None, **fields: str
) -> None:
    marks = {1: json.dumps([region(SQUARE)])} if marks is None else marks
    fields = {"tirads": "4a"} | fields
    body = "".join(f"<{key}>{value}</{key}>" for key, value in fields.items())
    for index, svg in marks.items():
        body += f"<mark><image>{index}</image><svg>{svg}</svg></mark>"
    (folder / f"{number}.xml").write_text(f"<case><number>{number}</number>{body}</case>")


def count(collection: Collection, what: str) -> int:
    return next(n for n, said, _ in collection.report if said == what)


def only(collection: Collection) -> Case:
    assert len(collection.cases) == 1
    return collection.cases[0]


def area(case: Case) -> int:
    mask = case.readings[0].mask
    assert mask is not None
    return int(mask.sum())


def test_a_case_has_its_image_mask_category_and_words(tmp_path: Path) -> None:
    pixels = screen()
    pixels[100:131, 200:241] = 250
    write_image(tmp_path, "7_1", pixels)
    write_case(tmp_path, 7, composition="solid", margins="ill- defined", calcifications="non")
    collection = load(tmp_path)
    case = only(collection)
    assert (case.name, case.patient) == ("7_1", "7")
    assert case.image.shape == (301, 385)
    assert case.image.dtype == np.uint8
    assert area(case) == AREA
    assert case.image[case.readings[0].mask].mean() > 245  # the mask moved with the crop
    assert collection.grades[case.readings[0].category or 0] == "4a"
    assert dict(case.descriptors) == {
        "composition": "solid",
        "margins": "ill defined",
        "calcifications": "none",
    }
    assert count(collection, "descriptors respelled") == 2
    assert case.spacing is None


def test_the_caption_and_the_scale_are_cropped_away() -> None:
    pixels = screen()
    assert crop_sector(pixels) == SECTOR
    pixels[312:335, 100:460:3] = 255  # as near as any caption of DDTI, and denser
    assert crop_sector(pixels) == SECTOR


@pytest.mark.parametrize(
    "pixels",
    [
        speckle(160, 192, 1),
        np.zeros((100, 120), np.uint8),
        np.full((50, 60), 200, np.uint8),
        np.zeros((1, 1), np.uint8),
        np.pad(np.full((4, 4), 255, np.uint8), 200),
        np.vstack([speckle(100, 192, 2), np.zeros((60, 192), np.uint8)]),  # deep shadow
    ],
    ids=["sector", "black", "white", "pixel", "dot", "shadow"],
)
def test_what_is_no_screen_stays_whole(pixels: np.ndarray) -> None:
    height, width = pixels.shape
    assert crop_sector(pixels) == (slice(0, height), slice(0, width))
    assert split_views(pixels) == [(slice(0, height), slice(0, width))]


@pytest.mark.parametrize("seed", range(5))
def test_a_split_screen_is_cut_at_its_seam(seed: int) -> None:
    left, right = split_views(screen(split=True, seed=seed))
    assert left == (slice(8, 309), LEFT)
    assert right == (slice(8, 309), RIGHT)
    assert split_views(screen(seed=seed)) == [SECTOR]


def test_a_box_in_the_middle_is_no_seam() -> None:
    """As of Doppler: its edges do not go from top to bottom."""
    pixels = screen()
    middle = (SECTOR[1].start + SECTOR[1].stop) // 2
    pixels[100:200, middle : middle + 80] = 250
    pixels[100:200, middle : middle + 80 : 2] = 20
    assert split_views(pixels) == [SECTOR]


def test_a_black_strip_between_views_belongs_to_neither() -> None:
    pixels = screen(split=True)
    pixels[:, 277:283] = 0
    left, right = split_views(pixels)
    assert (left[1], right[1]) == (slice(35, 277), slice(283, 526))


@pytest.mark.parametrize(
    ("contours", "names", "areas"),
    [
        ([SQUARE, REMOTE], ["1_1a", "1_1b"], [AREA, 21 * 21]),
        ([SQUARE], ["1_1a"], [AREA]),
        ([REMOTE], ["1_1b"], [21 * 21]),
        # Columns 270..279 lie left of the seam, 280..289 right of it.
        ([[(270, 100), (289, 100), (289, 119), (270, 119)]], ["1_1a", "1_1b"], [200, 200]),
        # One column in twenty is an unsteady hand.
        ([[(261, 100), (280, 100), (280, 119), (261, 119)]], ["1_1a"], [380]),
    ],
    ids=["both", "left", "right", "across", "touching"],
)
def test_contours_go_to_the_view_that_holds_them(
    tmp_path: Path, contours: list[list[tuple[int, int]]], names: list[str], areas: list[int]
) -> None:
    write_image(tmp_path, "1_1", screen(split=True))
    write_case(tmp_path, 1, {1: json.dumps([region(c) for c in contours])})
    collection = load(tmp_path)
    assert [case.name for case in collection.cases] == names
    assert [area(case) for case in collection.cases] == areas
    assert count(collection, "views without a contour") == 2 - len(names)
    assert count(collection, "contours across a seam") == (len(names) > len(contours))
    assert {case.patient for case in collection.cases} == {"1"}


def dense(corners: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same polygon with twenty points a side."""
    ends = zip(corners, [*corners[1:], corners[0]], strict=True)
    return [
        (round(a + (c - a) * i / 20), round(b + (d - b) * i / 20))
        for (a, b), (c, d) in ends
        for i in range(20)
    ]


@pytest.mark.parametrize("cut", [", {", "], ", '"annot', "{}, "])
def test_a_truncated_contour_that_lacks_little_is_closed(tmp_path: Path, cut: str) -> None:
    whole = json.dumps([region(dense(SQUARE))])
    at = whole.rfind(cut) + len(cut) if cut != "], " else whole.rfind(cut) + 3
    write_image(tmp_path, "1_1")
    write_case(tmp_path, 1, {1: whole[:at]})
    collection = load(tmp_path)
    assert count(collection, "marks truncated") == 1
    assert count(collection, "contours cut off") == 0
    assert area(only(collection)) == pytest.approx(AREA, abs=25)
    assert collection.remarks == ()


@pytest.mark.parametrize("others", [[], [REMOTE]])
@pytest.mark.parametrize("kept", [0.4, 0.6])
def test_a_contour_that_is_open_is_left_out_with_its_view(
    tmp_path: Path, others: list[list[tuple[int, int]]], kept: float
) -> None:
    """What would close it runs through the nodule; what else is outlined there is not all."""
    points = dense(SQUARE)
    regions = [region(dense(c)) for c in others] + [region(points[: round(kept * len(points))])]
    write_image(tmp_path, "1_1")
    write_case(tmp_path, 1, {1: json.dumps(regions)[:-3]})
    collection = load(tmp_path)
    assert count(collection, "contours cut off") == 1
    reading = only(collection).readings[0]
    assert reading.mask is None
    assert reading.category is not None  # which still trains
    [remark] = collection.remarks
    assert remark.endswith("are left out: 1_1")


def test_an_open_contour_of_one_view_leaves_the_other_view_alone(tmp_path: Path) -> None:
    write_image(tmp_path, "1_1", screen(split=True))
    there = [(x + 150, y) for x, y in dense(SQUARE)]
    regions = [region(SQUARE), region(there[:40])]
    write_case(tmp_path, 1, {1: json.dumps(regions)[:-3]})
    left, right = load(tmp_path).cases
    assert (left.name, area(left)) == ("1_1a", AREA)
    assert (right.name, right.readings[0].mask) == ("1_1b", None)


def test_truncation_keeps_the_whole_contours_before_it(tmp_path: Path) -> None:
    whole = json.dumps([region(SQUARE), region(dense(REMOTE))])
    write_image(tmp_path, "1_1")
    write_case(tmp_path, 1, {1: whole[: whole.rfind(', {"x"')]})
    collection = load(tmp_path)
    assert count(collection, "contours found") == 2
    assert AREA + 200 < area(only(collection)) <= AREA + 21 * 21


def test_nothing_recoverable_is_counted_not_raised(tmp_path: Path) -> None:
    write_image(tmp_path, "1_1")
    write_case(tmp_path, 1, {1: '[{"poi'})
    collection = load(tmp_path)
    assert count(collection, "marks unreadable") == 1
    assert only(collection).readings[0].mask is None  # the category still trains


def test_arrows_and_lines_are_no_contours(tmp_path: Path) -> None:
    regions = [region(SQUARE), region(REMOTE[:2]), region(REMOTE, "arrow")]
    write_image(tmp_path, "1_1")
    write_case(tmp_path, 1, {1: json.dumps(regions)})
    collection = load(tmp_path)
    assert area(only(collection)) == AREA
    assert count(collection, "arrows and lines") == 2


def test_several_contours_are_united(tmp_path: Path) -> None:
    write_image(tmp_path, "1_1")
    write_case(tmp_path, 1, {1: json.dumps([region(SQUARE), region(REMOTE), region(SQUARE)])})
    collection = load(tmp_path)
    assert area(only(collection)) == AREA + 21 * 21
    assert count(collection, "images with several contours") == 1


def test_contours_out_of_bounds_are_clipped_or_dropped(tmp_path: Path) -> None:
    beyond = [(400, 200), (700, 200), (700, 220), (400, 220)]  # columns 400..471 are scanned
    below = [(200, 330), (240, 330), (240, 400), (200, 400)]
    write_image(tmp_path, "1_1")
    write_case(tmp_path, 1, {1: json.dumps([region(beyond), region(below)])})
    collection = load(tmp_path)
    assert area(only(collection)) == 72 * 21
    assert count(collection, "contours out of bounds") == 2
    assert count(collection, "contours outside the sector") == 1
    assert count(collection, "contours used") == 1


def test_missing_labels(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        write_image(tmp_path, f"{number}_1")
    write_case(tmp_path, 1, tirads="")
    write_case(tmp_path, 2, {1: ""})
    write_case(tmp_path, 3, {1: ""}, tirads="")
    write_case(tmp_path, 4, tirads="6")
    collection = load(tmp_path)
    readings = {case.name: case.readings[0] for case in collection.cases}
    assert readings.keys() == {"1_1", "2_1", "4_1"}
    assert readings["1_1"].category is None
    assert readings["1_1"].mask is not None
    assert readings["2_1"].category == GRADES.index("4a")
    assert readings["2_1"].mask is None
    assert readings["4_1"].category is None
    assert count(collection, "cases without a category") == 2
    assert count(collection, "categories outside the scale") == 1
    assert count(collection, "marks without a contour") == 2
    assert count(collection, "views without contour and category") == 1


def test_an_image_left_unoutlined_beside_an_outlined_one_is_dropped(tmp_path: Path) -> None:
    write_image(tmp_path, "1_1")
    write_image(tmp_path, "1_2")
    write_case(tmp_path, 1, {1: json.dumps([region(SQUARE)]), 2: ""})
    assert [case.name for case in load(tmp_path).cases] == ["1_1"]


def test_byte_equal_images_are_one_and_join_their_patients(tmp_path: Path) -> None:
    for name in ("3_1", "20_1", "100_2"):
        write_image(tmp_path, name, screen(seed=5))
    write_image(tmp_path, "20_2")
    write_image(tmp_path, "9_1")
    square = json.dumps([region(SQUARE)])
    write_case(tmp_path, 3, {1: square}, tirads="")
    write_case(tmp_path, 20, {1: square, 2: square}, tirads="")
    write_case(tmp_path, 100, {2: ""}, tirads="5")  # labelled, but not outlined
    write_case(tmp_path, 9, tirads="2")
    collection = load(tmp_path)
    patients = {case.name: case.patient for case in collection.cases}
    assert patients == {"100_2": "3", "20_2": "3", "9_1": "9"}
    kept = next(case for case in collection.cases if case.name == "100_2").readings[0]
    assert kept.category == GRADES.index("5")
    assert kept.mask is not None
    assert kept.mask.sum() == AREA
    assert count(collection, "copies of an image") == 2
    assert count(collection, "cases joined into another patient") == 2


def test_files_without_their_partner_are_counted(tmp_path: Path) -> None:
    write_image(tmp_path, "1_1")
    write_image(tmp_path, "8_1")
    square = json.dumps([region(SQUARE)])
    write_case(tmp_path, 1, {1: square, 2: square})
    collection = load(tmp_path)
    assert only(collection).name == "1_1"
    assert count(collection, "images without a case") == 1
    assert count(collection, "marks without an image") == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "ddti"
    folder.mkdir()
    for number in (2, 10):
        write_image(folder, f"{number}_1")
        write_case(folder, number)
    return folder


def test_folder_parent_and_zip_read_the_same(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ddti.zip", "w") as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            archive.write(file, f"thyroid/{file.name}")
        archive.writestr("__MACOSX/thyroid/._2.xml", b"junk")
    flat, parent, zipped = load(folder), load(tmp_path), load(tmp_path / "ddti.zip")
    assert [case.name for case in flat.cases] == ["2_1", "10_1"]  # in the order of numbers
    for other in (parent, zipped):
        assert other.fingerprint == flat.fingerprint
        assert other.report == flat.report
        for a, b in zip(flat.cases, other.cases, strict=True):
            assert a.name == b.name
            assert np.array_equal(a.image, b.image)
    write_case(folder, 10, tirads="5")
    assert load(folder).fingerprint != flat.fingerprint


BOMB = '<!DOCTYPE b [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><case>&b;</case>'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("2.xml", "<case><tirads>5</case>", "2.xml"),
        ("2.xml", "", "2.xml"),
        ("2.xml", BOMB, "2.xml"),
        ("2_1.jpg", "no image", "2_1.jpg"),
        ("2_1.jpg", "", "2_1.jpg"),
        ("2_1.jpg", "truncate", "2_1.jpg"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_goes_on(
    folder: Path, name: str, content: str, said: str
) -> None:
    file = folder / name
    if content == "truncate":
        file.write_bytes(file.read_bytes()[:3000])
    else:
        file.write_text(content)
    collection = load(folder)
    assert [case.name for case in collection.cases] == ["10_1"]
    [problem] = collection.problems
    assert "\n" not in problem
    assert said in problem
    assert str(folder) in problem
    (folder / "10_1.jpg").write_text("broken as well")  # nothing is left
    with pytest.raises(DataError, match=r"2|10_1\.jpg"):
        load(folder)


def test_a_name_that_is_there_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    """Which of them is meant nobody knows."""
    (folder / "edited").mkdir()
    write_case(folder / "edited", 10, tirads="5")
    with zipfile.ZipFile(tmp_path / "ddti.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    for path in (folder, tmp_path / "ddti.zip"):
        with pytest.raises(DataError, match=r"found 10\.xml and edited/10\.xml: remove one"):
            load(path)


def test_images_are_not_held(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ddti.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"thyroid/{file.name}")
    for path in (folder, tmp_path / "ddti.zip"):
        case = load(path).cases[0]
        assert callable(case.pixels)
        assert callable(case.readings[0].contour)
        again = pickle.loads(pickle.dumps(case))  # radiomics are computed in other processes
        np.testing.assert_array_equal(again.image, case.image)
    (folder / "2_1.jpg").unlink()
    case = load(tmp_path / "ddti.zip").cases[0]
    (tmp_path / "ddti.zip").unlink()
    with pytest.raises(DataError, match=r"ddti\.zip: thyroid/2_1\.jpg can no longer be read"):
        _ = case.image


def test_what_is_no_ddti_is_explained(tmp_path: Path) -> None:
    empty, xml_only = tmp_path / "empty", tmp_path / "xml"
    empty.mkdir()
    xml_only.mkdir()
    write_case(xml_only, 1)
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("1.xml", "<case/>")
    junk, cut, flipped = (tmp_path / f"{name}.zip" for name in ("junk", "cut", "flipped"))
    junk.write_bytes(b"this is no zip")
    cut.write_bytes(stored.getvalue()[:40])
    flipped.write_bytes(stored.getvalue().replace(b"<case/>", b"<cose/>"))  # fails its checksum
    for path, said in [
        (tmp_path / "absent", "no such file"),
        (empty, "found: neither"),
        (xml_only, r"found: \.xml"),
        (junk, "no readable folder or zip"),
        (cut, "no readable folder or zip"),
        (flipped, "no readable folder or zip"),
    ]:
        with pytest.raises(DataError, match=said) as error:
            load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


# --- the real data -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> tuple[Collection, float]:
    if not DATA.is_dir():
        pytest.skip(f"no DDTI at {DATA}: set MTBENCH_DATA to the folder that holds ddti/")
    start = time.process_time()
    return load(DATA), time.process_time() - start


@pytest.fixture(scope="module")
def marks(real: object) -> dict[str, tuple[str, str]]:
    """(category, state) of every image, read without the loader."""
    found = {}
    for file in DATA.glob("*.xml"):
        case = ElementTree.parse(file).getroot()
        for mark in case.iter("mark"):
            svg = (mark.findtext("svg") or "").strip()
            state = "empty" if not svg else "whole" if svg.endswith("]") else "truncated"
            name = f"{file.stem}_{mark.findtext('image')}"
            found[name] = (case.findtext("tirads") or "", state)
    return found


def image_of(case: Case) -> str:
    return case.name.rstrip("ab")


def test_real_counts(real: tuple[Collection, float], marks: dict[str, tuple[str, str]]) -> None:
    collection, seconds = real
    # As found by hand: 466 usable images, 341 of 291 cases labelled.
    assert Counter(state for _, state in marks.values()) == {
        "whole": 466,
        "truncated": 8,
        "empty": 6,
    }
    labelled = {n: grade for n, (grade, state) in marks.items() if grade and state == "whole"}
    assert Counter(labelled.values()) == dict(zip(GRADES, (41, 19, 93, 77, 66, 45), strict=True))
    assert len({name.split("_")[0] for name in labelled}) == 291
    # What the loader used is that, and the truncated ones, and of byte-equal images one.
    used = {image_of(case) for case in collection.cases}
    drawn = {name for name, (_, state) in marks.items() if state != "empty"}
    assert used <= drawn
    digest = {n: hashlib.sha256((DATA / f"{n}.jpg").read_bytes()).digest() for n in drawn}
    assert len(used) == len(set(digest.values())) == 467
    assert {digest[name] for name in used} == set(digest.values())
    for case in collection.cases:
        grade = marks[image_of(case)][0]
        assert case.readings[0].category == (GRADES.index(grade) if grade else None)
    expected = {
        "contours found": 648 + 17,  # whole marks, and those before and at a break
        "contours used": 653,
        "marks truncated": 8,
        "contours cut off": 4,
        "marks without a contour": 6,
        "arrows and lines": 8,
        "contours out of bounds": 1,
        "contours outside the sector": 1,
        "contours across a seam": 1,
        "copies of an image": 9,
        "images of two views": 178,
        "views used": 640,
        "views with a mask": 636,
        "views with a category": 447,
    }
    assert {what: count(collection, what) for what in expected} == expected
    assert seconds < 8


def test_real_byte_equal_images_keep_the_labelled_member(real: tuple[Collection, float]) -> None:
    cases = {case.name: case for case in real[0].cases}
    for group, kept in [
        ({"349_1", "150_1", "233_2", "326_1", "323_1"}, "233_2"),
        ({"353_2", "396_1"}, "353_2"),
    ]:
        assert group & cases.keys() == {kept}
        assert cases[kept].readings[0].category is not None
        joined = {name.split("_")[0] for name in group}
        patients = {c.patient for c in cases.values() if c.name.split("_")[0] in joined}
        assert len(patients) == 1
    assert len({case.patient for case in cases.values()}) == 383


def test_the_public_split_divides_the_real_views(real: tuple[Collection, float]) -> None:
    collection = ddti.public(real[0])
    assert collection.fingerprint == real[0].fingerprint
    parts = split_patients(collection.cases, np.random.default_rng(0))
    patients = [{collection.cases[i].patient for i in part} for part in parts]
    assert [len(part) for part in parts] == [457, 93, 90]
    assert not patients[2] & (patients[0] | patients[1])
    assert {int(p) for p in patients[2]} == ddti_public.TEST
    assert not ddti_public.TEST & ddti_public.VAL


def test_real_views_hold_tissue_and_no_caption(real: tuple[Collection, float]) -> None:
    for case in real[0].cases:
        height, width = case.image.shape
        assert 200 < height < 340, case.name
        assert 180 < width < 400, case.name
        assert np.mean(case.image > 6) > 0.5, case.name
        # Below a sector lies a black row, so a crop that held a caption would hold that row.
        assert (case.image > 6).mean(axis=1).min() > 0.05, case.name
        mask = case.readings[0].mask
        if mask is None:  # its contour breaks off
            assert case.name in ("54_1", "127_1a", "176_1b", "203_1")
            continue
        assert mask.shape == case.image.shape
        assert 0.001 < mask.mean() < 0.95, case.name
