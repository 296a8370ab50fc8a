"""NYUv2 and Cityscapes, on small files in exactly the pre-processed layout."""

import dataclasses
import json
import math
import shutil
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pil
from torch import Tensor

from mtbench import Splits, Step, Task
from mtbench.errors import DataError, UsageError
from mtbench.testing import TaskContract
from mtbench_tasks._dense import deeplab, folder, losses, networks, scores, splits
from mtbench_tasks._dense.folder import Sample
from mtbench_tasks.cityscapes import Cityscapes
from mtbench_tasks.nyuv2 import NYUv2

Mtbench = Callable[..., tuple[int, str, str]]
TASKS = {"nyuv2": NYUv2, "cityscapes": Cityscapes}
SIZE = (32, 64)
COUNTS = {"train": 5, "val": 2}


def silent(what: str, done: int, total: int) -> None: ...


def write(root: Path, task: str, *, size: tuple[int, int] = SIZE, label: str = "") -> Path:
    """Write a folder: a disc of a class of its own before a wall, with all labels it would have."""
    rng = np.random.default_rng(0)
    height, width = size
    y, x = np.mgrid[:height, :width]
    for part, count in COUNTS.items():
        for i in range(count):
            centre, radius = rng.uniform(0.3, 0.7, 2) * (height, width), 0.3 * height
            dy, dx = (y - centre[0]) / radius, (x - centre[1]) / radius
            disc = dy**2 + dx**2 < 1
            bulge = np.sqrt(np.clip(1 - dy**2 - dx**2, 0, 1))
            classes = np.where(disc, 1 + i % 6, 0)
            classes[:2] = -1
            depth = np.where(disc, 2 - bulge, 3.0)[..., None]
            depth[:, :3] = 0
            normal = np.stack([disc * dx, disc * dy, np.where(disc, bulge, 1)], -1)
            normal[-2:] = 0
            arrays: dict[str, NDArray[np.generic]] = {
                "image": rng.uniform(size=(height, width, 3)).astype(np.float32),
                label or ("label" if task == "nyuv2" else "label_7"): classes,
                "depth": depth if task == "nyuv2" else (0.1 * depth).astype(np.float32),
            }
            if task == "nyuv2":
                arrays["normal"] = normal
            for name, array in arrays.items():
                (root / part / name).mkdir(parents=True, exist_ok=True)
                np.save(root / part / name / f"{i}.npy", array)
    return root


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that no test may change."""
    return {task: write(tmp_path_factory.mktemp(task), task) for task in TASKS}


@pytest.fixture
def nyuv2(published: dict[str, Path], tmp_path: Path) -> Path:
    """A folder of one's own."""
    return Path(shutil.copytree(published["nyuv2"], tmp_path / "nyuv2"))


def setup(data: Path, **given: object) -> Splits:
    return NYUv2(data=data, width=2, **given).setup(0, silent)  # type: ignore[arg-type]


def everything(split: object) -> dict[str, Tensor]:
    assert isinstance(split, splits.DenseSplit)
    return split.batch(torch.arange(len(split)))


# The folder


def test_a_batch_is_what_the_files_hold(published: dict[str, Path]) -> None:
    root = published["nyuv2"]
    batch = everything(setup(root).test)
    for i in range(2):
        for quantity, name in (("inputs", "image"), ("depth", "depth"), ("normals", "normal")):
            stored = np.load(root / "val" / name / f"{i}.npy")
            assert np.allclose(batch[quantity][i].movedim(0, -1), stored)
        label = np.load(root / "val" / "label" / f"{i}.npy")
        assert np.array_equal(batch["segmentation"][i], label)
    assert batch["segmentation"].dtype == torch.long


