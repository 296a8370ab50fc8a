"""What a method's parameters may be; each check takes them by name, and says the rule.

Any change here changes the digest of every method that asks: cells that it had trained then count
as another code's.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf, isfinite
from typing import Any, NamedTuple

from mtbench.balancing.balancer import Balancer
from mtbench.errors import UsageError


class Rule(NamedTuple):
    """What a number must be, and in words."""

    holds: Callable[[Any], bool]
    said: str


FINITE = Rule(isfinite, "finite")
POSITIVE = Rule(lambda value: 0 < value < inf, "finite and above 0")
NONNEGATIVE = Rule(lambda value: 0 <= value < inf, "finite and at least 0")
FRACTION = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
UNIT = Rule(lambda value: 0 <= value <= 1, "in [0, 1]")


def positive(method: Balancer, **values: float) -> None:
    """Refuse what is not finite and above 0."""
    _check(method, values, POSITIVE)


def nonnegative(method: Balancer, **values: float) -> None:
    """Refuse what is not finite and at least 0."""
    _check(method, values, NONNEGATIVE)


def fraction(method: Balancer, **values: float) -> None:
    """Refuse what is not in [0, 1)."""
    _check(method, values, FRACTION)


def share(method: Balancer, **values: float) -> None:
    """Refuse what is not in (0, 1]."""
    _check(method, values, Rule(lambda value: 0 < value <= 1, "above 0 and at most 1"))


def unit_interval(method: Balancer, **values: float) -> None:
    """Refuse what is not in [0, 1]."""
    _check(method, values, UNIT)


def at_least(method: Balancer, least: int, **values: int) -> None:
    """Refuse whole numbers below another."""
    _check(method, values, Rule(lambda value: value >= least, f"at least {least}"))


def index(method: Balancer, **values: int) -> None:
    """Refuse what is no objective's number."""
    K = method.num_objectives
    _check(method, values, Rule(lambda value: 0 <= value < K, f"at least 0 and below {K}"))


def per_objective(
    method: Balancer, rule: Rule, default: float, **given: Sequence[float] | None
) -> tuple[float, ...]:
    """Return K numbers, `default` each where none are given; refuse others."""
    [(name, values)] = given.items()
    K = method.num_objectives
    found = (default,) * K if values is None else tuple(values)
    if len(found) != K or not all(map(rule.holds, found)):
        raise UsageError(
            f"{method._called}: {name} must hold one number per objective ({K}), each "
            f"{rule.said}, found {found}"
        )
    return found


def one_of(method: Balancer, choices: Collection[str], **values: str) -> None:
    """Refuse what is none of the choices."""
    _check(method, values, Rule(lambda value: value in choices, f"one of {', '.join(choices)}"))


def _check(method: Balancer, values: Mapping[str, Any], rule: Rule) -> None:
    for name, value in values.items():
        if not rule.holds(value):
            shown = repr(value) if isinstance(value, str) else value
            raise UsageError(f"{method._called}: {name} must be {rule.said}, found {shown}")
