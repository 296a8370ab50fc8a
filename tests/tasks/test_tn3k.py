"""TN3K, on folders of its published layout that are written here."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from mtbench.errors import DataError
from mtbench_tasks._lesion import source as source_module
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks._lesion.splits import split_patients
from mtbench_tasks.thyroid import Thyroid, tn3k
from tests.tasks.sources import SMALL, Mtbench, count, shown, silent, trained


def write(root: Path, trainval: int = 30, test: int = 8) -> Path:
    """A folder as published: grey JPEG, a mask under the same name, a table without a header."""
    rng = np.random.default_rng(0)
    for part, size in (("trainval", trainval), ("test", test)):
        for kind in ("image", "mask"):
            (root / f"{part}-{kind}").mkdir(parents=True)
        lines = []
        for number in range(size):
            label = number % 3 == 0
            pixels = rng.integers(60, 90, (60, 80), dtype=np.uint8)
            mask = np.zeros((60, 80), np.uint8)
            top, left = rng.integers(5, 30, 2)
            down, across = np.ogrid[:60, :80]
            inside = ((down - top - 10) / 10) ** 2 + ((across - left - 12) / 12) ** 2 < 1
            mask[inside] = 255
            pixels[mask > 0] += np.uint8(40 + 80 * label)
            name = f"{number:04d}.jpg"
            Pil.fromarray(pixels).save(root / f"{part}-image" / name)
            Pil.fromarray(mask).save(root / f"{part}-mask" / name)
            lines.append(f"{name},{int(label)}")
        (root / f"label4{part}.csv").write_text("\n".join(lines) + "\n")
    return root


def load(root: Path) -> Collection:
    return tn3k.load(root, silent)


def test_image_mask_and_label_belong_together(tmp_path: Path) -> None:
    collection = load(write(tmp_path))
    assert len(collection.cases) == 38
    assert len({case.patient for case in collection.cases}) == 38  # 0000.jpg is there twice
    by_name = {case.name: case for case in collection.cases}
    for name, label in (("trainval/0003", 1), ("test/0004", 0)):
        case = by_name[name]
        assert case.image.shape == (60, 80)
        [reading] = case.readings
        assert reading.category == label
        assert reading.mask is not None
        assert reading.mask.sum() == pytest.approx(369, abs=12)  # JPEG blurs the edge
        assert case.image[reading.mask].mean() > case.image[~reading.mask].mean() + 30
        assert (case.part == "test") is name.startswith("test")
    assert (count(collection, "benign"), count(collection, "malignant")) == (25, 13)
    assert count(collection, "images of the test part") == 8
    assert not collection.problems


def test_labels_that_name_no_image_are_told(tmp_path: Path) -> None:
    """Else the category would silently not be learnt."""
    root = write(tmp_path)
    for part in tn3k.PARTS:
        table = root / f"label4{part}.csv"
        lines = table.read_text().splitlines()
        table.write_text("\n".join(str(int(line[:4])) + line[4:] for line in lines))  # 3.jpg
    source = Thyroid.sources["tn3k"]
    [doubt] = source_module.load("tn3k", source, root, silent).doubts
    assert doubt.startswith(f"{root}: no case has a category: are columns and files")


def test_nothing_is_decoded_or_held(tmp_path: Path) -> None:
    write(tmp_path)
    case = load(tmp_path).cases[0]
    assert callable(case.pixels)
    assert callable(case.readings[0].contour)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(case)).image, case.image)


def test_the_fingerprint_is_of_the_content_not_the_place(tmp_path: Path) -> None:
    first = load(write(tmp_path / "a" / "tn3k")).fingerprint
    assert load(write(tmp_path / "b")).fingerprint == first
    assert load(tmp_path / "a").fingerprint == first  # found one folder down
    image = tmp_path / "b" / "test-mask" / "0001.jpg"
    image.write_bytes((tmp_path / "b" / "test-mask" / "0002.jpg").read_bytes())
    assert load(tmp_path / "b").fingerprint != first
    table = tmp_path / "a" / "tn3k" / "label4test.csv"
    table.write_text(table.read_text().replace("0001.jpg,0", "0001.jpg,1"))
    assert load(tmp_path / "a").fingerprint != first


def test_what_lacks_its_partner_is_counted(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "trainval-mask" / "0000.jpg").unlink()
    (root / "trainval-mask" / "0001.jpg").unlink()
    (root / "test-image" / "0002.jpg").unlink()
    table = root / "label4trainval.csv"
    lines = table.read_text().splitlines()
    lines[1] = "0001.jpg,2"  # neither label nor mask are left of it
    lines[2] = "0002.jpg"
    lines[3] = "0004.jpg,1"  # 0003.jpg is not named, 0004.jpg twice, and not alike
    table.write_text("\n".join(lines))
    collection = load(root)
    assert count(collection, "images without a mask") == 1
    assert count(collection, "images with neither") == 1
    assert count(collection, "images without a label") == 2
    assert count(collection, "labels without an image") == 1
    assert count(collection, "masks without an image") == 1
    assert count(collection, "images used") == 36
    for line, problem in zip((2, 3, 5), collection.problems, strict=True):
        assert f"label4trainval.csv line {line}: " in problem
        assert "\n" not in problem


def test_the_published_test_part_is_the_test_whatever_the_seed(tmp_path: Path) -> None:
    cases = load(write(tmp_path)).cases
    splits = [split_patients(cases, np.random.default_rng(seed)) for seed in range(5)]
    for train, val, test in splits:
        assert [cases[i].name for i in test] == [c.name for c in cases if c.part == "test"]
        assert sorted(train + val) == list(range(30))
        assert 3 <= len(val) <= 9  # about a fifth
    assert len({tuple(val) for _, val, _ in splits}) == 5


def test_another_layout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no TN3K folder.*missing: trainval-image, "):
        load(tmp_path)
    root = write(tmp_path, 3, 3)
    (root / "label4test.csv").unlink()
    with pytest.raises(DataError, match=r"missing: label4test\.csv$"):
        load(root)


def test_it_trains_and_shows_itself(mtbench: Mtbench, tmp_path: Path) -> None:
    root = write(tmp_path / "tn3k", 18, 5)
    (root / "trainval-image" / "0005.jpg").write_text("no picture")
    twin = (root / "trainval-image" / "0007.jpg").read_bytes()
    (root / "test-image" / "0003.jpg").write_bytes(twin)  # it straddles the published parts
    line = ("--source", "tn3k", "--data", root)
    for result in trained(mtbench, tmp_path / "out", *line):
        train, val, test = result["notes"]["images"]
        assert (train + val, test) == (16, 6)  # 0005 left out, 0007 goes to its twin
        assert result["notes"]["left out"] == 1
        assert "0005.jpg" in result["notes"]["problems"][0]
    text = shown(mtbench, tmp_path / "preview.png", "tn3k", "--data", root)
    assert "images of the test part" in text
    code, out, err = mtbench("data", "verify", "tn3k", "--data", root)
    assert (code, out.count("\n")) == (2, 3)
    assert "0005.jpg" in out
    assert "0007 and test/0003 look like one image" in out
    strict = ("-m", "ew", "--set", "strict=true", "--out", tmp_path / "strict")
    code, _, err = mtbench("run", *line, *SMALL, *strict)
    assert (code, err.count("\n")) == (2, 1)
    assert "0005.jpg" in err
