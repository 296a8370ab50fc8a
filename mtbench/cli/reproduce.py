"""``mtbench reproduce``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mtbench import inert
from mtbench.cli import options
from mtbench.cli.options import (
    RUNS,
    Device,
    Epochs,
    Out,
    Plugins,
    Precision,
    Settings,
    TaskData,
    Threads,
)

_FEWEST = 4
"""Columns that a table keeps, however narrow the terminal."""

_SINGLE_TASK = "stl"

_LAST = -3
"""The last metric before mean rank and delta-m: what is left out first."""


def reproduce(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Argument(
            help="A task that papers report on; without it, all are shown.",
            autocompletion=options.tasks,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="A method, beside its row in papers, or as a row of its own; repeatable.",
            autocompletion=options.methods,
        ),
    ] = None,
    data: TaskData = None,
    epochs: Epochs = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds; papers mostly have 3.")] = 3,
    reference: Annotated[
        str, typer.Option(help="The single-task method that delta-m is measured against.")
    ] = _SINGLE_TASK,
    published: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Published results to use instead of the shipped ones."),
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    settings: Settings = None,
    out: Out = RUNS,
    threads: Threads = None,
    plugin: Plugins = None,
) -> None:
    """Train a method by the task's recipe, and put it beside papers' rows.

    A method that no paper reports, such as your own, becomes a row of their tables. The single-task
    reference is trained too. Without a method, the published tables are printed as Markdown.
    Finished cells are skipped and interrupted ones resumed.
    """
    from mtbench.errors import UsageError

    method = list(dict.fromkeys(method or []))
    options.check_names(None, [reference, *method], plugin)

    from mtbench.comparing.judging import published as papers

    if task is None or not method:
        if method:
            raise UsageError("say which task to reproduce: mtbench reproduce TASK --method NAME")
        if task is None and published is not None:
            raise UsageError("--published needs a task: mtbench reproduce TASK --published FILE")
        idle = [*_for_training(context), *context.args]
        if idle:
            raise UsageError(
                f"{' '.join(idle)}: nothing is trained without --method; leave that out, or say "
                "mtbench reproduce TASK --method NAME"
            )
        typer.echo(papers.page() if task is None else papers.load(task, published).markdown(task),
                   nl=False)  # fmt: skip
        return
    reported = papers.load(task, published)
    from functools import partial

    from rich.table import Table
    from rich.text import Text

    from mtbench.balancing.engine import Engine
    from mtbench.cli.running import run_cells
    from mtbench.cli.terminal import terminal
    from mtbench.comparing.judging import leaderboard
    from mtbench.plugins.method import Method
    from mtbench.training.cell.request import Request
    from mtbench.training.machine.cache import cache_dir

    given = options.overrides(context, settings, data=data, epochs=epochs)
    options.at_least(0, seed=seed)
    options.at_least(1, seeds=seeds)
    options.check_threads(threads)
    if not Method.find(reference, plugin or []).reference:
        raise UsageError(
            f"--reference {reference}: is no single-task method, as delta-m is measured against; "
            f"leave it out, or say {_SINGLE_TASK}"
        )
    exact = precision or "fp32"
    asked = [reference, *method]
    request = Request.of(task, asked, given, plugin or [], options.names(context))
    for name, higher in reported.metrics.items():
        if name not in request.task.metrics:
            raise UsageError(f"the published metric {name!r} is none of this task's")
        if higher != request.task.metrics[name].higher_is_better:
            raise UsageError(
                f"the published metric {name!r} has higher is better = {str(higher).lower()}, this "
                f"task's {str(not higher).lower()}; mend [metrics] in the published file"
            )
    runs = run_cells(
        request, range(seed, seed + seeds), device, exact, out, fresh=False, threads=threads,
        engine=partial(Engine, notebook=cache_dir()), init=None, diagnose=False,
        plugins=plugin or [], one_table=True,
    )  # fmt: skip
    board, *others = leaderboard.boards(runs)
    if others:
        raise UsageError(
            f"--out {out}: its cells make {1 + len(others)} tables, as those of suites do: choose "
            "another folder"
        )
    console = terminal()
    text = []

    def table(title: str, columns: Sequence[Sequence[str]]) -> Table:
        made = Table(title=Text(inert.plain(title)), title_justify="left")
        for place, (head, *_) in enumerate(columns):
            made.add_column(Text(inert.plain(head)), justify="right" if place else "left")
        for row in list(zip(*columns, strict=True))[1:]:
            made.add_row(*(Text(inert.plain(text)) for text in row))
        return made

    def broad(shown: Table) -> bool:
        unbounded = console.options.update(max_width=10_000)
        return console.measure(shown, options=unbounded).maximum > console.width

    file = out / task / "reproduce.md"
    for name in method:
        for found in papers.compare(reported, board, reference, name):
            columns = list(zip(found.heads, *found.rows, strict=True))
            left_out = []
            shown = table(found.title, columns)
            while found.wide and len(columns) > _FEWEST and broad(shown):
                left_out.append(columns.pop(_LAST)[0])
                shown = table(found.title, columns)
            console.print(shown)
            if left_out:
                names = inert.plain(", ".join(reversed(left_out)))
                console.print(f"- too wide for this terminal: {names}; {file} has all")
            for note in found.notes:
                console.print(f"- {inert.plain(note)}")
            text.append(found.markdown())
    file.write_text("\n".join(text), encoding="utf-8")
    console.print(f"beside the paper: {file}", soft_wrap=True)


def _for_training(context: typer.Context) -> list[str]:
    """Return the options given that only training reads."""
    return [
        option.opts[0]
        for option in context.command.params
        if option.name not in ("task", "published", "plugin")
        and (source := context.get_parameter_source(option.name or ""))
        and source.name == "COMMANDLINE"
    ]
