"""Where a cell is computed, and at which precision."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mtbench.balancing.model import PerObjective
from mtbench.errors import PluginError, UsageError
from mtbench.training.task import Batch


def device_type(name: str) -> str:
    """Return a device's type, which is part of a cell, as which of several is not.

    This machine need not have it.

    Args:
        name: as torch has it; ``auto`` is ``cuda`` where this machine has it, and ``cpu`` else.

    Raises:
        UsageError: torch knows no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    with _told(name):
        kind = torch.device(name).type
        if kind not in ("cpu", "cuda", "mps"):
            raise RuntimeError("mtbench trains on cpu, cuda and mps")
    return kind


def use_device(name: str) -> None:
    """Make a device the one to train on; ``cuda`` is the GPU that is the current one.

    Raises:
        UsageError: torch knows no such device, or this machine has none.
    """
    kind = device_type(name)
    device = torch.device(kind if name == "auto" else name)
    with _told(name):
        torch.zeros(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"device {name}: not available here ({reason}); use cpu") from error


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass runs at a precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return the batch with its tensors on the device, or on their way there.

    Raises:
        PluginError: it is no batch.
    """
    if not isinstance(batch, Mapping) or "inputs" not in batch:
        found = ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise PluginError(f"a split's batch must be a dict with 'inputs', found {found}")
    return {name: _moved(value, device) for name, value in batch.items()}


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, PerObjective):
        return PerObjective(_moved(own, device) for own in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
