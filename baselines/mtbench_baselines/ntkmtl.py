"""NTKMTL: weights that level the largest eigenvalues of the objectives' tangent kernels."""

from math import log
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.step import Space, Step
from mtbench_baselines._checks import at_least, nonnegative, one_of
from mtbench_baselines._norms import sample_squares

if TYPE_CHECKING:
    from optuna import Trial


class NTKMTL(Weighting):
    r"""Weight every objective by the speed at which its neural tangent kernel lets it converge.

    .. math:: w_k = \Bigl(\frac{\tfrac1K \sum_j \lambda_j}{\lambda_k}\Bigr)^p, \qquad
        \lambda_k = \lambda_{\max}(J_k J_k^\top), \qquad p = \tfrac12

    The batch is cut into n sub-batches, and row j of J_k, (n, d), is the gradient of objective k's
    mean loss over sub-batch j.

    ``space="shared"`` is NTKMTL: gradients of the shared parameters, with n = 1 as in all of the
    paper's experiments, so that :math:`\lambda_k = \|g_k\|^2`.

    ``space="features"`` is NTKMTL-SR: gradients at z, with n = ``splits``. The rows of J_k have no
    sample in common, so they are orthogonal and the largest eigenvalue is the largest squared row
    norm; a row is n times the sub-batch's part of :math:`\partial L_k / \partial z`. Heads are
    weighted too, since the paper descends the weighted loss (Algorithm 2). Here L_k must be a mean
    over the batch, and no head may mix samples (batch norm).

    Deviations:
        - The kernel is that of the losses, as in the authors' code; in the paper's theory it is
          that of the network's outputs.
        - w is the paper's, with the mean of lambda; the code has the sum, and multiplies the result
          by K again before it clips it to the norm 1.
        - If the batch has fewer samples than ``splits``, every sample is a sub-batch.

    Args:
        num_objectives: K.
        seed: unused.
        space: NTKMTL, or NTKMTL-SR.
        splits: n, at least 1; for NTKMTL-SR alone.
        power: p, at least 0; the code's authors recommend to try larger ones too.

    Example:
        The eigenvalues 1 and 9 have the mean 5.

        >>> NTKMTL(2).weights(torch.tensor([[1.0, 0.0], [0.0, 9.0]]), torch.ones(2))
        tensor([2.2361, 0.7454], dtype=torch.float64)
    """

    paper = "Qin et al., NeurIPS 2025, arXiv 2510.18258, eq. 15 and 18, Algorithms 1 and 2"
    passes = "F + H + K E; with space=features, F + H + E"
    checked_against = "a twin with one backward per sub-batch and torch.linalg.eigvalsh"

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        space: Space = "shared",
        splits: int = 4,
        power: float = 0.5,
    ) -> None:
        super().__init__(num_objectives, seed)
        one_of(self, get_args(Space), space=space)
        at_least(self, 1, splits=splits)
        nonnegative(self, power=power)
        self.space, self.splits, self.power = space, splits, power
        self.needs_features = space == "features"

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw p from [0.25, 1]."""
        return {"power": trial.suggest_float("power", 0.25, 1.0)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights for a Gramian whose diagonal holds the eigenvalues."""
        logs = gramian.diagonal().double().log()  # ratios up to 1e48 stay finite
        mean = torch.logsumexp(logs, dim=0) - log(len(logs))
        return torch.exp(self.power * (mean - logs))

    def balance(self, step: Step) -> Tensor:
        """Find the weights and apply them."""
        if self.space == "shared":
            return super().balance(step)
        step.release()
        rows = [sample_squares(grads[step.latent]) for grads in step.feature_grads()]
        samples = step.ranks.gather(torch.stack(rows, dim=1))
        eigenvalues = torch.stack([_top_eigenvalue(row, self.splits) for row in samples.T])
        weights = self.weigh(torch.diag(eigenvalues.cpu()), step.host_values)
        step.backward(weights, self.space, head_weights=weights)
        return weights


def _top_eigenvalue(squares: Tensor, splits: int) -> Tensor:
    """Return the largest squared norm of a sub-batch's gradient, given the samples', (B,)."""
    parts = squares.tensor_split(min(splits, len(squares)))
    return torch.stack([part.sum() * (len(squares) / len(part)) ** 2 for part in parts]).max()
