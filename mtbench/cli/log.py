"""``mtbench log``."""

from pathlib import Path
from typing import Annotated

import typer


def log_(
    runs: Annotated[list[Path], typer.Argument(help="Folders that hold run directories.")],
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow's tracking server, or sqlite:///FILE."),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For tensorboard --logdir.")
    ] = None,
) -> None:
    """Hand run directories to MLflow or TensorBoard: parameters, every epoch, cost.

    Finished cells or not; logging again adds what has come since. Test metrics only of cells
    whose seal `mtbench leaderboard` has broken.
    """
    from rich.progress import track

    from mtbench.cli.terminal import terminal
    from mtbench.errors import RunError, UsageError
    from mtbench.inert import without_password
    from mtbench.integrations import mlflow as to_mlflow
    from mtbench.integrations import tensorboard as to_tensorboard
    from mtbench.integrations.record import Record
    from mtbench.training.cell.rundir import find_runs

    found = list(find_runs(runs))
    if not found:
        raise RunError("no runs found: `mtbench run` makes some")
    logs: dict[str, to_mlflow.Log | to_tensorboard.Log] = {}
    if mlflow is not None:
        logs[without_password(mlflow)] = to_mlflow.Log(mlflow)
    if tensorboard is not None:
        logs[str(tensorboard)] = to_tensorboard.Log(tensorboard)
    if not logs:
        raise UsageError("log: say where to: --mlflow URI, --tensorboard FOLDER, or both")
    changed = dict.fromkeys(logs, 0)
    console = terminal(stderr=True)
    for run in track(found, "logging", console=console, disable=not console.is_terminal):
        record = Record.of(run)
        for name, log in logs.items():
            changed[name] += log.write(record)
    for name, count in changed.items():
        typer.echo(f"{name}: {count} cells logged, {len(found) - count} there already")
