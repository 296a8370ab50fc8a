"""Each method's path over the plane of the toy problem: computed once, kept in paths.json, drawn.

`python docs/_ext/toy_paths.py [METHOD ...]` computes paths anew (all of them: three minutes) and
writes paths.json; a path that is missing there is computed when the site is built. A test computes
the beginning of each path again, so that the file cannot fall behind the methods.
"""

import io
import json
import math
import sys
from functools import cache
from pathlib import Path

import torch
from torch import nn

from mtbench import Balancer, Method, Step, Wrapper
from mtbench.plugins.registry import entries, find
from mtbench_tasks.toy import Toy

FILE = Path(__file__).parents[1] / "paths.json"
RATE, STEPS, EVERY = 0.02, 1500, 25
EDGE = 11
"""The picture shows the plane from -11 to 11."""
WIDE, HIGH, LEFT, BOTTOM = 316.8, 302.4, 0.17, 0.12
"""The picture's size in points, and where the plane begins, in shares of it."""
BASES = {"damped": "mgda", "cr_mogm": "pcgrad", "norm_matched": "imtl", "samo": "fairgrad"}
"""What a wrapper is drawn and run around, where that is not CAGrad."""

Path2D = list[tuple[float, float]]


def runs_as(name: str) -> str:
    """Return a method's name with a base, if it is a wrapper."""
    wraps = issubclass(find("method", name).load(Balancer), Wrapper)
    return f"{name}+{BASES.get(name, 'cagrad')}" if wraps else name


def is_drawn(method: type[Balancer]) -> bool:
    """Return whether a method has a path: not K models, nor one for losses of another kind."""
    return not (method.reference or method.needs_residuals)


def walk(name: str, steps: int = STEPS) -> list[Path2D]:
    """Return where Adam with a method is after every 25th step, from each of the three starts."""
    task = Toy()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # moments that decay to nothing cost ten times as much
    return [_walk(task, Method.find(runs_as(name)), seed, steps) for seed in range(3)]


def _walk(task: Toy, method: Method, seed: int, steps: int) -> Path2D:
    balancer = method(2, seed)
    x = nn.Parameter(task.start(seed)[None])
    optimizer = torch.optim.Adam([x, *balancer.parameters()], lr=RATE)

    def forward() -> Step:
        z = x.view_as(x)
        losses = [task.value(k, balancer.view((z,), k)[0]).sum() for k in range(2)]
        return Step(losses, features=z, shared=[x], again=forward, validation=forward)

    path = [_point(x)]
    for done in range(1, steps + 1):
        optimizer.zero_grad()
        balancer.backward(forward())
        optimizer.step()
        balancer.after_step(lambda: forward().losses)
        if done % EVERY == 0:
            balancer.after_epoch()
            path.append(_point(x))
    return path


def _point(x: torch.Tensor) -> tuple[float, float]:
    first, second = x.detach()[0].tolist()
    return round(first, 2), round(second, 2)


def load() -> dict[str, list[Path2D]]:
    """Return the kept paths, by method."""
    return dict(json.loads(FILE.read_text())) if FILE.exists() else {}


def draw(paths: list[Path2D]) -> str:
    """Return a picture of the plane, the Pareto set and three paths, as SVG for any background."""
    plane, size = _plane()
    unit = 2 * EDGE / size  # a point of the page, on the plane
    drawn = [
        f'<svg x="{LEFT * WIDE:g}" y="{(1 - BOTTOM) * HIGH - size:g}" width="{size:g}"'
        f' height="{size:g}" viewBox="{-EDGE} {-EDGE} {2 * EDGE} {2 * EDGE}">'
    ]
    for path, colour in zip(paths, ("#d9822b", "#2b95d9", "#8f5fd6"), strict=True):
        line = [(x, -y) for x, y in path]  # SVG counts downwards
        (x, y), (end_x, end_y) = line[0], line[-1]
        star = [
            (end_x + radius * unit * math.sin(angle), end_y - radius * unit * math.cos(angle))
            for k in range(10)
            for angle, radius in [(k * math.pi / 5, (6.3, 2.4)[k % 2])]
        ]
        drawn += [
            f'<polyline points="{_points(line)}" fill="none" stroke="{colour}"'
            f' stroke-width="{1.6 * unit:.3f}" stroke-linejoin="round"/>',
            f'<circle cx="{x:g}" cy="{y:g}" r="{3 * unit:.3f}" fill="{colour}"/>',
            f'<polygon points="{_points(star)}" fill="{colour}"/>',
        ]
    return plane.replace("</svg>", "\n".join([*drawn, "</svg>", "</svg>"]))


def _points(line: Path2D) -> str:
    return " ".join(f"{x:.3f},{y:.3f}" for x, y in line)


@cache
def _plane() -> tuple[str, float]:
    """Return the picture without paths, which takes a while, and the plane's size in points."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    task = Toy()
    grey = "#808080"
    with mpl.rc_context({"svg.hashsalt": "mtbench", "svg.fonttype": "none"}):
        figure = Figure(figsize=(WIDE / 72, HIGH / 72))
        size = 0.81 * WIDE
        axes = figure.add_axes((LEFT, BOTTOM, size / WIDE, size / HIGH))
        grid = torch.linspace(-EDGE, EDGE, 70)
        points = torch.cartesian_prod(grid, grid)
        mean = (task.value(0, points) + task.value(1, points)).reshape(70, 70).T / 2
        axes.contour(grid, grid, mean, 14, colors=grey, linewidths=0.5, alpha=0.5)
        axes.plot(*task.pareto_set()[::100].T, color=grey, linewidth=5, alpha=0.6)
        axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xlabel="$x_1$", ylabel="$x_2$")
        axes.tick_params(colors=grey)
        axes.xaxis.label.set_color(grey)
        axes.yaxis.label.set_color(grey)
        for spine in axes.spines.values():
            spine.set_color(grey)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return written.getvalue(), size


def main(names: list[str]) -> None:
    """Compute the paths of these methods, or of all, and write them."""
    kept = load()
    drawn = [name for name, entry in entries("method").items() if is_drawn(entry.load(Balancer))]
    for name in names or drawn:
        kept[name] = walk(name)
        print(name, *(path[-1] for path in kept[name]), flush=True)
    lines = [f'"{name}": {json.dumps(kept[name], separators=(",", ":"))}' for name in sorted(kept)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
