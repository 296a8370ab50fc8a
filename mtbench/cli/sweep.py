"""``mtbench sweep``."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtbench import inert
from mtbench.cli.options import (
    PLAIN,
    Data,
    Jobs,
    Plain,
    Plugins,
    SuiteName,
    check_row,
    load_suite,
    number_of_jobs,
)

if TYPE_CHECKING:
    from mtbench.comparing.running.executors import Executor


Where = Literal["local", "slurm", "dask"]


def sweep(
    suite: SuiteName,
    out: Annotated[Path, typer.Option(help="Folder for run directories.")] = Path("runs"),
    jobs: Jobs = None,
    data: Data = None,
    executor: Annotated[
        Where, typer.Option(help="Where cells are run: processes here, SLURM jobs or Dask tasks.")
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Of sbatch, such as partition=gpu or time=120 (minutes)."
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask's, such as tcp://host:8786.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Cells in a SLURM job or a Dask task; 1 by default.")
    ] = None,
    until: Annotated[
        Literal["done", "decided"],
        typer.Option(
            help="All repetitions, or only as many as it takes to tell each row from those that "
            "the suite asks `against`; the error rate holds either way."
        ),
    ] = "done",
    other_code: Annotated[
        Literal["keep", "anew"] | None,
        typer.Option(
            help="Where another mtbench, or other code of a plugin, has made cells: count them, "
            "and go on with the rest; or train them anew. Cells that it has only begun are begun "
            "again. Without it, nothing is started."
        ),
    ] = None,
    plain: Plain = PLAIN,
    plugin: Plugins = None,
) -> None:
    """Run a suite: every method's trials, then its final seeds with the best trial's parameters.

    Finished cells are skipped and interrupted ones resumed. Several sweeps may work on one folder.
    Exit code 1 if a cell failed.
    """
    asked = load_suite(suite, plugin)

    import shlex

    from mtbench.cli.display import Display
    from mtbench.cli.status import Watch, of_other_code
    from mtbench.cli.terminal import terminal
    from mtbench.comparing.planning.grid import Cell, Grid, Order, needs_data
    from mtbench.comparing.planning.survey import State, Survey
    from mtbench.comparing.running.deciding import until_decided
    from mtbench.comparing.running.sweep import check_data, prepare
    from mtbench.comparing.running.sweep import sweep as run
    from mtbench.errors import UsageError
    from mtbench.training.machine.device import use_device

    _check(executor, jobs, slurm, scheduler, batch)
    order = Order(asked, data, tuple(plugin or ()))
    needs_data(order)
    grid = Grid(order)
    workers = number_of_jobs(jobs, grid.device)
    if executor == "local":
        use_device(asked.device)
    rows = {entry.label: entry.choice.method.name for entry in grid.entries}
    check_row("--plain", plain, PLAIN, rows)
    console = terminal()
    survey = Survey(grid, out)
    states, begun = survey.look(), len(survey.begun())
    if others := of_other_code(states, begun):
        if other_code is None:
            again = "; what is begun, begins again (or finish it first, with its own code)"
            raise UsageError(
                f"--out {out}: {others}: say --other-code keep to count them and go on with the "
                f"rest, or --other-code anew to train them again{again if begun else ''}"
            )
        said = "kept" if other_code == "keep" else "trained anew"
        also = ", what is begun begins again" if begun else ""
        console.print(inert.plain(f"{others}: {said}{also}"), soft_wrap=True)
    # Also where there is none yet: who says what is to be done, may meet some on the way.
    if other_code is not None:
        order = replace(order, other_code=other_code)
        grid = Grid(order)
    prepare(out)
    for line in grid.tell_left_out():
        console.print(inert.plain(line), soft_wrap=True)

    def start() -> "Executor":
        return _executor(executor, out, workers, slurm or [], scheduler or "", batch or 1)

    def all_of(part: Grid) -> dict[Cell, State]:
        with Watch(console, part, workers if executor == "local" else 1) as watch:
            return run(part, out, start(), watch)

    def tell(look: int, questions: Sequence[str]) -> None:
        some = "; ".join(questions[:3]) + ("; ..." if len(questions) > 3 else "")
        said = f"{len(questions)} questions are open: {some}" if questions else "all is decided"
        console.print(inert.plain(f"after {look} repetitions: {said}"), soft_wrap=True)

    start().stop()  # a cluster that is not there is told before data is set up
    with _stopped_by_sigterm():
        with Display(console, []) as display:
            check_data(grid, display.prepare)
        if until == "decided":
            states = until_decided(order, out, plain, all_of, tell)
        else:
            states = all_of(grid)
    failures = {cell: state for cell, state in states.items() if state.status == "failed"}
    counts = Counter(state.status for state in states.values())
    console.print(
        f"{len(states)} cells: {counts['finished']} finished, {counts['diverged']} diverged, "
        f"{counts['failed']} failed"
    )
    # A worker may have seen another folder of this name, or other data or code.
    if left := sum(not state.closed for state in states.values()):
        said = (
            f"{left} cells have no result in {out}, though the workers are done: do all machines "
            "see this folder, the same data and the same plugins?"
        )
        console.print(inert.plain(said), style="red", soft_wrap=True)
    for cell, state in states.items():
        if state.incomplete:
            said = f"without figures: {cell}: {state.incomplete}; mend it and sweep again"
            console.print(inert.plain(said), style="red", soft_wrap=True)
    for cell, state in failures.items():
        said = f"failed: {cell}: {state.note}"
        if state.run is not None:
            said += f"; mend it and delete {state.run}/failed.json to try again"
        console.print(inert.plain(said), style="red", soft_wrap=True)
    words = shlex.join(["mtbench", "leaderboard", str(out), "--html", f"{out}/site"])
    console.print(f"compare: {words}", soft_wrap=True)
    console.print(inert.plain(f"its boards: suite={order.suite.tag}"), soft_wrap=True)
    if failures or left:
        raise typer.Exit(1)


def _check(
    where: Where,
    jobs: int | None,
    slurm: Sequence[str] | None,
    scheduler: str | None,
    batch: int | None,
) -> None:
    from mtbench.errors import UsageError

    for option, value, meant in (
        ("jobs", jobs, ("local",)),
        ("slurm", slurm, ("slurm",)),
        ("scheduler", scheduler, ("dask",)),
        ("batch", batch, ("slurm", "dask")),
    ):
        if value is not None and where not in meant:
            raise UsageError(
                f"--{option} is for --executor {' and '.join(meant)}, found --executor {where}"
            )
    if where == "dask" and scheduler is None:
        raise UsageError("--executor dask needs --scheduler ADDRESS")
    if batch is not None and batch < 1:
        raise UsageError(f"--batch must be at least 1, found {batch}")
    for text in slurm or ():
        if not all(text.partition("=")):
            raise UsageError(f"--slurm must be KEY=VALUE, found {text!r}")


def _executor(
    where: Where, out: Path, jobs: int, slurm: Sequence[str], scheduler: str, batch: int
) -> "Executor":
    from mtbench.comparing.running.executors import Dask, Local, Slurm

    if where == "slurm":
        pairs = (text.partition("=") for text in slurm)
        return Slurm(out, batch, [(key, value) for key, _, value in pairs])
    if where == "dask":
        return Dask(scheduler, batch)
    return Local(jobs, out)


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
