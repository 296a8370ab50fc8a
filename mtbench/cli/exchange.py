"""``mtbench export``, ``mtbench import`` and ``mtbench merge``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtbench import inert
from mtbench.cli.options import methods, tasks

if TYPE_CHECKING:
    from mtbench.comparing.judging.exchange import Moved

Runs = Annotated[list[Path], typer.Argument(help="Folders that hold run directories.")]


def export(
    runs: Runs,
    method: Annotated[
        str, typer.Option("--method", "-m", help="Whose results.", autocompletion=methods)
    ],
    to: Annotated[Path, typer.Option(metavar="FILE.mtbench", help="The file to write.")],
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Only results on this task.", autocompletion=tasks),
    ] = None,
) -> None:
    """Write a method's finished results as one file, for somebody else's leaderboard.

    It holds the records of final cells and of the trials comparable with them; no weights.
    """
    from mtbench.comparing.judging import exchange

    _tell("exported", exchange.export(runs, method, task, to))
    typer.echo(f"written: {to}")


def import_(
    files: Annotated[list[Path], typer.Argument(help="What `mtbench export` wrote.")],
    out: Annotated[Path, typer.Option(help="The folder of runs that receives it.")] = Path("runs"),
) -> None:
    """Add exported results to a folder of runs, after checking them.

    All or nothing: a file that is broken, or disagrees with what is there, changes nothing.
    """
    from mtbench.comparing.judging import exchange

    _tell("imported", exchange.import_(files, out))


def merge(
    out: Annotated[Path, typer.Argument(help="The folder of runs that receives.")],
    runs: Runs,
    weights: Annotated[bool, typer.Option("--weights", help="Copy trained weights too.")] = False,
) -> None:
    """Copy finished runs of other machines into one folder; safe to repeat.

    Nothing is copied if two folders hold other results of the same cell.
    """
    from mtbench.comparing.judging import exchange

    _tell("copied", exchange.merge(out, runs, weights))


def _tell(what: str, moved: "Moved") -> None:
    counts = {
        what: len(moved.cells),
        "there already": moved.identical,
        "unfinished, left out": moved.unfinished,
    }
    shown = [f"{n} {name}" for name, n in counts.items() if n or name == what]
    typer.echo(f"cells: {', '.join(shown)}")
    for note in moved.notes:
        typer.echo(f"- {inert.plain(note)}")
