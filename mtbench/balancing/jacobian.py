"""All objectives' gradients of the shared parameters: held, multiplied, mixed and written."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtbench.balancing.engine import gramian
from mtbench.balancing.layers import Layer


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

    def gramian(self, to_host: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradients' products, (K, K), float64, on the CPU."""
        with torch.autocast(self.blocks[0].device.type, enabled=False):
            turned = chain.from_iterable(layer.turn(grads) for layer, grads in self.layers)
            return gramian([*turned, *self.blocks], to_host)

    def mixed(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter with the gradient of sum_k w_k L_k."""
        with torch.autocast(self.blocks[0].device.type, enabled=False):
            own = [block.T @ beside(block, weights) for block in self.blocks]
            found = list(views(own[0] if len(own) == 1 else torch.cat(own), self.parameters))
            for layer, grads in self.layers:
                at_output = grads.T @ beside(grads, weights)
                found += zip(layer.parameters, layer.pull_back(at_output), strict=True)
        return found


def views(flat: Tensor, parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter with its part of a flat vector, in its shape."""
    sizes = [p.numel() for p in parameters]
    for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
        yield parameter, part.view_as(parameter)


def beside(gradients: Tensor, weights: Tensor) -> Tensor:
    """Return the weights as these gradients need them, without waiting for the device."""
    return weights.to(gradients.device, gradients.dtype, non_blocking=True)


def point(item: Layer | Tensor) -> Tensor | GradientEdge:
    """Return where on the graph an item's gradient is taken."""
    return item.edge if isinstance(item, Layer) else item


def accumulate(parameter: Tensor, value: Tensor) -> None:
    """Add a gradient to what a parameter has."""
    parameter.grad = value if parameter.grad is None else parameter.grad.add_(value)
