"""What is tried: the ranges that are searched, and the official trials drawn from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from mtbench import seeding
from mtbench.comparing.tuning.storage import quiet
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.training.task import Recipe

SEED = 1000
"""The default seed of trials: away from those of final cells, which count up from 0."""

FACTOR = 10.0
"""How far from the recipe's own value, each way, a common parameter is searched by default."""


@dataclass(frozen=True)
class Search:
    """What is searched beside a method's own parameters: log-uniform ranges, None to leave alone.

    Attributes:
        lr: of the recipe's learning rate.
        weight_decay: of the recipe's weight decay.
    """

    lr: tuple[float, float] | None
    weight_decay: tuple[float, float] | None

    def __post_init__(self) -> None:
        for name, bounds in self.ranges.items():
            if not 0 < bounds[0] < bounds[1] < float("inf"):
                raise UsageError(
                    f"range of {name} must be 0 < low < high, found {bounds[0]:g} {bounds[1]:g}"
                )

    @classmethod
    def around(cls, recipe: Recipe) -> "Search":
        """Return the default: within `FACTOR` of the recipe's own; a weight decay of 0 stays 0."""
        lr, decay = recipe.lr, recipe.weight_decay
        return cls((lr / FACTOR, lr * FACTOR), (decay / FACTOR, decay * FACTOR) if decay else None)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The ranges that are searched, by the recipe's key."""
        return {key: bounds for key, bounds in vars(self).items() if bounds is not None}


@dataclass(frozen=True)
class Draw:
    """One trial of the official ruleset.

    Attributes:
        params: the method's own parameters that are searched.
        recipe: the recipe's.
        asked: the same as the answers to what was asked of Optuna.
    """

    params: dict[str, Any]
    recipe: dict[str, float]
    asked: dict[str, Any]


def draw(method: Method, num_objectives: int, search: Search, count: int, seed: int) -> list[Draw]:
    """Return the trials of the official ruleset: independent, and fixed before any is run.

    The common parameters of a trial are the same for every method. A longer list begins with the
    shorter one.
    """
    common = np.random.default_rng(seeding.derive(seed, "common")).random((count, 2))
    sampler = optuna.samplers.RandomSampler(seeding.derive(seed, "own", method.name) % 2**32)
    with quiet():
        study = optuna.create_study(sampler=sampler)
    found = []
    for row in common:
        recipe = {
            key: float(np.exp(np.interp(share, (0, 1), np.log(bounds))))
            for share, (key, bounds) in zip(row, vars(search).items(), strict=True)
            if bounds is not None
        }
        trial = study.ask()
        params = method.suggest(trial, num_objectives)
        asked = {**trial.params, **{f"recipe.{key}": value for key, value in recipe.items()}}
        found.append(Draw(params, recipe, asked))
    return found
