"""DualProj: the mean gradient, projected to where it harms no objective."""

from torch import Tensor

from mtbench.balancing.solvers import cone_projections
from mtbench_baselines._preference import Preferring


class DualProj(Preferring):
    r"""Follow the projection of the mean gradient on the gradients' dual cone.

    .. math:: \min_d \|d - g_0\| \quad\text{s.t.}\quad \langle g_k, d\rangle \ge 0
        \text{ for all } k, \qquad g_0 = \textstyle\sum_k r_k\, g_k

    with :math:`r_k = 1/K`, or a preference, scaled to the sum 1.

    GEM projects the gradient of a new task so that no old one loses (eq. 11); with objectives in
    the place of tasks and g_0 in that of the new gradient it is the A_DualProj that UPGrad's
    authors compare with. Exact: `mtbench.balancing.solvers.cone_projections`.

    Scale: the mean, 1/K of ``ew``'s step where g_0 harms nothing.

    Args:
        num_objectives: K.
        seed: unused.
        preference: r, K numbers above 0, of which only the ratios count; by default all alike.

    Example:
        g_1 = (1, 0) and g_2 = (-4, 1) have the mean (-3/2, 1/2), which harms g_1.

        >>> import torch
        >>> DualProj(2).weights(torch.tensor([[1.0, -4.0], [-4.0, 17.0]]), torch.ones(2))
        tensor([2.0000, 0.5000], dtype=torch.float64)
    """

    paper = "Lopez-Paz and Ranzato, NeurIPS 2017, arXiv 1706.08840, eq. 11; arXiv 2406.16232"
    checked_against = "scipy's nnls in gradient space; torchjd 0.18 with its regularisation off"

    def preferred(self, gramian: Tensor, shares: Tensor) -> Tensor:
        """Return the weights of the projected mean, or preferred sum."""
        return cone_projections(gramian, shares[None])[0]
