"""Aligned-MTL: the principal components of the gradients, all made equally long."""

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from mtbench_baselines._checks import one_of
from mtbench_baselines._preference import Preferring

if TYPE_CHECKING:
    from optuna import Trial

Scale = Literal["min", "median", "rmse"]

_RANK = 1e-12


class AlignedMTL(Preferring):
    r"""Sum the gradients after their matrix has been given the condition number 1.

    With the eigenvalues and eigenvectors :math:`G = V \Lambda V^\top` of the Gramian, R of them
    positive, :math:`\lambda_1 \ge \dots \ge \lambda_R > 0`, the weights are

    .. math:: w = \sqrt{\lambda_R}\ V \Lambda^{-1/2} V^\top r

    so that the rows of :math:`\hat J = \sqrt{\lambda_R}\, V \Lambda^{-1/2} V^\top J` are the
    orthogonal matrix nearest to J times its least singular value, and :math:`d = \hat J^\top r`.
    r is 1, or a preference scaled to the sum K.

    Deviations: the rank R counts eigenvalues above 1e-12 K times the largest: angles below 1e-6,
    noise in float32 gradients. The authors' code has the rounding of the dtype there, so that the
    rank, and with it d, depends on it.

    Scale: d is of length :math:`\sqrt{K \lambda_R}` at full rank, governed by the weakest principal
    component: never longer than ``ew``'s step, and much shorter near dependence. It jumps where the
    rank falls. Not invariant to the scale of one objective.

    Args:
        num_objectives: K.
        seed: unused.
        scale: in the place of the least eigenvalue, the paper's, the ``median`` one or the mean of
            all (``rmse``), as in the authors' code.
        preference: r, the paper's task weights, K numbers above 0, of which only the ratios count;
            by default all alike.

    Example:
        Orthogonal gradients of lengths 1 and 2 both get length 1.

        >>> AlignedMTL(2).weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.ones(2))
        tensor([1.0000, 0.5000])
    """

    paper = "Senushkin et al., CVPR 2023, arXiv 2305.19000, Algorithm 1"
    checked_against = "the polar factor by SVD in gradient space; torchjd 0.18"

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        scale: Scale = "min",
        preference: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(num_objectives, seed, preference=preference)
        one_of(self, get_args(Scale), scale=scale)
        self.scale = scale

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the scale."""
        return {"scale": trial.suggest_categorical("scale", get_args(Scale))}

    def preferred(self, gramian: Tensor, shares: Tensor) -> Tensor:
        """Return the weights of the sum of aligned gradients."""
        values, vectors = torch.linalg.eigh(gramian)
        live = values > _RANK * len(values) * values[-1]
        values, vectors = values[live], vectors[:, live]
        if self.scale == "min":
            scale = values[0]
        else:
            scale = values.median() if self.scale == "median" else values.mean()
        target = shares.to(vectors) * len(shares) @ vectors  # r in terms of the eigenvectors
        weights: Tensor = vectors @ (target * (scale / values).sqrt())
        return weights
