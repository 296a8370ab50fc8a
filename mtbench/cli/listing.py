"""``mtbench list`` and ``mtbench info``."""

import re
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from mtbench.cli.options import Plugins, methods, tasks


def list_(
    kind: Annotated[Literal["methods", "tasks", "suites"], typer.Argument()],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Methods only: as a table of all that is known.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """List the methods, the tasks or the suites that are there."""
    from mtbench.errors import UsageError
    from mtbench.plugins.extras import command
    from mtbench.plugins.registry import entries

    if markdown and kind != "methods":
        raise UsageError("--markdown is for methods; `mtbench info NAME` tells of a task")
    if kind == "suites":
        from mtbench.comparing.planning.suite import load
        from mtbench.comparing.shipped import shipped

        for name in shipped():
            typer.echo(f"{name}  {load(name).title.removeprefix(f'{name}: ')}")
        return
    found = entries("method" if kind == "methods" else "task", plugin or [])
    if not markdown:
        for name, entry in found.items():
            extra = entry.extra() if entry.missing() else None
            note = f"  (not installed: {command(extra, entry.owner or '')})" if extra else ""
            typer.echo(f"{name}{note}")
        return
    from mtbench.plugins import catalogue

    typer.echo(catalogue.markdown(found), nl=False)


def named(incomplete: str) -> list[str]:
    """Return the methods and tasks that a shell may complete a word to."""
    return methods(incomplete) + tasks(incomplete)


def info(
    name: Annotated[str, typer.Argument(autocompletion=named)], plugin: Plugins = None
) -> None:
    """Tell what a method or task is: definition, parameters, search space, paper.

    Of a task also the options that `mtbench predict`, `evaluate` and `data` have for it.
    """
    from mtbench.plugins.registry import entries, kind_of

    kind = kind_of(name, plugin or [])

    from rich.table import Table
    from rich.text import Text

    from mtbench.balancing.balancer import Balancer
    from mtbench.cli.terminal import terminal
    from mtbench.plugins import params
    from mtbench.plugins.catalogue import family, needs
    from mtbench.plugins.search import search_space
    from mtbench.training.task import Task

    entry = entries(kind, plugin or [])[name]
    console = terminal()
    space: dict[str, str] = {}
    commands: dict[str, Callable[..., object]] = {}
    cls: type[Balancer] | type[Task]
    if kind == "method":
        cls = method = entry.load(Balancer)
        facts = {
            "works on": family(method),
            "needs in a loop": "; ".join(needs(method)).replace("``", ""),
            "cost of a step": method.passes,
            "paper": method.paper,
            "checked against": method.checked_against,
        }
        space = search_space(method)
    else:
        cls = task = entry.load(Task)
        facts = {"objectives": ", ".join(task.objectives)}
        commands = {
            "predict": task.predict, "evaluate": task.evaluate, "data inspect": task.inspect,
            "data verify": task.verify, "data export": task.export,
        }  # fmt: skip
    console.print(Text.assemble((name, "bold"), f"  {entry.path}"))
    console.print(Text(_readable(params.documented(cls))))
    for fact, value in facts.items():
        if not value:
            continue
        console.print(Text(f"{fact}: {value}"), soft_wrap=True)
    table = Table("parameter", "type", "default", *(["search space"] if space else []))
    declared = params.declared(cls)
    for key, parameter in declared.items():
        needed = parameter.default is parameter.empty
        default = "required" if needed else params.text(parameter.default)
        searched = [space.get(key, "")] if space else []
        table.add_row(key, params.describe(parameter.annotation), default, *searched)
    for key, drawn in space.items():
        if key not in declared:
            table.add_row(key, "drawn", "", drawn)
    if table.row_count:
        console.print(table)
    for command, callee in commands.items():
        said = params.explained(callee)
        heads = ("option", "type", "default", "what")
        options = Table(*heads, title=f"mtbench {command}", title_justify="left")
        for key, parameter in params.declared(callee).items():
            option, default = f"--{key.replace('_', '-')}", parameter.default
            options.add_row(
                option,
                params.describe(parameter.annotation),
                "" if default in (None, parameter.empty) else params.text(default),
                Text(said.get(key, "").replace("``", "`")),
            )
        if options.row_count:
            console.print(options)


def _readable(text: str) -> str:
    r"""Return a docstring without the site's markup.

    >>> _readable(":math:`g_i` of ``ew``:\n\n.. math:: \\sum_i g_i")
    'g_i of ew:\n\n    \\sum_i g_i'
    """
    plain = re.sub(r"(?::\w+:`|``)([^`]*)``?", r"\1", text)
    return re.sub(r"^( *)\.\. math:: ", r"\1    ", plain.replace(".. math::\n", ""), flags=re.M)
