"""What a plugin's class is called, and whether it defines things as they are called."""

from inspect import signature
from types import FunctionType
from typing import Any

from mtbench.errors import UsageError


def name_of(plugin: type) -> str:
    """Return what a method or task is called: its module's name."""
    return plugin.__module__.rpartition(".")[2]


def must_take(plugin: type, name: str) -> None:
    """Refuse a class that defines something with other arguments than it is called with.

    Those are the arguments of the first class that has it. What is of another kind there, such as
    a static method for a method, is not looked at.

    Args:
        plugin: the class.
        name: what it may define.

    Raises:
        UsageError: it cannot be called with all of these arguments, or with those that have no
            default.
    """
    first = next((vars(c)[name] for c in reversed(plugin.__mro__) if name in vars(c)), None)
    both: list[Any] = [first, vars(plugin).get(name)]
    if isinstance(first, classmethod) and isinstance(both[1], FunctionType):
        raise UsageError(f"{plugin.__name__}.{name} must be a class method: put @classmethod above")
    if len({*map(type, both)}) > 1 or not isinstance(first, FunctionType | classmethod):
        return
    wanted, taken = (  # not what a decorator wraps
        signature(getattr(found, "__func__", found), follow_wrapped=False) for found in both
    )
    needed = [p.name for p in wanted.parameters.values() if p.default is p.empty]
    try:
        taken.bind(*wanted.parameters)
        taken.bind(*needed)
    except TypeError:
        must, found = (
            ", ".join(p.name + "=None" * (p.default is not p.empty) for p in said)
            for said in (wanted.parameters.values(), taken.parameters.values())
        )
        raise UsageError(f"{plugin.__name__}.{name} must take ({must}), found ({found})") from None
