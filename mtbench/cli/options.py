"""Options that several commands share."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from mtbench.comparing.planning.suite import Suite


def methods(incomplete: str) -> list[str]:
    """Return the methods that a shell may complete a word to; of ``wrapper+base``, its last."""
    from mtbench.plugins.registry import entries

    outer, plus, begun = incomplete.rpartition("+")
    return [f"{outer}{plus}{name}" for name in entries("method") if name.startswith(begun)]


def tasks(incomplete: str) -> list[str]:
    """Return the tasks that a shell may complete a word to."""
    from mtbench.plugins.registry import entries

    return [name for name in entries("task") if name.startswith(incomplete)]


def suites(incomplete: str) -> list[str]:
    """Return the shipped suites that a shell may complete a word to."""
    from mtbench.comparing.shipped import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


class Extra(TyperCommand):
    """A command that has the options of plugins too."""

    allow_extra_args = True
    ignore_unknown_options = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse a name behind one dash, whose letters would be options: -epochs has -h."""
        from mtbench.errors import UsageError

        known = {"-h", *(word for param in self.params for word in param.opts)}
        for before, word in pairwise(["", *args]):
            name = word.partition("=")[0]
            is_value = before.startswith("-") or name[:2] in known  # -inf, or -mew
            if re.fullmatch(r"-[a-zA-Z][\w.-]+", name) and (f"-{name}" in known or not is_value):
                raise UsageError(f"{word}: a name has two dashes: -{word}")
        return super().parse_args(ctx, args)


Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="A Python file with a method or task; repeatable."
    ),
]
SuiteName = Annotated[
    str,
    typer.Argument(help="A shipped suite, such as quick, or a .toml file.", autocompletion=suites),
]
Data = Annotated[Path | None, typer.Option(help="Where the data lies, if the suite needs any.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", help="Worker processes; by default one a usable core."),
]

REFERENCE = "thyroid"
"""The task that is trained where none is named."""

