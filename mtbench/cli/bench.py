"""``mtbench bench``: benchmarks that packages announce in the group ``mtbench.benchmarks``."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from mtbench.errors import PluginError, UsageError, did_you_mean


class Benchmarks(TyperGroup):
    """A command per benchmark: the function `command` of the package that an entry point names."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the benchmarks' names; nothing is imported."""
        return sorted(_packages())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a benchmark.

        Raises:
            UsageError: no such benchmark.
            PluginError: its package is not there, does not import, or has no command.
        """
        known = _packages()
        if cmd_name not in known:
            raise UsageError(f"no benchmark {cmd_name!r}: {did_you_mean(cmd_name, known)}")
        try:
            function = import_module(known[cmd_name]).command
        except Exception as error:
            raise PluginError(
                f"benchmark {cmd_name!r}: {known[cmd_name]} does not import: "
                f"{type(error).__name__}: {error}"
            ) from error
        made = typer.Typer(rich_markup_mode="rich", add_completion=False)
        made.command(cmd_name)(function)
        return typer.main.get_command(made)


def _packages() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group="mtbench.benchmarks")}


app = typer.Typer(
    cls=Benchmarks, help="Measure what methods cost, on this machine.", no_args_is_help=True
)


@app.callback()
def _bench() -> None:
    """Measure what methods cost, on this machine."""
