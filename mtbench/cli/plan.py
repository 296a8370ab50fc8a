"""``mtbench plan``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtbench import inert
from mtbench.cli.options import BASELINE, Data, Jobs, Plugins, SuiteName, load_suite, number_of_jobs

if TYPE_CHECKING:
    from rich.console import Console

    from mtbench.comparing.planning.cost import Cost
    from mtbench.comparing.planning.grid import Entry, Grid
    from mtbench.comparing.planning.pilot import Luck, Scatter

EFFECTS = (1.0, 2.0, 5.0)
"""Percent of delta-m that are asked about."""

REPETITIONS = (6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
POWER = 0.8

_BELOW = "  - "
"""Begins a line that belongs to the one above."""


def plan(
    suite: SuiteName,
    data: Data = None,
    jobs: Jobs = None,
    pilot: Annotated[
        Path | None,
        typer.Option(
            metavar="RUNS",
            help="Finished runs on the same tasks, to learn from how they scatter: it opens their "
            "tests, as a leaderboard does.",
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Tell what a suite takes and what it can show, before anything is spent."""
    asked = load_suite(suite, plugin)

    import shlex

    from mtbench.cli.display import Display
    from mtbench.cli.terminal import terminal
    from mtbench.comparing.planning.cost import probe
    from mtbench.comparing.planning.grid import Grid, Order, needs_data
    from mtbench.comparing.planning.pilot import scatter
    from mtbench.training.machine.device import use_device

    order = Order(asked, data, tuple(plugin or ()))
    needs_data(order)
    grid, console, costs = Grid(order), terminal(), []
    use_device(asked.device)
    workers = number_of_jobs(jobs, grid.device)
    measured = {} if pilot is None else scatter(grid, pilot, BASELINE)
    with Display(console, []) as display:
        display.prepare("timing a few steps", 0, len(grid.entries))
        for cost in probe(grid, display.prepare):
            costs.append(cost)
            display.prepare("timing a few steps", len(costs), len(grid.entries))
    _print_costs(console, grid, costs)
    unknown = "finished runs on it tell: --pilot RUNS" if pilot is None else "the pilot has none"
    lines = [*_time(grid, costs, workers), *_power(grid, costs, measured, unknown, workers)]
    for line in [*grid.tell_left_out(), *lines]:
        mark = "" if line.startswith(_BELOW) else "- "
        console.print(f"{mark}{inert.plain(line)}", soft_wrap=True)
    files = [word for file in plugin or () for word in ("--plugin", str(file))]
    given = [] if data is None else ["--data", str(data)]
    given += [] if jobs is None else ["--jobs", str(jobs)]
    can_decide = asked.against and asked.budget.repetitions > 1
    until = " --until decided" if can_decide else ""
    words = shlex.join(["mtbench", "sweep", str(suite), *files, *given])
    console.print(f"run it: {words} --out runs{until}", soft_wrap=True)


def _print_costs(console: "Console", grid: "Grid", costs: "list[Cost]") -> None:
    import math

    from rich.table import Table
    from rich.text import Text

    from mtbench.cli.status import duration

    for task, entries in grid.tasks.items():
        title = f"{task}: {', '.join(entries[0].request.task.objectives)}"
        table = Table(
            "method", "steps/s", "ratio", "a cell", "all cells", title=Text(inert.plain(title))
        )
        for column in table.columns[1:]:
            column.justify = "right"
        rows = [cost for cost in costs if cost.entry.task == task]
        # Which one is the plain sum is not known here: the fastest stands for it.
        least = min((row.step for row in rows if not math.isnan(row.step)), default=math.nan)
        for row in rows:
            cells = (f"{1 / row.step:.3g}", f"{row.step / least:.2f}")
            times = (duration(row.cell), duration(row.cell * _count(grid, row.entry)))
            if math.isnan(row.cell):
                cells, times = ("-", "-"), ("-", "does not run")
            table.add_row(Text(inert.plain(row.entry.label)), *cells, *times)
        console.print(table)


def _count(grid: "Grid", entry: "Entry") -> int:
    """Return how many cells a row has on a task."""
    budget = grid.suite.budget
    return budget.repetitions * (len(entry.draws[0]) + budget.seeds)


def _seconds(grid: "Grid", costs: "list[Cost]") -> float:
    """Return what all cells of some rows take."""
    import math

    return sum(c.cell * _count(grid, c.entry) for c in costs if not math.isnan(c.cell))


def _shared(seconds: float, costs: "list[Cost]", workers: int) -> float:
    """Return what workers take together: no less than a row's cell, after one of its trials."""
    rows = [c.cell * (1 + bool(c.entry.draws[0])) for c in costs if c.cell > 0]  # NaN is not
    return max(seconds / workers, *rows, 0.0)


