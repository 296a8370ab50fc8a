"""Whether two values are equal, whatever they are made of."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor


def alike(a: Any, b: Any) -> bool:
    """Return whether two nested values hold the same, NaN being equal to itself.

    A list is like a tuple that holds the same.

    >>> alike({"state": [float("nan"), Tensor([1.0])], "at": 3},
    ...       {"at": 3, "state": [float("nan"), Tensor([1.0])]})
    True
    >>> alike([Tensor([1.0])], [None]), alike([[1], [2, 3]], [[1, 2], [3]])
    (False, False)
    """
    one, other = list(_leaves(a)), list(_leaves(b))
    return len(one) == len(other) and all(map(_equal, one, other))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield value.detach().cpu()
    elif isinstance(value, np.ndarray):
        yield from _leaves(value.tolist())
    elif isinstance(value, Mapping):
        yield len(value)
        for key in sorted(value, key=repr):
            yield key
            yield from _leaves(value[key])
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | set | frozenset):
        items = list(value)
        yield len(items)
        for item in items:
            yield from _leaves(item)
    else:
        yield value


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        same = x.dtype == y.dtype and x.shape == y.shape
        return same and bool(((x == y) | ((x != x) & (y != y))).all())
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return False
    return bool(x == y or (x != x and y != y))
