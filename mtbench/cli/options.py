"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

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
