"""Pictures of cases and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtbench.errors import DataError
from mtbench.training.task import Predictor
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks._lesion.grid import Placement
from mtbench_tasks._lesion.page import any_name
from mtbench_tasks._lesion.splits import CaseSplit

NAME = 20  # letters of a case's name that fit above its picture
READER, TRUTH, PREDICTION = "#4cc9f0", "#ffffff", "#ffc400"


def _contour(axes: Axes, mask: Any, colour: str) -> None:
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask, [0.5], colors=colour, linewidths=1.2)


def _short(name: str) -> str:
    return name if len(name) <= NAME else "…" + name[1 - NAME :]


def _grid(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


@any_name()
def panel(predictor: Predictor, split: CaseSplit, grades: Sequence[str], file: Path) -> Path:
    """Draw twelve cases of a split, spread evenly over it, with every contour and category."""
    chosen = np.unique(np.linspace(0, len(split) - 1, 12).astype(int))
    batch = split.batch(torch.from_numpy(chosen))
    logits, risk = predictor(batch["inputs"])
    predicted = risk.logits.argmax(1).tolist()
    figure, axes = _grid(rows=2, columns=6)
    better: set[str] = set()  # who knows it better than a reader
    for row, (i, axis) in enumerate(zip(chosen, axes, strict=False)):
        case = split.cases[i]
        image = case.image
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        for reading in case.readings:
            _contour(axis, reading.mask, READER)
        label = split.readings[i]
        if not any(label is reading for reading in case.readings):
            _contour(axis, label.mask, TRUTH)
            better.add(label.reader)
        placement = Placement((image.shape[0], image.shape[1]), logits.shape[-1])
        plane = placement.from_grid(logits[row, 0].float().cpu()).numpy()
        _contour(axis, plane > 0, PREDICTION)
        known = int(batch["category"][row])
        truth = grades[known] if known >= 0 else "?"
        axis.set_title(f"{truth} → {grades[predicted[row]]}", fontsize=9)
    labels = [("readers" if better else "reader", READER), ("prediction", PREDICTION)]
    if better:
        labels.insert(1, (" or ".join(sorted(better)), TRUTH))
    handles = [Line2D([], [], color=colour, label=label) for label, colour in labels]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    legend.get_frame().set_facecolor("#555555")
    for text in legend.get_texts():
        text.set_color("white")
    figure.suptitle("Test cases: category given → category predicted", fontsize=11)
    figure.savefig(file, dpi=110)
    return file


@any_name()
def agreement(table: pd.DataFrame, file: Path) -> Path:
    """Draw how far each two raters agree, from `agreement.agreement`'s table."""
    raters = list(dict.fromkeys([*table["rater"], *table["other"]]))
    side = 2 + 0.55 * len(raters)
    figure = Figure(figsize=(2 * side, side), layout="constrained")
    for place, (what, title) in enumerate(
        (("dice", "Masks: Dice"), ("kappa", "Categories: quadratic-weighted kappa")), 1
    ):
        axis = figure.add_subplot(1, 2, place)
        values = np.full((len(raters), len(raters)), np.nan)
        for row in table.itertuples():
            i, j = raters.index(row.rater), raters.index(row.other)
            values[i, j] = values[j, i] = getattr(row, what)
        axis.imshow(values, cmap="viridis", vmin=0, vmax=1)
        for i, j in np.argwhere(np.isfinite(values)):
            colour = "black" if values[i, j] > 0.6 else "white"
            axis.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(raters)), raters, rotation=45, ha="right")
        axis.set_yticks(range(len(raters)), raters)
        axis.set_title(title, fontsize=10)
    figure.suptitle("Agreement on the validation cases that both have read", fontsize=11)
    figure.savefig(file, dpi=110)
    return file


@any_name()
def preview(collection: Collection, file: Path) -> None:
    """Draw eighteen cases of a source, spread evenly, with contours and grades."""
    if not collection.cases:
        raise DataError(f"there is no case to draw: {collection.problems[0]}")
    chosen = np.unique(np.linspace(0, len(collection.cases) - 1, 18).astype(int))
    figure, axes = _grid(rows=3, columns=6)
    for i, axis in zip(chosen, axes, strict=False):
        case = collection.cases[i]
        try:
            image = case.image
        except DataError:
            axis.set_title(f"{_short(case.name)}: cannot be read", fontsize=8)
            continue
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        said = [
            collection.grades[r.category] if r.category is not None else "?" for r in case.readings
        ]
        title = f"{_short(case.name)}: {', '.join(said)}"
        for reading in (*case.readings, *filter(None, [case.truth])):
            try:
                mask = None if reading.contour is None else case.mask(reading, image)[0]
            except DataError:
                title += f"\n{_short(reading.reader)}'s mask cannot be used"
                continue
            _contour(axis, mask, TRUTH if reading is case.truth else READER)
        axis.set_title(title, fontsize=8)
    figure.savefig(file, dpi=110)
