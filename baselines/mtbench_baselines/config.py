"""ConFIG: the direction with the same positive cosine to every gradient."""

import torch
from torch import Tensor

from mtbench_baselines._preference import Preferring

_RANK = 1e-12
"""Eigenvalues of the cosines below it are rounding of float32 gradients."""


class ConFIG(Preferring):
    r"""Follow the direction whose cosine with every gradient is the same.

    With the unit gradients as the rows of :math:`U = \mathrm{diag}(\|g_k\|)^{-1} J`:

    .. math:: v = U^{+} r, \qquad u = \frac{v}{\|v\|}, \qquad
        d = \Bigl( \sum_k g_k^\top u \Bigr) u

    (paper, eq. 2), with r = 1, or a preference. Where the gradients are linearly independent u
    improves every objective, and its cosines are as r is. As :math:`U^{+} = U^\top C^{+}` with the
    K x K cosines :math:`C = U U^\top`, the pseudo-inverse of the K x d matrix is never formed.

    Deviations: eigenvalues of C below 1e-12 of the largest count as 0 (two gradients apart by less
    than about 1e-6 radians are one); where no direction exists (two opposite gradients) d is 0,
    while torchjd 0.18 follows what rounding leaves of u.

    Args:
        num_objectives: K.
        seed: unused.
        preference: r, the paper's direction weights, K numbers above 0, of which only the ratios
            count; by default all alike.

    Example:
        Gradients (1, 0) and (0, 2): u is the diagonal, and d = 3/2 (1, 1).

        >>> ConFIG(2).weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.ones(2))
        tensor([1.5000, 0.7500])
    """

    paper = "Liu et al., ICLR 2025, arXiv 2408.11104, eq. 2"
    checked_against = "torchjd 0.18"

    def preferred(self, gramian: Tensor, shares: Tensor) -> Tensor:
        """Return the weights of d."""
        norms = gramian.diagonal().sqrt()
        values, vectors = torch.linalg.eigh(gramian / norms[:, None] / norms)
        target = shares.to(vectors) * len(shares) @ vectors  # r in terms of the eigenvectors
        kept = target.where(values > _RANK * values[-1], 0)
        square = (kept.square() / values.where(kept != 0, 1)).sum()  # ||v||^2
        if square < _RANK:
            return torch.zeros_like(norms)
        x = vectors @ (kept / values.where(kept != 0, 1))
        weights: Tensor = (norms @ (vectors @ kept)) / square * x / norms
        return weights
