"""Handwritten digits in four domains, a batch of each: one network, an input for each objective."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.errors import UsageError
from mtbench.training.data import fingerprint, labelled_loss
from mtbench.training.task import Batch, Meter, Metric, Progress, Recipe, Split, Splits, Task
from mtbench_tasks._folds import checked, divide
from mtbench_tasks.digits import CLASSES, Accuracy

SHARES = {"plain": 8, "inverted": 4, "turned": 2, "noisy": 1}
"""How the training digits are divided among the domains, in fifteenths."""

NOISE = 0.5
"""Standard deviation, of values from 0 to 1."""


def seen_in(domain: str, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images, (N, 8, 8) from 0 to 1, as they look in a domain, (N, 1, 8, 8)."""
    noise = NOISE * torch.randn(images.shape, generator=generator)
    looks = {
        "plain": images,
        "inverted": 1 - images,
        "turned": images.rot90(1, (1, 2)),
        "noisy": images + noise,
    }
    return looks[domain][:, None]


class Rows(Split):
    """Samples that hold an image of each domain, though domains have unequal numbers of images.

    A batch holds ``inputs`` (B, K, 1, 8, 8), and by domain the classes (B,), -1 for none.

    Args:
        images: by domain, (N_k, 1, 8, 8).
        labels: by domain, (N_k,).
        again: whether a domain with few images begins again until the longest has ended; otherwise
            each image is in one sample, and the others have none of its domain.
    """

    def __init__(self, images: dict[str, Tensor], labels: dict[str, Tensor], again: bool) -> None:
        self.images, self.labels, self.again = images, labels, again

    def __len__(self) -> int:
        return max(map(len, self.labels.values()))

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the samples at `indices`."""
        places = {name: indices % len(labels) for name, labels in self.labels.items()}
        images = [self.images[name][place] for name, place in places.items()]
        found: Batch = {"inputs": torch.stack(images, dim=1)}
        for name, place in places.items():
            here = (indices == place) | self.again
            found[name] = torch.where(here, self.labels[name][place], -1)
        return found


class Encoder(nn.Sequential):
    """Two convolutions and a linear layer, for the images of every domain alike."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(8 * width, 4 * width), nn.ReLU(),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        """Return the features of each domain's image, (B, K, C)."""
        return (super().forward(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]),)


class Head(nn.Linear):
    """Class scores of one domain's image."""

    def __init__(self, width: int, domain: int) -> None:
        super().__init__(4 * width, CLASSES)
        self.domain = domain

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:  # type: ignore[override]
        """Return (B, 10)."""
        return super().forward(features[0][:, self.domain])


class Domains(Task):
    """Read digits in four domains: as they are, inverted, turned by a right angle, in noise.

    Multi-input learning, as on Office-31 and Office-Home: each objective has inputs of its own,
    which go through one encoder to a head of its own. A sample holds an image of each domain. The
    1,797 digits of 8 x 8 pixels come with scikit-learn. A fifth of them, the same at every seed,
    tests, and a fifth of the others, by seed, validates, each in all domains. The training digits
    are divided among the domains, 8 : 4 : 2 : 1, so that no domain knows another's.

    Objectives act on different images of a sample, so methods on feature gradients find them
    orthogonal, and see no conflict.

    Args:
        rule: what becomes of the rarer domains: ``again``, they begin again until the largest has
            ended, so that a batch has as many images of each; ``once``, each image is seen once an
            epoch, and a batch has fewer of the rarer domains.
        fold: which fifth of the digits is tested, 0 to 4.
        width: channels of the first convolution.
    """

    objectives = tuple(SHARES)
    metrics = {f"accuracy_{name}": Metric(name, primary=True) for name in SHARES}  # noqa: RUF012
    recipe = Recipe(epochs=40, batch_size=32, lr=3e-3, weight_decay=1e-2, select="last")

    def __init__(
        self,
        *,
        rule: Literal["again", "once"] = "again",
        fold: int = 0,
        width: int = 8,
    ) -> None:
        if width < 1:
            raise UsageError(f"width must be at least 1, found {width}")
        self.rule, self.fold, self.width = rule, checked(fold), width

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Divide the digits, and the training digits among the domains."""
        from sklearn.datasets import load_digits

        found = load_digits()
        images = torch.from_numpy(found.images / 16).float()
        labels = torch.from_numpy(found.target).long()
        train, val, test = divide(len(images), self.fold, seed)
        edges = np.cumsum([*SHARES.values()]) * len(train) // sum(SHARES.values())
        own = dict(zip(SHARES, np.split(train, edges[:-1]), strict=True))

        def rows(of: dict[str, Any], seed: int, part: str) -> Rows:
            looks = {
                name: seen_in(name, images[some], seeding.generator(seed, part, name))
                for name, some in of.items()
            }
            return Rows(looks, {name: labels[some] for name, some in of.items()}, again)

        again = self.rule == "again"
        return Splits(
            rows(own, seed, "train"),
            rows(dict.fromkeys(SHARES, val), seed, "val"),
            rows(dict.fromkeys(SHARES, test), 0, "test"),
            fingerprint=fingerprint(images, labels),
            notes={
                "training digits": {name: len(some) for name, some in own.items()},
                "held out": [len(val), len(test)],
            },
        )

    def model(self) -> MultitaskModel:
        """Return the network."""
        heads = [Head(self.width, k) for k in range(len(SHARES))]
        return MultitaskModel(Encoder(self.width), heads)

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return each domain's cross-entropy."""
        return [
            labelled_loss(F.cross_entropy, output, batch[name])
            for name, output in zip(self.objectives, outputs, strict=True)
        ]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return Accuracy(self.objectives)
