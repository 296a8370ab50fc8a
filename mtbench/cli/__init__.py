"""The command line. Commands import what they need when they run: help must be instant."""

import io
import os
import sys

import typer

from mtbench import inert
from mtbench.cli import (
    bench,
    check,
    data,
    evaluate,
    exchange,
    listing,
    log,
    new,
    package,
    plan,
    predict,
    reproduce,
    run,
    show,
    status,
    sweep,
    tune,
)
from mtbench.cli.options import Extra
from mtbench.errors import MtbenchError

# typer brings its own click: its base exception is reached through the class that typer exports.
ClickException: type[Exception] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)

app = typer.Typer(
    name="mtbench",
    help="Compare multitask-optimization methods, honestly and cheaply.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED = 130
app.command(cls=Extra)(run.run)
app.command(cls=Extra)(tune.tune)
app.command(cls=Extra)(reproduce.reproduce)
app.command()(plan.plan)
app.command()(sweep.sweep)
app.command()(status.status)
app.command("list")(listing.list_)
app.command()(listing.info)
app.command(cls=Extra)(check.check)
app.command()(show.leaderboard)
app.command()(exchange.export)
app.command("import")(exchange.import_)
app.command()(exchange.merge)
app.command("log")(log.log_)
app.command(cls=Extra)(predict.predict)
app.command(cls=Extra)(evaluate.evaluate)
app.command()(package.package)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(new.app, name="new")


def _version(wanted: bool) -> None:
    if wanted:
        from mtbench.version import __version__

        typer.echo(f"mtbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Compare multitask-optimization methods, honestly and cheaply."""


def main() -> None:
    """Run the command line: bad input is one line and exit code 2, never a traceback."""
    # numpy's threads are for matrices larger than K x K: at K = 200 two of them on a busy machine
    # took 400 ms where one takes 2.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What a terminal's encoding lacks is a question mark there, as Python escapes it in stderr.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer's own handling, which says nothing
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except MtbenchError as problem:
        _refuse(str(problem))
    except (KeyboardInterrupt, typer.Abort):
        typer.echo(
            "stopped; what is done is kept, and in training the same command goes on from the last "
            "checkpoint",
            err=True,
        )
        sys.exit(INTERRUPTED)
    except ClickException as problem:
        text = getattr(problem, "format_message", problem.__str__)()
        text = text.replace(": Value error, ", ": ")  # which pydantic puts before typer's own words
        if text:  # without any argument the help was shown, and there is nothing to add
            _refuse(text)
    except Exception as problem:
        from mtbench.plugins.code import place_of

        place = place_of(problem)
        if isinstance(problem, OSError):  # a disk that is full, a folder that may not be read
            where = f"{problem.filename}: " if problem.filename else ""
            text = f"{where}{problem.strerror or problem}"
        elif place:
            said = str(problem).strip().partition("\n")[0]
            text = f"{type(problem).__name__}{said and f': {said}'}"
        else:  # ours to mend, and not the user's
            raise
        _refuse(f"{place and f'{place}: '}{text}; mend that and repeat the command")
    sys.exit(2)


def _refuse(text: str) -> None:
    from rich.text import Text

    from mtbench.cli.terminal import terminal

    shown = text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair
    line = Text.assemble(("error:", "red"), " ", inert.plain(" ".join(shown.split())))
    terminal(stderr=True).print(line, soft_wrap=True)
