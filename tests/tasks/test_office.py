"""Office-31 and Office-Home: the folders as published, whole runs on made-up ones."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtbench.errors import DataError, UsageError
from mtbench.testing import TaskContract
from mtbench.training.task import Splits
from mtbench_tasks._photos import _read_all as read_all
from mtbench_tasks.office import CLASSES, DOMAINS, Office
from tests.refusals import refused

FOLDERS = {
    "office31": ["amazon/images", "dslr/images", "webcam/images"],
    "office_home": ["Art", "Clipart", "Product", "Real World"],
}
COUNTS = [5, 5, 2, 2]
"""Photos of each class, by domain."""


def write(folder: Path, collection: str) -> Path:
    """Write photos of one colour each, which says what they are of."""
    for domain, (place, count) in enumerate(zip(FOLDERS[collection], COUNTS, strict=False)):
        for label in range(CLASSES[collection]):
            inner = folder / place / f"class_{label:02d}"
            inner.mkdir(parents=True)
            for i in range(count):
                Image.new(
                    "RGB", (20, 10), (60 * domain, 255 // CLASSES[collection] * label, 40 * i)
                ).save(inner / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Office]:
    folder = write(tmp_path_factory.mktemp("contract"), "office31")

    def make() -> Office:
        task = Office(data=folder, image_size=32, width=4)
        task.recipe = dataclasses.replace(task.recipe, lr=1e-2)  # learns within seconds
        return task

    return make


@pytest.fixture(scope="module", params=sorted(DOMAINS))
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> partial[Office]:
    folder = write(tmp_path_factory.mktemp(request.param), request.param)
    return partial(Office, data=folder, collection=request.param, image_size=32, width=2)


def setup(task: Office, seed: int = 0) -> Splits:
    return task.setup(seed, lambda *_: None)


class TestOfficeContract(TaskContract):
    @pytest.fixture
    def make(self, maker: Callable[[], Office]) -> Callable[[], Office]:
        return maker


def colours(task: Office, part: str, seed: int = 0) -> dict[str, set[tuple[int, ...]]]:
    """Return the photos of each domain, by their colours, labels held against them."""
    split, classes = getattr(setup(task, seed), part), task.classes
    batch = split.batch(torch.arange(len(split)))
    found = {}
    for domain, (name, inputs) in enumerate(zip(task.objectives, batch["inputs"], strict=True)):
        values = (255 * inputs[:, :, 0, 0]).round().long()
        assert (values[:, 0] == 60 * domain).all()
        assert torch.equal(values[:, 1], 255 // classes * batch[name])
        found[name] = {tuple(row) for row in values.tolist()}
    return found


def test_photos_have_their_domain_and_class_and_lie_in_one_split(made: partial[Office]) -> None:
    task = made()
    parts = [colours(task, part) for part in ("train", "val", "test")]
    for domain, name in enumerate(task.objectives):
        count = COUNTS[domain] * task.classes
        sizes = [len(part[name]) for part in parts]
        assert sum(sizes) == len(set.union(*(part[name] for part in parts))) == count
        assert sizes[2] == -(-count // 5)
    assert colours(task, "test", seed=1) == parts[2]
    assert colours(task, "val", seed=1) != parts[1]


def test_threads_read_photos_in_their_order(
    maker: Callable[[], Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = maker().data
    assert folder is not None
    files = sorted(folder.rglob("*.*"))
    assert len(files) > 48  # three batches of a thread
    found = []
    for count in ("1", "4"):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", count)
        found.append(repr([(digest, pixels.tolist()) for digest, pixels in read_all(files, 8)]))
    assert found[0] == found[1]


def test_photos_are_upright_and_of_16_bits_in_full_range(tmp_path: Path) -> None:
    wide = np.tile(np.arange(0, 60_000, 2_000, dtype=np.uint16), (30, 1))
    Image.fromarray(wide).save(tmp_path / "grey.png")
    (exif := Image.Exif())[274] = 6  # turned by a quarter
    colour = Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    colour.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    (_, grey), (_, turned) = read_all([tmp_path / "grey.png", tmp_path / "turned.jpg"], 30)
    assert np.array_equal(grey[..., 0], wide >> 8)
    assert np.abs(np.asarray(turned, int)[..., 0] - (wide >> 8).T).max() < 9  # JPEG


def test_training_photos_are_mirrored_by_half(made: partial[Office]) -> None:
    split = setup(made()).train
    split.by_objective["amazon" if "amazon" in split.by_objective else "art"].pixels = (
        torch.arange(32, dtype=torch.uint8)
        .expand(999, 32, 32)
        .unsqueeze(3)
        .expand(-1, -1, -1, 3)
        .numpy()
    )
    batch = split.batch(torch.arange(40), torch.Generator().manual_seed(0))
    ends = (255 * batch["inputs"][0][:, 0, 0, 0]).round().tolist()
    assert set(ends) == {0.0, 31.0}


def test_what_is_no_collection_is_told(tmp_path: Path) -> None:
    def refused(message: str, **given: Any) -> None:
        with pytest.raises(DataError, match=message):
            setup(Office(image_size=32, **given))

    refused("needs --data PATH")
    refused("is no folder", data=tmp_path / "nowhere")
    folder = write(tmp_path / "office", "office31")
    refused("for each of art, clipart, .* found no art", data=folder, collection="office_home")
    (folder / "webcam/images/another").mkdir()
    refused("must hold the classes of .*amazon/images, differs in another", data=folder)
    for place in ("amazon", "dslr"):
        (folder / place / "images/another").mkdir()
    refused("must hold 31 folders, one a class, found 32", data=folder)


def test_a_domain_of_a_few_photos_is_refused_and_an_empty_class_is_not(tmp_path: Path) -> None:
    folder = write(tmp_path, "office31")
    photos = sorted((folder / "webcam/images").rglob("*.png"))
    for photo in (folder / "dslr/images/class_03").iterdir():
        photo.unlink()
    assert setup(Office(data=folder, image_size=32)).notes["broken"] == 0
    for photo in photos[2:]:
        photo.unlink()
    with pytest.raises(DataError, match="take a photo of webcam each, found 2 that can be read"):
        setup(Office(data=folder, image_size=32))


def test_a_broken_photo_is_dropped_or_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "office31")
    (folder / "dslr/images/class_03/0.png").write_text("no image")
    assert setup(Office(data=folder, image_size=32)).notes["broken"] == 1
    with pytest.raises(DataError, match=r"1 images cannot be read \(strict\); .*class_03/0.png"):
        setup(Office(data=folder, image_size=32, strict=True))


def test_the_fingerprint_is_of_the_classes_and_copies_over_the_parts_are_told(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path, "office31") / "amazon/images"
    before = setup(task := Office(data=tmp_path, image_size=32))
    (folder / "class_03/4.png").rename(folder / "class_04/-.png")  # the order stays
    assert setup(task).fingerprint != before.fingerprint
    assert "looks odd" not in before.notes
    photos = sorted(folder.rglob("*.png"))
    for photo in photos:
        photo.write_bytes(photos[0].read_bytes())
    assert setup(task).notes["looks odd"].startswith("31 photos are tested that are byte-equal")


def test_a_folder_is_inspected(tmp_path: Path, mtbench: Any) -> None:
    folder = write(tmp_path, "office_home")
    (folder / "Clipart/class_03/0.png").write_text("no image")
    line = ("data", "inspect", "office", "--task", "office", "--data", folder)
    code, out, _ = mtbench(*line, "--collection", "office_home")
    assert code == 0
    for domain, count in zip(DOMAINS["office_home"], (325, 324, 130, 130), strict=True):
        assert f"{count} │ photos of {domain} " in out
    assert "1 │ photos dropped" in out
    assert "class_03/0.png" in "".join(out.split("│"))
    refused(mtbench(*line), "for each of amazon, dslr, webcam, found no amazon")
    refused(mtbench(*line[:2], "ofice", *line[3:]), "task office has no source 'ofice'")


@pytest.mark.parametrize("given", [{"image_size": 31}, {"width": 0}, {"fold": 5}])
def test_refuses(given: Any) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(given))} must be"):
        Office(**given)


def test_parameters_are_called_as_torchvision_calls_them() -> None:
    names = {name.removeprefix("body.") for name in Office(width=2).model().encoder.state_dict()}
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight"} <= names
    assert "layer4.1.bn2.bias" in names
    assert len([name for name in names if name.endswith("weight")]) == 40  # of 41, but fc's
