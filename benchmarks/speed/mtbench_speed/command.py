"""``mtbench bench speed``. What is heavy is imported when it runs: help must be instant."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from mtbench.plugins.method import Method


class What(StrEnum):
    """What can be measured."""

    step = "step"
    solver = "solver"
    aggregation = "aggregation"
    memory = "memory"


class Model(StrEnum):
    """From 1 M parameters to 86 M."""

    mlp = "mlp"
    cnn = "cnn"
    resnet = "resnet"
    resnet50 = "resnet50"
    vit_b = "vit_b"


MODELS = (Model.mlp, Model.cnn, Model.resnet)  # that a CPU is done with in minutes
BASE = "mgda"  # that wrappers are tried around
OBJECTIVES = (2, 8, 40)
MANY = 200  # objectives, for solvers alone
FOR_MEMORY = ("mgda", "graddrop")  # one on the Gramian, one on the Jacobian


def command(
    what: Annotated[
        list[What] | None, typer.Option(help="What to measure; repeatable. All by default.")
    ] = None,
    model: Annotated[
        list[Model] | None,
        typer.Option(help="On which model; repeatable. mlp, cnn and resnet by default."),
    ] = None,
    objectives: Annotated[
        list[int] | None,
        typer.Option(help="K; repeatable. 2, 8 and 40 by default, and 200 for solvers."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help=f"Repeatable. All by default, wrappers around {BASE}; two for memory.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often everybody runs.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    batched: Annotated[
        Literal["auto", "loop", "batched"],
        typer.Option(help="A backward per objective, all in one, or as measured."),
    ] = "auto",
    width: Annotated[
        int | None, typer.Option(help="Of the models, in the place of their own.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Samples in a batch, in the place of the models' own.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Of the forward pass; bf16 by autocast.")
    ] = "fp32",
    columns: Annotated[int, typer.Option(help="Of the matrix that is aggregated.")] = 1_000_000,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write every number there.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")] = False,
) -> None:
    """Measure what methods cost, beside the plain sum, the floor and other libraries.

    Everybody runs in one process, once a round, in an order drawn anew; ratios are medians over
    rounds of the ratio within a round; one thread is measured in processor time. [bold]plain[/]
    is the gradient of the losses' sum, [bold]floor[/] one forward, each head's backward once and
    K encoder backwards, nothing else.
    """  # fmt: skip
    import os
    import sys
    from dataclasses import replace

    if "numpy" not in sys.modules:  # its BLAS reads this once, and does not know torch's threads
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    import torch
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mtbench.errors import UsageError
    from mtbench.training.machine import numerics
    from mtbench.training.machine.device import device_type, use_device
    from mtbench_speed import measure, memory, peers, report
    from mtbench_speed.timing import settled

    chosen = tuple(dict.fromkeys(objectives or OBJECTIVES))
    for name, values in (
        ("objectives", chosen), ("rounds", [rounds]), ("threads", [threads]), ("width", [width]),
        ("batch", [batch]), ("columns", [columns]),
    ):  # fmt: skip
        for value in values:
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, found {value}")
    if out is not None and not out.resolve().parent.is_dir():
        raise UsageError(f"--out {out}: must be a file in a folder that exists")
    use_device(device)
    where = device_type(device)
    methods = _methods(method)
    console = Console(stderr=markdown)
    with console.status("") as status:
        settings = measure.Settings(
            [kind.value for kind in model or MODELS], chosen, methods, rounds, where, threads,
            {"auto": None, "loop": False, "batched": True}[batched],
            width, batch, precision, columns, lambda text: status.update(Text(text)),
        )  # fmt: skip
        for library, version in peers.versions().items():
            found = f"version {version}" if version else "not installed: left out"
            settings.notes.append(f"{library}: {found}")
        more = chosen if objectives else (*chosen, MANY)
        few = methods if method else [m for m in methods if m.name in FOR_MEMORY]
        rows: list[measure.Row] = []
        wanted = dict.fromkeys(what or What)
        with settled(threads):
            if What.step in wanted:
                rows += measure.steps(settings)
            if What.solver in wanted:
                rows += measure.solvers(replace(settings, objectives=more))
            if What.aggregation in wanted:
                rows += measure.aggregations(settings)
            if What.memory in wanted:
                rows += memory.memory(replace(settings, methods=few))
    environment = {
        "device": numerics.hardware(torch.device(where)),
        "torch": torch.__version__, "threads": threads, "batched": batched, "rounds": rounds,
        "precision": precision,
    }  # fmt: skip
    if out is not None:
        report.write(out, rows, environment)
    for found_table in report.tables(rows):
        if markdown:
            typer.echo(report.markdown(found_table))
            continue
        table = Table(title=found_table.title, title_justify="left")
        for i, column in enumerate(found_table.header):
            table.add_column(column, justify="right" if i else "left", no_wrap=not i)
        for cells in found_table.cells:
            table.add_row(*map(Text, cells))
        console.print(table)
    facts = ", ".join(f"{key} {value}" for key, value in environment.items())
    for note in [facts, *dict.fromkeys(settings.notes)]:
        typer.echo(f"- {note}")


def _methods(names: list[str] | None) -> "list[Method]":
    """Return the methods of these names; by default all, wrappers around a common base."""
    from mtbench.balancing.balancer import Balancer
    from mtbench.balancing.wrapper import Wrapper
    from mtbench.plugins.method import Method
    from mtbench.plugins.registry import entries

    if not names:
        known = entries("method")
        names = [
            f"{name}+{BASE}" if issubclass(entry.load(Balancer), Wrapper) else name
            for name, entry in known.items()
            if not entry.load(Balancer).needs_residuals
        ]
    return [Method.find(name) for name in dict.fromkeys(names)]