@pytest.mark.parametrize("label", ["label_7", "label"])
def test_cityscapes_labels_lie_in_either_folder(tmp_path: Path, label: str) -> None:
    task = Cityscapes(data=write(tmp_path, "cityscapes", label=label), width=2)
    batch = everything(task.setup(0, silent).train)
    assert batch.keys() == {"inputs", "segmentation", "depth"}
    assert set(batch["segmentation"].unique().tolist()) <= set(range(-1, 7))


def test_of_two_label_folders_the_one_with_seven_classes_is_read(tmp_path: Path) -> None:
    write(tmp_path, "cityscapes")
    for part in COUNTS:
        shutil.copytree(tmp_path / part / "label_7", tmp_path / part / "label")
        for file in (tmp_path / part / "label").iterdir():
            np.save(file, np.full(SIZE, 18))
    notes = Cityscapes(data=tmp_path, width=2).setup(0, silent).notes
    assert notes["dropped"] == []


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("depth", Path.unlink, "is not there"),
    "truncated": ("image", lambda f: f.write_bytes(f.read_bytes()[:-8]), "no readable NumPy file"),
    "text": ("label", lambda f: f.write_text("no array"), "no readable NumPy file"),
    "empty": ("normal", lambda f: f.write_bytes(b""), "no readable NumPy file"),
    "pickle": (
        "image",
        lambda f: np.save(f, np.array([{}], dtype=object), allow_pickle=True),
        "no readable NumPy file",
    ),
    "words": ("image", lambda f: np.save(f, np.full((*SIZE, 3), "a")), "must hold numbers"),
    "nan": ("depth", lambda f: np.save(f, np.full((*SIZE, 1), np.nan)), "not finite"),
    "shape": ("depth", lambda f: np.save(f, np.ones(SIZE)), "must have shape (32, 64, 1)"),
    "size": ("image", lambda f: np.save(f, np.ones((8, 8, 3))), "must have shape (32, 64, 3)"),
    "class": ("label", lambda f: np.save(f, np.full(SIZE, 13)), "whole numbers from -1 to 12"),
    "fraction": ("label", lambda f: np.save(f, np.full(SIZE, 0.5)), "whole numbers from -1 to 12"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_costs_its_sample_and_is_named(nyuv2: Path, case: str) -> None:
    quantity, damage, why = BROKEN[case]
    damage(nyuv2 / "train" / quantity / "3.npy")
    found = setup(nyuv2)
    (line,) = found.notes["dropped"]
    assert line.startswith(f"train/{quantity}/3.npy ")
    assert why in line
    assert "\n" not in line
    assert found.notes["images"] == [3, 1, 2]
    count, what, reason = NYUv2.inspect("nyuv2", nyuv2)[-1]
    assert (count, what) == ("1", f"train/{quantity}/3.npy")
    assert why in reason
    with pytest.raises(DataError, match=rf"1 samples cannot.* train/{quantity}/3\.npy .*--strict"):
        setup(nyuv2, strict=True)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (-999, "it counts as unknown, as 0 does"),
        (-1, "it counts as unknown, as 0 does"),
        (-99.9, "it counts as unknown, as 0 does"),
        (9999, "if nothing is known there, write 0"),
    ],
)
def test_a_depth_that_says_nothing_is_known_is_told(
    published: dict[str, Path], tmp_path: Path, task: str, value: float, why: str
) -> None:
    data = shutil.copytree(published[task], tmp_path / task)
    before = TASKS[task](data=data, width=2).setup(0, silent)
    assert "looks odd" not in before.notes
    depth = np.load(file := data / "val" / "depth" / "1.npy")
    depth[:4, :3] = value
    np.save(file, depth)
    for _ in range(2):  # read, and from the cache
        notes = TASKS[task](data=data, width=2).setup(0, silent).notes
        said = f"1 files; the first: val/depth/1.npy: {value} in 12 pixels lies outside of all "
        assert notes["looks odd"].startswith(said)
        assert notes["looks odd"].endswith(why)
        assert notes["images"] == before.notes["images"]
    count, what, reason = TASKS[task].inspect(task, data)[-1]
    assert (count, what) == ("1", "files look odd")
    assert reason.endswith(why)


