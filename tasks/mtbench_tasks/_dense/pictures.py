"""Pictures of images, labels and predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtbench.training.task import Batch, Predictor
from mtbench_tasks._dense.losses import known_depth, known_normals
from mtbench_tasks._dense.splits import DenseSplit

ROWS = 4
UNKNOWN = "#bbbbbb"


def predictions(predictor: Predictor, split: DenseSplit, classes: int, file: Path) -> Path:
    """Draw samples of a split, spread evenly over it: the image, then truth beside prediction."""
    batch = _some(split)
    outputs = [output.float().cpu() for output in predictor(batch["inputs"])]
    figure = _panel(batch, classes, [outputs[0].argmax(1), *outputs[1:]])
    figure.savefig(file, dpi=110)
    return file


def truth(split: DenseSplit, classes: int, file: Path) -> None:
    """Draw samples of a split, spread evenly over it, with their labels."""
    _panel(_some(split), classes, None).savefig(file, dpi=110)


def _some(split: DenseSplit) -> Batch:
    chosen = np.unique(np.linspace(0, len(split) - 1, ROWS).astype(int))
    return split.batch(torch.from_numpy(chosen))


def _panel(batch: Batch, classes: int, predicted: Sequence[Tensor] | None) -> Figure:
    """Return a figure with one row a sample; what is not known of the truth is grey."""
    quantities = [name for name in ("segmentation", "depth", "normals") if name in batch]
    sides = 1 if predicted is None else 2
    rows, columns = len(batch["inputs"]), 1 + sides * len(quantities)
    height, width = batch["inputs"].shape[-2:]
    figure = Figure(
        figsize=(2.2 * columns, 2.2 * rows * height / width + 0.4), layout="constrained"
    )
    for row in range(rows):
        axes = [figure.add_subplot(rows, columns, row * columns + i + 1) for i in range(columns)]
        for axis in axes:
            axis.set_axis_off()
            axis.set_facecolor(UNKNOWN)
        image = batch["inputs"][row].movedim(0, -1)
        axes[0].imshow(
            ((image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)).numpy()
        )
        deepest = float(batch["depth"][row].max())
        for k, name in enumerate(quantities):
            shown = [("truth", batch[name][row])]
            if predicted is not None:
                shown.append(("prediction", predicted[k][row]))
            for (side, plane), axis in zip(shown, axes[1 + sides * k :], strict=False):
                _draw(axis, name, plane, classes, deepest, side == "truth")
                if row == 0:
                    axis.set_title(f"{name}: {side}", fontsize=9)
        if row == 0:
            axes[0].set_title("image", fontsize=9)
    return figure


def _draw(
    axis: Axes, name: str, plane: Tensor, classes: int, deepest: float, is_truth: bool
) -> None:
    """Draw one plane: classes and depth in colours, normals as (1 + n) / 2 in red, green, blue."""
    if name == "segmentation":
        shown = np.ma.masked_less(plane.numpy(), 0)
        colours = colormaps["tab20"].with_extremes(bad=UNKNOWN)
        axis.imshow(shown, cmap=colours, vmin=0, vmax=max(classes, 20) - 1, interpolation="nearest")
    elif name == "depth":
        hidden = ~known_depth(plane[0]).numpy() & is_truth
        shown = np.ma.masked_where(hidden, plane[0].numpy())
        colours = colormaps["viridis"].with_extremes(bad=UNKNOWN)
        axis.imshow(shown, cmap=colours, vmin=0, vmax=deepest)
    else:
        colour = ((1 + plane.movedim(0, -1)) / 2).clamp(0, 1)
        if is_truth:
            colour[~known_normals(plane[None])[0]] = int(UNKNOWN[1:3], 16) / 255
        axis.imshow(colour.numpy())