# Of the commands that train cells of one task: run, tune and reproduce.
OneTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help=f"The benchmark task; {REFERENCE} by default.",
        autocompletion=tasks,
    ),
]
TaskData = Annotated[
    Path | None, typer.Option("--data", help="Where the task's data lies, if it needs any.")
]
Epochs = Annotated[
    int | None, typer.Option(help="Passes over the training split; the task has a default.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Precision = Annotated[
    Literal["fp32", "bf16"] | None, typer.Option(help="fp32, the default, or bf16 autocast.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A parameter of method, task or recipe."),
]
Plain = Annotated[
    str,
    typer.Option(
        help="The row whose step is the unit of cost, and which a tuned one must not validate "
        "below."
    ),
]
PLAIN = "ew"
BASELINE = "ls"
Out = Annotated[Path, typer.Option(help="Folder for run directories and report.")]
RUNS = Path("runs")
Threads = Annotated[int | None, typer.Option(help="CPU threads; measured at the start by default.")]
MOST_THREADS = 4096
"""More is a slip, and of far more the system says no in its own words."""


def say_default() -> None:
    """Say which task is trained, for none was named: it may take minutes."""
    typer.echo(f"task {REFERENCE}, as none is named (--task NAME; `mtbench list tasks`)")


def names(context: typer.Context) -> list[str]:
    """Return the options of a command, without dashes, for hints."""
    every = [option.opts[0] for option in context.command.params]
    return [name.removeprefix("--") for name in every if name.startswith("--")]


def overrides(
    context: typer.Context, settings: list[str] | None, **named: object
) -> dict[str, str]:
    """Return the overrides of a command line by parameter, as text.

    Args:
        context: holds the words that are no option of the command.
        settings: of ``--set``.
        named: options that stand for a parameter of their name; None where not given.

    Raises:
        UsageError: a word of another form, or a parameter that is given twice.
    """
    from mtbench.errors import UsageError
    from mtbench.plugins.overrides import parse

    given = parse(settings or [], context.args)
    for key, value in named.items():
        if value is not None:
            if key in given:
                raise UsageError(f"parameter {key!r} is given twice: {value} and {given[key]}")
            given[key] = str(value)
    for key in given:
        owner, _, plain = key.rpartition(".")
        if owner == "recipe" and plain in given:
            raise UsageError(
                f"parameter {plain!r} is given twice: {plain}={given[plain]} and {key}={given[key]}"
            )
    # What names one owner comes after what is for all, and so holds.
    return dict(sorted(given.items(), key=lambda item: "." in item[0]))


def check_row(option: str, name: str, usual: str, rows: Mapping[str, str]) -> None:
    """Refuse a row that is not there; the usual one may be absent.

    Args:
        option: that names it.
        name: of a row or a method.
        usual: what is meant where nobody says.
        rows: each row's method.

    Raises:
        UsageError: it is no row, and no method of one.
    """
    from mtbench.errors import UsageError, did_you_mean

    if name not in {usual, *rows, *rows.values()}:
        raise UsageError(f"{option}: no row is called {name!r}; {did_you_mean(name, rows)}")


def check_names(
    task: str | None, methods: Sequence[str], plugins: Sequence[Path] | None, where: str = ""
) -> None:
    """Refuse what names alone show to be wrong, before torch is imported, which takes seconds.

    Args:
        task: its name, if any.
        methods: their names.
        plugins: plugin files.
        where: said before what is wrong.

    Raises:
        UsageError: there is no such task or method.
        PluginError: two plugins share a name, or a plugin file does not exist.
    """
    from mtbench.errors import UsageError
    from mtbench.plugins.registry import find, parts

    try:
        for name in methods:
            parts(name, plugins or [])
        if task is not None:
            find("task", task, plugins or [])
    except UsageError as error:
        raise UsageError(f"{where}{error}") from error


def load_suite(given: str, plugins: Sequence[Path] | None) -> "Suite":
    """Return a suite, and refuse what `check_names` does.

    Raises:
        UsageError: no such suite, the file is none, or it names a task or method that is none.
        PluginError: two plugins share a name, or a plugin file does not exist.
    """
    from mtbench.comparing.planning.suite import EVERY, load

    suite = load(given)
    for i, row in enumerate(suite.methods):
        if row.name != EVERY:
            check_names(None, [row.name], plugins, f"suite {suite.name}: methods.{i}: ")
    for i, task in enumerate(suite.tasks):
        check_names(task.name, [], plugins, f"suite {suite.name}: tasks.{i}: ")
    return suite


def at_least(least: int, **numbers: int | None) -> None:
    """Check numbers that options give.

    Raises:
        UsageError: one is too small.
    """
    from mtbench.errors import UsageError

    for name, number in numbers.items():
        if number is not None and number < least:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be at least {least}, found {number}")


def check_threads(given: int | None) -> None:
    """Check a number of CPU threads.

    Raises:
        UsageError: it is below 1, or more than any machine has.
    """
    from mtbench.errors import UsageError

    at_least(1, threads=given)
    if given is not None and given > MOST_THREADS:
        raise UsageError(f"--threads must be at most {MOST_THREADS}, found {given}")


def number_of_jobs(given: int | None, device: str) -> int:
    """Return the number of worker processes: by default one for each core that may be used.

    On another device than the CPU it is one: all workers of this machine would share it.

    Raises:
        UsageError: it is below 1.
    """
    from joblib import cpu_count

    at_least(1, jobs=given)
    return given or (int(cpu_count()) if device == "cpu" else 1)


def own(callee: Callable[..., Any], context: typer.Context, words: Sequence[str]) -> dict[str, Any]:
    """Return the options that a task's own code has, from the words that are none of the command's.

    Args:
        callee: its keyword-only parameters are the options.
        context: the command's, for the message.
        words: ``--key value``, or ``--key`` alone of what is true or false.

    Raises:
        UsageError: there is no such option, or a value that it cannot have.
    """
    from mtbench.errors import UsageError, did_you_mean
    from mtbench.plugins import params
    from mtbench.plugins.overrides import parse

    known, given = params.declared(callee), parse([], words)
    for key in given:
        if key not in known:
            written = {name: f"--{name}" for name in (*known, *names(context))}
            hint = did_you_mean(key, written, written, listed="mtbench info TASK")
            raise UsageError(f"{context.info_name} has no option --{key}: {hint}")
    return {
        key: params.convert(value, known[key].annotation, f"--{key}")
        for key, value in given.items()
    }


def sort(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return the paths, and the ``--key value`` words that typer passed on between them.

    >>> sort(["a", "--mirror", "--spacing", "0.1", "--frame=2"])[1]
    ['--mirror', '--spacing', '0.1', '--frame=2']
    """
    paths, extra = [], []
    valued = False  # whether the word before may have a value
    for word in words:
        option = word.startswith("--")
        if option or valued:
            extra.append(word)
        else:
            paths.append(Path(word))
        valued = option and "=" not in word
    return paths, extra
