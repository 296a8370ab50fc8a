"""Figures of a study: history, slices, importances, and the Pareto view of several objectives."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from mtbench.comparing.tuning.outcome import Outcome

ENOUGH = 10
"""Finished trials below which an importance would be noise with a number on it."""

DOT, LINE, OUT = "tab:blue", "tab:orange", "tab:gray"


def history(outcomes: Sequence[Outcome], title: str, file: Path) -> Path | None:
    """Draw the trials' scores in their order, with the best so far; None if none has finished."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.number)
    finished = [outcome for outcome in ordered if outcome.status == "finished"]
    if not finished:
        return None
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    drawn = [o.number for o in finished], [o.score for o in finished]
    axes.plot(*drawn, "o", color=DOT, markersize=5, label="trial")
    best: list[float] = []
    for outcome in ordered:
        best.append(max(outcome.score, best[-1] if best else -math.inf))
    numbers = [outcome.number for outcome in ordered]
    axes.step(numbers, best, where="post", color=LINE, label="best so far")
    for status, marker in (("diverged", "x"), ("pruned", "v")):
        lost = [outcome.number for outcome in ordered if outcome.status == status]
        if lost:
            low = [0.02] * len(lost)
            axes.plot(
                lost, low, marker, color=OUT, label=status, transform=axes.get_xaxis_transform()
            )
    axes.set_xlabel("trial")
    axes.set_ylabel("score on validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(file, dpi=110)
    return file


def slices(outcomes: Sequence[Outcome], title: str, file: Path) -> Path | None:
    """Draw the score over each searched parameter; None if no trial that drew some has finished."""
    finished = [o for o in outcomes if o.status == "finished" and o.asked]
    if not finished:
        return None
    defaults = [o.score for o in outcomes if o.status == "finished" and not o.asked]
    names = sorted({name for outcome in finished for name in outcome.asked})
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(max(2.8 * columns, 4.5), 2.6 * rows + 0.4), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        asked = [outcome for outcome in finished if name in outcome.asked]
        values = [outcome.asked[name] for outcome in asked]
        if not all(_numeric(value) for value in values):
            values = [str(value) for value in values]
        elif min(values) > 0 and max(values) > 20 * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        scores = [outcome.score for outcome in asked]
        axes.plot(values, scores, "o", color=DOT, markersize=4, alpha=0.8)
        axes.plot(values[:1], scores[:1], "*", color=LINE, markersize=12)  # outcomes: best first
        for score in defaults:
            axes.axhline(score, color=OUT, linestyle="--", linewidth=1)
        axes.set_xlabel(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if i % columns == 0:
            axes.set_ylabel("score", fontsize=9)
    figure.suptitle(f"{title} (star: best drawn; dashed: the defaults)", fontsize=10)
    figure.savefig(file, dpi=110)
    return file


def importances(study: optuna.Study, outcomes: Sequence[Outcome]) -> dict[str, float] | str:
    """Return each parameter's share of the score's variation by Optuna, or why there is none."""
    finished = [outcome for outcome in outcomes if outcome.status == "finished"]
    if len(finished) < ENOUGH:
        return f"no importances: they take {ENOUGH} finished trials, here are {len(finished)}"
    if len({outcome.score for outcome in finished}) == 1:
        return "no importances: all scores are equal"
    asked = [set(outcome.asked) for outcome in finished if outcome.asked]  # of defaults, nothing is
    with warnings.catch_warnings():  # that it asks what makes the target low: hence the minus
        warnings.simplefilter("ignore", UserWarning)
        return optuna.importance.get_param_importances(
            study,
            params=sorted(set.intersection(*asked)),
            target=lambda trial: -trial.user_attrs.get("score", -math.inf),
        )


def importance_chart(shares: Mapping[str, float], title: str, file: Path) -> Path:
    """Draw importances as bars, the largest on top."""
    figure = Figure(figsize=(6.4, 1.2 + 0.35 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(shares), list(shares.values()), color=DOT)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(shares.values()))
    axes.set_xlabel("importance (PED-ANOVA, share)")
    axes.set_title(title, fontsize=10)
    figure.savefig(file, dpi=110)
    return file


def pareto(
    study: optuna.Study,
    outcomes: Sequence[Outcome],
    directions: Mapping[str, bool],
    title: str,
    file: Path,
) -> Path | None:
    """Draw the trials in each pair of metrics, with those that no other trial dominates.

    Args:
        study: of several objectives, which knows its Pareto front.
        outcomes: the trials, by Optuna's numbers: the official ruleset has one objective.
        directions: whether higher is better, by metric.
        title: of the picture.
        file: where to.
    """
    known = [o for o in outcomes if o.status == "finished" and directions.keys() <= o.val.keys()]
    names = list(directions)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    if not known or not pairs:
        return None
    best = {trial.number for trial in study.best_trials}
    front = [o for o in known if o.number in best]
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(max(3.6 * columns, 5.5), 3.4 * rows + 0.6), layout="constrained")
    for i, (a, b) in enumerate(pairs):
        axes = figure.add_subplot(rows, columns, i + 1)
        first = i == 0
        _scatter(axes, known, a, b, "o", OUT, 5, "dominated" if first else None)
        line = sorted(front, key=lambda o: o.val[a])
        if len(pairs) == 1:
            axes.step(
                [o.val[a] for o in line], [o.val[b] for o in line], color=LINE, linewidth=1,
                where="pre" if directions[a] else "post",
            )  # fmt: skip
        _scatter(axes, line, a, b, "o", LINE, 7, "Pareto front" if first else None)
        _scatter(axes, known[:1], a, b, "*", DOT, 13, "best score" if first else None)
        for set_label, name in ((axes.set_xlabel, a), (axes.set_ylabel, b)):
            set_label(f"{name} ({'higher' if directions[name] else 'lower'} is better)", fontsize=9)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(file, dpi=110)
    return file


def _scatter(
    axes: Axes, shown: Sequence[Outcome], a: str, b: str, marker: str, color: str, size: float,
    label: str | None,
) -> None:  # fmt: skip
    axes.plot(
        [o.val[a] for o in shown], [o.val[b] for o in shown], marker, color=color,
        markersize=size, label=label,
    )  # fmt: skip


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
