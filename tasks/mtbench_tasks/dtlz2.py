"""DTLZ2: three objectives whose front is an eighth of a sphere."""

from math import pi

import torch
from torch import Tensor

from mtbench import seeding
from mtbench_tasks._analytic import Analytic, metrics
from mtbench_tasks._bounds import at_least


class Dtlz2(Analytic):
    r"""Three objectives, the front a piece of the unit sphere.

    .. math::
        f_1 &= (1 + g) \cos(\tfrac\pi2 x_1) \cos(\tfrac\pi2 x_2) \\
        f_2 &= (1 + g) \cos(\tfrac\pi2 x_1) \sin(\tfrac\pi2 x_2) \\
        f_3 &= (1 + g) \sin(\tfrac\pi2 x_1), \quad
        g = \textstyle\sum_{i \ge 3} (x_i - \tfrac12)^2, \quad x \in [0, 1]^n

    Pareto-optimal points have g = 0, so :math:`\sum_k f_k^2 = 1`. The front is concave: a weighted
    sum finds its corners only. Starts are uniform in the box.

    Deb, Thiele, Laumanns and Zitzler, IEEE CEC 2002.

    Args:
        dimensions: n, at least 3.
    """

    objectives = ("f1", "f2", "f3")
    metrics = metrics(objectives)

    def __init__(self, *, dimensions: int = 12) -> None:
        at_least(3, dimensions=dimensions)
        self.dimensions = dimensions

    def value(self, k: int, x: Tensor) -> Tensor:
        """Return f_1, f_2 or f_3."""
        radius = 1 + (x[..., 2:] - 0.5).square().sum(-1)
        first, second = pi / 2 * x[..., 0], pi / 2 * x[..., 1]
        if k == 2:
            return radius * first.sin()
        return radius * first.cos() * (second.sin() if k else second.cos())

    def start(self, seed: int) -> Tensor:
        """Return a uniform draw from the box."""
        return torch.rand(self.dimensions, generator=seeding.generator(seed, "start"))

    def box(self) -> tuple[Tensor, Tensor]:
        """Return the unit box."""
        return torch.zeros(self.dimensions), torch.ones(self.dimensions)

    def pareto_set(self) -> Tensor:
        """Return a grid of the optimal plane."""
        side = torch.linspace(0, 1, 41, dtype=torch.float64)
        plane = torch.cartesian_prod(side, side)
        rest = torch.full((len(plane), self.dimensions - 2), 0.5, dtype=torch.float64)
        return torch.cat([plane, rest], dim=1)

    def distance(self, f: Tensor) -> float:
        """Return the distance of f, (K,), to the sphere: no f in the box is negative."""
        return abs(float(f.norm()) - 1)
