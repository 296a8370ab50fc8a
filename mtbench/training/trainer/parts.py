"""A batch that goes through a model part after part, in the memory of one part."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.checkpoint import checkpoint

from mtbench.balancing.distributed import map_leaves
from mtbench.errors import StepError, UsageError


def in_parts(
    function: Callable[[Any], Any], tree: Any, count: int, parameters: Iterable[Tensor] = ()
) -> Any:
    """Return what a function makes of a batch's samples, without keeping what it needed for it.

    What autograd would save is computed anew in the backward pass, one part at a time. So losses
    and gradients are the whole batch's, whatever the losses are.

    Args:
        function: of samples, each by itself; makes tensors (B, ...), in tuples, lists or
            dictionaries, of such.
        tree: the batch.
        count: the number of parts, of about the same size; 1 for the whole batch at once.
        parameters: what the function reads beside them.

    Raises:
        UsageError: something else is in there, or is made.
        StepError: in the backward pass, that the parameters are others than in the forward pass,
            which autograd does not notice where it saved nothing.
    """
    if count == 1:
        return function(tree)
    leaves = _leaves(tree)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != len(leaves[0]):
            found = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise UsageError(
                "accumulate: a batch is parted by the first axis of its inputs, the samples, and "
                f"they hold a {found}: leave accumulate at 1"
            )
    parts = list(_parts(tree, min(count, len(leaves[0]))))
    read = [(parameter, parameter._version) for parameter in parameters]

    def checked(part: Any) -> Any:
        if any(parameter._version != version for parameter, version in read):
            raise StepError(
                "accumulate: the method changed parameters between a forward pass and its "
                "backward: take a step's gradients first, or leave accumulate at 1"
            )
        return function(part)

    made = [checkpoint(checked, part, use_reentrant=False) for part in parts]
    for part, result in zip(parts, made, strict=True):
        size = len(_leaves(part)[0])
        for leaf in _leaves(result):
            if isinstance(leaf, Tensor) and leaf.shape[:1] != (size,):
                raise UsageError(
                    "accumulate: what a model makes of parts is joined by the first axis, the "
                    f"samples, and of {size} it makes a {tuple(leaf.shape)}: leave accumulate at 1"
                )
    return _filled(made[0], map(_joined, zip(*map(_leaves, made), strict=True)))


def _parts(tree: Any, count: int) -> Iterator[Any]:
    cut = [leaf.tensor_split(count) for leaf in _leaves(tree)]
    for part in zip(*cut, strict=True):
        yield _filled(tree, part)


def _filled(tree: Any, leaves: Iterable[Any]) -> Any:
    """Return a tree of this shape with other leaves."""
    values = iter(leaves)
    return map_leaves(lambda _: next(values), tree)


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    map_leaves(found.append, tree)
    return found


def _joined(column: tuple[Any, ...]) -> Any:
    return torch.cat(column) if isinstance(column[0], Tensor) else column[0]


def refuse_mixing(model: nn.Module) -> None:
    """Refuse a model whose samples see one another, or which counts its forward passes.

    Raises:
        UsageError: it has batch norm, spectral norm, or an instance norm with running statistics.
    """
    for name, module in model.named_modules():
        for part in (module, *module._forward_pre_hooks.values()):
            runs = isinstance(part, nn.modules.instancenorm._InstanceNorm)
            if isinstance(part, _MIXING) or (runs and part.track_running_stats):
                raise UsageError(
                    f"accumulate: {name} {'is' if part is module else 'has'} a "
                    f"{type(part).__name__}, which is not the same on parts of a batch: leave "
                    "accumulate at 1, or take another norm"
                )


_MIXING = (
    nn.modules.batchnorm._BatchNorm,
    nn.utils.parametrizations._SpectralNorm,
    SpectralNorm,
)
