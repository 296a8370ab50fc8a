"""Options that several commands share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="A Python file with a method or task; repeatable."
    ),
]
SuiteName = Annotated[str, typer.Argument(help="A shipped suite, such as quick, or a .toml file.")]
Data = Annotated[Path | None, typer.Option(help="Where the data lies, if the suite needs any.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", help="Worker processes; by default one a core.")
]


def number_of_jobs(given: int | None) -> int:
    """Return the number of worker processes.

    Raises:
        UsageError: it is below 1.
    """
    import os

    from mtbench.errors import UsageError

    if given is not None and given < 1:
        raise UsageError(f"--jobs must be at least 1, found {given}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return given or cores or 1


def own(callee: Callable[..., Any], command: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the options that a task's own code has, from the words that are none of the command's.

    Args:
        callee: its keyword-only parameters are the options.
        command: for the message.
        words: ``--key value``.

    Raises:
        UsageError: there is no such option, or a value that it cannot have.
    """
    from mtbench.errors import UsageError, did_you_mean
    from mtbench.plugins import params
    from mtbench.plugins.overrides import parse

    known, given = params.declared(callee), parse([], words)
    for key in given:
        if key not in known:
            raise UsageError(f"{command} has no option --{key}: {did_you_mean(key, known)}")
    return {
        key: params.convert(value, known[key].annotation, f"--{key}")
        for key, value in given.items()
    }
