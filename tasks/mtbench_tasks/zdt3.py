"""ZDT3: a front in five pieces."""

from math import pi

from torch import Tensor

from mtbench_tasks._analytic import Zdt


class Zdt3(Zdt):
    r"""`Zdt` with :math:`h = 1 - \sqrt{f_1 / g} - (f_1 / g) \sin(10 \pi f_1)`.

    The front is what of :math:`f_2 = 1 - \sqrt{f_1} - f_1 \sin(10 \pi f_1)` is not dominated.

    Zitzler, Deb and Thiele, Evolutionary Computation 8(2), 2000.
    """

    def shape(self, ratio: Tensor, f1: Tensor) -> Tensor:
        """Return h."""
        return 1 - ratio.sqrt() - ratio * (10 * pi * f1).sin()
