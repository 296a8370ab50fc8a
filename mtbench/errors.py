"""The exceptions that mtbench raises at its edges.

Each message is one line: what is wrong, where, the rule, what was found, what to do. The command
line prints it and exits with code 2; a library user catches `MtbenchError`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class MtbenchError(Exception):
    """Base of every error that the user, not the program, has to mend."""


class UsageError(MtbenchError):
    """An option, name or parameter that does not exist or has no such value."""


class StepError(UsageError, ValueError):
    """Losses, features or parameters of a step that are not what the graph says."""


class DataError(MtbenchError):
    """Input data that is absent, broken, or not what its source promises."""


class PluginError(MtbenchError):
    """A method or task module that does not define exactly one plugin class."""


class RunError(MtbenchError):
    """A run directory that cannot be written, read, or belongs to another spec."""


@contextmanager
def writable(what: str, remedy: str = "") -> Iterator[None]:
    """Tell in a line what the statements of this context cannot write.

    Args:
        what: that is, and the option that asked for it.
        remedy: what to do, where that is not plain.

    Raises:
        RunError: for their `OSError`.
    """
    try:
        yield
    except OSError as error:
        advice = f"; {remedy}" if remedy else ""
        raise RunError(f"{what}: cannot be written ({error.strerror or error}){advice}") from error


def first_fault(error: "ValidationError") -> str:
    """Return the first thing that pydantic finds wrong, behind its place, which a file may name."""
    first = error.errors(include_input=False, include_context=False)[0]
    place = repr(".".join(map(str, first["loc"])) or "file")[1:-1][:80]
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"


FEW = 12
"""Up to so many names are all listed in a hint."""


def did_you_mean(
    name: str,
    known: Iterable[str],
    written: Mapping[str, str] = MappingProxyType({}),
    listed: str = "",
) -> str:
    """Return a hint naming the closest known name, else all of them, or of many the nearest.

    Args:
        name: what was given.
        known: what there is.
        written: how to write a name that is not written as it is called.
        listed: the command that lists all, said where the hint does not.

    >>> did_you_mean("cagard", ["cagrad", "ew"])
    "did you mean 'cagrad'?"
    >>> did_you_mean("xyz", ["ew", "cagrad"])
    'known: cagrad, ew'
    >>> did_you_mean("CAGrad", ["cagrad", "ew"])
    "did you mean 'cagrad'?"
    >>> did_you_mean("metod", ["method"], {"method": "--method"})
    "did you mean '--method'?"
    >>> did_you_mean("xyz", [f"m{i}" for i in range(70)] + ["xu"], listed="mtbench list")
    'nearest of 71: xu, m9, m8, m7, m69; all: `mtbench list`'
    """
    spelt = {one.casefold(): one for one in sorted(known)}
    close = get_close_matches(name.casefold(), spelt, n=1)
    if close:
        one = spelt[close[0]]
        return f"did you mean {written.get(one, one)!r}?"
    if len(spelt) <= FEW:
        return f"known: {', '.join(written.get(one, one) for one in spelt.values()) or 'none'}"
    near = [spelt[one] for one in get_close_matches(name.casefold(), spelt, n=5, cutoff=0.0)]
    hint = f"nearest of {len(spelt)}: {', '.join(written.get(one, one) for one in near)}"
    return f"{hint}; all: `{listed}`" if listed else hint
