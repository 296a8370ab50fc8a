"""``mtbench tune``."""

from pathlib import Path
from typing import Annotated

import typer

from mtbench.cli.options import Plugins

OPTIONS = (
    "method", "task", "trials", "data", "epochs", "lr-range", "weight-decay-range", "sampler",
    "pruner", "multi", "storage", "seed", "device", "precision", "set", "out", "threads", "plugin",
)  # fmt: skip
RANGE = "LOW,HIGH"


def tune(
    context: typer.Context,
    method: Annotated[str, typer.Option("--method", "-m", help="The method to tune.")],
    task: Annotated[str, typer.Option("--task", "-t", help="The benchmark task.")] = "thyroid",
    trials: Annotated[
        int, typer.Option(help="How many in all: the same command goes on to that number.")
    ] = 20,
    data: Annotated[
        Path | None, typer.Option(help="Where the task's data lies, if it needs any.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training split; the task has a default.")
    ] = None,
    lr_range: Annotated[
        str | None,
        typer.Option(
            metavar=RANGE,
            help="Of the learning rate, or none; by default the recipe's / 10 to x 10.",
        ),
    ] = None,
    weight_decay_range: Annotated[
        str | None,
        typer.Option(
            metavar=RANGE,
            help="Of the weight decay, or none; by default the recipe's / 10 to x 10, 0 stays 0.",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Exploratory: tpe, random, cmaes, nsgaii or gp. By default the official ruleset: "
            "random trials drawn beforehand."
        ),
    ] = None,
    pruner: Annotated[
        str, typer.Option(help="Exploratory: none, median or hyperband; sampler tpe if none given.")
    ] = "none",
    multi: Annotated[
        bool,
        typer.Option("--multi", help="Exploratory: an objective per primary metric; likewise."),
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Optuna's: a database URL or journal:PATH; OUT/tune.db by default."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the trials and the draws; final seeds are others.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 autocast.")] = "fp32",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of method, task or recipe."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for run directories and results.")] = Path(
        "runs"
    ),
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; measured at the start by default.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Search a method's hyper-parameters, and write best.toml for `mtbench run --config`.

    The method's own search space ([bold]mtbench info NAME[/]) and the common learning rate and
    weight decay are searched; trials see validation only. Interrupted, the same command goes on.
    """
    from rich.console import Console

    from mtbench.cli.tuning import TrialDisplay, refuse_searched, report, search_of
    from mtbench.comparing.tuning import tuning
    from mtbench.errors import UsageError
    from mtbench.plugins.overrides import parse
    from mtbench.training.cell import Request
    from mtbench.training.trainer import primary_metrics, resolve_device

    given = parse(settings or [], context.args)
    for key, value in (("data", data), ("epochs", epochs)):
        if value is not None:
            if key in given:
                raise UsageError(f"parameter {key!r} is given twice: {value} and {given[key]}")
            given[key] = str(value)
    for name, number, least in (("trials", trials, 1), ("seed", seed, 0), ("threads", threads, 1)):
        if number is not None and number < least:
            raise UsageError(f"--{name} must be at least {least}, found {number}")
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"--precision must be fp32 or bf16, found {precision!r}")
    exploratory = sampler or ("tpe" if multi or pruner != "none" else None)
    mode = tuning.Mode(exploratory, pruner, multi)
    request = Request.of(task, [method], given, plugin or [], OPTIONS)
    search = search_of(request.recipe, lr_range, weight_decay_range)
    where = resolve_device(device)
    console = Console()
    at = tuning.SEED if seed is None else seed
    with TrialDisplay(console, primary_metrics(dict(request.task.metrics))) as display:
        splits = request.task.setup(at, display.prepare)
        study = tuning.Tuning(
            request, splits, search, mode, seed=at, precision=precision, device=where, out=out,
            storage=storage, threads=threads,
        )  # fmt: skip
        refuse_searched(given, request.choices[0].method, study.draws(1)[0])
        with study:
            console.print(f"study:  {study.name} in {study.shown}", soft_wrap=True, highlight=False)
            for key, (low, high) in search.ranges.items():
                console.print(f"search: {key} {low:g} to {high:g}, log-uniform", highlight=False)
            study.run(trials, display)
    with study.alone():
        report(console, study)
