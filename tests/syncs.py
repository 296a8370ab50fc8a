"""How often a host would wait for the device, counted on the CPU as if that were a device.

What is marked lies on the device, and so does all that is computed from it, until a copy to the
host is asked for; what is made from nothing is the host's until it is sent there. An upload that is
not ``non_blocking`` waits too.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2",
           "_linalg_check_errors", "linalg_matrix_exp"}  # fmt: skip
"""Operators that make a host wait: their result's shape or an error depends on values."""


class Device:
    """Knows which memory is the device's, and remembers where the host read some of it."""

    def __init__(self, state: Any) -> None:
        self.memory: dict[int, torch.UntypedStorage] = {}  # kept, so that no address comes twice
        self.reads: list[str] = []
        self.uploads: list[str] = []
        self.mark(state)

    def mark(self, tree: Any) -> None:
        for x in tensors(tree):
            storage = x.untyped_storage()
            self.memory[storage._cdata] = storage

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.memory

    def waits(self, what: str, to: list[str]) -> None:
        ours = ("waits", "__torch_dispatch__", "__torch_function__")
        frames = [f for f in traceback.extract_stack() if f.name not in ours]
        at = [f for f in frames if "/site-packages/torch/" not in f.filename][-1]
        to.append(f"{what} in {Path(at.filename).name}, line {at.lineno}")

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Watch a block; yields the list of what is read in it."""
        with _Operators(self), _Calls(self):
            yield self.reads


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


class _Operators(TorchDispatchMode):
    """Sees every operator, autograd's too."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        device, name = self.device, func.overloadpacket.__name__
        on_device = [x for x in tensors((args, kwargs)) if device.holds(x)]
        marks = bool(on_device)
        if name in READING and on_device:
            device.waits(name, device.reads)
        elif name in ("index", "index_put_", "index_put") and device.holds(args[0]):
            filled = name != "index" and args[2].numel() == 1  # where the mask is
            for x in tensors(args[1]):
                if not device.holds(x):
                    device.waits(name, device.uploads)
                elif x.dtype == torch.bool and not filled:  # is turned into positions
                    device.waits(name, device.reads)
        elif name == "copy_" and on_device:
            marks = device.holds(args[0])
            if not marks:
                device.waits(name, device.reads)
            elif not device.holds(args[1]) and not (len(args) > 2 and args[2]):
                device.waits(name, device.uploads)
        found = func(*args, **(kwargs or {}))
        if marks:
            device.mark(found)
        return found


class _Calls(TorchFunctionMode):
    """Sees what moves between device and host, which is nothing where both are the CPU."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        device, name, kwargs = self.device, func.__name__, kwargs or {}
        if name == "__deepcopy__":  # stays where it is, and goes by ways that are not seen
            return args[0].clone()
        if name in ("tolist", "numpy", "__array__") and device.holds(args[0]):
            device.waits(name, device.reads)
        target = kwargs.get("device")
        if name in ("to", "cpu"):
            target = "cpu" if name == "cpu" else target or args[1]
        elif name == "new_tensor":
            target = args[0]
        if isinstance(target, Tensor):
            target = torch.device("cpu") if device.holds(target) else "cpu"
        found = func(*args, **kwargs)
        if name in ("to", "cpu") and target == "cpu" and device.holds(args[0]):
            if not kwargs.get("non_blocking"):  # else it is under way, behind what was asked before
                device.waits(name, device.reads)
            found = found.clone()
            del device.memory[found.untyped_storage()._cdata]
        elif isinstance(target, torch.device):
            if name in ("tensor", "as_tensor", "new_tensor") or (
                name == "to" and not device.holds(args[0]) and not kwargs.get("non_blocking")
            ):
                device.waits(name, device.uploads)
            if name == "to" and not device.holds(args[0]):
                found = found.clone()
            device.mark(found)
        return found
