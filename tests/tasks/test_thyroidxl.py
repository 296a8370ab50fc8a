"""ThyroidXL, on folders written here in the layout that its readers describe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from mtbench.errors import DataError
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks.thyroid import thyroidxl
from tests.tasks.sources import Mtbench, count, shown, silent, trained

TABLE = "stats/id2info_eng.json"


def write(root: Path, train: int = 10, test: int = 3) -> Path:
    """Two images a patient; grades 1 to 5 in turn, every other one as text."""
    rng = np.random.default_rng(0)
    records: dict[str, Any] = {}
    for part, first, size in (("train", 0, train), ("test", train, test)):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for patient in range(first, first + size):
            grade = patient % 5 + 1
            names = [f"{patient:08d}_2201CE1{view}_{view}.png" for view in (0, 1)]
            for name in names:
                pixels = rng.integers(60, 90, (48, 60), dtype=np.uint8)
                mask = np.zeros((48, 60), np.uint8)
                top, left = rng.integers(5, 20, 2)
                mask[top : top + 18, left : left + 22] = 255
                pixels[mask > 0] += np.uint8(25 * grade)
                Pil.fromarray(pixels).save(root / part / "images" / name)
                Pil.fromarray(mask).save(root / part / "masks" / name)
            nodule = {
                "TIRADS": grade if patient % 2 else str(grade), "Position": "Left lobe",
                "Width": 22.0, "FNAC": "2", "Conclusion": "Benign (FNAC) - 3",
            }  # fmt: skip
            records[f"{patient:08d}"] = {
                "age": 60, "gender": 2, "conclusion": 3,
                "nodule_1": nodule, "nodule_2": None, "images": names,
            }  # fmt: skip
    (root / "stats").mkdir()
    (root / TABLE).write_text(json.dumps(records))
    return root


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    records = json.loads((root / TABLE).read_text())
    edit(records)
    (root / TABLE).write_text(json.dumps(records))


def load(root: Path) -> Collection:
    return thyroidxl.load(root, silent)


def test_image_mask_grade_and_patient_belong_together(tmp_path: Path) -> None:
    collection = load(write(tmp_path))
    assert len(collection.cases) == 26
    case = next(c for c in collection.cases if c.name == "00000003_2201CE11_1")
    assert case.patient == "00000003"
    assert collection.grades[case.readings[0].category or 0] == "TR4"
    mask = case.readings[0].mask
    assert mask is not None
    assert mask.sum() == 18 * 22
    assert case.image[mask].mean() > case.image[~mask].mean() + 80
    assert {c.patient for c in collection.cases if c.part == "test"} == {
        "00000010", "00000011", "00000012"
    }  # fmt: skip
    assert count(collection, "patients") == 13
    assert not collection.problems


def test_records_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path)

    def edit(records: dict[str, Any]) -> None:
        del records["00000000"]
        records["00000001"]["nodule_1"]["TIRADS"] = 6
        records["00000002"]["nodule_1"] = None
        records["00000003"]["images"] = "00000003_2201CE10_0.png"  # no list
        records["00000004"]["images"][0] = "../../secret.png"
        records["00000010"]["images"] += records["00000009"]["images"]  # in both parts
        del records["00000009"]

    change(root, edit)
    (root / "train" / "masks" / "00000005_2201CE10_0.png").unlink()
    (root / "train" / "masks" / "00000002_2201CE10_0.png").unlink()
    collection = load(root)
    assert count(collection, "images without a record") == 5
    assert count(collection, "categories outside the scale") == 2
    assert count(collection, "images without a category") == 2 + 2 + 1 + 2 + 1
    assert count(collection, "images without a mask") == 1
    assert count(collection, "images with neither") == 1
    assert count(collection, "records of an image that is not there") == 1
    assert count(collection, "patients in both parts") == 1
    assert {c.patient for c in collection.cases if c.name.startswith("00000000")} == {"00000000"}
    [problem] = collection.problems
    assert "patient 00000003: images: " in problem
    assert "\n" not in problem


def test_an_image_of_two_patients_is_left_out(tmp_path: Path) -> None:
    """Whose it is nobody knows, and a split must not divide a patient."""
    root = write(tmp_path)
    twice = "00000001_2201CE10_0.png"
    change(root, lambda records: records["00000009"]["images"].append(twice))
    collection = load(root)
    [problem] = collection.problems
    assert f"{twice} is listed for patients 00000001 and 00000009: left out" in problem
    assert twice.removesuffix(".png") not in {case.name for case in collection.cases}
    assert count(collection, "images of two patients") == 1
    assert count(collection, "records of an image that is not there") == 0
    assert len(collection.cases) == 25


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"a": '])
def test_a_broken_table_is_one_line(tmp_path: Path, text: str) -> None:
    root = write(tmp_path, 2, 1)
    (root / TABLE).write_text(text)
    with pytest.raises(DataError, match=r"id2info_eng\.json: is no JSON object") as error:
        load(root)
    assert "\n" not in str(error.value)


def test_another_layout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no ThyroidXL folder.*found: nothing"):
        load(tmp_path)
    with pytest.raises(DataError, match="found: no folder"):
        load(tmp_path / "absent")
    root = write(tmp_path / "XL", 2, 1)
    assert load(tmp_path).fingerprint == load(root).fingerprint  # found one folder down
    (root / TABLE).rename(root / "stats" / "id2info_eng_clean.json")
    assert len(load(root).cases) == 6
    (root / "stats" / "id2info_eng_clean.json").unlink()
    with pytest.raises(DataError, match="found: stats, test, train"):
        load(root)


def test_it_trains_and_shows_itself(mtbench: Mtbench, tmp_path: Path) -> None:
    root = write(tmp_path / "xl", 20, 3)
    broken = root / "train" / "images" / "00000006_2201CE10_0.png"
    broken.write_bytes(broken.read_bytes()[:300])
    line = ("--source", "thyroidxl", "--data", root)
    for result in trained(mtbench, tmp_path / "out", *line):
        assert sum(result["notes"]["images"]) == 45
        assert result["notes"]["patients"][2] == 3
        assert broken.name in result["notes"]["problems"][0]
    text = shown(mtbench, tmp_path / "preview.png", "thyroidxl", "--data", root)
    assert "categories outside the scale" in text
