"""``mtbench status``, and the grid that ``mtbench sweep`` shows."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtbench import inert
from mtbench.cli.options import Plugins, load_suite

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mtbench.comparing.planning.grid import Cell, Grid
    from mtbench.comparing.planning.survey import State, Status


def status(
    out: Annotated[Path, typer.Argument(help="The folder of a sweep.")],
    suite: Annotated[
        str | None, typer.Argument(help="The suite; without one, what is there is counted.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Show how far a sweep is."""
    asked = None if suite is None else load_suite(suite, plugin)

    from mtbench.cli.terminal import terminal
    from mtbench.comparing.planning.grid import Grid, Order
    from mtbench.comparing.planning.survey import Survey
    from mtbench.errors import RunError

    console = terminal()
    if not out.is_dir():
        raise RunError(f"{out}: no such folder; give the --out of a sweep")
    if asked is None:
        console.print(_content(out))
        return
    grid = Grid(Order(asked, None, tuple(plugin or ())))
    survey = Survey(grid, out)
    states = survey.look()
    console.print(_grid(grid, states))
    for cell, state in states.items():
        if state.status == "failed":
            said = inert.plain(f"failed: {cell}: {state.note}")
            console.print(said, soft_wrap=True)
    console.print(_summary(states, 1))
    console.print(inert.plain(f"its boards: suite={asked.tag}"), soft_wrap=True)
    if said := of_other_code(states, len(survey.begun())):
        console.print(inert.plain(said), soft_wrap=True)


class Watch:
    """Shows a sweep: a live grid on a terminal, a line per closed cell in a log.

    Args:
        console: where to.
        grid: the cells.
        jobs: workers of this sweep.
    """

    def __init__(self, console: "Console", grid: "Grid", jobs: int) -> None:
        from rich.live import Live

        self.console, self.grid, self.jobs = console, grid, jobs
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.closed: set[Cell] | None = None
        self.begun = time.monotonic()

    def __enter__(self) -> "Watch":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def __call__(self, states: "Mapping[Cell, State]") -> None:
        """Show how far the cells are."""
        from rich.console import Group

        if self.console.is_terminal:
            summary = _summary(states, self.jobs)
            self.live.update(Group(summary, _grid(self.grid, states)), refresh=True)
            return
        closed = {cell for cell, state in states.items() if state.closed}
        if self.closed is None:
            if closed:
                self.console.print(f"{len(closed)} of {len(states)} cells are closed already")
        else:
            elapsed = time.monotonic() - self.begun
            number = len(self.closed)
            for cell in states:
                if cell in closed and cell not in self.closed:
                    number += 1
                    state = states[cell]
                    took = "" if math.isnan(state.seconds) else f", {duration(state.seconds)}"
                    done = f"[{number}/{len(states)} {duration(elapsed)}]"
                    self.console.print(
                        inert.plain(f"{done} {cell}: {state.status}, {state.note}{took}"),
                        soft_wrap=True,
                    )
        self.closed = closed


