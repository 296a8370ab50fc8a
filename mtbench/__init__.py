"""mtbench: a pluggable benchmark toolkit for multitask optimization.

The names below are loaded on first use, so that ``import mtbench`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtbench.version import __version__ as __version__

if TYPE_CHECKING:
    from mtbench.balancing.balancer import (
        Aggregator,
        Balancer,
        Judged,
        Scalarizer,
        Weighting,
    )
    from mtbench.balancing.engine import Engine
    from mtbench.balancing.model import MultitaskModel, PerObjective
    from mtbench.balancing.step import Step
    from mtbench.balancing.wrapper import WeightingWrapper, Wrapper
    from mtbench.errors import MtbenchError, UsageError
    from mtbench.plugins.method import Method, balancer, combine
    from mtbench.plugins.registry import find
    from mtbench.training.task import Metric, Recipe, Split, Splits, Task

_HOMES = {
    "Aggregator": "balancing.balancer",
    "Balancer": "balancing.balancer",
    "Judged": "balancing.balancer",
    "Engine": "balancing.engine",
    "Method": "plugins.method",
    "Metric": "training.task",
    "MtbenchError": "errors",
    "MultitaskModel": "balancing.model",
    "PerObjective": "balancing.model",
    "Recipe": "training.task",
    "Scalarizer": "balancing.balancer",
    "Split": "training.task",
    "Splits": "training.task",
    "Step": "balancing.step",
    "Task": "training.task",
    "UsageError": "errors",
    "Weighting": "balancing.balancer",
    "WeightingWrapper": "balancing.wrapper",
    "Wrapper": "balancing.wrapper",
    "balancer": "plugins.method",
    "combine": "plugins.method",
    "find": "plugins.registry",
}
_MODULES = ("data", "seeding", "solvers", "testing")
__all__ = [  # noqa: RUF022 - the reading order
    "balancer",
    "Step",
    "Engine",
    "Balancer",
    "Judged",
    "Scalarizer",
    "Weighting",
    "Aggregator",
    "Wrapper",
    "WeightingWrapper",
    "Method",
    "combine",
    "find",
    "MultitaskModel",
    "PerObjective",
    "Task",
    "Split",
    "Splits",
    "Metric",
    "Recipe",
    "MtbenchError",
    "UsageError",
    "data",
    "seeding",
    "solvers",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"mtbench.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mtbench' has no attribute {name!r}")
    return getattr(import_module(f"mtbench.{_HOMES[name]}"), name)
