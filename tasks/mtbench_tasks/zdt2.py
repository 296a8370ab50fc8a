"""ZDT2: a concave front."""

from torch import Tensor

from mtbench_tasks._analytic import Zdt


class Zdt2(Zdt):
    r"""`Zdt` with :math:`h = 1 - (f_1 / g)^2`.

    The front is concave, :math:`f_2 = 1 - f_1^2`. A weighted sum finds its ends
    only; its hypervolume at (1.1, 1.1) is 0.54333.

    Zitzler, Deb and Thiele, Evolutionary Computation 8(2), 2000.
    """

    def shape(self, ratio: Tensor, f1: Tensor) -> Tensor:
        """Return h."""
        return 1 - ratio.square()
