"""``mtbench run``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtbench.cli import options
from mtbench.cli.options import (
    RUNS,
    Device,
    Epochs,
    OneTask,
    Out,
    Plugins,
    Precision,
    Settings,
    TaskData,
    Threads,
)

if TYPE_CHECKING:
    from mtbench.training.cell.config import Chosen
    from mtbench.training.cell.request import Request

Jacobian = Literal["auto", "loop", "batched"]
WeightsOf = Literal["mean", "final"]


def run(
    context: typer.Context,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", "-m", help="A balancing method; repeatable.", autocompletion=options.methods
        ),
    ] = None,
    task: OneTask = None,
    data: TaskData = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds, counted up from --seed.")] = 1,
    epochs: Epochs = None,
    device: Device = "auto",
    precision: Precision = None,
    settings: Settings = None,
    out: Out = RUNS,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is there, or start anew.")
    ] = True,
    threads: Threads = None,
    nproc: Annotated[
        int, typer.Option(help="Processes of this machine that train each cell together.")
    ] = 1,
    jacobian: Annotated[
        Jacobian,
        typer.Option(help="A backward per objective, or all in one: measured by default."),
    ] = "auto",
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
    weights_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Give a method with constant `weights` those that this run's method found.",
        ),
    ] = None,
    weights_of: Annotated[
        WeightsOf | None,
        typer.Option(help="Of all its steps, which is the default, or of the last one."),
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
    import shlex
    import sys
    from functools import partial

    from mtbench.errors import UsageError, did_you_mean

    known = options.names(context)
    given = options.overrides(context, settings, data=data, epochs=epochs)
    options.at_least(0, seed=seed)
    options.at_least(1, seeds=seeds, nproc=nproc, jacobian_parts=jacobian_parts)
    options.check_threads(threads)
    options.check_names(task, method or [], plugin)
    if config is not None:
        from mtbench.training.cell.config import Config

        read = Config.read(config)
        options.check_names(read.task, [read.method], plugin, f"{config}: ")
        tuned = read.check(config, range(seed, seed + seeds), plugin or [], known)
        task, method = task or read.task, method or [read.method]
        precision = precision or read.precision
        given = read.overrides(task, method) | given
    if not method:
        rest = f"; found {shlex.join(context.args)}" if context.args else ""
        hints = (did_you_mean(key, ["method"], {"method": "--method"}) for key in given)
        meant = next((f": {hint}" for hint in hints if "--method'" in hint), "")
        raise UsageError(f"say which method to run: --method NAME, or --config FILE{rest}{meant}")
    named, task = task is not None, task or options.REFERENCE
    if weights_from is None and weights_of is not None:
        raise UsageError("--weights-of says which of a run's weights: add --weights-from RUN")

    from mtbench.balancing.engine import Engine
    from mtbench.cli.running import run_cells
    from mtbench.training.cell.request import Request
    from mtbench.training.machine.cache import cache_dir
    from mtbench.training.machine.processes import launch, started

    if not named and not started():
        options.say_default()
    if weights_from is not None:
        given |= _weights(weights_from, weights_of or "mean", task, method, given, plugin or [])
    request = Request.of(task, method, given, plugin or [], known)
    chosen = {}
    if config is not None and read.chosen is not None and task == read.task:
        chosen = _chosen(config, read.chosen, tuned, request, quiet=started())
    if nproc > 1 and not started():  # what is wrong is told once
        launch(nproc, sys.argv[1:])
        return
    batched = {"auto": None, "loop": False, "batched": True}[jacobian]
    engine = partial(Engine, batched=batched, parts=jacobian_parts, notebook=cache_dir())
    run_cells(
        request, range(seed, seed + seeds), device, precision or "fp32", out,
        fresh=not resume, threads=threads, engine=engine, init=init, diagnose=diagnose,
        plugins=plugin or [], chosen=chosen,
    )  # fmt: skip


def _chosen(
    file: Path, chosen: "Chosen", tuned: "Request", request: "Request", *, quiet: bool
) -> "dict[str, Chosen]":
    """Return how a method's parameters were tuned, if any that were found are still in use.

    Recipe values that other methods take too are told, unless `quiet`.
    """
    [choice] = tuned.choices
    method = choice.method.name
    found, here = vars(tuned.recipe), vars(request.recipe)
    kept = [key for key in chosen.search if key in found and found[key] == here[key]]
    others = [one.method.name for one in request.choices if one.method.name != method]
    if kept and others and not quiet:
        values = ", ".join(f"{key}={found[key]:.4g}" for key in kept)
        typer.echo(
            f"{file}: {values} was found for {method}, and is taken for {', '.join(others)} too"
        )
    is_used = bool(kept) or (choice.params != {} and choice in request.choices)
    return {method: chosen} if is_used else {}


def _weights(
    run: Path,
    kind: WeightsOf,
    task: str,
    methods: Sequence[str],
    given: Mapping[str, str],
    plugins: Sequence[Path],
) -> dict[str, str]:
    """Return the override of each method that takes constant weights: those of a run."""
    from mtbench.errors import UsageError
    from mtbench.plugins.method import Method
    from mtbench.training.cell.rundir import RunDirectory
    from mtbench.training.trained.frozen import frozen_weights

    takers = {
        f"{part}.weights"
        for name in methods
        for part, own in Method.find(name, plugins).declared.items()
        if "weights" in own
    }
    if not takers:
        raise UsageError(
            f"--weights-from: {', '.join(methods)}: has no parameter 'weights': add a method that "
            f"has, such as --method {options.BASELINE}"
        )
    if twice := {"weights", *takers} & set(given):
        raise UsageError(f"{min(twice)} is given twice: as such, and by --weights-from")
    giver = RunDirectory(run)
    found = frozen_weights(giver, kind, task, Method.find(giver.spec().method, plugins))
    return dict.fromkeys(takers, ",".join(map(repr, found)))
