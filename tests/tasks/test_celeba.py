"""CelebA: the layouts as published and as Kaggle has it, broken images, whole runs."""

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtbench.errors import DataError
from mtbench_tasks import _faces, _photos
from mtbench_tasks._faces import ATTRIBUTES, Faces
from mtbench_tasks.celeba import Attributes, CelebA, Encoder
from tests.refusals import refused

COUNT = 40
PARTS = [0] * 24 + [1] * 8 + [2] * 8
SMALL = ("--image-size", 8, "--width", 2, "--batch-size", 12, "--threads", 1)


def labels() -> np.ndarray:
    return np.where(np.random.default_rng(0).random((COUNT, 40)) < 0.4, 1, -1)


def names() -> list[str]:
    return [f"{i:06d}.jpg" for i in range(1, COUNT + 1)]


def write_images(folder: Path) -> None:
    """Images of one colour each, which a resize keeps."""
    folder.mkdir(parents=True)
    for i, name in enumerate(names()):
        Image.new("RGB", (178, 218), (5 * i, 100, 200 - 5 * i)).save(folder / name, quality=95)


def published(folder: Path) -> Path:
    write_images(folder / "img_align_celeba")
    lines = [
        f"{name} {' '.join(f'{x:2d}' for x in row)}"
        for name, row in zip(names(), labels(), strict=True)
    ]
    head = [str(COUNT), " ".join(ATTRIBUTES) + " "]
    (folder / "list_attr_celeba.txt").write_text("\n".join([*head, *lines, ""]))
    parts = [f"{name} {part}" for name, part in zip(names(), PARTS, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join([*parts, ""]))
    return folder


def kaggle(folder: Path) -> Path:
    write_images(folder / "img_align_celeba" / "img_align_celeba")
    head = ",".join(["image_id", *ATTRIBUTES])
    lines = [",".join([name, *map(str, row)]) for name, row in zip(names(), labels(), strict=True)]
    (folder / "list_attr_celeba.csv").write_text("\n".join([head, *lines, ""]))
    parts = [f"{name},{part}" for name, part in zip(names(), PARTS, strict=True)]
    text = "\n".join(["image_id,partition", *parts, ""])
    (folder / "list_eval_partition.csv").write_text(text)
    return folder


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def loaded(folder: Path, *, strict: bool = False) -> Faces:
    return _faces.load(folder, 8, strict, silent)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("celeba"))


def test_faces_have_their_pixels_attributes_and_part(whole: Path) -> None:
    faces = loaded(whole)
    assert faces.pixels.shape == (COUNT, 8, 8, 3)
    assert np.array_equal(faces.labels, labels() == 1)
    assert faces.parts.tolist() == PARTS
    assert (faces.broken, faces.unlisted) == ((), 0)
    for i in (0, 17, 39):
        expected = np.array([5 * i, 100, 200 - 5 * i])
        assert np.abs(faces.pixels[i].astype(int) - expected).max() <= 4  # JPEG


def test_three_layouts_are_one_dataset(whole: Path, tmp_path: Path) -> None:
    other = kaggle(tmp_path / "kaggle")
    official = tmp_path / "official"
    shutil.copytree(whole / "img_align_celeba", official / "Img" / "img_align_celeba")
    for folder, name in (("Anno", "list_attr_celeba"), ("Eval", "list_eval_partition")):
        (official / folder).mkdir()
        shutil.copy(whole / f"{name}.txt", official / folder)
    found = {loaded(folder).fingerprint for folder in (whole, other, official)}
    assert len(found) == 1


def test_the_fingerprint_is_of_the_content(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "same")
    before = loaded(tmp_path / "same").fingerprint
    assert before == loaded(whole).fingerprint
    Image.new("RGB", (178, 218)).save(tmp_path / "same" / "img_align_celeba" / "000003.jpg")
    changed = loaded(tmp_path / "same").fingerprint
    assert changed != before
    table = tmp_path / "same" / "list_eval_partition.txt"
    table.write_text(table.read_text().replace("000001.jpg 0", "000001.jpg 1"))
    assert loaded(tmp_path / "same").fingerprint not in (before, changed)


