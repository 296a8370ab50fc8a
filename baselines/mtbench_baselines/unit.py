"""unit: the base sees gradients of length 1."""

import torch
from torch import Tensor

from mtbench.balancing.wrapper import WeightingWrapper


class Unit(WeightingWrapper):
    r"""Balance the gradients' directions with the base.

    .. math:: u_k = \frac{g_k}{\|g_k\|}, \qquad G_{ij} \leftarrow \langle u_i, u_j\rangle, \qquad
        d = \sum_k w_k u_k

    How long gradients are no longer matters, neither for the weights nor for the step: its length
    is of the order of the weights throughout training, and shrinks only where directions cancel.
    ``norm_matched+unit+METHOD`` gives it the length of the plain sum's gradient. Heads get the
    gradient of their own loss.

    Example:
        >>> from mtbench_baselines.mgda import MGDA
        >>> G = torch.diag(torch.tensor([1.0, 4.0]).double())
        >>> Unit(MGDA(2)).weights(G, torch.ones(2))  # (1/2, 1/2) of the directions
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """

    paper = "ours; an ablation"
    checked_against = "the base on normalised gradients"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the base's weights for the directions, as weights of the gradients."""
        lengths = gramian.diagonal().sqrt()
        scale = torch.where(lengths > 0, lengths, 1)
        found = self.base.weigh(gramian / scale[:, None] / scale, losses)
        return found.to(scale) / scale
