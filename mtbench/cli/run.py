"""``mtbench run``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mtbench.cli.options import Plugins

OPTIONS = (
    "method", "task", "data", "seed", "seeds", "epochs", "device", "precision", "set", "out",
    "resume", "threads", "nproc", "jacobian", "jacobian-parts", "init", "diagnose", "config",
    "plugin",
)  # fmt: skip


class Jacobian(StrEnum):
    """How the K gradients of the shared parameters are computed."""

    auto = "auto"
    loop = "loop"
    batched = "batched"


def run(
    context: typer.Context,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="A balancing method; repeatable.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="The benchmark task; thyroid by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the task's data lies, if it needs any.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds, counted up from --seed.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training split; the task has a default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, the default, or bf16 autocast.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of method, task or recipe."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for run directories and report.")] = Path(
        "runs"
    ),
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is there, or start anew.")
    ] = True,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; measured at the start by default.")
    ] = None,
    nproc: Annotated[
        int, typer.Option(help="Processes of this machine that train each cell together.")
    ] = 1,
    jacobian: Annotated[
        Jacobian,
        typer.Option(help="A backward per objective, or all in one: measured by default."),
    ] = Jacobian.auto,
    jacobian_parts: Annotated[
        int,
        typer.Option(help="Compute it in so many parts: less memory, more time (Gramian only)."),
    ] = 1,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Start from the weights of a run, a packaged model or a checkpoint, as they fit.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What to run, as `mtbench tune` writes it; other options win."
        ),
    ] = None,
    diagnose: Annotated[
        bool,
        typer.Option("--diagnose", help="Compare the objectives' gradients once an epoch."),
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Train methods on a task, then compare them.

    Parameters of the task, the methods and the recipe are set by [bold]--set key=value[/] or
    directly, as in [bold]--source ddti[/]; `mtbench info NAME` lists them. Finished cells are
    skipped and interrupted ones resumed. With [bold]--nproc 2[/], or under torchrun, processes
    share every batch.
    """
    import sys
    from functools import partial

    from mtbench.balancing import distributed
    from mtbench.balancing.engine import Engine
    from mtbench.cli.running import run_cells
    from mtbench.errors import UsageError
    from mtbench.plugins.overrides import parse
    from mtbench.training.cache import cache_dir
    from mtbench.training.cell import Request
    from mtbench.training.config import Config

    given = parse(settings or [], context.args)
    for key, value in (("data", data), ("epochs", epochs)):
        if value is not None:
            if key in given:
                raise UsageError(f"parameter {key!r} is given twice: {value} and {given[key]}")
            given[key] = str(value)
    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, found {seeds}")
    if seed < 0:
        raise UsageError(f"--seed must not be negative, found {seed}")
    if config is not None:
        read = Config.read(config)
        read.check(config, range(seed, seed + seeds), plugin or [], OPTIONS)
        task, method = task or read.task, method or [read.method]
        precision = precision or read.precision
        given = read.overrides(task, method) | given
    task, precision = "thyroid" if task is None else task, precision or "fp32"
    if not method:
        raise UsageError("say which method to run: --method NAME, or --config FILE")
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"--precision must be fp32 or bf16, found {precision!r}")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be at least 1, found {threads}")
    if nproc < 1:
        raise UsageError(f"--nproc must be at least 1, found {nproc}")
    if jacobian_parts < 1:
        raise UsageError(f"--jacobian-parts must be at least 1, found {jacobian_parts}")
    if nproc > 1 and not distributed.started():
        Request.of(task, method, given, plugin or [], OPTIONS)  # what is wrong is told once
        distributed.launch(nproc, sys.argv[1:])
        return
    batched = {Jacobian.auto: None, Jacobian.loop: False, Jacobian.batched: True}[jacobian]
    engine = partial(Engine, batched=batched, parts=jacobian_parts, notebook=cache_dir())
    run_cells(
        task, method, given, range(seed, seed + seeds), device, precision, out,
        fresh=not resume, threads=threads, engine=engine, init=init, diagnose=diagnose,
        plugins=plugin or [], options=OPTIONS,
    )  # fmt: skip
