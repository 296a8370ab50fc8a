"""What is tried: the ranges that are searched, and the official trials drawn from them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from mtbench import seeding
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.training.task import Recipe

SEED = 1000
"""The default seed of trials: away from those of final cells, which count up from 0."""

FACTOR = 3.0
"""How far from the recipe's own value, each way, a common parameter is searched by default."""

SAMPLER = "sobol"
"""What official trials are, as records name it: the defaults, then a scrambled Sobol sequence."""

DIMENSIONS = 256
"""Of the sequence: two for the common parameters, the others for those of a method, in turn."""

_T = TypeVar("_T")


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
    """One trial of the official ruleset; trial 0 is the defaults, for which nothing is asked.

    Attributes:
        params: the method's own parameters that are searched.
        recipe: the recipe's.
        asked: the answers, by what was asked.
        places: where in its range, from 0 to 1, each answer lies.
    """

    params: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, float] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    places: dict[str, float] = field(default_factory=dict)


def draw(method: Method, num_objectives: int, search: Search, count: int, seed: int) -> list[Draw]:
    """Return the trials of the official ruleset, fixed before any is run.

    First the defaults, so that tuning cannot lose against not tuning on what it looks at; then one
    sequence of quasi-random points for all methods: trial t has the same common parameters
    everywhere, and a method's own are read off the same point, one coordinate each, in the order in
    which it asks. Points of such a sequence lie further apart than random ones, so a few trials
    depend less on luck. A longer list begins with the shorter one.

    Args:
        method: whose own parameters are drawn.
        num_objectives: K.
        search: the common ranges.
        count: how many trials.
        seed: of the sequence's scrambling.
    """
    found = [Draw()] * min(count, 1)
    for coordinates in _points(seed, max(0, count - 1)):
        point = _Point(coordinates)
        common = {}
        for key, bounds in vars(search).items():
            if bounds is None:
                point.skip()
            else:
                common[key] = point.suggest_float(f"recipe.{key}", *bounds, log=True)
        params = method.suggest(point, num_objectives)  # type: ignore[arg-type]
        method.resolve(params)  # an unknown name is told before anything is trained
        found.append(Draw(params, common, point.asked, point.places))
    return found


@lru_cache(maxsize=64)
def _points(seed: int, count: int) -> NDArray[np.float64]:
    """Return the first points of a sequence, (count, DIMENSIONS)."""
    rng = np.random.default_rng(seeding.derive(seed, "draws"))
    sequence = qmc.Sobol(DIMENSIONS, rng=rng)
    points: NDArray[np.float64] = sequence.random_base2(max(0, count - 1).bit_length())[:count]
    return points


class _Point:
    """Stands in for Optuna's trial: answers by a point of the unit cube."""

    def __init__(self, coordinates: NDArray[np.float64]) -> None:
        self.left = iter(coordinates.tolist())
        self.asked: dict[str, Any] = {}
        self.places: dict[str, float] = {}

    def skip(self) -> None:
        """Leave a coordinate alone, so that what follows has its own all the same."""
        next(self.left)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return a number between two."""

        def number(u: float) -> float:
            if step is not None:
                return low + step * int(u * (math.floor((high - low) / step + 1e-9) + 1))
            inside = low * (high / low) ** u if log else low + u * (high - low)
            return min(high, max(low, inside))  # rounding may lead beyond

        return self._answer(name, number, ordered=True)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Return a whole number between two, both included."""

        def number(u: float) -> int:
            if log:
                return min(high, int(low * ((high + 1) / low) ** u))
            return low + step * int(u * ((high - low) // step + 1))

        return self._answer(name, number, ordered=True)

    def suggest_categorical(self, name: str, choices: Sequence[_T]) -> _T:
        """Return one of some values."""
        return self._answer(name, lambda u: choices[int(u * len(choices))], ordered=False)

    def _answer(self, name: str, of: Callable[[float], _T], *, ordered: bool) -> _T:
        """Return what a coordinate stands for; who asks again is answered the same."""
        if name not in self.asked:
            share = next(self.left, None)
            if share is None:
                raise UsageError(
                    f"at most {DIMENSIONS} numbers can be drawn for a trial, and {name} is one "
                    "more: set what makes them, such as the weights"
                )
            self.asked[name] = of(share)
            if ordered:
                self.places[name] = share
        answer: _T = self.asked[name]
        return answer
