"""``mtbench package``."""

from pathlib import Path
from typing import Annotated

import typer

from mtbench.cli.options import Plugins


def package(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to make.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx too, and compare it with torch.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Where the task's data lies, if it needs any: ONNX is tried on it."),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Put a trained model into a folder: weights, model card and, if wanted, ONNX.

    [bold]mtbench predict FOLDER ...[/] reads new files with it.
    """
    from mtbench.training.trained import package

    said = package.write(run, to, onnx=onnx, data=data, plugins=plugin or [])
    typer.echo(f"written: {to}")
    if said is not None:
        typer.echo(f"onnx:    {said}")
