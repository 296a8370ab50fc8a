"""What `mtbench tune` shows and leaves behind."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtbench import inert
from mtbench.cli.display import Display
from mtbench.comparing.tuning import figures as tuning_figures
from mtbench.comparing.tuning.draws import Search, draw
from mtbench.comparing.tuning.outcome import Outcome
from mtbench.comparing.tuning.study import Tuning
from mtbench.errors import UsageError
from mtbench.plugins import params
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import Spec
from mtbench.training.task import Recipe


class TrialDisplay(Display):
    """Shows trials one after another; a pruned one ends without a word."""

    def started(self, spec: Spec, epochs: int, steps: int, done: int) -> None:
        """A trial begins or goes on."""
        if self.training is not None:
            self.bars.remove_task(self.training)
        common = {f"recipe.{k}": spec.recipe[k] for k in ("lr", "weight_decay")}
        self.console.print(f"trial:  {_told(spec.method_params | common)}", soft_wrap=True)
        super().started(spec, epochs, steps, done)


def search_of(recipe: Recipe, lr: str | None, weight_decay: str | None) -> Search:
    """Return what is searched in the recipe: what the options say, else the default.

    Raises:
        UsageError: a text that is no range.
    """
    default = Search.around(recipe)
    return Search(
        default.lr if lr is None else _range(lr, "--lr-range"),
        default.weight_decay
        if weight_decay is None
        else _range(weight_decay, "--weight-decay-range"),
    )


def _range(text: str, option: str) -> tuple[float, float] | None:
    bounds = params.convert(text, tuple[float, ...] | None, option)
    if bounds is not None and len(bounds) != 2:
        raise UsageError(f"{option} must be LOW,HIGH or none, found {text!r}")
    return bounds  # type: ignore[no-any-return]  # convert returns what the annotation says


def refuse_searched(given: Mapping[str, str], request: Request, search: Search, seed: int) -> None:
    """Refuse a value for what is searched of the method; the recipe's own is searched around.

    Raises:
        UsageError: there is one.
    """
    method, searched = request.choices[0].method, dict[str, str]()
    for key in draw(method, len(request.task.objectives), search, 2, seed)[1].params:
        part, _, own = key.rpartition(".")
        searched[f"{part or method.name}.{own}"] = own
    for key in given:
        if key in searched or key in searched.values():
            raise UsageError(f"{key} is searched: leave it out, or use `mtbench run`")


def report(console: Console, study: Tuning) -> None:
    """Print the trials, best first; write best.toml and the figures.

    Raises:
        UsageError: no trial has finished, and none is under way.
    """
    outcomes = study.outcomes()
    console.print(_table(study, outcomes))
    elsewhere = study.elsewhere
    if elsewhere:
        trials = "1 trial is" if elsewhere == 1 else f"{elsewhere} trials are"
        console.print(f"{trials} under way in other processes")
    metrics = study.request.task.metrics
    folder, title = study.folder, study.name
    pictures = [
        tuning_figures.history(outcomes, title, folder / "history.png"),
        tuning_figures.slices(outcomes, title, folder / "slices.png"),
    ]
    shares = tuning_figures.importances(study.study, outcomes)
    if isinstance(shares, str):
        console.print(shares)
    else:
        file = folder / "importances.png"
        pictures.append(tuning_figures.importance_chart(shares, title, file))
    if study.mode.multi:
        directions = {name: metrics[name].higher_is_better for name in study.primary}
        file = folder / "pareto.png"
        pictures.append(tuning_figures.pareto(study.study, outcomes, directions, title, file))
    for picture in filter(None, pictures):
        console.print(f"figure: {picture}", soft_wrap=True)
    config = study.best(outcomes)
    if config is None:
        if elsewhere:  # whose process writes the file
            return
        raise UsageError(f"no trial has finished: all {len(outcomes)} diverged or were pruned")
    config.write(folder / "best.toml")
    console.print(f"best:   {folder / 'best.toml'}", soft_wrap=True)
    if not study.mode.official:
        console.print("exploratory: an official comparison does not rank what was chosen like this")


def _table(study: Tuning, outcomes: list[Outcome]) -> Table:
    table = Table("trial", "score", *study.primary, title=Text(study.name), title_justify="left")
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    table.add_column("parameters")
    for outcome in outcomes:
        finished = outcome.status == "finished"
        asked = {key: _short(value) for key, value in outcome.asked.items()}
        idle = " (acted in no step)" if outcome.acts == 0 else ""
        table.add_row(
            str(outcome.number),
            f"{outcome.score:.4f}" if finished else outcome.status,
            *(f"{outcome.val[name]:.4f}" if name in outcome.val else "" for name in study.primary),
            Text((_told(asked) or "the defaults") + idle),
            style="" if finished else "dim",
        )
    return table


def _told(tried: Mapping[str, Any]) -> str:
    """Return what a trial tries, its parameters' names as short as they tell apart."""
    short = params.plain(tried)
    return inert.plain(params.own_keys({short[key]: value for key, value in tried.items()}))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
