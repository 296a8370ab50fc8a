"""Two overlapping handwritten digits in one image: read the left one and the right one."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError, UsageError, did_you_mean
from mtbench.training.task import (
    Batch,
    Metric,
    Predictor,
    Progress,
    Recipe,
    Split,
    Splits,
)
from mtbench_tasks._bounds import at_least, check_dropout
from mtbench_tasks._classes import Classification
from mtbench_tasks._folds import checked, divide

Bytes = NDArray[np.uint8]

CLASSES = 10

SOURCES = ("embedded", "idx")


@dataclass(frozen=True)
class Layout:
    """How two digits become one image.

    Attributes:
        digit: side of a digit; the left one lies in the top left corner.
        shift: of the right one, down and to the right.
        canvas: side of what both are drawn on, by the pixelwise maximum.
        size: side of the image, to which the canvas is reduced.
        pairs: how many images a digit is the left one of.
        kernel: side of the network's convolutions.
    """

    digit: int
    shift: int
    canvas: int
    size: int
    pairs: int
    kernel: int


LAYOUTS = {
    "embedded": Layout(digit=8, shift=3, canvas=12, size=12, pairs=4, kernel=3),
    "idx": Layout(digit=28, shift=6, canvas=36, size=28, pairs=1, kernel=5),
}

RECIPES = {
    "embedded": Recipe(epochs=20, batch_size=64, lr=3e-3, weight_decay=1e-2, select="last"),
    "idx": Recipe(epochs=10, batch_size=256, lr=2e-3, weight_decay=1e-2, select="last"),
}

VALIDATION = 1 / 6
"""Of the published training digits."""

MOST = 1_000_000
"""Digits that an IDX file may hold: a bound on what a file's header can make us allocate."""


