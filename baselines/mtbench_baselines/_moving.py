"""Gradients at other parameters: what methods share that look ahead."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mtbench.balancing.engine import grad
from mtbench.balancing.step import Step


def gradients(step: Step, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Return dloss/dparameters, None where there is no dependence; float16 needs the scale."""
    found = grad([loss], parameters, [torch.full_like(loss, step.loss_scale)])
    return [None if value is None else value / step.loss_scale for value in step.ranks.sums(found)]


@contextmanager
def moved(parameters: Sequence[Tensor], offsets: Sequence[Tensor | None]) -> Iterator[None]:
    """Move parameters, and put them back exactly."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, offset in zip(parameters, offsets, strict=True):
                if offset is not None:
                    parameter.add_(offset)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
