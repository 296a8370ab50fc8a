"""Breast: spreadsheets and folders of BrEaST-Lesions' form written here, then the real ones."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pil

from mtbench.errors import DataError
from mtbench_tasks import breast
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks._lesion.categories import SCALES
from mtbench_tasks._lesion.doubts import examine
from mtbench_tasks._lesion.evaluate import _limit
from mtbench_tasks.thyroid import Thyroid
from tests.tasks.sources import ALL_KINDS, Mtbench, count, shown, silent, trained

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MTBENCH_DATA", ROOT.parent / "shared" / "data")) / "breast"
IMAGES = "BrEaST-Lesions_USG-images_and_masks"


def write(root: Path, size: int = 24) -> Path:
    """Coloured RGBA images, white masks on black, categories in turn, the last image normal."""
    (root / IMAGES).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1, size + 1):
        grade = breast.GRADES["BIRADS"][number % 6]
        normal = number == size
        judged = "normal" if normal else breast.GRADES["Classification"][number % 2]
        pixels = np.repeat(rng.integers(60, 90, (41, 51, 1), dtype=np.uint8), 4, axis=2)
        pixels[..., 2] += 20  # bluish, as some are
        pixels[..., 3] = 0 if number == 2 else 255  # alpha says nothing
        top, left = rng.integers(4, 16, 2)
        mask = np.zeros((41, 51, 4), np.uint8)
        mask[..., 3] = 255
        mask[top : top + 16, left : left + 18] = 255
        pixels[top : top + 16, left : left + 18, :3] += np.uint8(20 * (number % 6))
        name = f"case{number:03d}"
        Pil.fromarray(pixels).save(root / IMAGES / f"{name}.png")
        if not normal:
            Pil.fromarray(mask).save(root / IMAGES / f"{name}_tumor.png")
        rows.append(
            {
                "CaseID": number,
                "Image_filename": f"{name}.png",
                "Mask_tumor_filename": None if normal else f"{name}_tumor.png",
                "Mask_other_filename": None,
                "Pixel_size": 0.0078125,
                **dict.fromkeys(breast.DESCRIPTORS, "no"),
                "Shape": "oval",
                "BIRADS": 1 if normal else int(grade) if grade.isdigit() else grade,
                "Classification": judged,
            }
        )
    pd.DataFrame(rows).to_excel(root / "clinical-data.xlsx", index=False)
    return root


def change(root: Path, row: int, column: str, value: object) -> None:
    table = pd.read_excel(root / "clinical-data.xlsx", dtype=object)
    table.loc[row, column] = value
    table.to_excel(root / "clinical-data.xlsx", index=False)


def load(root: Path, column: str = "BIRADS") -> Collection:
    return breast.load(root, silent, column)


def test_image_mask_category_and_words_belong_together(tmp_path: Path) -> None:
    root = write(tmp_path)
    collection = load(root)
    assert len(collection.cases) == 23
    assert count(collection, "normal images") == 1
    for number, grade in ((2, "4a"), (5, "5"), (6, "2")):
        case = collection.cases[number - 1]
        [reading] = case.readings
        assert case.name == case.patient == f"case{number:03d}"
        assert collection.grades[reading.category or 0] == grade
        assert reading.mask is not None
        assert reading.mask.sum() == 16 * 18
        contrast = case.image[reading.mask].mean() - case.image[~reading.mask].mean()
        assert contrast == pytest.approx(20 * (number % 6), abs=3)
        assert case.spacing == pytest.approx(0.078125)
        assert case.descriptors["shape"] == "oval"
    malignancy = load(root, "Classification")
    assert malignancy.grades == ("benign", "malignant")
    assert [c.readings[0].category for c in malignancy.cases] == [n % 2 for n in range(1, 24)]
    assert malignancy.fingerprint != collection.fingerprint


def test_bi_rads_of_any_data_are_divided_where_a_biopsy_is_advised() -> None:
    """Where the thyroid's grades of these names are not."""
    task = breast.Breast(source="malignancy")
    data = replace(Thyroid.sources["ddti"], grades=breast.GRADES["BIRADS"])
    assert data.grades[data.high] == "4b"
    limit, same = _limit(task, data, None)
    assert (data.grades[limit], same) == ("4a", False)
    assert data.grades[_limit(task, data, "5")[0]] == "5"


