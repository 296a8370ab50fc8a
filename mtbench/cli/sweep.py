"""``mtbench sweep``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mtbench.cli.options import Plugins
from mtbench.cli.plan import Data, Jobs, SuiteName


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


def sweep(
    suite: SuiteName,
    out: Annotated[Path, typer.Option(help="Folder for run directories.")] = Path("runs"),
    jobs: Jobs = None,
    data: Data = None,
    plugin: Plugins = None,
) -> None:
    """Run a suite: every method's trials, then its final seeds with the best trial's parameters.

    Finished cells are skipped and interrupted ones resumed. Several sweeps may work on one folder.
    Exit code 1 if a cell failed.
    """
    from rich.console import Console

    from mtbench.cli.status import Watch
    from mtbench.grid import Grid, Order, needs_data
    from mtbench.progress import Display
    from mtbench.suite import load
    from mtbench.sweep import check_data, prepare
    from mtbench.sweep import sweep as run

    workers = number_of_jobs(jobs)
    order = Order(load(suite), data, tuple(plugin or ()))
    needs_data(order)
    grid = Grid(order)
    prepare(out)
    console = Console()
    with _stopped_by_sigterm():
        with Display(console, []) as display:
            check_data(grid, display.prepare)
        with Watch(console, grid, workers) as watch:
            states = run(grid, out, workers, watch)
    failures = {cell: state for cell, state in states.items() if state.status == "failed"}
    diverged = sum(state.status == "diverged" for state in states.values())
    console.print(
        f"{len(states)} cells: {len(states) - diverged - len(failures)} finished, {diverged} "
        f"diverged, {len(failures)} failed",
        highlight=False,
    )
    for cell, state in failures.items():
        console.print(
            f"failed: {cell}: {state.note}; mend it and delete {state.run}/failed.json to try "
            "again",
            markup=False, highlight=False, soft_wrap=True, style="red",
        )  # fmt: skip
    where: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    console.print(f"compare: mtbench leaderboard {out} --html {out}/site", **where)
    if failures:
        raise typer.Exit(1)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C."""
    import signal

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
