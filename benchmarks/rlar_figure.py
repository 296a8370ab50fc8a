"""RLAR's studies as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rlar_study import INTEREST, LOSS, Study, course, rows

from mtbench.comparing.judging.leaderboard import Recorded

PLACES = {"bottleneck": "tab:blue", "pooled": "tab:orange", "both": "tab:green"}
"""Where RLAR looks, in colours."""
WATCHED = 1e-6
"""A penalty of less weight does nothing: it is there for what it records."""


def draw(found: Sequence[Study], file: Path) -> None:
    """Draw, a line a study: pairs and intervals, the chosen trials, and alignment by epoch."""
    heights = [1.7 + 0.22 * max(0, len(study.questions) - 4) for study in found]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(found), 4, height_ratios=heights)
    for line, study in enumerate(found):
        axes = [figure.add_subplot(grid[line, column]) for column in range(4)]
        for one in axes:
            one.tick_params(labelsize=7)
            one.spines[["top", "right"]].set_visible(False)
        axes[0].axvspan(-INTEREST, INTEREST, color="0.9", linewidth=0)
        axes[1].axvline(-LOSS, color="0.4", linewidth=0.8, linestyle="--")
        _pairs(axes[0], study, 0)
        _pairs(axes[1], study, 1)
        axes[1].set_yticklabels([])
        axes[0].set_title(study.name, fontsize=8, loc="left")
        axes[0].set_xlabel("AUROC higher by", fontsize=7)
        axes[1].set_xlabel("Dice higher by", fontsize=7)
        _chosen(axes[2], study)
        _alignment(axes[3], study)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _pairs(axes: Axes, study: Study, column: int) -> None:
    """Draw each question's pairs, their mean, and its interval where there is one."""
    axes.axvline(0, color="0.4", linewidth=0.8)
    for y, q in enumerate(study.questions):
        values = q.gains[:, column]
        interval = q.answer[column]
        axes.plot(values, np.full(len(values), y + 0.22), ".", color="0.6", markersize=3)
        if not q.early:
            axes.plot(interval[1:], [y, y], color="tab:blue", linewidth=1.3)
            axes.plot(interval.mean, y, "o", color="tab:blue", markersize=4)
    names = [f"{q.row} − {q.other}" for q in study.questions]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.locator_params("x", nbins=4)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _chosen(axes: Axes, study: Study) -> None:
    """Draw lambda and the share of samples beyond tau, of all trials and of the chosen ones."""
    trials = [cell for row in rows(study) for cell in study.board.trials[row].values()]
    for marker, size, cells in ((".", 3, trials), ("o", 4, _finals(study))):
        for place, color in PLACES.items():
            own = [
                c
                for c in cells
                if c.spec.method_params["where"] == place and c.done.acts is not None
            ]
            x, y = [c.spec.method_params["weight"] for c in own], [c.done.acts for c in own]
            axes.plot(x, y, marker, color=color, markersize=size)
    axes.set_xscale("log")
    axes.set_ylim(-0.05, 1.25)  # with room for the legend
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlabel("lambda (small dots: not chosen)" if trials else "lambda", fontsize=7)
    axes.set_title("share beyond tau", fontsize=8)
    for place, color in PLACES.items():
        axes.plot([], [], "o", color=color, markersize=4, label=place)
    axes.legend(fontsize=6, frameon=False, loc="upper center", ncols=3, columnspacing=0.8,
                handletextpad=0)  # fmt: skip


def _alignment(axes: Axes, study: Study) -> None:
    """Draw the mean cosine by epoch: of each cell, and the mean of those that look at one place."""
    courses: dict[tuple[str, bool], list[NDArray[np.float64]]] = {}
    for cell in _finals(study):
        own = cell.spec.method_params
        courses.setdefault((own["where"], own["weight"] < WATCHED), []).append(course(cell))
    longest = max((len(one) for some in courses.values() for one in some), default=0)
    for (place, watched), some in courses.items():
        whole = np.array([one for one in some if len(one) == longest])
        style = "--" if watched else "-"
        axes.plot(range(1, longest + 1), whole.T, style, color=PLACES[place], linewidth=0.4,
                  alpha=0.3)  # fmt: skip
        axes.plot(range(1, longest + 1), whole.mean(axis=0), style, color=PLACES[place])
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch" + " (dashed: no penalty)" * any(w for _, w in courses), fontsize=7)
    axes.set_title("mean cosine", fontsize=8)


def _finals(study: Study) -> list[Recorded]:
    return [cell for row in rows(study) for cell in study.board.cells[row] if not cell.diverged]
