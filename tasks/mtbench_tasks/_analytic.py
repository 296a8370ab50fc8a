"""What the analytic tasks share: a point x descends K functions whose Pareto set is known."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.training.task import (
    Batch,
    History,
    Meter,
    Metric,
    Progress,
    Recipe,
    Split,
    Splits,
    Task,
)
from mtbench_tasks._bounds import at_least

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5d3a9b")
"""Okabe and Ito's, safe for the colour-blind, without those that vanish on grey or white."""

TINY = 1e-6
"""How close to a bound counts as on it; rounding is below."""


class Seen(NamedTuple):
    """What a head tells: the point as it sees it, (1, n), and its function's value there, (1,)."""

    x: Tensor
    value: Tensor


class _Start(Split):
    """The starting point, once for each step of an epoch."""

    def __init__(self, start: Tensor, steps: int) -> None:
        self.start, self.steps = start[None], steps

    def __len__(self) -> int:
        return self.steps

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        return {"inputs": self.start}


class _Point(nn.Module):
    """x = start + displacement, the parameter, put back into the box before it is used."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.displacement = nn.Parameter(torch.zeros(1, len(low)))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    def forward(self, start: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            self.displacement.clamp_(self.low - start, self.high - start)
        return (start + self.displacement,)


class _Function(nn.Module):
    """A head without parameters; its gradient has no part that descent would carry out of a box."""

    low: Tensor
    high: Tensor

    def __init__(self, value: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.value, self.bounded = value, bool(low.isfinite().any())
        self.register_buffer("low", low + TINY, persistent=False)
        self.register_buffer("high", high - TINY, persistent=False)

    def forward(self, features: tuple[Tensor, ...]) -> Seen:
        x = features[0]
        if self.bounded and x.requires_grad:
            outward_up, outward_down = x.detach() >= self.high, x.detach() <= self.low
            x = x.view_as(x)
            x.register_hook(
                lambda g: g.masked_fill(outward_up & (g < 0) | outward_down & (g > 0), 0)
            )
        return Seen(x, self.value(x))


class _Meter(Meter):
    """Reports the values at the point, its first two coordinates, and how far the front is."""

    def __init__(self, task: "Analytic") -> None:
        self.task = task
        self.outputs: Sequence[Seen] = ()

    def update(self, outputs: Sequence[Seen], batch: Batch) -> None:
        self.outputs = outputs

    def compute(self) -> dict[str, float]:
        values = torch.cat([seen.value for seen in self.outputs]).double().cpu()
        x1, x2 = self.outputs[0].x[0, :2].tolist()
        found = dict(zip(self.task.objectives, values.tolist(), strict=True))
        return {**found, "distance": self.task.distance(values), "x1": x1, "x2": x2}


def metrics(objectives: Sequence[str]) -> dict[str, Metric]:
    """Return the metrics of an analytic task: each objective's value, then what explains it."""
    first, second = objectives[:2]
    values = {name: Metric(name, higher_is_better=False, primary=True) for name in objectives}
    return values | {
        "distance": Metric(first, higher_is_better=False),
        "x1": Metric(first, higher_is_better=False),
        "x2": Metric(second, higher_is_better=False),
    }


