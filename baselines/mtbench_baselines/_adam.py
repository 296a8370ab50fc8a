"""Adam for what a method keeps per objective, some of which may stand still.

`torch.optim.Adam` cannot: it counts the steps of a tensor, not of its entries, and its state lies
outside the method's `state_dict`.
"""

import torch
from torch import Tensor

_BETAS = (0.9, 0.999)
_EPS = 1e-8


def descend(
    value: Tensor,
    first: Tensor,
    second: Tensor,
    count: Tensor,
    grad: Tensor,
    lr: float | Tensor,
    of: Tensor,
) -> None:
    """Make a step of Adam in place.

    Args:
        value: what is moved, (K, ...).
        first: its first moment, (K, ...), uncorrected, 0 at the start.
        second: likewise.
        count: of the steps that each objective's entries have made, (K, 1, ...).
        grad: (K, ...).
        lr: the learning rate.
        of: which objectives take part, (K, 1, ...); the others' entries stay as they are.
    """
    fast, slow = _BETAS
    steps = count + of
    mean = fast * first + (1 - fast) * grad
    square = slow * second + (1 - slow) * grad.square()
    correction = (1 - slow**steps).sqrt() / (1 - fast**steps)
    step = lr * correction * mean / (square.sqrt() + _EPS * (1 - slow**steps).sqrt())
    for state, moved in ((value, value - step), (first, mean), (second, square)):
        state.copy_(torch.where(of, moved, state))
    count.copy_(steps)
