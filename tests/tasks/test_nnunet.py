"""nnU-Net's folder layout: what is written is read back, and what others wrote is read."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtbench.errors import DataError
from mtbench_tasks._lesion import manifest, nnunet
from mtbench_tasks._lesion.cases import Case, Collection, Reading
from tests.conftest import Mtbench
from tests.refusals import refused
from tests.tasks.sources import silent

GRADES = ("TR1", "TR2", "TR3", "TR4", "TR5")


def box(top: int) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[top : top + 20, 30:55] = True
    return mask


def cases() -> list[Case]:
    """Two readers, one, one in the test, one of the same name in other letters, and no mask."""
    rng = np.random.default_rng(0)
    two = (Reading("a", box(10), 2), Reading("b", box(11), 3))
    readings = [two, two[:1], two[:1], two[1:], (Reading("a", None, 1),)]
    names = ("s/1.png", "s/2.png", "t 3", "S 1 PNG", "none")
    return [
        Case(name, f"P{i}", rng.integers(0, 255, (60, 80), np.uint8), said, spacing=0.1,
             part="test" if name == "t 3" else None)
        for i, (name, said) in enumerate(zip(names, readings, strict=True))
    ]  # fmt: skip


def by_patient(collection: Collection) -> dict[str, Case]:
    return {case.patient: case for case in collection.cases}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    assert nnunet.write(cases(), GRADES, tmp_path) == (4, ["none: has no mask: left out"])
    index = json.loads((tmp_path / "dataset.json").read_text())
    assert index == {
        "channel_names": {"0": "ultrasound"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 3,
        "file_ending": ".png",
    }
    files = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.png")}
    assert files == {
        "imagesTr/s-1-png_0000.png", "labelsTr/s-1-png.png",
        "imagesTr/s-2-png_0000.png", "labelsTr/s-2-png.png",
        "imagesTr/S-1-PNG-2_0000.png", "labelsTr/S-1-PNG-2.png",  # no file system folds them
        "imagesTs/t-3_0000.png", "labelsTs/t-3.png",
    }  # fmt: skip
    label = np.asarray(Image.open(tmp_path / "labelsTs" / "t-3.png"))
    assert set(np.unique(label)) == {0, 1}
    found = by_patient(manifest.load(tmp_path, silent))
    assert len(found) == 4
    for case in cases()[:4]:
        back = found[case.patient]
        np.testing.assert_array_equal(back.image, case.image)
        assert (back.spacing, back.part) == (case.spacing, case.part)
        [reading] = back.readings
        if len(case.readings) == 1:
            np.testing.assert_array_equal(reading.mask, case.readings[0].mask)
            assert reading.category == case.readings[0].category
        else:
            assert reading.category == 3  # of two readers, the more suspicious
            assert reading.mask is not None
            assert reading.mask.sum() >= (box(10) & box(11)).sum()


def test_what_is_known_of_a_case_comes_back(tmp_path: Path) -> None:
    """Descriptors and columns to look at subgroups by; a column of ours is not overwritten."""
    said = {"composition": "solid", "calcifications": "none", "halo": "?", "split": "?"}
    first, second = (
        replace(case, descriptors=said if i else {},
                groups={"scanner": "A, b", "sex": "f"} if i else {"site": "x"})
        for i, case in enumerate(cases()[1:3])
    )  # fmt: skip
    nnunet.write([first, second], GRADES, tmp_path)
    found = by_patient(manifest.load(tmp_path, silent))
    assert found["P1"].groups == {"site": "x"}
    known = {"composition": "solid", "calcifications": "none", "scanner": "A, b", "sex": "f"}
    assert found["P2"].groups == known
    assert found["P2"].descriptors["calcifications"] == "none"
    assert (found["P2"].part, found["P2"].readings[0].reader) == ("test", "a")


# Thinner ones are lines, which at the image's border may be an outline.
blob = st.tuples(st.integers(4, 55), st.integers(4, 75), st.integers(4, 14), st.integers(4, 14))


@given(st.lists(blob, min_size=1, max_size=4))
def test_masks_come_back_to_the_pixel(blobs: list[tuple[int, int, int, int]]) -> None:
    y, x = np.indices((60, 80))
    mask = np.zeros((60, 80), bool)
    for row, column, high, wide in blobs:
        mask |= ((y - row) / high) ** 2 + ((x - column) / wide) ** 2 < 1
    case = replace(cases()[1], readings=(Reading("a", mask, 1),))
    with tempfile.TemporaryDirectory() as folder:
        nnunet.write([case], GRADES, Path(folder))
        for table in (Path(folder) / "cases.csv", Path(folder) / "dataset.json"):
            [back] = manifest.load(table, silent).cases
            np.testing.assert_array_equal(back.readings[0].mask, mask)
            np.testing.assert_array_equal(back.image, case.image)


def test_a_folder_without_our_table_is_read_by_its_layout(tmp_path: Path) -> None:
    nnunet.write(cases(), GRADES, tmp_path)
    (tmp_path / "cases.csv").unlink()
    collection = manifest.load(tmp_path, silent)
    assert [case.name for case in collection.cases] == [
        "imagesTr/S-1-PNG-2_0000.png", "imagesTr/s-1-png_0000.png", "imagesTr/s-2-png_0000.png",
        "imagesTs/t-3_0000.png",
    ]  # fmt: skip
    assert [case.part for case in collection.cases] == [None, None, None, "test"]
    np.testing.assert_array_equal(collection.cases[3].readings[0].mask, box(10))
    assert "no patients are named" in collection.doubts[1]
    assert not collection.problems
    # An image that nobody outlined is no case; a label of another value is that label's.
    (tmp_path / "labelsTs" / "t-3.png").unlink()
    values = np.where(box(10), np.uint8(3), np.uint8(0))
    Image.fromarray(values).save(tmp_path / "labelsTr" / "s-2-png.png")
    index = {"labels": {"background": 0, "nodule": 3}, "file_ending": ".png", "channel_names": {}}
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    found = {case.name: case for case in manifest.load(tmp_path, silent).cases}
    assert len(found) == 3
    np.testing.assert_array_equal(found["imagesTr/s-2-png_0000.png"].readings[0].mask, box(10))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "is no dataset.json of nnU-Net's version 2"),
        ('{"labels": {"0": "background"}}', "is no dataset.json of nnU-Net's version 2"),
        ('{"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".png"}', "one label"),
        ('{"labels": {"background": 0, "a": [1, 2]}, "file_ending": ".png"}', "one label"),
        ('{"labels": {"background": 0, "a": -1}, "file_ending": ".png"}', "from 1 on, found"),
        ('{"labels": {"background": 0, "a": 1}, "file_ending": "**"}', "file_ending must be a dot"),
        ('{"labels": {"background": 0, "a": 1}, "file_ending": "/.png"}', "found '/.png'"),
        ('{"labels": {"background": 0, "a": 1}, "file_ending": ""}', "found ''"),
        (
            '{"labels": {"background": 0, "a": 1}, "file_ending": ".tif"}',
            "has no imagesTr",
        ),
        ('{"labels": {"background": 0, "a": 1}, "file_ending": ".png"}', "this is a second"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, index: str, said: str) -> None:
    nnunet.write(cases(), GRADES, tmp_path)
    (tmp_path / "cases.csv").unlink()
    (tmp_path / "imagesTr" / "t-3_0001.png").touch()
    (tmp_path / "dataset.json").write_text(index)
    with pytest.raises(DataError, match=said):
        manifest.load(tmp_path, silent)


def test_the_command_writes_and_the_next_one_reads(mtbench: Mtbench, tmp_path: Path) -> None:
    nnunet.write(cases(), GRADES, tmp_path / "a")
    (tmp_path / "a" / "labelsTr" / "s-2-png.png").write_text("broken")
    line = ("data", "export", "manifest", "--data", tmp_path / "a", "--to")
    refused(mtbench(*line, tmp_path / "a"), "exists already; choose an empty or a new folder")
    code, out, err = mtbench(*line, tmp_path / "b" / "c")
    assert (code, err) == (0, "")
    assert "s-2-png.png: does not decode" in out
    assert out.endswith(f"written: 3 cases to {tmp_path / 'b' / 'c'}; left out: 1\n")
    code, out, err = mtbench("data", "inspect", "manifest", "--data", tmp_path / "b" / "c")
    assert (code, err) == (0, "")
    assert "readings of TR4" in out
    refused(mtbench("data", "export", "x", "--to", tmp_path / "d", "--task", "toy"), "to export")


def test_what_could_not_be_written_is_named(mtbench: Mtbench, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image,mask,category\na.png,b.png,TR1\n")
    line = ("data", "export", "manifest", "--data", tmp_path / "c.csv", "--to", tmp_path / "n")
    refused(mtbench(*line), "no case with a mask", "first problem", "a.png: there is no such file")
