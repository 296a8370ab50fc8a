"""UPGrad: the mean of the gradients, each projected to where it harms no objective."""

import torch
from torch import Tensor

from mtbench.balancing.solvers import cone_projections
from mtbench_baselines._preference import Preferring


class UPGrad(Preferring):
    r"""Follow the mean of the projections of all gradients on their dual cone.

    .. math:: d = \textstyle\sum_k r_k\, \pi(g_k), \qquad
        \pi(x) = \arg\min_y \|y - x\| \quad\text{s.t.}\quad \langle g_j, y\rangle \ge 0
        \text{ for all } j

    with :math:`r_k = 1/K`, or a preference, scaled to the sum 1. d improves every objective or, to
    first order, leaves it as it is; without conflict it is the mean. Every projection is exact, in
    units of its own gradient: a gradient 1e6 times shorter than the others is not harmed either.
    `mtbench.balancing.solvers.cone_projections`.

    Scale: the mean, as in the paper, 1/K of ``ew``'s step where nothing conflicts.

    Args:
        num_objectives: K.
        seed: unused.
        preference: r, K numbers above 0, of which only the ratios count; by default all alike.

    Example:
        g_1 = (1, 0) and g_2 = (-1, 1) are projected to (1/2, 1/2) and (0, 1).

        >>> UPGrad(2).weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), torch.ones(2))
        tensor([1.0000, 0.7500], dtype=torch.float64)
    """

    paper = "Quinton and Rey, 2024, arXiv 2406.16232"
    checked_against = "scipy's nnls in gradient space; torchjd 0.18 with its regularisation off"

    def preferred(self, gramian: Tensor, shares: Tensor) -> Tensor:
        """Return the weights of the projections' mean, or preferred sum."""
        # In numpy: after a solver's calls of it, torch's sum takes 20 microseconds.
        return torch.from_numpy(cone_projections(gramian, torch.diag(shares)).numpy().sum(0))