class Analytic(Task):
    r"""K functions of :math:`x \in \mathbb{R}^n`, descended from a start that the seed chooses.

    The start is the one input, the encoder adds its only parameter, the displacement from there,
    and the one feature is x, (1, n). Head k has no parameters and evaluates f_k, which is the loss.
    So the K x n Jacobian is that of f, and the optimizer acts on x (a weight decay would pull to
    the start). An epoch is ``every`` steps; then ``f1``, ..., ``x1``, ``x2`` and ``distance`` (to
    the front, in objective space) are recorded.

    Where x is confined to a box, it is put back after each step, and at a bound each f_k's gradient
    loses what points outward: methods know nothing of bounds, and on a front that lies on them
    would see no Pareto-stationary point otherwise.

    Attributes:
        every: steps an epoch.
        dimensions: n.
    """

    objectives: tuple[str, ...] = ("f1", "f2")
    metrics = metrics(objectives)
    recipe = Recipe(
        epochs=50, batch_size=1, lr=1e-3, weight_decay=0.0, schedule="constant", select="last"
    )
    every = 100
    dimensions: int

    @abstractmethod
    def value(self, k: int, x: Tensor) -> Tensor:
        """Return f_k, (...), at points x, (..., n)."""

    @abstractmethod
    def start(self, seed: int) -> Tensor:
        """Return where a seed starts, (n,)."""

    @abstractmethod
    def pareto_set(self) -> Tensor:
        """Return the Pareto set as a dense line (M, n), float64; NaN separates its pieces."""

    def box(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest x allowed, each (n,)."""
        infinite = torch.full((self.dimensions,), torch.inf)
        return -infinite, infinite

    def values(self, x: Tensor) -> Tensor:
        """Return f, (..., K), at points x, (..., n)."""
        return torch.stack([self.value(k, x) for k in range(len(self.objectives))], dim=-1)

    def front(self) -> Tensor:
        """Return the front, (M, K), in the order of `pareto_set`."""
        return self.values(self.pareto_set())

    def distance(self, f: Tensor) -> float:
        """Return the Euclidean distance of f, (K,), to the front."""
        front = self.front()
        begin, along = front[:-1], front.diff(dim=0)
        squared = along.square().sum(1).clamp(min=torch.finfo(front.dtype).tiny)
        share = (((f - begin) * along).sum(1) / squared).clamp(0, 1)
        distances = (begin + share[:, None] * along - f).norm(dim=1)
        return float(distances[~along.isnan().any(1)].min())

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Return the start as every sample there is."""
        start = self.start(seed).float()
        shown = ", ".join(f"{x:.3g}" for x in start[:3].tolist()) + ", ..." * (len(start) > 3)
        train, once = _Start(start, self.every), _Start(start, 1)
        name = type(self).__module__.rpartition(".")[2]
        return Splits(train, once, once, fingerprint=f"{name}-1", notes={"start": f"({shown})"})

    def model(self) -> MultitaskModel:
        """Return the point and its K functions."""
        box, K = self.box(), len(self.objectives)
        heads = [_Function(partial(self.value, k), *box) for k in range(K)]
        return MultitaskModel(_Point(*box), heads)

    def losses(self, outputs: Sequence[Seen], batch: Batch) -> list[Tensor]:
        """Return the K values."""
        return [seen.value.sum() for seen in outputs]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return _Meter(self)

    def overview(self, cells: Sequence[History], folder: Path) -> list[Path]:
        """Draw each method's paths from all starts: where x is a plane there too, and in f."""
        cells = [cell for cell in cells if cell.epochs]
        return [_draw(self, cells, folder / "trajectories.png")] if cells else []


class Zdt(Analytic):
    r"""The ZDT family: :math:`f_1 = x_1`, :math:`f_2 = g\, h(f_1 / g, f_1)`.

    .. math:: g = 1 + \tfrac{9}{n - 1} \textstyle\sum_{i \ge 2} x_i, \quad x \in [0, 1]^n

    Pareto-optimal points have :math:`x_2 = \dots = x_n = 0`, so g = 1. Starts are uniform, x_1 in
    [0, 1], the rest in [0, 0.3] (ours: from the whole box most methods end at x_1 = 0). Deviation:
    x_1 is at least 1e-6, since the derivative of the root is infinite at 0.

    Args:
        dimensions: n, at least 2.
    """

    def __init__(self, *, dimensions: int = 30) -> None:
        at_least(2, dimensions=dimensions)
        self.dimensions = dimensions

    @abstractmethod
    def shape(self, ratio: Tensor, f1: Tensor) -> Tensor:
        """Return h."""

    def value(self, k: int, x: Tensor) -> Tensor:
        """Return f_1 or f_2."""
        f1 = x[..., 0]
        if k == 0:
            return f1
        g = 1 + 9 * x[..., 1:].mean(-1)
        return g * self.shape(f1 / g, f1)

    def start(self, seed: int) -> Tensor:
        """Return a uniform draw."""
        draw = torch.rand(self.dimensions, generator=seeding.generator(seed, "start"))
        return torch.cat([draw[:1].clamp(min=TINY), 0.3 * draw[1:]])

    def box(self) -> tuple[Tensor, Tensor]:
        """Return the unit box, x_1 bounded away from 0."""
        low = torch.zeros(self.dimensions)
        low[0] = TINY
        return low, torch.ones(self.dimensions)

    def pareto_set(self) -> Tensor:
        """Return what of g = 1 is not dominated."""
        x = torch.zeros(10_001, self.dimensions, dtype=torch.float64)
        x[:, 0] = torch.linspace(TINY, 1, len(x), dtype=torch.float64)
        f2 = self.value(1, x)
        x[1:][f2[1:] >= f2.cummin(0).values[:-1]] = torch.nan
        return x


def _draw(task: Analytic, cells: Sequence[History], file: Path) -> Path:
    methods = list(dict.fromkeys(cell.method for cell in cells))
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    told_apart = len(seeds) <= len(COLOURS)
    colours = dict(zip(seeds, COLOURS if told_apart else COLOURS[:1] * len(seeds), strict=False))
    columns, plane = min(len(methods), 4), task.dimensions == 2
    rows = -(-len(methods) // columns) * (1 + plane)
    figure = Figure(figsize=(3.3 * columns + 0.4, 3.1 * rows + 0.8), layout="constrained")
    projection = "3d" if len(task.objectives) == 3 else None
    front, optimal = task.front(), task.pareto_set()
    points = {
        id(cell): torch.stack(
            [task.start(cell.seed)[:2].double(), *(_read(e, ("x1", "x2")) for e in cell.epochs)]
        )
        for cell in cells
    }
    ground = _Landscape(task, [optimal, *points.values()]) if plane else None
    for m, method in enumerate(methods):
        own = [cell for cell in cells if cell.method == method]
        place = m // columns * (1 + plane) * columns + m % columns + 1
        if ground is not None:
            axes: Any = figure.add_subplot(rows, columns, place)
            ground.draw(axes)
            axes.plot(*optimal.T, color="white", linewidth=5, solid_capstyle="round")
            axes.plot(*optimal.T, color="black", linewidth=2.5, solid_capstyle="round")
            for cell in own:
                _path(axes, points[id(cell)], colours[cell.seed])
            axes.set(title=method, xlabel="$x_1$", ylabel="$x_2$")
            place += columns
        axes = figure.add_subplot(rows, columns, place, projection=projection)
        if projection:
            axes.plot(*front.T, ".", color="0.75", markersize=1.5, zorder=0)
            axes.view_init(elev=25, azim=35)
            axes.locator_params(nbins=4)
            axes.set_box_aspect(None, zoom=0.85)
        else:
            axes.plot(*front.T, color="black", linewidth=2.5, solid_capstyle="round")
        for cell in own:
            f = [_read(epoch, task.objectives) for epoch in cell.epochs]
            start = task.values(task.start(cell.seed).double())
            _path(axes, torch.stack([start, *f]), colours[cell.seed])
        ends = [cell.epochs[-1]["val"]["distance"] for cell in own]
        apart = " to ".join(dict.fromkeys(f"{end(ends):.2g}" for end in (min, max)))
        name = "" if plane else f"{method}\n"
        axes.set_title(f"{name}ends {apart} from the front", fontsize=9)
        labels = zip(("xlabel", "ylabel", "zlabel"), task.objectives, strict=False)
        axes.set(**{key: f"${name[0]}_{name[1:]}$" for key, name in labels})
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
    _legend(figure, task, colours if told_apart else {})
    figure.savefig(file, dpi=110)
    return file


def _read(epoch: Any, names: Sequence[str]) -> Tensor:
    return torch.tensor([epoch["val"][name] for name in names], dtype=torch.float64)


def _path(axes: Any, points: Tensor, colour: str) -> None:
    """Draw a path from its hollow start to its full end."""
    axes.plot(*points.T, color=colour, linewidth=1.5, zorder=3)
    axes.plot(*points[:1].T, "o", color=colour, markerfacecolor="white", markersize=7, zorder=4)
    axes.plot(*points[-1:].T, "o", color=colour, markeredgecolor="black", markersize=6, zorder=5)


class _Landscape:
    """The mean of the objectives as height lines on the part of the plane that holds `lines`."""

    def __init__(self, task: Analytic, lines: Sequence[Tensor]) -> None:
        points = torch.cat(list(lines))
        points = points[~points.isnan().any(1)]
        low, high = points.min(0).values, points.max(0).values
        margin = 0.1 * (high - low).max()
        self.x1, self.x2 = (
            torch.linspace(float(a - margin), float(b + margin), 201)
            for a, b in zip(low, high, strict=True)
        )
        grid = torch.stack(torch.meshgrid(self.x1, self.x2, indexing="xy"), dim=-1)
        self.height = task.values(grid).mean(-1)

    def draw(self, axes: Any) -> None:
        """Draw the landscape."""
        axes.contourf(self.x1, self.x2, self.height, 18, cmap="Greys_r", alpha=0.45)
        axes.contour(self.x1, self.x2, self.height, 18, colors="0.55", linewidths=0.4)


def _legend(figure: Figure, task: Analytic, colours: dict[int, str]) -> None:
    line: dict[str, Any] = {"color": "black", "linewidth": 2.5, "label": "front"}
    if len(task.objectives) == 3:
        line |= {"color": "0.75", "linestyle": "", "marker": "."}
    if task.dimensions == 2:
        line["label"] = "Pareto set and front"
    ends: dict[str, Any] = {"marker": "o", "color": "0.3", "linestyle": ""}
    handles = [
        Line2D([], [], **line),
        Line2D([], [], markerfacecolor="white", label="start", **ends),
        Line2D([], [], markeredgecolor="black", label="end", **ends),
    ]
    if task.dimensions == 2:
        handles.append(Line2D([], [], color="0.55", linewidth=0.8, label="mean of the objectives"))
    for seed, colour in colours.items():
        where = ", ".join(f"{x:g}" for x in task.start(seed).tolist())
        label = f"seed {seed}" + f" from ({where})" * (task.dimensions == 2)
        handles.append(Line2D([], [], color=colour, label=label))
    across = max(1, int(figure.get_figwidth() / 2.3))
    figure.legend(handles=handles, loc="outside lower center", ncols=across, fontsize=9)
