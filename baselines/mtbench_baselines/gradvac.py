"""GradVac: turn gradients towards each other until their cosines are what they usually are."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench_baselines._checks import unit_interval

if TYPE_CHECKING:
    from optuna import Trial

Array = NDArray[np.float64]

_NOISE = 1e-9
"""Cosines that differ by less are equal: in float64 the rest is rounding."""
_NEAR = 1 - 1e-6
"""The largest cosine that is aimed at; a cosine of 1 would take an infinite multiple of g_j."""


class GradVac(Weighting):
    r"""Sum the gradients after each has been turned towards those it agrees with less than usual.

    For every i, with the other objectives j in random order, starting from :math:`g_i' = g_i`:
    let :math:`\phi` be the cosine between :math:`g_i'` and the original :math:`g_j`, and
    :math:`\hat\phi_{ij}` its target. Where :math:`\phi < \hat\phi_{ij}`,

    .. math:: g_i' \leftarrow g_i' + \frac{\|g_i'\| \bigl(\hat\phi_{ij} \sqrt{1 - \phi^2}
        - \phi \sqrt{1 - \hat\phi_{ij}^2}\bigr)}{\|g_j\| \sqrt{1 - \hat\phi_{ij}^2}}\, g_j

    after which the cosine is :math:`\hat\phi_{ij}`. In either case the target moves:
    :math:`\hat\phi_{ij} \leftarrow (1 - \beta) \hat\phi_{ij} + \beta \phi`, from 0 at the start.
    The direction is :math:`\sum_i g_i'`; at the first step it is that of ``pcgrad``.

    Every g_i' stays in the span of the gradients, so coefficients on the Gramian suffice.

    Deviations:
        - The gradients are those of all shared parameters (the paper's ``whole_model``); its best
          results are per layer.
        - Targets are at most 1 - 1e-6; a cosine that falls short by less than 1e-9 is left alone.
        - An objective without a gradient is passed over, and its targets stay.

    LibMTL 1.1.5 moves a target only where a gradient is turned; torchjd 0.18 moves it always.

    Args:
        num_objectives: K.
        seed: seeds the orders.
        beta: how fast targets follow the cosines; in [0, 1].

    Example:
        g_1 = (1, 0) and g_2 = (-1, 1) become (1/2, 1/2) and (0, 1); their cosine was -1/sqrt 2.

        >>> method = GradVac(2)
        >>> method.weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]).double(), torch.ones(2))
        tensor([2.0000, 1.5000], dtype=torch.float64)
        >>> method.targets
        tensor([[ 0.0000, -0.0071],
                [-0.0071,  0.0000]], dtype=torch.float64)
    """

    paper = "Wang et al., ICLR 2021, arXiv 2010.05874, Algorithm 1"
    checked_against = "textbook twin in gradient space; torchjd 0.18; LibMTL 1.1.5, K = 2"
    sees_zero_rows = True
    on_host = ("targets",)

    targets: Tensor

    def __init__(self, num_objectives: int, seed: int = 0, *, beta: float = 0.01) -> None:
        super().__init__(num_objectives, seed)
        unit_interval(self, beta=beta)
        self.beta = beta
        zeros = torch.zeros(num_objectives, num_objectives, dtype=torch.float64, device="cpu")
        self.register_buffer("targets", zeros)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw beta log-uniformly from [0.001, 1]."""
        return {"beta": trial.suggest_float("beta", 1e-3, 1.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return, per objective, how often its gradient is in the sum of the turned ones."""
        K = len(gramian)
        orders = torch.rand(K, K, generator=self.generator, device="cpu").argsort(dim=1)
        weights, targets = vaccinate(
            gramian.numpy(), self.targets.numpy(), orders.numpy(), self.beta
        )
        self.targets.copy_(torch.from_numpy(targets))
        return torch.from_numpy(weights)


def vaccinate(
    gramian: Array, targets: Array, orders: NDArray[np.int64], beta: float
) -> tuple[Array, Array]:
    """Return the weights (K,) and the new targets (K, K) for orders (K, K), row i being i's."""
    rows = np.arange(len(gramian))
    square = gramian.diagonal()
    norms = np.sqrt(square)
    coefficients = np.eye(len(gramian))  # row i: g_i'
    inner = gramian.copy()  # <g_i', g_j>
    targets = targets.copy()
    for others in orders.T:  # all i at once, each with the j that is its turn
        own = (coefficients * inner).sum(1)  # ||g_i'||^2, 0 but for rounding where it vanished
        i = rows[(others != rows) & (norms[others] > 0) & (own > 1e-14 * square)]
        j = others[i]
        ratio = np.sqrt(own[i]) / norms[j]
        cosine = (inner[i, j] / np.sqrt(own[i]) / norms[j]).clip(-1, 1)
        goal = targets[i, j].clip(max=_NEAR)
        behind = cosine < goal - _NOISE
        cos, aim = cosine[behind], goal[behind]
        turn = np.zeros_like(cosine)
        turn[behind] = ratio[behind] * (aim * np.sqrt((1 - cos**2) / (1 - aim**2)) - cos)
        coefficients[i, j] += turn
        inner[i] += turn[:, None] * gramian[j]
        targets[i, j] = (1 - beta) * targets[i, j] + beta * cosine
    coefficients[square == 0] = 0
    return coefficients.sum(0), targets
