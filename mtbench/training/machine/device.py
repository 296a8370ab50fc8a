"""Where a cell is computed, and at which precision."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mtbench.balancing.model import PerObjective
from mtbench.errors import PluginError, UsageError
from mtbench.training.task import Batch


def use_device(name: str) -> str:
    """Make a device the one to train on; return its type: which of several is no part of a cell.

    Raises:
        UsageError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("mtbench trains on cpu, cuda and mps")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"--device {name}: not available here ({reason}); use --device cpu"
        ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    return device.type


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
