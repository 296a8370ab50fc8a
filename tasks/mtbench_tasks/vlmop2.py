"""VLMOP2: two bells whose front is concave."""

import torch
from torch import Tensor

from mtbench import seeding
from mtbench_tasks._analytic import Analytic
from mtbench_tasks._bounds import at_least


class Vlmop2(Analytic):
    r"""Fonseca and Fleming's problem, on whose front descent of a sum finds only the ends.

    .. math:: f_{1,2} = 1 - \exp\bigl(-\textstyle\sum_i (x_i \mp 1/\sqrt{n})^2\bigr)

    The Pareto set is :math:`x_i = t / \sqrt n`, :math:`|t| \le 1`, where
    :math:`f_{1,2} = 1 - \exp(-(1 \mp t)^2)`; the mean is least at :math:`|t| = 0.9575`. Starts are
    uniform in :math:`[-0.3, 0.3]^n`.

    Fonseca and Fleming, Evolutionary Computation 3(1), 1995; Van Veldhuizen and Lamont, ACM SAC
    1999.

    Args:
        dimensions: n, at least 2.
    """

    def __init__(self, *, dimensions: int = 10) -> None:
        at_least(2, dimensions=dimensions)
        self.dimensions = dimensions

    def value(self, k: int, x: Tensor) -> Tensor:
        """Return f_1 or f_2."""
        centre = (1 - 2 * k) * self.dimensions**-0.5
        bell: Tensor = (-(x - centre).square().sum(-1)).exp()
        return 1 - bell

    def start(self, seed: int) -> Tensor:
        """Return a uniform draw."""
        draw = torch.rand(self.dimensions, generator=seeding.generator(seed, "start"))
        return 0.6 * draw - 0.3

    def pareto_set(self) -> Tensor:
        """Return the segment between the two minima."""
        t = torch.linspace(-1, 1, 2001, dtype=torch.float64)
        root: float = self.dimensions**0.5
        return t[:, None].expand(-1, self.dimensions) / root
