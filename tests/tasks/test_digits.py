"""Overlapping digits: how pairs are made, IDX files with every defect, runs to the end."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtbench.errors import DataError, UsageError
from mtbench.testing import TaskContract
from mtbench.training.task import Splits
from mtbench_tasks.digits import Digits, PairSplit, read_idx
from tests.refusals import refused

Mtbench = Callable[..., tuple[int, str, str]]


def idx(array: np.ndarray) -> bytes:
    """The IDX format, by its description."""
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_mnist(folder: Path, train: int = 60, test: int = 24, *, zipped: bool = False) -> Path:
    """Noise with a bright row that tells the class."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 100, (count, 28, 28))
        images[np.arange(count), 4 + 2 * labels] = 255
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            file = folder / f"{part}-{name}-ubyte"
            if zipped:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(idx(array)))
            else:
                file.write_bytes(idx(array))
    return folder


def setup(task: Digits, seed: int = 0) -> Splits:
    return task.setup(seed, lambda *_: None)


def parts(splits: Splits) -> list[PairSplit]:
    found = [splits.train, splits.val, splits.test]
    assert all(isinstance(split, PairSplit) for split in found)
    return found  # type: ignore[return-value]


class TestEmbeddedContract(TaskContract):
    @pytest.fixture
    def make(self) -> type[Digits]:
        return Digits


# --- how pairs are made --------------------------------------------------------------------------


def test_no_source_digit_straddles_splits() -> None:
    from sklearn.datasets import load_digits

    pixels = load_digits().images
    for seed in (0, 1):
        splits = parts(setup(Digits(), seed))
        assert [len(split.images) for split in splits] == [1150, 287, 360]
        every = np.concatenate([split.images.numpy() for split in splits])
        assert sorted(x.tobytes() for x in every) == sorted(
            np.round(x * (255 / 16)).astype(np.uint8).tobytes() for x in pixels
        )


def test_every_digit_is_as_often_left_as_right() -> None:
    for split in parts(setup(Digits())):
        for side in range(2):
            counts = torch.bincount(split.pairs[:, side], minlength=len(split.images))
            assert counts.unique().tolist() == [4]


