"""AIMI's cine-clips, on HDF5 files of the published layout that are written here."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from mtbench.errors import DataError, UsageError
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks.thyroid import Thyroid, aimi
from tests.tasks.sources import Mtbench, count, shown, silent, trained

COLUMNS = "annot_id,age,sex,location,size_x,size_y,size_z,ti-rads_level,histopath_diagnosis"
CLIPS = ("1_", "2_1", "2_2", *(f"{patient}_" for patient in range(3, 20)))


def write(root: Path, clips: tuple[str, ...] = CLIPS, length: int = 7) -> Path:
    """Clips of `length` frames, stored last frame first; each frame's level tells its number."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, masks, ids, numbers, lines = [], [], [], [], [COLUMNS]
    for c, clip in enumerate(clips):
        for number in reversed(range(length)):
            pixels = rng.integers(10 * number, 10 * number + 10, (40, 50), dtype=np.uint8)
            mask = np.zeros((40, 50), np.uint8)
            top, left = rng.integers(4, 16, 2)
            mask[top : top + 16, left : left + 18] = 255
            pixels[mask > 0] += np.uint8(40 * (c % 3) + 20)
            images.append(pixels)
            masks.append(mask)
            ids.append(clip)
            numbers.append(number)
        lines.append(f"{clip},50,Female,left,1.2,0.9,1.0,{c % 3 + 1}{'.0' * (c % 2)},{c % 2}")
    with h5py.File(root / "dataset.hdf5", "w") as store:
        store["image"], store["mask"] = np.stack(images), np.stack(masks)
        store["annot_id"] = np.array(ids, dtype=object).astype(h5py.string_dtype())
        store["frame_num"] = np.array(numbers)
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def replace(root: Path, name: str, value: object) -> None:
    with h5py.File(root / "dataset.hdf5", "r+") as store:
        del store[name]
        if value is not None:
            store[name] = value


def load(root: Path, frames: int = aimi.FRAMES) -> Collection:
    return aimi.load(root, silent, frames)


def test_frames_masks_and_levels_belong_together(tmp_path: Path) -> None:
    collection = load(write(tmp_path), frames=3)
    assert len(collection.cases) == 20 * 3
    assert {c.patient for c in collection.cases} == {str(n) for n in range(1, 20)}
    clip = [c for c in collection.cases if c.name.startswith("2_2/")]
    # Of 7 frames in three parts the middles, in the order of the clip and not of the file.
    assert [int(np.median(c.image)) // 10 for c in clip] == [1, 3, 5]
    for case in clip:
        [reading] = case.readings
        assert collection.grades[reading.category or 0] == "TR3"
        assert reading.mask is not None
        assert reading.mask.sum() == 16 * 18
        assert case.image[reading.mask].mean() > case.image[~reading.mask].mean() + 60
    assert count(collection, "frames found") == 140
    assert count(collection, "patients") == 19
    assert len({case.name for case in collection.cases}) == 60


def test_a_short_clip_gives_all_its_frames(tmp_path: Path) -> None:
    assert len(load(write(tmp_path, length=2), frames=5).cases) == 20 * 2
    with pytest.raises(UsageError, match="frames must be at least 1"):
        Thyroid(source="aimi", data=tmp_path, frames=0)


def test_few_frames_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path)
    read: list[int] = []
    get = h5py.Dataset.__getitem__

    def counted(self: h5py.Dataset, at: object) -> object:
        found = get(self, at)
        if self.name in ("/image", "/mask"):
            read.append(np.size(found))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    collection = load(root)
    assert read == [40 * 50] * 2 * len(CLIPS)  # one image and mask a clip, for the fingerprint
    read.clear()
    assert collection.cases[0].readings[0].mask is not None
    assert read == [40 * 50]


def test_the_fingerprint_is_of_content_and_frames(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    first = load(root).fingerprint
    assert load(write(tmp_path / "b")).fingerprint == first
    assert load(root, frames=2).fingerprint != first
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace("1.0,1,", "1.0,2,"))
    assert load(root).fingerprint != first


def test_what_lacks_its_partner_is_counted(tmp_path: Path) -> None:
    root = write(tmp_path)
    table = root / "metadata.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].replace("1_,", "99_,")
    lines[2] = lines[2].replace(",2.0,", ",,")
    table.write_text("\n".join(lines))
    collection = load(root)
    assert count(collection, "clips without a category") == 2
    assert count(collection, "nodules without a clip") == 1
    assert sum(count(collection, f"clips of TR{n}") for n in range(1, 6)) == 18


def test_a_clip_of_two_categories_is_ungraded(tmp_path: Path) -> None:
    root = write(tmp_path)
    table = root / "metadata.csv"
    lines = table.read_text().splitlines()
    other = lines[1].replace(",1,", ",5,")
    said = [lines[2], lines[3].replace(",3.0,", ",,").replace(",3,", ",,")]  # again, or not
    table.write_text("\n".join([*lines, *said, other, lines[1], other]))
    collection = load(root)
    [problem] = collection.problems
    assert "1_ has several categories" in problem
    assert {c.readings[0].category for c in collection.cases if c.name.startswith("1_/")} == {None}
    assert count(collection, "clips without a category") == 1


def test_another_form_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing: dataset\.hdf5, metadata\.csv"):
        load(tmp_path)
    root = write(tmp_path)
    for name, value, said in (
        ("frame_num", np.full(140, b"first"), "frame_num whole numbers"),
        ("frame_num", np.arange(139), r"frame_num \(139,\)"),
        ("annot_id", np.arange(140), "annot_id must be text"),
        ("image", np.zeros((140, 40, 50, 3), np.uint8), r"image \(140, 40, 50, 3\)"),
        ("mask", np.zeros((140, 40, 50), np.float32), "float32"),
        ("mask", None, r"must hold image and mask .*found: image"),
    ):
        write(tmp_path)
        replace(root, name, value)
        with pytest.raises(DataError, match=said) as error:
            load(root)
        assert "\n" not in str(error.value)
    (root / "dataset.hdf5").write_text("no HDF5")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load(root)
    (root / "metadata.csv").write_text("annot_id,level\n1_,4\n")
    with pytest.raises(DataError, match="ti-rads_level, found: annot_id, level"):
        load(root)


def test_it_trains_and_shows_itself(mtbench: Mtbench, tmp_path: Path) -> None:
    root = write(tmp_path / "clips")
    with h5py.File(root / "dataset.hdf5", "r+") as store:
        store["mask"][3] = 0  # the middle frame of the first clip
    line = ("--source", "aimi", "--data", root, "--frames", 1)
    for result in trained(mtbench, tmp_path / "out", *line):
        assert sum(result["notes"]["images"]) == 19
        assert sum(result["notes"]["patients"]) == 18
        assert "frame 3 marks no pixel" in result["notes"]["problems"][0]
    text = shown(mtbench, tmp_path / "preview.png", "aimi", "--data", root)
    assert "evenly spaced" in text
