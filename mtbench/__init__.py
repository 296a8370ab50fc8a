"""mtbench: a pluggable benchmark toolkit for multitask optimization.

The names below are loaded on first use, so that ``import mtbench`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtbench.balancer import (
        Aggregator,
        Balancer,
        Scalarizer,
        Weighting,
        WeightingWrapper,
        Wrapper,
    )
    from mtbench.engine import Engine
    from mtbench.errors import MtbenchError, UsageError
    from mtbench.method import Method, combine
    from mtbench.model import MultitaskModel
    from mtbench.step import Step
    from mtbench.task import Metric, Recipe, Split, Splits, Task

__version__ = "0.1.0"

_HOMES = {
    "Aggregator": "balancer",
    "Balancer": "balancer",
    "Engine": "engine",
    "Method": "method",
    "Metric": "task",
    "MtbenchError": "errors",
    "MultitaskModel": "model",
    "Recipe": "task",
    "Scalarizer": "balancer",
    "Split": "task",
    "Splits": "task",
    "Step": "step",
    "Task": "task",
    "UsageError": "errors",
    "Weighting": "balancer",
    "WeightingWrapper": "balancer",
    "Wrapper": "balancer",
    "combine": "method",
}
__all__ = [  # noqa: RUF022 - the reading order
    "Step",
    "Engine",
    "Balancer",
    "Scalarizer",
    "Weighting",
    "Aggregator",
    "Wrapper",
    "WeightingWrapper",
    "Method",
    "combine",
    "MultitaskModel",
    "Task",
    "Split",
    "Splits",
    "Metric",
    "Recipe",
    "MtbenchError",
    "UsageError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mtbench' has no attribute {name!r}")
    return getattr(import_module(f"mtbench.{_HOMES[name]}"), name)
