"""Extras: packages that only a part of a distribution needs, and which not everybody installs."""

from importlib.metadata import PackageNotFoundError, distribution, requires

from mtbench.errors import UsageError

TOOLKIT = "mtbench-toolkit"


def missing(extra: str, owner: str = TOOLKIT) -> list[str]:
    """Return the packages of an extra that are not installed.

    Args:
        extra: such as ``thyroid``.
        owner: the distribution whose extra it is.

    >>> missing("no-such-extra")
    []
    """
    from packaging.requirements import Requirement  # `mtbench list methods` has no use for it

    try:
        wanted = [Requirement(line) for line in requires(owner) or ()]
    except PackageNotFoundError:  # a checkout that is only on the path: an import will tell
        return []
    return [
        item.name
        for item in wanted
        if item.marker is not None
        and item.marker.evaluate({"extra": extra})
        and not item.marker.evaluate({"extra": ""})
        and not _is_installed(item.name)
    ]


def need(extra: str, who: str, owner: str = TOOLKIT) -> None:
    """Check that an extra is installed.

    Args:
        extra: such as ``thyroid``.
        who: what needs it, as the user calls it.
        owner: the distribution whose extra it is.

    Raises:
        UsageError: it is not; the message has the command that installs it.
    """
    if absent := missing(extra, owner):
        raise UsageError(f"{who} needs {', '.join(absent)}: {command(extra, owner)}")


def command(extra: str, owner: str = TOOLKIT) -> str:
    """Return the command that installs an extra."""
    return f"pip install '{owner}[{extra}]'"


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
