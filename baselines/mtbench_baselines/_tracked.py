"""What methods that remember gradients share: K x d state, and weights that move on the simplex."""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Aggregator, Balancer
from mtbench_baselines._checks import nonnegative, positive


class Whose:
    """Knows whose gradients the last ones were; a copy does not, as its model may be a copy too.

    Nor does it where a state is loaded, as its model may have been made anew.

    Args:
        method: what remembers them.

    Attributes:
        others: whether what is remembered is of others.
    """

    def __init__(self, method: Balancer | None = None) -> None:
        self.others = False
        self._known: list[weakref.ref[Tensor]] = []
        if method is not None:
            method.register_load_state_dict_post_hook(self._forget)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> Any:
        return Whose, ()

    def look(self, shared: Sequence[Tensor]) -> None:
        """See whether these are others than before, or in another order.

        One in the place of one that is gone counts as the same.
        """
        known, self._known = self._known, [weakref.ref(p) for p in shared]
        pairs = [(old(), p) for old, p in zip(known, shared, strict=False)]
        moved = any(old is not None and old is not p for old, p in pairs)
        self.others |= moved or (bool(known) and len(known) != len(shared))

    def _forget(self, *_: Any) -> None:
        self.others, self._known = False, []


class Remembering(Balancer):
    """A method with one remembered gradient per objective.

    Attributes:
        tracked: (K, d), zero rows for objectives without a gradient so far; (K, 0) before the first
            step, as d is not known at construction.
        ages: buffers that say how old it is.
    """

    sized_later = ("tracked",)
    ages: tuple[str, ...] = ()

    tracked: Tensor

    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__(num_objectives, seed)
        self.register_buffer("tracked", torch.zeros(num_objectives, 0))
        self._whose = Whose(self)

    def compares(self, shared: Sequence[Tensor]) -> None:
        """See whether what is remembered is of others; an overflow forgets nothing yet."""
        self._whose.look(shared)

    def memory(self, like: Tensor) -> Tensor:
        """Return the remembered gradients, to be changed in place, where `like` is.

        Args:
            like: one of them, (d,), or all, (K, d); what is added must be of the memory's dtype.
        """
        width = like.shape[-1]
        if begins_anew(self, self.tracked, width, self._whose):
            self.tracked = new_state(like, self.num_objectives, width)
            for name in self.ages:
                self.get_buffer(name).zero_()
        self.tracked = self.tracked.to(like.device, kept_dtype(like))
        return self.tracked


def kept_dtype(like: Tensor) -> torch.dtype:
    """Return what a sum over steps is kept in: in 16 bits it would round small steps away."""
    return torch.promote_types(like.dtype, torch.float32)


def new_state(like: Tensor, *shape: int) -> Tensor:
    """Return zeros of a shape, to sum gradients in over steps."""
    return like.new_zeros(shape, dtype=kept_dtype(like))


def begins_anew(method: Balancer, kept: Tensor, width: int, whose: Whose) -> bool:
    """Return whether what a method remembers of the shared parameters must begin anew.

    A warning tells where something is lost.

    Args:
        method: whose.
        kept: what it remembers, (K, n); n is 0 before the first step.
        width: the n of this step.
        whose: who the shared parameters are.
    """
    n = kept.shape[1]
    anew, whose.others = whose.others or n != width, False
    if anew and n:
        warnings.warn(
            f"{method._called}: the shared parameters are not those of before, so what it "
            "remembers of them begins anew: say shared=encoder.parameters(), so that they stay the "
            "same where an objective has no label (all is well where you froze or unfroze it)",
            stacklevel=2,
        )
    return anew


class Tracking(Remembering, Aggregator):
    """An aggregator that remembers gradients."""

    sees_zero_rows = True


class Following(Tracking):
    """One whose weights move on the simplex, a step a step of training, to the min-norm point.

    Args:
        num_objectives: K.
        seed: unused.
        gamma: their step size; above 0.
        rho: weight of the regularisation; at least 0.

    Attributes:
        simplex: the weights, (K,), 1/K at the start.
    """

    on_host = ("simplex",)

    simplex: Tensor

    def __init__(self, num_objectives: int, seed: int, gamma: float, rho: float) -> None:
        super().__init__(num_objectives, seed)
        positive(self, gamma=gamma)
        nonnegative(self, rho=rho)
        self.gamma, self.rho = gamma, rho
        uniform = torch.full(
            (num_objectives,), 1 / num_objectives, dtype=torch.float64, device="cpu"
        )
        self.register_buffer("simplex", uniform)

    def follow(self, product: Tensor, live: Tensor) -> Tensor:
        """Move the weights by a product of gradients, (K, K); return them, 0 where not `live`."""
        weights = torch.zeros_like(self.simplex)
        if live.any():
            old = self.simplex[live]
            product = product[live][:, live]
            weights[live] = project(old - self.gamma * (product @ old + self.rho * old))
            self.simplex[live] = weights[live]
        return weights


def project(w: Tensor) -> Tensor:
    """Return the point of the probability simplex that is closest to w, (K,)."""
    w = w - w.max()  # changes nothing, and keeps the 1 from drowning in large numbers
    descending = w.sort(descending=True).values
    levels = (descending.cumsum(0) - 1) / torch.ones_like(w).cumsum(0)
    return (w - levels[descending > levels][-1]).clamp(min=0)