def _time(grid: "Grid", costs: "list[Cost]", workers: int) -> list[str]:
    import math

    from mtbench.cli.status import duration

    budget, less = grid.suite.budget, len(grid.left_out)
    rows = f"tasks {len(grid.tasks)} x methods {(len(grid.entries) + less) // len(grid.tasks)}"
    if less:
        rows = f"({rows} - {less} left out)"
    frozen = list(dict.fromkeys(entry.label for entry in grid.entries if entry.weights_from))
    untried = f" - trials of {', '.join(frozen)}" if frozen and budget.trials else ""
    total, missing = _seconds(grid, costs), sum(math.isnan(cost.cell) for cost in costs)
    without = f"; without {missing} row{'s' * (missing > 1)} that do{'es' * (missing == 1)} not run"
    time = (
        f"{duration(total)} on one core, {duration(_shared(total, costs, workers))} with --jobs "
        f"{workers} and as many cores (ratio: to the fastest method){without * (missing > 0)}"
    )
    return [
        f"cells: {rows} x repetitions {budget.repetitions} x (trials {budget.trials} + seeds "
        f"{budget.seeds}){untried} = {len(grid.cells)}",
        f"time: {time if missing < len(costs) else 'not known, for no row runs'}",
    ]


def _power(
    grid: "Grid",
    costs: "list[Cost]",
    measured: "Mapping[str, Scatter]",
    unknown: str,
    workers: int,
) -> list[str]:
    """Return what the test that is really made will tell, and what it would take to tell more.

    Where nothing is measured, `unknown` is said.
    """
    from functools import partial

    from mtbench.cli.status import duration
    from mtbench.comparing.judging.deciding import FIRST, looks_of, prospect, smallest_effect
    from mtbench.comparing.planning.grid import Cell

    budget, margin = grid.suite.budget, grid.suite.margin
    if budget.trials and budget.repetitions == 1:
        return [
            "no verdict will be given: tuning happens once, and its luck is in no interval; "
            "`repetitions` in the budget repeats the whole study"
        ]
    lines = []
    for setting, (task, entries) in zip(grid.suite.tasks, grid.tasks.items(), strict=True):
        comparisons = max(1, len(entries) - 1)
        sample = grid.claim(Cell(entries[0], grid.first_seed), None)
        units, unit = sample.planned, "repetition" if sample.study_is_unit else "seed"
        if units < FIRST:
            lines.append(
                f"{task}: no verdict can be given: it takes at least {FIRST} {unit}s, planned "
                f"{units}"
            )
            continue
        resplit = sample.resplit or 0.0
        least = smallest_effect(units, comparisons, test_train_ratio=resplit)
        lines.append(
            f"{task}: told with probability {POWER:g}, as one of {comparisons} comparisons at "
            f"5 %: a difference of {least:.2f} standard deviations of a {unit}'s paired difference"
        )
        if task in measured:
            deviation, origin = measured[task].deviation, measured[task].origin
        elif stated := setting.measured:
            deviation = stated.deviation
            cell = "" if stated.seconds is None else f", and {stated.seconds:g} s a cell"
            origin = f"as the suite states{cell}: {stated.origin}"
        else:
            lines.append(
                f"{_BELOW}nothing is measured here: what that is in points of delta-m, and how "
                f"many repetitions it takes, is not known; {unknown}"
            )
            continue
        # A sweep looks after whole repetitions, and not at all where there is one.
        looks = [n * units // budget.repetitions for n in looks_of(budget.repetitions)]
        here = [cost for cost in costs if cost.entry.task == task]
        own = _seconds(grid, here) / units
        lines.append(
            f"{_BELOW}paired standard deviation {deviation:.2f} points of delta-m, {origin}"
        )
        if task in measured and (luck := measured[task].luck):
            lines.append(f"{_BELOW}{_tell_luck(luck)}")
        for effect in (0.0, *EFFECTS):
            # A difference that is smaller than the margin may be told as either.
            words = ["equivalent"] * (effect < margin) + ["worse"] * (effect > 0)
            ending = partial(
                prospect, effect, deviation, margin=margin, comparisons=comparisons,
                test_train_ratio=resplit,
            )  # fmt: skip
            now = ending(units, looks=looks)
            needed = next(
                (n for n in REPETITIONS if ending(n, studies=1_000).told(words) >= POWER), None
            )
            time = _shared(own * (needed or 0), here, workers)
            takes = f"{POWER:g} takes {needed}, {duration(time)}" if needed else "out of reach"
            lines.append(
                f"{_BELOW}a difference of {effect:g} % is told {' or '.join(words)} with "
                f"probability {now.told(words):.2f}, after {now.units:.0f} of {units} {unit}s; "
                f"{takes}"
            )
    return lines


def _tell_luck(found: "Sequence[Luck]") -> str:
    """Return what the choice among drawn trials does to a difference.

    >>> from mtbench.comparing.planning.pilot import Luck
    >>> _tell_luck([Luck("ls", 10, 1.98, 1.2), Luck("ew", 10, 0, 1.1)]).partition("; ")[2]
    'a final seed by 1.20, 1.10'
    """
    trials = " or ".join(str(n) for n in sorted({one.trials for one in found}))
    choice = ", ".join(f"{one.choice:.2f} to {one.row}" for one in found)
    seed = ", ".join(f"{one.seed:.2f}" for one in found)
    return f"another draw of {trials} trials moves a difference by {choice}; a final seed by {seed}"
