"""SAM-GS: equalise gradients of very different norms, trust their momentum otherwise."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.engine import lengths
from mtbench_baselines._checks import fraction, unit_interval
from mtbench_baselines._tracked import Tracking

if TYPE_CHECKING:
    from optuna import Trial

_EPS = 1e-8


class SAMGS(Tracking):
    r"""Sum gradients of one norm where the norms differ, and momentum-modulated ones where not.

    (Similarity-aware momentum gradient surgery; it has nothing to do with sharpness.) With the
    magnitude similarity of two gradients, and its mean over all pairs,

    .. math:: \psi_{ij} = \frac{2 \|g_i\| \|g_j\|}{\|g_i\|^2 + \|g_j\|^2}, \qquad
        \Psi = \operatorname*{mean}_{i < j} \psi_{ij},

    the moments of step t are

    .. math:: m_k \leftarrow \beta_1 m_k + (1 - \beta_1) g_k, \qquad
        h \leftarrow \beta_2 h + (1 - \beta_2)(1 - \Psi)^2 + \epsilon

    and the direction, element by element, with the bias-corrected
    :math:`\hat m = m / (1 - \beta_1^t)` and :math:`\hat h = h / (1 - \beta_2^t)`,

    .. math:: d = \sum_k \frac{\tfrac1K \sum_j \|g_j\|}{\|g_k\|}\, g_k \ \text{ if } \Psi < \gamma,
        \qquad d = \sum_k \frac{|\hat m_k|}{\sqrt{\hat h} + \epsilon} \odot g_k \ \text{ otherwise}

    with :math:`\epsilon = 10^{-8}`. The second is of second degree in the gradients' scale, and
    large where the norms agree: the method is made for an optimizer, such as Adam, or a clip, that
    takes the scale out.

    Deviations:
        - The mean in Psi is over pairs i < j, as in the authors' code. In the paper it is over all
          i and j, which makes it at least 1/K: never below gamma = 0.1 for K up to 10.
        - In the first case the paper's Algorithm 1, taken literally, multiplies by g_k twice; its
          text and the code don't.
        - The code multiplies d by K, and then clips it to the norm 1.
        - An objective without a gradient is left out of the step and keeps its moment; K = 1, which
          the paper excludes, is the plain gradient.

    Args:
        num_objectives: K.
        seed: unused.
        beta1: decay of m, in [0, 1).
        beta2: decay of h, in [0, 1).
        gamma: the similarity below which norms are equalised, in [0, 1].

    Example:
        Norms 1 and 100 have the similarity 0.02: both get the mean norm, 50.5.

        >>> method = SAMGS(2)
        >>> method.direction(torch.tensor([[1.0, 0.0], [0.0, 100.0]]), torch.ones(2))
        tensor([50.5000, 50.5000])
    """

    paper = "Borsani et al., 2025, arXiv 2506.06130, eq. 3 and Algorithm 1"
    checked_against = "a plain twin of Algorithm 1"
    ages = ("steps",)

    steps: Tensor
    dissimilarity: Tensor
    count: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        beta1: float = 0.9,
        beta2: float = 0.99,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(num_objectives, seed)
        fraction(self, beta1=beta1, beta2=beta2)
        unit_interval(self, gamma=gamma)
        self.beta1, self.beta2, self.gamma = beta1, beta2, gamma
        zero = torch.zeros((), dtype=torch.float64)
        self.register_buffer("steps", torch.zeros(num_objectives, dtype=torch.float64))  # of m_k
        self.register_buffer("dissimilarity", zero)  # h
        self.register_buffer("count", zero.clone())  # of h

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw gamma from [0, 1]."""
        return {"gamma": trial.suggest_float("gamma", 0.0, 1.0)}

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Move the moments; return the equalised or the modulated sum."""
        if self.num_objectives == 1:
            return jacobian.sum(dim=0)
        norms = lengths(jacobian)
        active = norms > 0
        similarity = _similarity(norms, active)

        moments = self.memory(jacobian)
        jacobian = jacobian.to(moments)
        kept = 1 - (1 - self.beta1) * active.to(moments)
        moments.mul_(kept[:, None]).add_(jacobian, alpha=1 - self.beta1)
        self.steps += active
        self.count += 1
        self.dissimilarity.mul_(self.beta2).add_((1 - self.beta2) * (1 - similarity) ** 2 + _EPS)

        mean = norms.sum() / active.sum().clamp(min=1)
        equal = mean / norms.masked_fill(~active, 1)
        differ = similarity < self.gamma
        spread = (self.dissimilarity / (1 - self.beta2**self.count)).sqrt() + _EPS
        scales = 1 / ((1 - self.beta1 ** self.steps.clamp(min=1)) * spread)
        direction = torch.zeros_like(jacobian[0])
        # Both cases are |m| scale + share, so that the host need not know which it is.
        scales = torch.where(differ, 0, scales).to(jacobian)
        shares = torch.where(differ, equal, 0).to(jacobian)
        for row, moment, scale, share in zip(jacobian, moments, scales, shares, strict=True):
            direction.addcmul_(moment.abs().mul_(scale).add_(share), row)
        return direction


def _similarity(norms: Tensor, active: Tensor) -> Tensor:
    """Return the mean similarity of all pairs of active norms, 1 if there is no pair."""
    i, j = torch.triu_indices(len(norms), len(norms), offset=1, device=norms.device)
    pair = active[i] & active[j]
    ratios = torch.where(pair, norms[i], 1) / torch.where(pair, norms[j], 1)
    similarities = torch.where(pair, 2 / (ratios + 1 / ratios), 0)
    return torch.where(pair.any(), similarities.sum() / pair.sum().clamp(min=1), 1)
