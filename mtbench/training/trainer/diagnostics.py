"""How a method's update and the objectives' gradients lie to each other, once an epoch."""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from mtbench.balancing.jacobian import vector
from mtbench.balancing.step import Space, Step

Diagnostics = dict[str, dict[str, float]]


class Look:
    """Compares what a method makes of a step with the plain sum's gradient.

    Made before the method is asked; `after` is asked when it has written its ``.grad``.

    Args:
        step: which one.
        gradients: whether the objectives' gradients are compared for every method, or only for
            those that compute them anyway.
    """

    def __init__(self, step: Step, gradients: bool) -> None:
        self._step = step
        self._plain = vector(step.gradient(step.total()), step.shared)
        if gradients:
            for space in get_args(Space):
                if space == "shared" or step.features:
                    step.gramian(space)

    def after(self, weights: Tensor | None, objectives: Sequence[str]) -> Diagnostics:
        """Return what is recorded.

        Args:
            weights: (K,), that the method returned.
            objectives: their names.
        """
        step = self._step
        shown = [] if weights is None else weights.tolist()
        return {
            "update": _compare(vector([p.grad for p in step.shared], step.shared), self._plain),
            "weights": dict(zip(objectives, shown, strict=False)),
            **{f"{space} gradients": _alignment(G) for space, G in step.gramians.items()},
        }


def _compare(update: Tensor, plain: Tensor) -> dict[str, float]:
    """Return the update's length relative to the plain sum's gradient, and their cosine.

    Methods differ in it by a factor of a hundred, which is one of the learning rate.
    """
    lengths = update.norm().item(), plain.norm().item()
    if 0 in lengths:
        return {"length": math.nan, "cosine": math.nan}
    return {
        "length": lengths[0] / lengths[1],
        "cosine": (update @ plain).item() / (lengths[0] * lengths[1]),
    }


def _alignment(gramian: Tensor) -> dict[str, float]:
    """Return how the objectives' gradients lie to each other, over the pairs that have one.

    The mean and the least cosine, and the mean magnitude similarity, 2 |g| |h| / (|g|^2 + |h|^2).
    """
    squares = gramian.diagonal()
    j, k = torch.triu_indices(len(squares), len(squares), offset=1)
    live = (squares[j] > 0) & (squares[k] > 0)
    j, k = j[live], k[live]
    if not len(j):
        return {}
    lengths = (squares[j] * squares[k]).sqrt()
    cosines = gramian[j, k] / lengths
    return {
        "cosine": cosines.mean().item(),
        "least cosine": cosines.min().item(),
        "magnitude similarity": (2 * lengths / (squares[j] + squares[k])).mean().item(),
    }
