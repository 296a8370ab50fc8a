"""Pictures of cases and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtbench.task import Predictor
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks._lesion.grid import Placement
from mtbench_tasks._lesion.splits import CaseSplit

READER, TRUTH, PREDICTION = "#4cc9f0", "#ffffff", "#ffc400"


def _contour(axes: Axes, mask: Any, colour: str, style: str = "-") -> None:
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask, [0.5], colors=colour, linewidths=1.2, linestyles=style)


def _grid(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def panel(predictor: Predictor, split: CaseSplit, grades: Sequence[str], file: Path) -> Path:
    """Draw twelve cases of a split, spread evenly over it, with every contour and category."""
    chosen = np.unique(np.linspace(0, len(split) - 1, 12).astype(int))
    batch = split.batch(torch.from_numpy(chosen))
    logits, risk = predictor(batch["inputs"])
    predicted = risk.logits.argmax(1).tolist()
    figure, axes = _grid(rows=2, columns=6)
    simulated = any(split.cases[i].truth is not None for i in chosen)
    for row, (i, axis) in enumerate(zip(chosen, axes, strict=False)):
        case = split.cases[i]
        image = case.image
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        readers = case.readings if case.truth is not None else ()
        for reading in readers:
            _contour(axis, reading.mask, READER)
        _contour(axis, split.readings[i].mask, TRUTH if simulated else READER)
        placement = Placement((image.shape[0], image.shape[1]), logits.shape[-1])
        plane = placement.from_grid(logits[row, 0].float().cpu()).numpy()
        _contour(axis, plane > 0, PREDICTION)
        known = int(batch["category"][row])
        truth = grades[known] if known >= 0 else "?"
        axis.set_title(f"{truth} → {grades[predicted[row]]}", fontsize=9)
    labels = [("readers" if simulated else "reader", READER), ("prediction", PREDICTION)]
    if simulated:
        labels.insert(1, ("ground truth", TRUTH))
    handles = [Line2D([], [], color=colour, label=label) for label, colour in labels]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    legend.get_frame().set_facecolor("#555555")
    for text in legend.get_texts():
        text.set_color("white")
    figure.suptitle("Test cases: category given → category predicted", fontsize=11)
    figure.savefig(file, dpi=110)
    return file


def preview(collection: Collection, file: Path) -> None:
    """Draw eighteen cases of a source, spread evenly, with contours and grades."""
    chosen = np.unique(np.linspace(0, len(collection.cases) - 1, 18).astype(int))
    figure, axes = _grid(rows=3, columns=6)
    for i, axis in zip(chosen, axes, strict=False):
        case = collection.cases[i]
        axis.imshow(case.image, cmap="gray", vmin=0, vmax=255)
        for reading in case.readings:
            _contour(axis, reading.mask, READER)
        said = [
            collection.grades[r.category] if r.category is not None else "?" for r in case.readings
        ]
        _contour(axis, case.truth.mask if case.truth else None, TRUTH)
        axis.set_title(f"{case.name}: {', '.join(said)}", fontsize=8)
    figure.savefig(file, dpi=110)