def test_decoding_is_done_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loaded(whole)
    monkeypatch.setattr(_photos, "_write", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(loaded(whole).pixels, first.pixels)


def test_a_broken_file_of_the_cache_is_made_anew(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTBENCH_CACHE", str(tmp_path))
    first = np.array(loaded(whole).pixels)
    [file] = tmp_path.iterdir()
    for left in (b"", file.read_bytes()[:-7], file.read_bytes()[:999], None):
        file.unlink() if left is None else file.write_bytes(left)
        assert np.array_equal(loaded(whole).pixels, first)


def test_an_image_that_could_not_be_read_once_is_not_broken_for_ever(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a share did not hand over: neither size nor time has changed since."""
    monkeypatch.setenv("MTBENCH_CACHE", str(tmp_path))
    read = Path.read_bytes

    def refusing(self: Path) -> bytes:
        if self.name == names()[3]:
            raise OSError("input/output error")
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refusing)
        for _ in range(2):
            assert len(loaded(whole).broken) == 1
    assert loaded(whole).broken == ()


def test_two_processes_may_decode_the_same_images(tmp_path: Path) -> None:
    folder = published(tmp_path)
    fingerprints = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if not fingerprints:
            fingerprints.append(loaded(folder).fingerprint)

    faces = _faces.load(folder, 8, False, meanwhile)
    assert [faces.fingerprint] == fingerprints
    assert faces.pixels.any()


def test_images_are_mapped_not_held(whole: Path) -> None:
    splits = CelebA(data=whole, image_size=8).setup(0, silent)
    assert isinstance(splits.train.pixels, np.memmap)
    batch = splits.train.batch(torch.tensor([3, 1]))
    assert batch["inputs"].shape == (2, 3, 8, 8)
    assert batch["inputs"].dtype == torch.float32
    assert batch["inputs"][0, 0, 0, 0].item() == pytest.approx(15 / 255, abs=0.02)
    assert batch["labels"][1].tolist() == (labels()[1] == 1).tolist()


def test_splits_are_the_published_ones_at_every_seed(whole: Path) -> None:
    task = CelebA(data=whole, image_size=8)
    for seed in (0, 1):
        splits = task.setup(seed, silent)
        rows = [part.rows.tolist() for part in (splits.train, splits.val, splits.test)]
        assert rows == [[*range(24)], [*range(24, 32)], [*range(32, 40)]]
        assert splits.notes == {"images": [24, 8, 8], "unlisted": 0, "broken": 0}


def test_broken_images_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = published(tmp_path / "faces")
    images = folder / "img_align_celeba"
    content = (images / "000002.jpg").read_bytes()
    (images / "000002.jpg").write_bytes(content[: len(content) // 2])
    (images / "000005.jpg").write_text("no picture")
    (images / "000007.jpg").unlink()
    (images / "stray.jpg").write_bytes(content)
    faces = loaded(folder)
    assert len(faces.parts) == COUNT - 3
    assert faces.unlisted == 2
    assert [line.split("/")[-1].split(":")[0] for line in faces.broken] == [
        "000002.jpg",
        "000005.jpg",
    ]
    assert all("\n" not in line for line in faces.broken)
    # What follows a dropped image keeps its own labels.
    assert np.array_equal(faces.labels[1], labels()[2] == 1)
    assert faces.pixels[1, 0, 0, 0] == pytest.approx(10, abs=4)
    with pytest.raises(DataError, match="2 images cannot be read"):
        loaded(folder, strict=True)
    counts = {what: count for count, what, _ in CelebA.inspect("celeba", folder)}
    assert counts == {
        "training images": "21",
        "validation images": "8",
        "test images": "8",
        "images left out": "2",
        "images dropped": "2",
    }


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = published(tmp_path / "faces")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        text = (folder / name).read_text().replace("000001.jpg", "../../secret.jpg")
        (folder / name).write_text(text)
    faces = loaded(folder)
    assert len(faces.parts) == COUNT - 1
    assert faces.unlisted == 2


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("list_attr_celeba.txt", "Smiling", "Grinning", "found no Smiling"),
        ("list_attr_celeba.txt", "000001.jpg -1", "000001.jpg  3", "-1 or 1"),
        ("list_attr_celeba.txt", "000002.jpg", "000001.jpg", "name an image once"),
        ("list_eval_partition.txt", "000001.jpg 0", "000001.jpg 7", "0, 1 or 2"),
        ("list_eval_partition.txt", "000002.jpg", "000001.jpg", "name an image once"),
    ],
)
def test_lists_that_say_something_else(
    tmp_path: Path, name: str, old: str, new: str, said: str
) -> None:
    folder = published(tmp_path)
    text = (folder / name).read_text()
    if name.startswith("list_attr"):
        text = text.replace("000001.jpg  1", "000001.jpg -1")
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=said):
        loaded(folder)


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="img_align_celeba"):
        loaded(tmp_path)
    folder = published(tmp_path / "faces")
    (folder / "list_eval_partition.txt").rename(folder / "parts.txt")
    with pytest.raises(DataError, match=r"list_eval_partition\.txt or \.csv"):
        loaded(folder)
    (folder / "list_eval_partition.txt").write_text("other.jpg 0\n")
    with pytest.raises(DataError, match="none of the 0 images"):
        loaded(folder)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published(tmp_path)
    monkeypatch.setattr(_photos.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(DataError, match="MTBENCH_CACHE"):
        loaded(folder)


def test_metrics_by_hand() -> None:
    meter = Attributes()
    said = torch.tensor([1.0, 1, 1, -1, -1])
    true = torch.tensor([1.0, 1, 0, 1, 0])
    outputs = [said, *[torch.full((5,), -1.0)] * 39]
    meter.update(
        [o[:2] for o in outputs], {"labels": torch.zeros(2, 40).index_fill(1, torch.tensor([0]), 1)}
    )
    rest = torch.zeros(3, 40)
    rest[:, 0] = true[2:]
    meter.update([o[2:] for o in outputs], {"labels": rest})
    found = meter.compute()
    assert found[f"f1_{ATTRIBUTES[0]}"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found[f"accuracy_{ATTRIBUTES[0]}"] == pytest.approx(3 / 5)
    assert np.isnan(found[f"f1_{ATTRIBUTES[1]}"])  # nobody has it, and nobody is said to
    assert found[f"accuracy_{ATTRIBUTES[1]}"] == 1


def test_the_network_is_the_published_one() -> None:
    # 3 x 3 convolutions 3-64-128-128-256-256-512-512, linear 512-512-512, without biases; two
    # numbers a channel of batch normalisation.
    sizes = (3, 64, 128, 128, 256, 256, 512, 512)
    expected = sum(9 * a * b + 2 * b for a, b in pairwise(sizes))
    expected += 2 * (512 * 512 + 2 * 512)
    encoder = Encoder(64)
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert encoder(torch.zeros(2, 3, 64, 64))[0].shape == (2, 512)


def test_metrics_and_objectives_belong_together() -> None:
    task = CelebA()
    primary = [metric.objective for metric in task.metrics.values() if metric.primary]
    assert primary == list(task.objectives)


def test_runs_to_a_finished_record(whole: Path, tmp_path: Path, mtbench: Any) -> None:
    code, out, err = mtbench(
        "run", "--task", "celeba", "--data", whole, "-m", "rlar",
        "--epochs", 1, *SMALL, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert len([*tmp_path.glob("celeba/rlar/seed0-*/result.json")]) == 1
    assert "images [24, 8, 8]" in out


def test_preview_and_refusals(whole: Path, tmp_path: Path, mtbench: Any) -> None:
    picture = tmp_path / "faces.png"
    CelebA.preview("celeba", whole, picture)
    with Image.open(picture) as drawn:
        assert drawn.width > 1000
    inspect = ("data", "inspect", "faces", "--task", "celeba", "--data", whole)
    refused(mtbench(*inspect), "task celeba has no source 'faces'")
    start = ("run", "--task", "celeba", "--method", "ew", "--out", tmp_path)
    refused(mtbench(*start), "--data")
    refused(mtbench(*start, "--image-size", 4), "image_size", "found 4")
    refused(mtbench(*start, "--data", tmp_path), "img_align_celeba")
