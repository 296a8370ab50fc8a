"""What numbers a task's parameters may be."""

from mtbench.errors import UsageError


def at_least(least: float, **given: float | None) -> None:
    """Refuse a parameter that is given and is below a number.

    Raises:
        UsageError: one is.
    """
    for name, value in given.items():
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, found {value}")


def check_dropout(dropout: float) -> None:
    """Refuse a share of features that no layer can drop.

    Raises:
        UsageError: it is one.
    """
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must be at least 0 and below 1, found {dropout}")