def test_pairs_depend_on_the_seed_alone() -> None:
    first, again, other = (setup(Digits(), seed) for seed in (3, 3, 4))
    rows = torch.arange(50)
    a, b, c = (split.train.batch(rows)["inputs"] for split in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert first.fingerprint == other.fingerprint  # the data is the same, its division is not


def test_test_images_are_the_same_at_every_seed() -> None:
    def tested(fold: int, seed: int) -> torch.Tensor:
        test = setup(Digits(fold=fold), seed).test
        return test.batch(torch.arange(len(test)))["inputs"]

    assert torch.equal(tested(0, 0), tested(0, 1))
    assert not torch.equal(tested(0, 0)[:50], tested(1, 0)[:50])


def test_an_embedded_pair_is_the_maximum_of_both() -> None:
    split = parts(setup(Digits()))[0]
    batch = split.batch(torch.tensor([5]))
    left, right = (split.images[i].numpy() for i in split.pairs[5])
    expected = np.zeros((12, 12))
    expected[:8, :8] = left
    expected[3:11, 3:11] = np.maximum(expected[3:11, 3:11], right)
    np.testing.assert_allclose(batch["inputs"][0, 0], expected / 255)
    assert batch["left"].item() == split.labels[split.pairs[5, 0]]
    assert batch["right"].item() == split.labels[split.pairs[5, 1]]


def test_a_published_pair_is_the_official_code_s(tmp_path: Path) -> None:
    split = parts(setup(Digits(data=write_mnist(tmp_path / "mnist"))))[2]
    for row in range(len(split)):
        left, right = (split.images[i].numpy() for i in split.pairs[row])
        canvas = np.zeros((36, 36), np.uint8)
        canvas[:28, :28] = left
        canvas[6:34, 6:34] = np.maximum(canvas[6:34, 6:34], right)
        reduced = Image.fromarray(canvas).resize((28, 28), Image.Resampling.NEAREST)
        inputs = split.batch(torch.tensor([row]))["inputs"][0, 0]
        np.testing.assert_allclose(inputs, np.asarray(reduced) / 255.0, rtol=1e-6)


def test_the_published_test_digits_are_the_test_split(tmp_path: Path) -> None:
    plain = write_mnist(tmp_path / "plain")
    zipped = write_mnist(tmp_path / "zipped", zipped=True)
    splits = setup(Digits(data=plain))
    assert [len(split.images) for split in parts(splits)] == [50, 10, 24]
    assert torch.equal(
        parts(splits)[2].images, torch.from_numpy(read_idx(plain, "t10k-images-idx3-ubyte"))
    )
    assert setup(Digits(data=zipped)).fingerprint == splits.fingerprint
    assert splits.fingerprint != setup(Digits()).fingerprint


def test_the_source_follows_from_the_data_and_is_recorded(tmp_path: Path) -> None:
    assert Digits().dependent == {"source": "embedded", "width": 16}
    assert Digits(data=tmp_path).dependent == {"source": "idx", "width": 10}
    # A record has no path: the source says which network it was.
    recorded = Digits(source="idx", width=10, data=None)
    assert recorded.model()(torch.zeros(3, 1, 28, 28))[0].shape == (3, 10)
    with pytest.raises(UsageError, match="has a published test part and no folds"):
        Digits(data=tmp_path, fold=1)
    with pytest.raises(UsageError, match="embedded needs none"):
        setup(Digits(source="embedded", data=tmp_path))
    with pytest.raises(UsageError, match="needs --data"):
        setup(recorded)


# --- files with a defect -------------------------------------------------------------------------

LABELS, IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte"


def claim(*shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (IMAGES, None, "holds neither train-images-idx3-ubyte nor"),
        (IMAGES, b"", "is no IDX file"),
        (IMAGES, b"PNG 1234567890123456", "begins with 504e4720"),
        (IMAGES, idx(np.zeros((60, 28))), "is no IDX file of bytes in 3 dimensions"),
        (IMAGES, idx(np.zeros((60, 28, 28)))[:-1], "must hold 47040 values .* found 47039"),
        (IMAGES, idx(np.zeros((60, 28, 28))) + b"x", "found more"),
        (IMAGES, claim(2**32 - 1, 28, 28), "1 to 1000000 digits"),
        (IMAGES, claim(60, 2**31, 2**31), "digits of 28 x 28"),
        (IMAGES, claim(0, 28, 28), "its header says"),
        (IMAGES, idx(np.zeros((60, 27, 28))), "must be 28 x 28, found 27 x 28"),
        (IMAGES, idx(np.zeros((59, 28, 28))), "59 images and 60 labels"),
        (LABELS, idx(np.full(60, 10)), "must be 0 to 9, found 10"),
        (LABELS, idx(np.zeros((60, 28, 28))), "is no IDX file of bytes in 1 dimensions"),
        (IMAGES + ".gz", b"no gzip", "Not a gzipped file"),
        (IMAGES + ".gz", gzip.compress(idx(np.zeros((60, 28, 28))))[:-20], "ended before"),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    folder = write_mnist(tmp_path / "mnist")
    (folder / name.removesuffix(".gz")).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        setup(Digits(data=folder))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    import tracemalloc

    folder = write_mnist(tmp_path / "mnist")
    (folder / IMAGES).unlink()
    bomb = gzip.compress(idx(np.zeros((60, 28, 28))) + bytes(200_000_000), compresslevel=1)
    (folder / f"{IMAGES}.gz").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(DataError, match="found more"):
        setup(Digits(data=folder))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_no_folder_and_too_few_digits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        setup(Digits(data=tmp_path / "absent"))
    with pytest.raises(DataError, match="too few"):
        setup(Digits(data=write_mnist(tmp_path / "mnist", train=1)))


@pytest.mark.parametrize(("name", "value"), [("width", 0), ("dropout", 1.0)])
def test_parameters_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        Digits(**{name: value})  # type: ignore[arg-type]


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["embedded", "idx"])
def test_runs_to_a_finished_record(tmp_path: Path, mtbench: Mtbench, source: str) -> None:
    data = ["--data", write_mnist(tmp_path / "mnist", zipped=True)] if source == "idx" else []
    # The published digits are larger, and to a method the same.
    methods = ["ew", "uw", "cagrad", "rlar"] if source == "embedded" else ["rlar"]
    words = [word for method in methods for word in ("--method", method)]
    out = tmp_path / "runs"
    code, text, err = mtbench(
        "run", "--task", "digits", *words, *data, "--epochs", "1", "--width", "4",
        "--threads", "1", "--out", out,
    )  # fmt: skip
    assert code == 0, err
    assert f"source {source}" in text
    for method in methods:
        (file,) = (out / "digits" / method).glob("*/result.json")
        assert json.loads(file.read_text())["status"] == "finished"
        assert (file.parent / "predictions.png").stat().st_size > 1000
        metrics = json.loads((file.parent / "test.json").read_text())["metrics"]
        assert metrics.keys() == {"accuracy_left", "accuracy_right"}
        assert all(0 <= value <= 1 for value in metrics.values())


def test_inspect_and_preview(tmp_path: Path, mtbench: Mtbench) -> None:
    code, text, _ = mtbench("data", "inspect", "embedded", "--task", "digits")
    assert code == 0
    assert "1150" in text
    picture = tmp_path / "preview.png"
    data = write_mnist(tmp_path / "mnist")
    assert (
        mtbench("data", "preview", "idx", "--task", "digits", "--data", data, "--to", picture)[0]
        == 0
    )
    assert picture.stat().st_size > 1000
    refused(mtbench("data", "inspect", "embeded", "--task", "digits"), "did you mean 'embedded'?")
    refused(mtbench("data", "inspect", "idx", "--task", "digits"), "needs --data")


def test_it_is_learnt() -> None:
    """A few epochs read most digits: labels and images belong together."""
    task = Digits(width=16)
    splits = setup(task)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(4):
        for rows in torch.randperm(len(splits.train)).split(64):
            batch = splits.train.batch(rows)
            loss = sum(task.losses(model(batch["inputs"]), batch))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
    model.eval()
    meter = task.meter()
    batch = splits.test.batch(torch.arange(len(splits.test)))
    with torch.no_grad():
        meter.update(model(batch["inputs"]), batch)
    assert min(meter.compute().values()) > 0.7