def _grid(grid: "Grid", states: "Mapping[Cell, State]") -> "Table":
    """Return rows x tasks: trials and seeds that are closed, of how many."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(inert.plain(grid.suite.title)), title_justify="left")
    for head in ("method", *grid.tasks):
        table.add_column(Text(inert.plain(head)), overflow="fold")  # cut, names become alike
    found: dict[tuple[str, str], list[tuple[Cell, State]]] = {}
    for cell, state in states.items():
        key = (cell.entry.label, cell.entry.task)
        found.setdefault(key, []).append((cell, state))
    for label in dict.fromkeys(entry.label for entry in grid.entries):
        table.add_row(
            Text(inert.plain(label)),
            *(
                _square(found[label, task]) if (label, task) in found else Text("left out", "dim")
                for task in grid.tasks
            ),
        )
    return table


def _square(cells: "list[tuple[Cell, State]]") -> "Text":
    from rich.text import Text

    text = Text()
    for name, trial in (("trials", True), ("seeds", False)):
        own = [state for cell, state in cells if (cell.trial is not None) == trial]
        if own:
            done = sum(state.closed for state in own)
            style = "green" if done == len(own) else "" if done else "dim"
            text.append(f"{name} {done}/{len(own)}  ", style)
    counts = Counter(state.status for _, state in cells)
    styles: dict[Status, str] = {"running": "cyan", "diverged": "yellow", "failed": "red"}
    for status, style in styles.items():
        if counts[status]:
            text.append(f"{counts[status]} {status}  ", style)
    text.rstrip()
    return text


def _summary(states: "Mapping[Cell, State]", jobs: int) -> "Text":
    """Return a line: how much is closed, and how long the rest takes if it goes on like that.

    Args:
        states: of all cells.
        jobs: workers of this sweep; others may work on the folder too.
    """
    from rich.text import Text

    from mtbench.comparing.planning.survey import TRAINED

    counts = Counter(state.status for state in states.values())
    done = sum(state.closed for state in states.values())
    told: tuple[Status, ...] = ("running", "diverged", "failed")
    words = [f"{counts[word]} {word}" for word in told if counts[word]]
    line = ", ".join([f"{done} of {len(states)} cells are closed", *words])
    left = _seconds_left(states) / max(jobs, counts["running"])
    if done < len(states) and not math.isnan(left):
        line += f"; about {duration(left)} left"
    if there := sum(state.note == TRAINED for state in states.values()):
        line += f"; {there} of the open ones are trained, for another suite, and need no training"
    return Text(line)


def of_other_code(states: "Mapping[Cell, State]", begun: int) -> str:
    """Return a line about cells of other code, empty where there are none.

    Args:
        states: of all cells.
        begun: how many other code has begun, and not finished.
    """
    parts = []
    if others := [state.other for state in states.values() if state.other]:
        names = sorted({name for other in others for name in other})
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        parts.append(
            f"{len(others)} of {len(states)} cells were made with another {some} than is here"
        )
    if begun:
        parts.append(f"{begun} of {len(states)} cells were begun with other code than is here")
    return "; ".join(parts)


def _seconds_left(states: "Mapping[Cell, State]") -> float:
    """Return the training time of what is open, by the mean of its like; NaN if there is none."""
    from mtbench.comparing.planning.survey import TRAINED

    by_entry: dict[object, list[float]] = {}
    by_task: dict[object, list[float]] = {}
    for cell, state in states.items():
        if state.status == "finished":
            by_entry.setdefault(cell.entry, []).append(state.seconds)
            by_task.setdefault(cell.entry.task, []).append(state.seconds)
    total = 0.0
    for cell, state in states.items():
        if not state.closed and state.note != TRAINED:
            like = by_entry.get(cell.entry) or by_task.get(cell.entry.task)
            if like is None:
                return math.nan
            total += sum(like) / len(like)
    return total


def duration(seconds: float) -> str:
    """Return a time for a person.

    >>> duration(45), duration(600), duration(9000)
    ('45 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _content(out: Path) -> "Table":
    """Return what a folder holds, by task and method."""
    from rich.table import Table
    from rich.text import Text

    from mtbench.comparing.planning.survey import state_of
    from mtbench.training.cell.rundir import find_runs

    counts: dict[tuple[str, str, str], Counter[Status]] = {}
    for run in find_runs([out]):
        spec = run.spec()
        own = counts.setdefault((spec.task, spec.method, spec.stage), Counter())
        state = state_of(run)
        own["running" if not state.closed and run.holder() else state.status] += 1
    names: tuple[Status, ...] = ("finished", "diverged", "failed", "running", "open")
    table = Table("task", "method", "stage", *names)
    for key, own in sorted(counts.items()):
        shown = (Text(inert.plain(word)) for word in key)
        table.add_row(*shown, *(str(own[name]) if own[name] else "" for name in names))
    return table
