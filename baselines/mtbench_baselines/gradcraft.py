"""GradCraft: gradients brought near one length, then each freed of all its conflicts at once."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench_baselines._checks import fraction, unit_interval

if TYPE_CHECKING:
    from optuna import Trial

Array = NDArray[np.float64]

_RANK = 1e-12
"""Eigenvalues of the cosines below it are rounding of float32 gradients."""


class GradCraft(Weighting):
    r"""Follow the mean of gradients that oppose none of those that they opposed.

    With the gradients' norms n_k, gradients are first brought near the longest:

    .. math:: \tilde g_k = \Bigl(r\, \frac{\max_j n_j}{n_k} + 1 - r\Bigr) g_k

    Then each is changed, along those that it is in conflict with, by as much as it takes to have a
    given inner product with all of them at once:

    .. math:: g_i' = \tilde g_i + \sum_{j \in C_i} x_{ij}\, \tilde g_j, \qquad
        \langle g_i', \tilde g_j\rangle = \epsilon \|\tilde g_i\| \|\tilde g_j\|
        \text{ for } j \in C_i = \{j : \langle \tilde g_i, \tilde g_j\rangle < 0\}

    and :math:`d = \tfrac1K \sum_i g_i'`. PCGrad takes the conflicts one by one instead, so that a
    later projection may bring an earlier conflict back.

    Deviations: where the gradients of C_i depend on each other, the system is solved in the sense
    of least squares; the authors' code inverts its matrix. An objective without a gradient keeps
    its mean and leaves the sums; as that makes means of different age, they are corrected for their
    start, which changes nothing where all have gradients. Heads get the gradient of their own loss;
    in the authors' code norms and products are of all parameters, and heads get K w_k times that
    gradient. Our source is that code.

    Args:
        num_objectives: K.
        seed: unused.
        relax: r, in [0, 1]; the authors' tau. 0 leaves lengths alone.
        margin: epsilon, at least 0 and below 1.
        beta: n_k is a running mean of the norms with this memory, in [0, 1); 0, as in the authors'
            runs, takes this step's.

    Example:
        Equal lengths, at cosine -0.6: each is projected, and half of their sum is left.

        >>> GradCraft(2).weights(torch.tensor([[1.0, -0.6], [-0.6, 1.0]]).double(), torch.ones(2))
        tensor([0.8000, 0.8000], dtype=torch.float64)
    """

    paper = "Bai et al., KDD 2024, arXiv 2407.19682, by the authors' code"
    checked_against = "a twin in gradient space, by torch.linalg.solve"
    sees_zero_rows = True
    on_host = ("norms", "count")

    norms: Tensor
    count: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        relax: float = 1.0,
        margin: float = 0.0,
        beta: float = 0.0,
    ) -> None:
        super().__init__(num_objectives, seed)
        unit_interval(self, relax=relax)
        fraction(self, margin=margin, beta=beta)
        self.relax, self.margin, self.beta = relax, margin, beta
        for name in ("norms", "count"):
            self.register_buffer(
                name, torch.zeros(num_objectives, dtype=torch.float64, device="cpu")
            )

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw r from [0, 1]."""
        return {"relax": trial.suggest_float("relax", 0.0, 1.0)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of the mean of the changed gradients; move the means."""
        live = gramian.diagonal() > 0
        norms = gramian.diagonal().double().sqrt()
        moved = self.beta * self.norms + (1 - self.beta) * norms
        self.norms.copy_(torch.where(live, moved, self.norms))
        self.count += live
        weights = torch.zeros(len(norms), dtype=torch.float64, device="cpu")
        if live.any():
            own = norms[live]
            means = self.norms[live] / (1 - self.beta ** self.count[live])
            lengths = own * (self.relax * means.max() / means + 1 - self.relax)
            C = (gramian[live][:, live] / own[:, None] / own).numpy()
            weights[live] = torch.from_numpy(lengths.numpy() @ _freed(C, self.margin)) / own
        return weights / live.sum().clamp(min=1)


def _freed(C: Array, margin: float) -> Array:
    """Return row by row what the changed unit gradients are made of, (K, K), for cosines C."""
    rows = np.eye(len(C))
    for row, cosines in zip(rows, C, strict=True):
        F = (cosines < 0).nonzero()[0]
        if len(F):
            inverse = np.linalg.pinv(C[F[:, None], F], rcond=_RANK, hermitian=True)
            row[F] += inverse @ (margin - cosines[F])
    return rows