class PairSplit(Split):
    """Pairs of digits, drawn onto each other when a batch is asked for.

    A batch holds ``inputs`` (B, 1, S, S), 0 to 1, and the classes ``left`` and ``right`` (B,).

    Args:
        images: (N, H, H) single digits, 0 to 1 as bytes 0 to 255.
        labels: (N,) what they are.
        layout: how two become one image.
        rng: draws the right digit of each pair; a digit is as often left as right.
    """

    def __init__(
        self,
        images: Bytes,
        labels: Bytes,
        layout: Layout,
        rng: np.random.Generator,
    ) -> None:
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.layout = layout
        left = [np.arange(len(images))] * layout.pairs
        right = [rng.permutation(len(images)) for _ in range(layout.pairs)]
        self.pairs = torch.from_numpy(np.stack([np.concatenate(left), np.concatenate(right)], 1))
        # The nearest pixels, where the canvas is reduced.
        self.kept = ((torch.arange(layout.size) + 0.5) * layout.canvas / layout.size).long()

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the pairs at `indices`."""
        pairs, layout = self.pairs[indices], self.layout
        canvas = torch.zeros(len(pairs), layout.canvas, layout.canvas, dtype=torch.uint8)
        canvas[:, : layout.digit, : layout.digit] = self.images[pairs[:, 0]]
        corner = slice(layout.shift, layout.shift + layout.digit)
        canvas[:, corner, corner] = canvas[:, corner, corner].maximum(self.images[pairs[:, 1]])
        inputs = canvas[:, self.kept][:, :, self.kept]
        left, right = self.labels[pairs].unbind(1)
        return {"inputs": inputs[:, None].float() / 255, "left": left, "right": right}


def network(layout: Layout, width: int, dropout: float) -> MultitaskModel:
    """Return a LeNet, twice convolution, pooling, ReLU and one linear layer, with two heads."""
    # Without padding a small image would be gone after the second convolution.
    kernel, padding = layout.kernel, 0 if layout.size >= 28 else layout.kernel // 2
    side = layout.size
    for _ in range(2):
        side = (side + 2 * padding - kernel + 1) // 2
    features = 5 * width
    encoder = nn.Sequential(
        nn.Conv2d(1, width, kernel, padding=padding), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(width, 2 * width, kernel, padding=padding), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * width * side**2, features), nn.ReLU(),
    )  # fmt: skip
    heads = [
        nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(features, CLASSES),
        )
        for _ in range(2)
    ]  # fmt: skip
    return MultitaskModel.single_feature(encoder, heads)


class Digits(Classification):
    """The MultiMNIST of the field: a digit top left, another bottom right, overlapping.

    ``left`` and ``right``: the cross-entropy of either digit. A LeNet is shared, each side has a
    head of two layers.

    ``embedded``: the 1,797 digits of 8 x 8 pixels that come with scikit-learn, 3 pixels apart on
    12 x 12; they are divided before they are paired, and each is the left one of four pairs. A
    fifth of them tests, of the others a fifth, by seed, validates.
    ``idx``: MNIST, or any set in its files (Fashion-MNIST, KMNIST), as Sener and Koltun (NeurIPS
    2018, arXiv 1810.04650; official code) make it: each digit is the left one once, the right one
    lies 6 pixels down and right, the pixelwise maximum of both on 36 x 36 is reduced to 28 x 28 by
    the nearest pixel. The published test digits make the test split; a sixth of the training
    digits, by seed, validates. The test images are the same at every seed.

    Deviations from that code: the right digits are a permutation, not drawn with replacement;
    values are 0 to 1, not standardised; no channel dropout.

    Args:
        source: ``embedded`` or ``idx``; by default the latter if `data` is given.
        data: a folder of the four published files (``train-images-idx3-ubyte`` ..., with or without
            ``.gz``).
        fold: which fifth of the embedded digits is tested, 0 to 4.
        width: channels of the first convolution; twice as many in the second, five times as many
            features. By default 10, as published, and 16 for the embedded digits.
        dropout: of the heads.
    """

    objectives = ("left", "right")
    metrics = {f"accuracy_{side}": Metric(side, primary=True) for side in objectives}  # noqa: RUF012

    def __init__(
        self,
        *,
        source: Literal["embedded", "idx"] | None = None,
        data: Path | None = None,
        fold: int = 0,
        width: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        self.source = source or ("embedded" if data is None else "idx")
        self.data, self.fold, self.dropout = data, checked(fold), dropout
        if fold and self.source == "idx":
            raise UsageError(f"fold {fold}: source idx has a published test part and no folds")
        self.width = width if width is not None else 10 if self.source == "idx" else 16
        at_least(1, width=width)
        check_dropout(dropout)
        self.dependent = {"source": self.source, "width": self.width}
        self.layout, self.recipe = LAYOUTS[self.source], RECIPES[self.source]

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Read the digits, divide them, then pair them."""
        digest, parts = load(self.source, self.data, self.fold, seed)
        train, val, test = (
            PairSplit(*part, self.layout, np.random.default_rng(seeding.derive(of, "pairs", i)))
            for i, (part, of) in enumerate(zip(parts, (seed, seed, 0), strict=True))
        )
        notes = {
            "source": self.source,
            "digits": [len(labels) for _, labels in parts],
            "images": [len(split) for split in (train, val, test)],
        }
        return Splits(train, val, test, fingerprint=digest, notes=notes)

    def model(self) -> MultitaskModel:
        """Return the LeNet with its two heads."""
        return network(self.layout, self.width, self.dropout)

    def figures(self, predictor: Predictor, splits: Splits, folder: Path) -> list[Path]:
        """Draw test images with what they hold and what is read."""
        assert isinstance(splits.test, PairSplit)
        batch = splits.test.batch(_spread(splits.test))
        read = [output.argmax(1).tolist() for output in predictor(batch["inputs"])]
        titles = [
            f"{truth} → {left} {right}"
            for truth, left, right in zip(_said(batch), *read, strict=True)
        ]
        return [_draw(batch["inputs"], titles, folder / "predictions.png")]

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return how many digits there are, by part and class."""
        _, parts = load(_known(source), data, fold=0, seed=0)
        rows = []
        for name, (_, labels) in zip(("training", "validation", "test"), parts, strict=True):
            counts = np.bincount(labels, minlength=CLASSES)
            share = ", ".join(f"{digit}: {count}" for digit, count in enumerate(counts))
            rows.append((str(len(labels)), f"{name} digits", share))
        return rows

    @classmethod
    def preview(cls, source: str, data: Path | None, picture: Path) -> None:
        """Draw pairs of digits with their labels."""
        _, parts = load(_known(source), data, fold=0, seed=0)
        split = PairSplit(*parts[0], LAYOUTS[source], np.random.default_rng(0))
        batch = split.batch(_spread(split))
        _draw(batch["inputs"], _said(batch), picture)


def _known(source: str) -> str:
    if source not in SOURCES:
        raise UsageError(f"task digits has no source {source!r}: {did_you_mean(source, SOURCES)}")
    return source


def load(
    source: str, data: Path | None, fold: int, seed: int
) -> tuple[str, list[tuple[Bytes, Bytes]]]:
    """Return the digits' digest, and (images, labels) of training, validation and test.

    Raises:
        DataError: a file is absent or broken.
        UsageError: data is given where none is needed, or the other way round.
    """
    if source == "embedded":
        if data is not None:
            raise UsageError(f"--data {data}: source embedded needs none; say --source idx")
        from sklearn.datasets import load_digits

        found = load_digits()
        images = np.round(found.images * (255 / 16)).astype(np.uint8)
        train, test = (images, found.target.astype(np.uint8)), None
        rows = divide(len(images), fold, seed)
    else:
        if data is None:
            raise UsageError("source idx needs --data PATH: a folder of MNIST's four files")
        train, test = (read_pair(data, part) for part in ("train", "t10k"))
        count = len(train[0])
        order = np.random.default_rng(seeding.derive(seed, "split")).permutation(count)
        rows = np.split(order, [count - round(VALIDATION * count)])
    parts = [(train[0][some], train[1][some]) for some in rows]
    parts += [] if test is None else [test]
    if min(len(labels) for _, labels in parts) == 0:
        raise DataError(f"{data}: {len(train[0])} training digits are too few to be split")
    digest = hashlib.sha256()
    for array in (*train, *(test or ())):
        digest.update(array.tobytes())
    return digest.hexdigest(), parts


def read_pair(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    """Return the images (N, 28, 28) and labels (N,) of a part of MNIST, ``train`` or ``t10k``.

    Raises:
        DataError: a file is absent or broken, or the two do not fit each other.
    """
    images = read_idx(folder, f"{part}-images-idx3-ubyte")
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte")
    side = LAYOUTS["idx"].digit
    if images.shape[1:] != (side, side):
        found = " x ".join(map(str, images.shape[1:]))
        raise DataError(f"{folder}: {part} images must be {side} x {side}, found {found}")
    if len(images) != len(labels):
        raise DataError(f"{folder}: {part} has {len(images)} images and {len(labels)} labels")
    if labels.max() >= CLASSES:
        raise DataError(f"{folder}: {part} labels must be 0 to 9, found {labels.max()}")
    return images, labels


def read_idx(folder: Path, name: str) -> Bytes:
    """Return the array of an IDX file of unsigned bytes, with or without ``.gz``.

    The format: two zero bytes, 8 (unsigned byte), the number of dimensions, each dimension as
    big-endian 32-bit integer, the values, last index fastest.

    Raises:
        DataError: it is absent, no such file, shorter or longer than its header says, or too large.
    """
    file = next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)
    if file is None:
        raise DataError(f"{folder}: holds neither {name} nor {name}.gz; --data takes MNIST's files")
    dimensions = 3 if "idx3" in name else 1
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            return _parse(cast(IO[bytes], stream), dimensions)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{file}: {error}") from error


def _parse(stream: IO[bytes], dimensions: int) -> Bytes:
    header = stream.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(
            f"is no IDX file of bytes in {dimensions} dimensions (begins with {header[:4].hex()})"
        )
    shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
    if not 0 < shape[0] <= MOST or max(shape[1:], default=1) > 28:
        raise ValueError(f"must hold 1 to {MOST} digits of 28 x 28, its header says {shape}")
    size = math.prod(shape)
    values = stream.read(size)
    if len(values) < size or stream.read(1):
        found = "more" if len(values) == size else len(values)
        raise ValueError(f"must hold {size} values as its header says, found {found}")
    array: Bytes = np.frombuffer(bytearray(values), np.uint8)  # writable, as torch wants it
    return array.reshape(shape)


def _spread(split: PairSplit) -> Tensor:
    count = min(12, len(split))
    return torch.linspace(0, len(split) - 1, count).long()


def _said(batch: Batch) -> list[str]:
    pairs = zip(batch["left"].tolist(), batch["right"].tolist(), strict=True)
    return [f"{left} {right}" for left, right in pairs]


def _draw(images: Tensor, titles: Sequence[str], file: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(2, 6, i + 1)
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    figure.suptitle("left right" + (" → as read" if "→" in titles[0] else ""), fontsize=10)
    figure.savefig(file, dpi=110)
    return file
