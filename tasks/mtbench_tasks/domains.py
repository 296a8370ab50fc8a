"""Handwritten digits in four domains, a batch of each: one network, an input for each objective."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.training.data import PerObjectiveSplit, TensorSplit, fingerprint
from mtbench.training.task import Metric, Progress, Recipe, Splits
from mtbench_tasks._bounds import at_least
from mtbench_tasks._classes import Classification
from mtbench_tasks._folds import checked, divide
from mtbench_tasks.digits import CLASSES

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


class Domains(Classification):
    """Read digits in four domains: as they are, inverted, turned by a right angle, in noise.

    Multi-input learning, as on Office-31 and Office-Home: each objective has samples of its own,
    which go through one encoder to a head of its own. The 1,797 digits of 8 x 8 pixels come with
    scikit-learn. A fifth of them, the same at every seed, tests, and a fifth of the others, by
    seed, validates, each in all domains. The training digits are divided among the domains,
    8 : 4 : 2 : 1, so that no domain knows another's; the rarer domains begin again until the
    largest has ended.

    Args:
        fold: which fifth of the digits is tested, 0 to 4.
        width: channels of the first convolution.
    """

    objectives = tuple(SHARES)
    metrics = {f"accuracy_{name}": Metric(name, primary=True) for name in SHARES}  # noqa: RUF012
    own_inputs = True
    recipe = Recipe(epochs=40, batch_size=32, lr=3e-3, weight_decay=1e-2, select="last")

    def __init__(self, *, fold: int = 0, width: int = 8) -> None:
        at_least(1, width=width)
        self.fold, self.width = checked(fold), width

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Divide the digits, and the training digits among the domains."""
        from sklearn.datasets import load_digits

        found = load_digits()
        images = torch.from_numpy(found.images / 16).float()
        labels = torch.from_numpy(found.target).long()
        train, val, test = divide(len(images), self.fold, seed)
        edges = np.cumsum([*SHARES.values()]) * len(train) // sum(SHARES.values())
        own = dict(zip(SHARES, np.split(train, edges[:-1]), strict=True))

        def seen(
            of: Mapping[str, Any], seed: int, part: str, rule: Literal["cycle", "once"]
        ) -> PerObjectiveSplit:
            looks = {
                name: seen_in(name, images[some], seeding.generator(seed, part, name))
                for name, some in of.items()
            }
            splits = {
                name: TensorSplit(look, groups=None, **{name: labels[of[name]]})
                for name, look in looks.items()
            }
            return PerObjectiveSplit(splits, rule)

        return Splits(
            seen(own, seed, "train", "cycle"),
            seen(dict.fromkeys(SHARES, val), seed, "val", "once"),
            seen(dict.fromkeys(SHARES, test), 0, "test", "once"),
            fingerprint=fingerprint(images, labels),
            notes={
                "training digits": {name: len(some) for name, some in own.items()},
                "held out": [len(val), len(test)],
            },
        )

    def model(self) -> MultitaskModel:
        """Return two convolutions and a linear layer, and a linear head for each domain."""
        w = self.width
        encoder = nn.Sequential(
            nn.Conv2d(1, w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(w, 2 * w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(8 * w, 4 * w), nn.ReLU(),
        )  # fmt: skip
        heads = [nn.Linear(4 * w, CLASSES) for _ in SHARES]
        return MultitaskModel.single_feature(encoder, heads)