@pytest.mark.parametrize("made", [lambda x: 3 * x, lambda x: np.round(127.5 * x + 127.5)])
def test_normals_that_are_no_unit_vectors_are_told(
    nyuv2: Path, made: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    file = nyuv2 / "val" / "normal" / "1.npy"
    np.save(file, made(np.load(file)))
    said = setup(nyuv2).notes["looks odd"]
    assert said.startswith("1 files; the first: val/normal/1.npy: normals must be unit vectors")


def test_an_image_of_val_is_not_trained_on(nyuv2: Path) -> None:
    shutil.copy(nyuv2 / "val" / "image" / "1.npy", nyuv2 / "train" / "image" / "0.npy")
    found = setup(nyuv2)
    assert found.notes["dropped"] == ["train/image/0.npy is byte-equal to an image of val/"]
    assert found.notes["images"] == [3, 1, 2]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda root: shutil.rmtree(root / "val"), "no folder val/image"),
        (lambda root: shutil.rmtree(root / "train" / "normal"), "no folder train/normal"),
        (lambda root: [f.unlink() for f in (root / "val" / "image").iterdir()], "0 test images"),
        (lambda root: shutil.rmtree(root), "no folder train/image"),
    ],
)
def test_a_folder_without_use_is_refused(
    nyuv2: Path, damage: Callable[[Path], object], why: str
) -> None:
    damage(nyuv2)
    with pytest.raises(DataError, match=why):
        setup(nyuv2)


def test_sides_must_fit_the_network(tmp_path: Path) -> None:
    root = write(tmp_path, "nyuv2", size=(24, 32))
    with pytest.raises(DataError, match="24 x 32 pixels; the sides must divide by 32"):
        setup(root)
    setup(root, network="deeplab_resnet50")


