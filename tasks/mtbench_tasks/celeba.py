"""CelebA: forty attributes of a face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError
from mtbench.training.task import Batch, Meter, Metric, Progress, Recipe, Split, Splits, Task
from mtbench_tasks._bounds import at_least
from mtbench_tasks._faces import ATTRIBUTES, Faces, load
from mtbench_tasks._sources import only

CHANNELS = ((1,), (2, 2), (4, 4), (8, 8))
"""Of the convolutions, in widths of the first; each group but the last ends in a pooling."""


class Portraits(Split):
    """Some of the faces.

    Args:
        faces: all there are.
        rows: which of them, (N,).
    """

    def __init__(self, faces: Faces, rows: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.pixels, self.rows = faces.pixels, rows
        self.labels = torch.from_numpy(faces.labels)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return ``inputs``, (B, 3, H, W) in [0, 1], and ``labels``, (B, 40), 0 or 1."""
        rows = self.rows[indices.numpy()]
        pixels = torch.from_numpy(self.pixels[rows])
        inputs = pixels.permute(0, 3, 1, 2).float().div_(255)
        return {"inputs": inputs, "labels": self.labels[torch.from_numpy(rows)].float()}


class Encoder(nn.Sequential):
    """Seven convolutions and two linear layers, each with batch normalisation, to z, (B, 8 width).

    Args:
        width: channels of the first convolution.
    """

    def __init__(self, width: int) -> None:
        layers: list[nn.Module] = []
        before = 3
        for group in CHANNELS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for factor in group:
                layers += [
                    nn.Conv2d(before, factor * width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(factor * width),
                    nn.ReLU(),
                ]
                before = factor * width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for _ in range(2):
            linear = nn.Linear(before, before, bias=False)
            layers += [linear, nn.BatchNorm1d(before), nn.ReLU()]
        super().__init__(*layers)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return z."""
        return (super().forward(images),)


class Head(nn.Linear):
    """One attribute's logit from z."""

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:  # type: ignore[override]
        """Return (B,)."""
        return super().forward(features[0])[:, 0]


class Attributes(Meter):
    """F1 and accuracy of every attribute at probability 0.5."""

    def __init__(self) -> None:
        self.counts = torch.zeros(4, len(ATTRIBUTES), dtype=torch.int64)

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""
        said, true = torch.stack([*outputs], 1) > 0, batch["labels"] > 0.5
        cells = (said & true, said & ~true, ~said & true, ~said & ~true)
        self.counts += torch.stack([cell.sum(0) for cell in cells]).cpu()

    def compute(self) -> dict[str, float]:
        """Return every metric; F1 is NaN where nobody has an attribute or is said to have it."""
        hits, false, missed, rest = self.counts.double()
        f1 = 2 * hits / (2 * hits + false + missed)
        accuracy = (hits + rest) / self.counts.sum(0)
        return {f"f1_{name}": x for name, x in zip(ATTRIBUTES, f1.tolist(), strict=True)} | {
            f"accuracy_{name}": x for name, x in zip(ATTRIBUTES, accuracy.tolist(), strict=True)
        }


class CelebA(Task):
    """Forty binary attributes of aligned faces (Liu et al. 2015), forty objectives.

    The benchmark of FAMO (Liu et al. 2023, arXiv 2306.03792) and of what followed it, with their
    split (the published one, the same for every seed), their nine-layer network with one linear
    head per attribute, images squeezed to 64 x 64, and their recipe: Adam at a constant 3e-4,
    batches of 256, 15 epochs. Each objective is the binary cross-entropy. The 40 F1 enter delta-m,
    as theirs do; accuracies are there for comparison with other work.

    Deviation: they test the epoch with the best mean validation F1, and we the one with the best
    mean logarithm of the 40 F1, in which one that is exactly 0 outweighs all others.

    The network has batch normalisation, as published: a sample's features depend on its batch. No
    head has it, so the latent gradients that RLAR compares are still those of single samples.

    Args:
        data: the folder of images and lists; `mtbench_tasks._faces.load` says which.
        image_size: side of the images, at least 8.
        width: channels of the first convolution.
        strict: stop at an image that cannot be read instead of dropping it.
    """

    objectives = ATTRIBUTES
    metrics = {f"f1_{name}": Metric(name, primary=True) for name in ATTRIBUTES} | {
        f"accuracy_{name}": Metric(name) for name in ATTRIBUTES
    }
    recipe = Recipe(epochs=15, batch_size=256, lr=3e-4, weight_decay=0.0, schedule="constant")

    def __init__(
        self,
        *,
        data: Path | None = None,
        image_size: int = 64,
        width: int = 64,
        strict: bool = False,
    ) -> None:
        at_least(8, image_size=image_size)
        at_least(1, width=width)
        self.data, self.image_size, self.width, self.strict = data, image_size, width, strict

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Decode the faces, once, and split them as published."""
        faces = load(self.data, self.image_size, self.strict, progress)
        parts = [np.flatnonzero(faces.parts == part) for part in range(3)]
        if min(map(len, parts)) == 0:
            raise DataError(
                f"{self.data}: training, validation and test must all have images, found "
                f"{', '.join(str(len(part)) for part in parts)}"
            )
        train, val, test = (Portraits(faces, rows) for rows in parts)
        notes = {
            "images": [len(train), len(val), len(test)],
            "unlisted": faces.unlisted,
            "broken": len(faces.broken),
        }
        return Splits(train, val, test, fingerprint=faces.fingerprint, notes=notes)

    def model(self) -> MultitaskModel:
        """Return the network."""
        encoder = Encoder(self.width)
        return MultitaskModel(encoder, [Head(CHANNELS[-1][-1] * self.width, 1) for _ in ATTRIBUTES])

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return the binary cross-entropies."""
        return [
            F.binary_cross_entropy_with_logits(output.float(), batch["labels"][:, k])
            for k, output in enumerate(outputs)
        ]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return Attributes()

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return how many images are used and dropped."""
        faces = cls._read(source, data)
        parts = np.bincount(faces.parts, minlength=3)
        return [
            *((str(n), f"{name} images", "") for name, n in zip(("training", "validation", "test"),
                                                                parts, strict=True)),
            (str(faces.unlisted), "images left out", "without file, attributes or part"),
            (str(len(faces.broken)), "images dropped", "; ".join(faces.broken[:5])),
        ]  # fmt: skip

    @classmethod
    def preview(cls, source: str, data: Path | None, picture: Path) -> None:
        """Draw eighteen faces, spread evenly, with the attributes they have."""
        from matplotlib.figure import Figure

        faces = cls._read(source, data)
        figure = Figure(figsize=(15, 9), layout="constrained")
        chosen = np.unique(np.linspace(0, len(faces.parts) - 1, 18).astype(int))
        for place, row in enumerate(chosen, start=1):
            axis = figure.add_subplot(3, 6, place)
            axis.set_axis_off()
            axis.imshow(faces.pixels[row])
            has = [n for n, there in zip(ATTRIBUTES, faces.labels[row], strict=True) if there]
            lines = [", ".join(has[i : i + 3]) for i in range(0, len(has), 3)]
            axis.set_title("\n".join(lines).replace("_", " "), fontsize=5)
        figure.savefig(picture, dpi=110)

    @classmethod
    def _read(cls, source: str, data: Path | None) -> Faces:
        only(source, "celeba")
        return load(data, cls().image_size, False, lambda *_: None)
