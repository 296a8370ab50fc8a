"""Parameters moved for a while: what methods share that look at other points."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def moved(parameters: Sequence[Tensor], offsets: Sequence[Tensor | None]) -> Iterator[None]:
    """Move parameters, and put them back exactly."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, offset in zip(parameters, offsets, strict=True):
                if offset is not None:
                    parameter.add_(offset)
        torch.clear_autocast_cache()  # it has copies from before the move
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
        torch.clear_autocast_cache()
