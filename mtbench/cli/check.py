"""``mtbench check``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtbench.cli.options import Plugins

if TYPE_CHECKING:
    from mtbench.testing.conformance import Verdict


def check(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[method|task] NAME",
            help="A method, wrapper+method, or a task; the kind where both have the name.",
        ),
    ],
    plugin: Plugins = None,
) -> None:
    """Test whether a method or a task keeps the contract; exit code 1 if not.

    A task's own parameters follow its name, as in [bold]check task mine --size 40[/]; choose
    them so that it is quick.
    """
    from rich.table import Table
    from rich.text import Text

    from mtbench.cli.terminal import terminal
    from mtbench.errors import UsageError
    from mtbench.plugins import extras
    from mtbench.plugins.overrides import parse
    from mtbench.plugins.registry import kind_of

    options = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    names, given, plugins = words[:options], parse([], words[options:]), plugin or []
    name = names[-1] if names else ""
    if len(names) == 1:
        kind = kind_of(name.partition("+")[0], plugins)
    elif len(names) == 2 and names[0] in ("method", "task"):
        kind = "method" if names[0] == "method" else "task"
    else:
        raise UsageError(
            f"say what to check: NAME, method NAME or task NAME, found {' '.join(names)!r}"
        )
    extras.need("check", "mtbench check")
    console = terminal()
    with console.status(f"checking {name}"):
        if kind == "task":
            found = _task(name, given, plugins)
        elif given:
            raise UsageError(
                f"--{next(iter(given))}: a method is checked with its defaults, only a task has "
                "parameters here"
            )
        else:
            found = _method(name, plugins)
    table = Table("", "rule", "cases", box=None)
    for verdict in found:
        mark, style = ("FAIL", "red") if verdict.failed else ("pass", "green")
        if not verdict.failed and not verdict.passed:
            mark, style = "skip", "dim"
        text = Text(verdict.rule)
        for reason in verdict.reasons:
            text.append(f"\n  {reason}", style="dim")
        table.add_row(Text(mark, style=style), text, str(verdict.passed + verdict.failed))
    console.print(table)
    broken = [verdict for verdict in found if verdict.failed]
    if broken:
        same = sum(not verdict.reasons for verdict in broken)
        more = f" ({same} of them for a reason that is told above)" if same else ""
        console.print(f"{name} breaks {len(broken)} of {len(found)} rules tried{more}", style="red")
        raise typer.Exit(1)
    console.print(f"{name} keeps the contract", style="green")


def _method(name: str, plugins: Sequence[Path]) -> "Sequence[Verdict]":
    from mtbench.plugins.method import Method
    from mtbench.testing.conformance import of_method

    return of_method(Method.find(name, plugins))


def _task(name: str, given: dict[str, str], plugins: Sequence[Path]) -> "Sequence[Verdict]":
    from functools import partial

    from mtbench.errors import MtbenchError, PluginError
    from mtbench.plugins import params
    from mtbench.plugins.registry import find
    from mtbench.testing.conformance import of_task
    from mtbench.testing.tasks import prepared
    from mtbench.training.task import Task

    entry = find("task", name, plugins)
    task = entry.load(Task)
    make = partial(task, **params.resolve(task, given, name))
    try:
        prepared(make)  # what is wrong with the data is one message, not one for each rule
    except MtbenchError:
        raise
    except Exception as error:
        raise PluginError(
            f"{entry.path}: __init__ or setup raises {type(error).__name__}: {error}"
        ) from error
    return of_task(make)
