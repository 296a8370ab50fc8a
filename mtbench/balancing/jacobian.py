"""All objectives' gradients of the shared parameters: laid out, held, multiplied, mixed, written.

Flat vectors are real: a complex number is two of their entries. Sparse gradients lie there densely,
and those of several dtypes in the one that holds them all.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtbench.balancing.engine import gramian, without_autocast
from mtbench.balancing.layers import Layer

Item = Layer | Tensor
"""What gradients are taken of: a parameter, or a layer in the place of its parameters."""


def width(item: Item) -> int:
    """Return how many entries of a flat vector an item's gradient takes."""
    return item.numel() * (2 if item.dtype.is_complex else 1)


def point(item: Item) -> Tensor | GradientEdge:
    """Return where on the graph an item's gradient is taken."""
    return item.edge if isinstance(item, Layer) else item


def flat(value: Tensor) -> Tensor:
    """Return a gradient as real entries side by side."""
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    return value.reshape(-1)


def vector(values: Iterable[Tensor | None], like: Iterable[Tensor]) -> Tensor:
    """Return the gradients of some parameters in a row, zeros for None."""
    pairs = zip(values, like, strict=True)
    parts = [flat(torch.zeros_like(p) if value is None else value) for value, p in pairs]
    return torch.cat(parts or [torch.zeros(0, device="cpu")])


def dtype_of(parameters: Iterable[Tensor], default: torch.dtype) -> torch.dtype:
    """Return the real dtype that holds all parameters' gradients."""
    kinds = dict.fromkeys(p.dtype.to_real() for p in parameters)
    return reduce(torch.promote_types, kinds) if kinds else default.to_real()


def views(vector: Tensor, parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter with its part of a flat vector, in its shape."""
    sizes = [width(p) for p in parameters]
    for parameter, part in zip(parameters, torch.split(vector, sizes), strict=True):
        if parameter.is_complex():
            pairs = part.reshape(-1, 2)
            if pairs.storage_offset() % 2:  # torch sees no complex numbers there
                pairs = pairs.clone()
            part = torch.view_as_complex(pairs)
        yield parameter, part.view(parameter.shape)


def owned(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of one backward pass, dense, each in memory of its own.

    Autograd hands one tensor to all summands of a sum, and to hooks, which may keep it.
    """
    found, taken = list(gradients), set[int]()
    for i, (value, parameter) in enumerate(zip(gradients, parameters, strict=True)):
        if value is not None and value.layout != torch.strided:
            found[i] = value.to_dense()
        elif value is not None:
            place = value.untyped_storage().data_ptr()
            if place in taken or parameter._backward_hooks:
                found[i] = value.clone()
            taken.add(place)
    return found


def accumulate(parameter: Tensor, value: Tensor) -> None:
    """Add a gradient to what a parameter has, in the parameter's dtype and memory format."""
    if value.layout == torch.strided:
        if value.dtype != parameter.dtype or value.device != parameter.device:
            value = value.to(parameter)
        if not (parameter.is_contiguous() and value.is_contiguous()):  # expanded, perhaps
            value = torch.empty_like(parameter).copy_(value)
    own = parameter.grad
    if own is None:
        parameter.grad = value
    elif own.layout in (torch.strided, value.layout):
        own.add_(value)
    else:  # torch adds a sparse gradient to a dense one, but not a dense one to it
        parameter.grad = value.add_(own)


def beside(gradients: Tensor, weights: Tensor) -> Tensor:
    """Return the weights as these gradients need them, without waiting for the device."""
    return weights.to(gradients.device, gradients.dtype, non_blocking=True)


class Pulled(NamedTuple):
    """All objectives' gradients of shared parameters, times the loss scale.

    Attributes:
        layers: those whose gradients were not formed, with the gradients at their output, (K, n).
        parameters: the others.
        blocks: their gradients side by side, (K, n) each.
    """

    layers: list[tuple[Layer, Tensor]]
    parameters: list[Tensor]
    blocks: list[Tensor]

    def gramian(self) -> Tensor:
        """Return the gradients' products, (K, K), float64, on the CPU."""
        if not self.layers:
            return gramian(self.blocks)
        with without_autocast(self.blocks[0]):
            return gramian([self._turned(), *self.blocks])

    def _turned(self) -> Tensor:
        """Return the gradients of the layers' parameters in fewer coordinates, (K, n)."""
        _, like = self.layers[0]
        sizes = [layer.numel() for layer, _ in self.layers]
        turned = like.new_empty(len(like), sum(sizes))
        for (layer, grads), part in zip(self.layers, torch.split(turned, sizes, 1), strict=True):
            layer.turn(grads, part)
        return turned

    def mixed(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter with the gradient of sum_k w_k L_k."""
        with without_autocast(self.blocks[0]):
            own = [block.T @ beside(block, weights) for block in self.blocks]
            found = list(views(own[0] if len(own) == 1 else torch.cat(own), self.parameters))
            for layer, grads in self.layers:
                at_output = grads.T @ beside(grads, weights)
                found += zip(layer.parameters, layer.pull_back(at_output), strict=True)
        return found