def test_files_are_checked_once(nyuv2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setup(nyuv2).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_examine", None)  # would raise if called
        assert setup(nyuv2).fingerprint == before
    np.save(nyuv2 / "train" / "depth" / "0.npy", np.full((*SIZE, 1), 7.0))
    assert setup(nyuv2).fingerprint != before


def test_a_file_that_could_not_be_read_once_is_not_broken_for_ever(
    nyuv2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a share did not hand over: neither size nor time has changed since."""
    mapped = folder._mapped

    def refusing(file: Path) -> NDArray[np.generic]:
        if file.match("train/depth/1.npy"):
            raise PermissionError("permission denied")
        return mapped(file)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_mapped", refusing)
        for _ in range(2):
            assert len(setup(nyuv2).notes["dropped"]) == 1
    assert setup(nyuv2).notes["dropped"] == []


def test_the_fingerprint_is_of_the_content(nyuv2: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(nyuv2, tmp_path / "copy")
    assert setup(copy).fingerprint == setup(nyuv2).fingerprint
    (copy / "train" / "image" / "2.npy").unlink()
    assert setup(copy).fingerprint != setup(nyuv2).fingerprint


def test_files_are_read_when_a_batch_wants_them(nyuv2: Path) -> None:
    train = setup(nyuv2).train
    np.save(nyuv2 / "train" / "depth" / "0.npy", np.full((*SIZE, 1), 7.0))
    assert (everything(train)["depth"] == 7).any()
    for file in (nyuv2 / "train" / "depth").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"depth/\d\.npy: was readable .*, but is not now"):
        everything(train)


def test_memory_holds_a_batch(tmp_path: Path) -> None:
    root = write(tmp_path, "nyuv2", size=(96, 128))
    sample = 96 * 128 * 8 * 4
    tracemalloc.start()
    try:
        found = setup(root)
        for split in (found.train, found.val, found.test):
            for i in range(len(split)):
                split.batch(torch.tensor([i]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * sample  # of seven samples


# Splits


@settings(max_examples=50, derandomize=True)
@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 99)
)
def test_equal_images_lie_on_one_side(groups: list[int], fraction: float, seed: int) -> None:
    samples = [Sample({}, str(group)) for group in groups]
    train, val = splits.carve(samples, fraction, seed)
    assert len(train) + len(val) == len(samples)
    assert not {s.group for s in train} & {s.group for s in val}
    count = len(set(groups))
    assert len({s.group for s in val}) == max(1, round(fraction * count))


def test_the_seed_draws_the_validation_split(published: dict[str, Path]) -> None:
    task = NYUv2(data=published["nyuv2"], width=2, validation=0.4)
    drawn = [task.setup(seed, silent) for seed in (0, 0, 1, 2, 3)]
    groups = [found.val.groups() for found in drawn]
    assert groups[0] == groups[1]
    assert len({tuple(g or ()) for g in groups}) > 1
    assert len({found.fingerprint for found in drawn}) == 1


# Augmentation


def ramp() -> dict[str, Tensor]:
    """A sample whose image and normal are linear in the column, and so is its depth."""
    column = torch.arange(1.0, 61.0).expand(1, 30, 60)
    return {
        "image": column.repeat(3, 1, 1),
        "segmentation": (column % 3) - 1,
        "depth": column.clone(),
        "normals": column.repeat(3, 1, 1) / 60,
    }


def test_augmentation_enlarges_a_crop_or_mirrors_it() -> None:
    seen = set()
    for seed in range(60):
        found = splits.augment(ramp(), torch.Generator().manual_seed(seed))
        assert {name: plane.shape for name, plane in found.items()} == {
            name: plane.shape for name, plane in ramp().items()
        }
        step = found["image"][0, 0].diff()
        mirrored = bool(step[0] < 0)
        # A crop of w columns, stretched over 60, has w - 1 steps where there were 59.
        scale = next(
            s for s in splits.SCALES if int(60 / s) - 1 == round(59 * float(step.abs()[0]))
        )
        seen.add((scale, mirrored))
        assert torch.allclose(step, step[0].expand(59), atol=1e-4)
        assert set(found["segmentation"].unique().tolist()) <= {-1.0, 0.0, 1.0}
        columns = found["depth"] * scale
        assert torch.allclose(
            columns, columns.round(), atol=1e-4
        )  # one of the pixels', not between
        assert (found["image"][:1] - columns).abs().max() <= 1.01
        sign = -1 if mirrored else 1
        assert torch.allclose(found["normals"][0], sign * found["normals"][1])
        assert torch.equal(found["normals"][1], found["normals"][2])
    assert seen == {(s, m) for s in splits.SCALES for m in (False, True)}


def test_only_training_is_augmented_and_by_the_generator_alone(published: dict[str, Path]) -> None:
    found = setup(published["nyuv2"])
    plain = setup(published["nyuv2"], augmentation=False)
    indices = torch.arange(4)

    def drawn(split: object, seed: int) -> Tensor:
        assert isinstance(split, splits.DenseSplit)
        inputs: Tensor = split.batch(indices[: len(split)], torch.Generator().manual_seed(seed))[
            "inputs"
        ]
        return inputs

    assert torch.equal(drawn(found.train, 1), drawn(found.train, 1))
    assert not torch.equal(drawn(found.train, 1), drawn(found.train, 2))
    for split in (found.val, found.test, plain.train):
        assert torch.equal(drawn(split, 1), everything(split)["inputs"])


# Losses and scores


def test_losses_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1, 0, 0] = math.log(3)
    label = torch.tensor([[[1, 0, -1]]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert losses.segmentation_loss(logits, label).item() == pytest.approx(expected)
    depth, truth = torch.tensor([[[[2.0, 5.0, 9.0]]]]), torch.tensor([[[[1.0, 2.0, 0.0]]]])
    assert losses.depth_loss(depth, truth).item() == pytest.approx(2)
    normals = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]).T[None, :, None]
    toward = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 0]]).T[None, :, None]
    assert losses.normals_loss(normals, toward).item() == pytest.approx(0.5)


@pytest.mark.parametrize("unknown", [0.0, math.nan])
def test_pixels_without_a_label_count_for_nothing(unknown: float) -> None:
    """Half of the pixels are not known: loss and gradient are those of the other half."""
    torch.manual_seed(0)
    for loss, channels in ((losses.depth_loss, 1), (losses.normals_loss, 3)):
        output = torch.randn(1, channels, 4, 6, requires_grad=True)
        truth = torch.rand(1, channels, 4, 6) + 0.1
        part = loss(output[..., :3], truth[..., :3])
        truth[..., 3:] = unknown
        whole = loss(output, truth)
        assert torch.allclose(whole, part)
        (gradient,) = torch.autograd.grad(whole, output)
        assert torch.equal(gradient[..., 3:], torch.zeros(1, channels, 4, 3))
        assert gradient[..., :3].abs().sum() > 0


def test_scores_by_hand() -> None:
    meter = scores.DenseMeter(classes=3, normals=True)
    # Truth 0 0 1 1 -1, called 0 1 1 1 2: class 0 has 1 of 2, class 1 has 2 of 3; 2 does not occur.
    called = torch.tensor([[0, 1, 1, 1, 2]])
    logits = torch.nn.functional.one_hot(called, 3).float().movedim(-1, 1)[:, :, None]
    angles = torch.tensor([0.0, 10.0, 20.0, 50.0, 90.0]).deg2rad()
    batch = {
        "segmentation": torch.tensor([[[0, 0, 1, 1, -1]]]),
        "depth": torch.tensor([[[[1.0, 2.0, 4.0, 0.0, 0.0]]]]),
        "normals": torch.tensor([[1.0, 0, 0]] * 4 + [[0.0, 0, 0]]).T[None, :, None],
    }
    depth = torch.tensor([[[[2.0, 2.0, 1.0, 5.0, 5.0]]]])
    normals = torch.stack([angles.cos(), angles.sin(), angles * 0])[None, :, None]
    meter.update([logits, depth, normals], batch)
    assert meter.compute() == pytest.approx(
        {
            "miou": (1 / 2 + 2 / 3) / 2,
            "pixel_accuracy": 3 / 4,
            "abs_err": 4 / 3,
            "rel_err": (1 + 3 / 4) / 3,
            "normal_mean": 20,
            "normal_median": 15,
            "within_11.25": 2 / 4,
            "within_22.5": 3 / 4,
            "within_30": 3 / 4,
        },
        abs=1e-3,
    )


@settings(max_examples=25, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_scores_do_not_depend_on_how_images_are_batched(sizes: list[int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    truth = torch.randn(count, 3, 4, 4, generator=rng)
    batch = {
        "segmentation": torch.randint(-1, 3, (count, 4, 4), generator=rng),
        "depth": torch.rand(count, 1, 4, 4, generator=rng) - 0.3,
        "normals": torch.nn.functional.normalize(truth, dim=1),
    }
    outputs = [
        torch.randn(count, 3, 4, 4, generator=rng),
        torch.rand(count, 1, 4, 4, generator=rng),
        torch.nn.functional.normalize(torch.randn(count, 3, 4, 4, generator=rng), dim=1),
    ]
    whole, parts = scores.DenseMeter(3, True), scores.DenseMeter(3, True)
    whole.update(outputs, batch)
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        parts.update([o[rows] for o in outputs], {k: v[rows] for k, v in batch.items()})
        start += size
    assert whole.compute() == pytest.approx(parts.compute(), nan_ok=True)
    inner = (outputs[2] * batch["normals"]).sum(1).double()
    ordered = inner.clamp(-1, 1).acos().rad2deg().flatten().numpy()
    assert whole.compute()["normal_median"] == pytest.approx(np.median(ordered), abs=2e-3)


def test_nothing_seen_is_nan() -> None:
    meter = scores.DenseMeter(7, False)
    batch = {"segmentation": torch.full((1, 2, 2), -1), "depth": torch.zeros(1, 1, 2, 2)}
    meter.update([torch.zeros(1, 7, 2, 2), torch.ones(1, 1, 2, 2)], batch)
    found = meter.compute()
    assert found.keys() == scores.metrics(False).keys()
    assert all(map(math.isnan, found.values()))


# Networks


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_networks_have_the_published_sizes() -> None:
    head = networks.AttentionHead(64, 13, False)
    # MTAN's code gives its single-task SegNet with 13 classes 24,981,069 parameters.
    assert parameters(networks.SegNet(64)) + parameters(head.predict) == 24_981_069
    # torchvision's resnet50 has 25,557,032, of which 2,049,000 are its classifier's.
    resnet = deeplab.DilatedResNet(64)
    assert parameters(resnet) == 25_557_032 - 2_049_000
    assert {"conv1.weight", "layer3.5.conv2.weight", "layer4.0.downsample.1.running_var"} <= set(
        resnet.state_dict()
    )


@pytest.mark.parametrize("network", ["segnet_mtan", "deeplab_resnet50"])
def test_every_parameter_is_trained_and_the_shared_ones_by_all(
    published: dict[str, Path], network: str
) -> None:
    task = NYUv2(data=published["nyuv2"], width=2, network=network)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = task.model()
    batch = everything(task.setup(0, silent).test)
    features = model.encode(batch["inputs"])
    outputs = model.decode(features)
    assert [tuple(o.shape) for o in outputs] == [(2, c, *SIZE) for c in (13, 1, 3)]
    length = outputs[2].norm(dim=1)
    assert length.max() < 1 + 1e-5
    assert length.median() > 0.999
    found = task.losses(outputs, batch)
    step = Step(
        found,
        features=features,
        shared=model.encoder.parameters(),
        latent=model.latent,
    )
    assert step.z.shape[1] == (16 if network == "segnet_mtan" else 64)
    jacobian = step.jacobian()
    plain = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(x, step.shared, retain_graph=True)])
            for x in found
        ]
    )
    assert torch.allclose(jacobian, plain, atol=1e-5, rtol=1e-4)
    step.backward(torch.ones(3))
    assert all(p.grad is not None for p in model.parameters())


def test_unit_vectors_have_two_derivatives_even_at_zero() -> None:
    """Whole regions are 0 where rectifiers are dead, and RLAR differentiates a gradient."""
    vector = torch.tensor([0.0, 3.0], requires_grad=True)
    unit = networks.finished(torch.stack([vector, vector * 4 / 3, vector * 0])[None, :, None], True)
    assert torch.allclose(unit[0, :, 0, 1], torch.tensor([0.6, 0.8, 0.0]))
    (first,) = torch.autograd.grad(unit.sum(), vector, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), vector)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


def test_the_resnet_dilates_instead_of_striding() -> None:
    resnet = deeplab.DilatedResNet(1).eval()
    (found,) = resnet(torch.zeros(1, 3, 64, 96))
    assert found.shape == (1, 32, 8, 12)
    rates = [
        [m.dilation[0] for m in stage.modules() if getattr(m, "kernel_size", 0) == (3, 3)]
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4)
    ]
    assert rates == [[1] * 4, [1, 2, 2, 2, 2, 2], [2, 4, 4]]


def test_training_works_on_a_last_batch_of_one(published: dict[str, Path]) -> None:
    for network in ("segnet_mtan", "deeplab_resnet50"):
        task = NYUv2(data=published["nyuv2"], width=2, network=network)  # type: ignore[arg-type]
        batch = task.setup(0, silent).train.batch(torch.tensor([0]))
        values = task.losses(task.model().train()(batch["inputs"]), batch)
        assert all(torch.isfinite(value) for value in values)


# All of it


@pytest.fixture(scope="module")
def makers(published: dict[str, Path]) -> dict[str, Callable[[], Task]]:
    def make(name: str) -> Task:
        task = TASKS[name](data=published[name], width=2)
        task.recipe = dataclasses.replace(task.recipe, lr=1e-2)  # learns within seconds
        return task

    return {name: partial(make, name) for name in TASKS}


# Two classes, so that one task's tests follow each other and its data is made once.


class TestNYUv2Contract(TaskContract):
    @pytest.fixture
    def make(self, makers: dict[str, Callable[[], Task]]) -> Callable[[], Task]:
        return makers["nyuv2"]


class TestCityscapesContract(TaskContract):
    @pytest.fixture
    def make(self, makers: dict[str, Callable[[], Task]]) -> Callable[[], Task]:
        return makers["cityscapes"]


@pytest.mark.parametrize(
    ("task", "network", "methods"),
    [
        ("nyuv2", "segnet_mtan", ("ew", "uw", "cagrad", "rlar")),
        # To a method the other task and network are other features and parameters.
        ("cityscapes", "segnet_mtan", ("rlar",)),
        ("cityscapes", "deeplab_resnet50", ("cagrad", "rlar")),
    ],
)
def test_runs_to_a_finished_record(
    mtbench: Mtbench, published: dict[str, Path], tmp_path: Path, task: str, network: str,
    methods: tuple[str, ...],
) -> None:  # fmt: skip
    code, _, error = mtbench(
        "run", "--task", task, "--data", published[task], "--network", network, "--width", 2,
        "--epochs", 1, "--batch_size", 4, "--threads", 1, "--out", tmp_path,
        *(word for method in methods for word in ("-m", method)),
    )  # fmt: skip
    assert code == 0, error
    records = {file.parent.parent.name: file for file in tmp_path.glob(f"{task}/*/*/result.json")}
    assert set(records) == set(methods)
    for record in records.values():
        result = json.loads(record.read_text())
        assert result["status"] == "finished"
        tested = json.loads((record.parent / "test.json").read_text())
        names = set(scores.metrics(task == "nyuv2"))
        assert names <= set(json.dumps(tested).replace('"', " ").replace(":", " ").split())
        with Pil.open(record.parent / "predictions.png") as picture:
            assert min(picture.size) > 100


def test_inspect_and_preview(mtbench: Mtbench, nyuv2: Path, tmp_path: Path) -> None:
    (nyuv2 / "val" / "label" / "1.npy").write_text("")
    options = ("--task", "nyuv2", "--data", nyuv2)
    code, out, _ = mtbench("data", "inspect", "nyuv2", *options)
    assert code == 0
    assert "samples of train/ used" in out
    assert "val/label/1.npy" in out
    picture = tmp_path / "preview.png"
    assert mtbench("data", "preview", "nyuv2", *options, "--to", picture)[0] == 0
    with Pil.open(picture) as drawn:
        assert min(drawn.size) > 100


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("run", "--task", "nyuv2", "-m", "ew"), "needs --data PATH"),
        (("data", "inspect", "nyu", "--task", "nyuv2"), "no source 'nyu'"),
        (
            ("run", "--task", "cityscapes", "-m", "ew", "--data", "/nowhere"),
            "no folder train/image",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    mtbench: Mtbench, tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    given = (*words, "--out", tmp_path) if words[0] == "run" else words
    code, _, error = mtbench(*given)
    assert code == 2
    assert why in error
    assert "Traceback" not in error


@pytest.mark.parametrize("given", [{"width": 0}, {"validation": 0.0}, {"validation": 1.0}])
def test_parameters_have_their_limits(given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(given))):
        Cityscapes(**given)  # type: ignore[arg-type]
