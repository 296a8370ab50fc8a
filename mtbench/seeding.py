"""Seeds: every source of randomness of a cell derives from its one seed."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive(seed: int, *labels: str | int) -> int:
    """Return a 63-bit seed for a purpose, independent of those of other purposes.

    >>> derive(0, "order", 1) == derive(0, "order", 1) != derive(0, "order", 2)
    True
    """
    text = "/".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """Return a generator for a purpose."""
    return torch.Generator().manual_seed(derive(seed, *labels))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one, for code that uses it
    if torch.accelerator.current_accelerator() is None:
        # The same, without looking at the call stack for devices that this torch is not built for.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def global_state() -> dict[str, Any]:
    """Return the state of every global generator in types that ``weights_only`` loads."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        # Of the one that trains: a cell may go on at another.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_global_state(state: dict[str, Any]) -> None:
    """Restore what `global_state` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss)
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the caller's global generators as they were."""
    state = global_state()
    try:
        yield
    finally:
        set_global_state(state)
