"""Shared parameters by tensor, layer, block or name: groups that wrappers tell apart."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Literal, get_args

from mtbench.balancing.step import Step
from mtbench.errors import StepError, UsageError

By = Literal["tensor", "layer", "block", "all"]


def checked(owner: str, by: By, named: Sequence[str]) -> tuple[By, tuple[re.Pattern[str], ...]]:
    """Return how parameters are grouped, patterns compiled.

    Raises:
        UsageError: a word or a pattern that is none.
    """
    if by not in get_args(By):
        raise UsageError(
            f"{owner}: by must be {' or '.join(map(repr, get_args(By)))}, found {by!r}"
        )
    try:
        return by, tuple(map(re.compile, named))
    except re.error as error:
        raise UsageError(
            f"{owner}: named must be regular expressions, found {error.pattern!r} ({error})"
        ) from None


def grouped(owner: str, step: Step, by: By, named: Sequence[re.Pattern[str]]) -> list[list[int]]:
    """Return the numbers of the shared parameters in each group, in the order of appearance.

    Args:
        owner: who asks.
        step: whose shared parameters they are.
        by: ``tensor`` each alone; ``layer``, those of one module; ``block``, those of one child of
            the innermost module that holds them all; ``all`` together.
        named: patterns, each of which makes a group of the parameters in whose names it is found
            first; `by` is for the others.

    Raises:
        StepError: names are needed, and not known, or a pattern makes no group.
    """
    names = [name for name, _ in step.named_shared]
    if (named or by in ("layer", "block")) and len(names) > 1 and not all(names):
        raise StepError(
            f"{owner}: layers, blocks and patterns go by names: hand over "
            "shared=encoder.named_parameters(), or take by='tensor'"
        )
    paths = [name.split(".")[:-1] for name in names]
    common = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))))
    groups: dict[object, list[int]] = {}
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        key: object = next((n for n, pattern in enumerate(named) if pattern.search(name)), None)
        if key is None:
            whole = {"tensor": ["", str(i)], "layer": path, "block": path[: common + 1], "all": []}
            key = tuple(whole[by])
        groups.setdefault(key, []).append(i)
    for number, pattern in enumerate(named):
        if number not in groups:
            raise StepError(
                f"{owner}: no shared parameter that is left is called like {pattern.pattern!r}, "
                f"found {', '.join(names)}"
            )
    return list(groups.values())
