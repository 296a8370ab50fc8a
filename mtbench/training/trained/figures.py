"""Figures of training that make sense for any task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtbench.training.cell.rundir import RunDirectory


def curves(runs: Sequence[RunDirectory], primary: Sequence[str], file: Path) -> Path | None:
    """Draw losses and primary validation metrics over epochs, one colour a method.

    Lines are means over the seeds at hand; None if no run has ended an epoch.
    """
    history = pd.DataFrame([row for run in runs for row in _rows(run, primary)])
    if history.empty:
        return None
    quantities = list(dict.fromkeys(history["quantity"]))
    columns = min(len(quantities), 4)
    rows = -(-len(quantities) // columns)
    lines = dict(iter(history.groupby(["quantity", "method", "kind"])))
    methods = sorted(set(history["method"]))
    width, height, below = 3.6 * columns, 2.8 * rows, 0.2 * -(-len(methods) // 6)
    figure = Figure(figsize=(width, height + 0.3 + below))
    # Of equal panels the margins are known, in inches; to find them took most of the time of many.
    figure.subplots_adjust(
        left=0.6 / width,
        right=1 - 0.1 / width,
        bottom=(0.5 + below) / figure.get_figheight(),
        top=1 - 0.55 / figure.get_figheight(),
        wspace=0.25,
        hspace=0.35,
    )
    for i, quantity in enumerate(quantities):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_title(quantity, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        for j, method in enumerate(methods):
            for kind, style in (("train", ":"), ("validation", "-")):
                if (chosen := lines.get((quantity, method, kind))) is not None:
                    line = chosen.groupby("epoch")["value"].mean()
                    axes.plot(
                        line.index + 1, line.to_numpy(), style,
                        color=colormaps["tab10"](j % 10), marker="." if len(line) < 3 else "",
                        label=method if kind == "validation" and i == 0 else None,
                    )  # fmt: skip
    figure.legend(loc="lower center", ncols=min(len(methods), 6), fontsize=9)
    figure.suptitle(
        "validation (solid) and training (dotted), mean over seeds",
        fontsize=10,
        y=1 - 0.05 / figure.get_figheight(),
    )
    figure.savefig(file, dpi=110)
    return file


def _rows(run: RunDirectory, primary: Sequence[str]) -> list[dict[str, Any]]:
    method = run.spec().method
    found = []
    for record in run.history():
        values = [
            *((f"loss: {k}", "train", v) for k, v in record["train_loss"].items()),
            *((f"loss: {k}", "validation", v) for k, v in record["val_loss"].items()),
            *((name, "validation", record["val"][name]) for name in primary),
        ]
        found += [
            {"method": method, "epoch": record["epoch"], "quantity": q, "kind": k, "value": v}
            for q, k, v in values
        ]
    return found
