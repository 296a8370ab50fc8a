"""Methods around another method: ``--method wrapper+base``."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mtbench.balancing.balancer import Balancer, Judged, LossesFn, Weighting
from mtbench.errors import UsageError

if TYPE_CHECKING:
    from mtbench.balancing.model import MultitaskModel


class Wrapper(Balancer):
    """A method around another one, ``--method wrapper+base``; what it leaves alone is the base's.

    Args:
        base: the method inside.
        seed: seeds `generator`.

    Raises:
        UsageError: the base is no balancer.
    """

    passes = "the base's"

    def __init__(self, base: Balancer, seed: int = 0) -> None:
        if not isinstance(base, Balancer):
            name = self._called
            raise UsageError(
                f"{name}: goes around a balancer, found {base!r}: say {name}(balancer(...)), or "
                f"balancer('{name}+BASE', K)"
            )
        super().__init__(base.num_objectives, seed)
        self.base = base
        self.needs_features = self.needs_features or base.needs_features
        self.needs_again = self.needs_again or base.needs_again
        self.needs_validation = self.needs_validation or base.needs_validation
        self.needs_residuals = self.needs_residuals or base.needs_residuals
        self.needs_positive = self.needs_positive or base.needs_positive
        self.holds_out = max(self.holds_out, base.holds_out)
        self.finds_front = self.finds_front and base.finds_front
        self.is_symmetric = self.is_symmetric and base.is_symmetric
        self.is_weighted_sum = self.is_weighted_sum and base.is_weighted_sum

    @property
    def at_features(self) -> bool:
        """Whether this method or the base looks there."""
        return super().at_features or self.base.at_features

    def _inside(self) -> Iterable[Balancer]:
        """Return what is told of steps, epochs and metrics."""
        return (self.base,)

    @classmethod
    def _does(cls, hook: str) -> bool:
        return getattr(cls, hook) is not getattr(Wrapper, hook)

    def _hooks(self) -> set[str]:
        return super()._hooks() | self.base._hooks()

    def after_step(self, losses_fn: LossesFn) -> None:
        """Ask the base."""
        for base in self._inside():
            base.after_step(losses_fn)

    def after_epoch(self) -> None:
        """Ask the base."""
        for base in self._inside():
            base.after_epoch()

    def after_evaluation(self, metrics: Sequence[Judged]) -> None:
        """Ask the base."""
        for base in self._inside():
            base.after_evaluation(metrics)

    def view(self, features: tuple[Tensor, ...], k: int) -> tuple[Tensor, ...]:
        """Ask the base."""
        return self.base.view(features, k)

    def wrap(self, model: "MultitaskModel") -> "MultitaskModel":
        """Ask the base."""
        return self.base.wrap(model)


class WeightingWrapper(Wrapper, Weighting):
    """A wrapper that changes what a `Weighting` is asked, or what it answers.

    Raises:
        UsageError: the base is of another family, or does more in a step.
    """

    base: Weighting
    sees_zero_rows = True

    def __init__(self, base: Balancer, seed: int = 0) -> None:
        super().__init__(base, seed)
        self.base = weighting(self._called, base)
        self.space = self.base.space


def weighting(owner: str, base: Balancer, *, at_shared: bool = False) -> Weighting:
    """Return a base that a wrapper may ask for weights in the place of its whole step.

    Args:
        owner: the wrapper's name.
        base: what it wraps.
        at_shared: whether it must look at the gradients of shared parameters.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(base, Weighting) or not base.weighs_only:
        raise UsageError(
            f"{owner} wraps methods that find weights from the Gramian and do no more, found "
            f"{base._called}"
        )
    if at_shared and base.space != "shared":
        raise UsageError(
            f"{owner} wraps methods on the gradients of shared parameters, found {base._called} "
            f"with space={base.space}"
        )
    return base
