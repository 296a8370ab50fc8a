"""ZDT1: a convex front."""

from torch import Tensor

from mtbench_tasks._analytic import Zdt


class Zdt1(Zdt):
    r"""`Zdt` with :math:`h = 1 - \sqrt{f_1 / g}`.

    The front is convex, :math:`f_2 = 1 - \sqrt{f_1}`. Its hypervolume at (1.1, 1.1) is 0.87667.

    Zitzler, Deb and Thiele, Evolutionary Computation 8(2), 2000.
    """

    def shape(self, ratio: Tensor, f1: Tensor) -> Tensor:
        """Return h."""
        return 1 - ratio.sqrt()