@pytest.mark.parametrize("source", ["birads", "malignancy"])
@pytest.mark.parametrize("grades", [("2", "3", "4a", "4b", "4c", "5"), SCALES[3]])
def test_bi_rads_are_divided_alike_in_all_tests(
    source: str, grades: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever is trained on, whether a test or `evaluate`, and with a BI-RADS 1 or without."""
    (tmp_path / "data.csv").write_text("\n".join(["image,category", *(f"x,{g}" for g in grades)]))
    task = breast.Breast(
        source=source, target="low-high", test_source="manifest", test_data=tmp_path / "data.csv"
    )
    assert task.elsewhere is not None
    origin = task.elsewhere[1]
    assert origin.grades == grades
    assert origin.grades[origin.high] == grades[_limit(task, origin, None)[0]] == "4a"


def test_the_fingerprint_is_of_the_content_not_the_place(tmp_path: Path) -> None:
    first = load(write(tmp_path / "a", 6)).fingerprint
    root = write(tmp_path / "b", 6)
    assert load(root).fingerprint == first
    change(root, 0, "BIRADS", "5")
    second = load(root).fingerprint
    assert second != first
    mask = root / IMAGES / "case002_tumor.png"
    mask.write_bytes((root / IMAGES / "case003_tumor.png").read_bytes())
    assert load(root).fingerprint not in (first, second)


def test_the_fingerprint_is_of_the_words_that_are_learnt(tmp_path: Path) -> None:
    """And, where none are, what it was before they could be."""
    root = write(tmp_path, 6)
    plain, learnt = (breast.Breast(data=root, descriptors=weight) for weight in (0, 1))
    before = [task.collection(silent).fingerprint for task in (plain, learnt)]
    assert before[0] == load(root).fingerprint != before[1]
    change(root, 0, "Margin", "circumscribed")
    after = [task.collection(silent).fingerprint for task in (plain, learnt)]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_masks_are_read_from_their_files_once(tmp_path: Path) -> None:
    """Validation asks for them, at their image's own resolution, after each epoch."""
    root = write(tmp_path)
    task = breast.Breast(data=root, image_size=32)
    split = task.setup(0, silent).val
    drawn = [reading.mask for reading in split.readings]
    for _ in range(2):
        masks = split.batch(torch.arange(len(split)))["masks"]
        for mask, wanted in zip(masks, drawn, strict=True):
            np.testing.assert_array_equal(mask.numpy(), wanted)
            assert mask.shape == (41, 51)
        for file in root.glob(f"{IMAGES}/*_tumor.png"):
            file.unlink()


def test_what_is_told_of_a_model_reads_no_mask_of_training(tmp_path: Path) -> None:
    root = write(tmp_path)
    task = breast.Breast(data=root, image_size=32, width=4)
    splits = task.setup(0, silent)
    splits.val.batch(torch.arange(len(splits.val)))  # which keeps its masks
    for file in root.glob(f"{IMAGES}/*_tumor.png"):
        file.unlink()
    with torch.inference_mode():
        fitted = task.fit(task.model().eval(), splits)
    assert fitted["seen"]
    assert fitted["spread"]["patients"] == len({case.patient for case in splits.val.cases})
    assert 0 < fitted["radiomics"]["outlines"] == fitted["radiomics"]["of known spacing"]


def test_what_is_broken_is_left_out_and_named(tmp_path: Path) -> None:
    root = write(tmp_path)
    change(root, 0, "BIRADS", "0")
    change(root, 1, "BIRADS", "4A")
    change(root, 1, "Pixel_size", "0,0078")
    change(root, 5, "Pixel_size", 0.078)  # millimetres
    change(root, 2, "Image_filename", "../case003.png")
    (root / IMAGES / "case004_tumor.png").unlink()
    collection = load(root)
    assert count(collection, "images without a category") == 1
    assert collection.cases[0].readings[0].category is None
    assert collection.cases[1].readings[0].category == 2
    assert collection.cases[1].spacing is None
    assert [c.name for c in collection.cases[:3]] == ["case001", "case002", "case005"]
    for line, name, problem in zip(
        (4, 5), ("../case003.png", "case004_tumor.png"), collection.problems, strict=True
    ):
        assert f"clinical-data.xlsx line {line}: " in problem
        assert name in problem
    assert [doubt.partition("line ")[2] for doubt in collection.doubts] == [
        "3: Pixel_size '0,0078' is no length in centimetres: it counts as unknown",
        "7: 0.78 mm per pixel is not what ultrasound has (0.02 to 0.5): "
        "are lengths in other units?",
    ]


def test_another_form_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold one spreadsheet"):
        load(tmp_path)
    root = write(tmp_path / "b", 4)
    pd.DataFrame({"Image_filename": ["case001.png"]}).to_excel(root / "clinical-data.xlsx")
    with pytest.raises(DataError, match="must have columns Mask_tumor_filename, Pixel_size"):
        load(root)
    (root / "clinical-data.xlsx").write_text("no spreadsheet")
    with pytest.raises(DataError, match="cannot be read as a spreadsheet"):
        load(root)
    root = write(tmp_path / "d", 4)
    change(root, 2, "Image_filename", "case002.png")
    with pytest.raises(
        DataError, match=r"line 4: an image has one row, and case002.png has line 3"
    ):
        load(root)
    root = write(tmp_path / "c", 3)
    for image in (root / IMAGES).glob("*_tumor.png"):
        image.unlink()
    with pytest.raises(DataError, match=r"none of its 3 rows can be used.*case001_tumor") as error:
        load(root)
    assert "\n" not in str(error.value)
    (root / "thumbs").mkdir()
    Pil.new("L", (8, 8)).save(root / "thumbs" / "case001.png")
    with pytest.raises(DataError, match=r"images_and_masks/case001\.png and thumbs/case001\.png"):
        load(root)


def test_low_and_high_are_divided_at_the_biopsy() -> None:
    graded = breast.Breast.sources["birads"]
    assert graded.grades[graded.high] == "4a"
    assert breast.Breast(target="low-high").grades == ("low", "high")
    assert breast.Breast(source="malignancy").grades == ("benign", "malignant")


def test_models_are_asked_together_where_high_means_the_same() -> None:
    graded, malignant, same = (
        breast.Breast(source=source, target="low-high")
        for source in ("birads", "malignancy", "birads")
    )
    assert graded.grades == malignant.grades
    assert graded.joins(same)
    assert not graded.joins(malignant)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "BI-RADS category"),
        ({"target": "low-high"}, "high: BI-RADS 4a or 4b or 4c or 5"),
        ({"source": "malignancy"}, ""),
        ({"source": "malignancy", "target": "low-high"}, "high: malignant"),
    ],
)
def test_a_reading_says_what_its_categories_are_of(how: dict[str, Any], said: str) -> None:
    assert breast.Breast(**how).scale == said


