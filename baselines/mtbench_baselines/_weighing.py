"""What wrappers share that stand between a step and a method on the Gramian."""

from mtbench.balancing.balancer import Balancer, Weighting
from mtbench.errors import UsageError


def weighting(owner: str, base: Balancer) -> Weighting:
    """Return a method that finds weights and does no more with a step than apply them.

    Raises:
        UsageError: the base is another one.
    """
    own = (Weighting.balance, Weighting.write)
    if not isinstance(base, Weighting) or (type(base).balance, type(base).write) != own:
        raise UsageError(
            f"{owner} wraps methods that find weights from the Gramian and do no more, found "
            f"{type(base).__name__}"
        )
    return base
