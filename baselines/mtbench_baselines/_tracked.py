"""What methods that remember gradients share: K x d state, and weights that move on the simplex."""

import torch
from torch import Tensor

from mtbench.balancing.balancer import Aggregator, Balancer


class Remembering(Balancer):
    """A method with one remembered gradient per objective.

    Attributes:
        tracked: (K, d), zero rows for objectives without a gradient so far; (K, 0) before the first
            step, as d is not known at construction.
    """

    sized_later = ("tracked",)

    tracked: Tensor

    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__(num_objectives, seed)
        self.register_buffer("tracked", torch.zeros(num_objectives, 0))

    def memory(self, like: Tensor) -> Tensor:
        """Return the remembered gradients, to be changed in place, where and as `like` is.

        Args:
            like: one of them, (d,), or all, (K, d).
        """
        size = (self.num_objectives, like.shape[-1])
        fits = self.tracked.shape == size
        self.tracked = self.tracked.to(like) if fits else like.new_zeros(size)
        return self.tracked


class Tracking(Remembering, Aggregator):
    """An aggregator that remembers gradients."""

    sees_zero_rows = True


def project(w: Tensor) -> Tensor:
    """Return the point of the probability simplex that is closest to w, (K,)."""
    w = w - w.max()  # changes nothing, and keeps the 1 from drowning in large numbers
    descending = w.sort(descending=True).values
    levels = (descending.cumsum(0) - 1) / torch.arange(1, len(w) + 1)
    return (w - levels[descending > levels][-1]).clamp(min=0)