def test_it_trains_and_shows_itself(mtbench: Mtbench, tmp_path: Path) -> None:
    root = write(tmp_path / "breast", 32)
    (root / IMAGES / "case007.png").write_text("no picture")
    line = ("--task", "breast", "--data", root)
    for result in trained(mtbench, tmp_path / "out", *line, methods=ALL_KINDS):
        assert sum(result["notes"]["images"]) == 30
        assert "case007.png" in result["notes"]["problems"][0]
    [run] = (tmp_path / "out").rglob("rlar/seed0-*")
    image = root / IMAGES / "case003.png"
    code, out, err = mtbench("predict", run, image, "--spacing", 0.078, "--out", tmp_path / "p")
    assert (code, err) == (0, "")
    [record] = json.loads(out)
    assert tuple(record["views"][0]["probabilities"]) == breast.GRADES["BIRADS"]
    page = Path(record["reports"][0]).read_text()
    assert ">BI-RADS category<" in page
    assert "composition" not in page  # a thyroid's word
    picture = tmp_path / "preview.png"
    assert "images of malignant" in shown(mtbench, picture, "malignancy", *line)
    code, _, err = mtbench("run", *line[:2], "-m", "ew", "--out", tmp_path / "s")
    assert (code, err.count("\n")) == (2, 1)
    assert "needs --data" in err


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no BrEaST-Lesions at {DATA} (set MTBENCH_DATA)")
def test_the_real_images() -> None:
    collection = load(DATA)
    counts = [count(collection, f"images of {grade}") for grade in collection.grades]
    assert counts == [30, 37, 44, 46, 49, 46]
    assert not (*collection.problems, *collection.doubts)
    malignancy = load(DATA, "Classification")
    assert [count(malignancy, f"images of {grade}") for grade in malignancy.grades] == [154, 98]
    for case in collection.cases[::20]:
        assert examine(case).faults == ()
        assert case.spacing is not None
        assert 0.04 < case.spacing < 0.14
        mask = case.readings[0].mask
        assert mask is not None
        assert 0.001 < mask.mean() < 0.6
        # Most lesions are darker than the breast around them; none is as bright as its brightest.
        assert case.image[mask].mean() < np.percentile(case.image, 99)
