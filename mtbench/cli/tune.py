"""``mtbench tune``."""

from typing import Annotated

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

RANGE = "LOW,HIGH"


def tune(
    context: typer.Context,
    method: Annotated[
        str,
        typer.Option("--method", "-m", help="The method to tune.", autocompletion=options.methods),
    ],
    task: OneTask = None,
    trials: Annotated[
        int, typer.Option(help="How many in all: the same command goes on to that number.")
    ] = 20,
    data: TaskData = None,
    epochs: Epochs = None,
    lr_range: Annotated[
        str | None,
        typer.Option(
            metavar=RANGE,
            help="Of the learning rate, or none; by default the recipe's / 3 to x 3.",
        ),
    ] = None,
    weight_decay_range: Annotated[
        str | None,
        typer.Option(
            metavar=RANGE,
            help="Of the weight decay, or none; by default the recipe's / 3 to x 3, 0 stays 0.",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Exploratory: tpe, random, cmaes, nsgaii or gp. By default the official ruleset: "
            "the defaults, then quasi-random trials drawn beforehand."
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
    device: Device = "auto",
    precision: Precision = None,
    settings: Settings = None,
    out: Out = RUNS,
    threads: Threads = None,
    plugin: Plugins = None,
) -> None:
    """Search a method's hyper-parameters, and write best.toml for `mtbench run --config`.

    The method's own search space ([bold]mtbench info NAME[/]) and the common learning rate and
    weight decay are searched, these around [bold]--lr[/] and [bold]--weight-decay[/]; other
    parameters are set as in `mtbench run`. Trials see validation only. Interrupted, the same
    command goes on.
    """
    given = options.overrides(context, settings, data=data, epochs=epochs)
    options.at_least(0, seed=seed)
    options.at_least(1, trials=trials)
    options.check_threads(threads)
    exact = precision or "fp32"
    options.check_names(task, [method], plugin)
    if task is None:
        task = options.REFERENCE
        options.say_default()

    from mtbench.cli.terminal import terminal
    from mtbench.cli.tuning import TrialDisplay, refuse_searched, report, search_of
    from mtbench.comparing.tuning.draws import SEED
    from mtbench.comparing.tuning.mode import Mode
    from mtbench.comparing.tuning.study import Tuning
    from mtbench.training.cell.request import Request
    from mtbench.training.machine.device import device_type, use_device
    from mtbench.training.trainer.evaluation import primary_metrics

    exploratory = sampler or ("tpe" if multi or pruner != "none" else None)
    mode = Mode(exploratory, pruner, multi)
    request = Request.of(task, [method], given, plugin or [], options.names(context))
    request.recipe.refuse_precision(exact)
    search = search_of(request.recipe, lr_range, weight_decay_range)
    at = SEED if seed is None else seed
    refuse_searched(given, request, search, at)
    use_device(device)
    where = device_type(device)
    console = terminal()
    with TrialDisplay(console, primary_metrics(request.task.metrics)) as display:
        splits = request.task.setup(at, display.prepare)
        study = Tuning(
            request, splits, search, mode, seed=at, precision=exact, device=where, out=out,
            storage=storage, threads=threads,
        )  # fmt: skip
        with study:
            console.print(f"study:  {study.name} in {study.shown}", soft_wrap=True)
            for key, (low, high) in search.ranges.items():
                console.print(f"search: {key} {low:g} to {high:g}, log-uniform")
            study.run(trials, display)
    with study.alone():
        report(console, study)
