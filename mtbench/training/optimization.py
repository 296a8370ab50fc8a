"""The optimizer and the learning rate that a recipe asks for."""

import math
from typing import Any

import torch
from torch.optim import Optimizer

from mtbench.training.learner import Learner
from mtbench.training.task import Recipe


def optimizer(recipe: Recipe, learner: Learner) -> Optimizer:
    """Return the optimizer of model and method; the method's own parameters do not decay."""
    groups: list[dict[str, Any]] = [{"params": list(learner.model.parameters())}]
    if own := list(learner.balancer.parameters()):
        groups.append({"params": own, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def rate(recipe: Recipe, index: int, steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        recipe: has the schedule.
        index: of the step in the run.
        steps: of the whole run.
    """
    return recipe.lr * _share(recipe.schedule, index, steps)


def _share(schedule: str, index: int, steps: int) -> float:
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if 2 * index < steps else 0.5
    warmup = max(1, round(0.05 * steps))
    if index < warmup:
        return (index + 1) / warmup
    done = (index - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))
