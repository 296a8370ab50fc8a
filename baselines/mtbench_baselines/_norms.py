"""What methods share where they measure gradients and divide by losses."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mtbench.balancing.jacobian import flat


def norm(parts: Iterable[Tensor | None]) -> Tensor:
    """Return the norm of all parts together; squares of 1e-30 or 1e30 do not fit in float32."""
    squares = [flat(part).double().square().sum() for part in parts if part is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)


def sample_squares(grad: Tensor) -> Tensor:
    """Return each sample's squared norm, (B,), float64, of a gradient (B, ...) or (B,)."""
    return grad.double().square()[:, None].flatten(1).sum(1)


def divisors(losses: Tensor) -> Tensor:
    """Return what turns gradients of losses into those of their logarithms: |L_k|, 1 for 0."""
    return losses.abs().masked_fill(losses == 0, 1)
