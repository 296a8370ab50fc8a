"""DB-MTL: log losses, and their averaged gradients brought to the largest one's length."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.engine import largest, lengths
from mtbench.balancing.step import Step
from mtbench_baselines._checks import fraction, nonnegative
from mtbench_baselines._norms import divisors
from mtbench_baselines._tracked import Tracking

if TYPE_CHECKING:
    from optuna import Trial


class DBMTL(Tracking):
    r"""Follow the sum of the running averages of :math:`\nabla \log L_k`, all made equally long.

    With the rows :math:`\hat g_k` of a (K, d) memory, 0 at the start, in step t = 1, 2, ...:

    .. math:: \hat g_k \leftarrow \beta_t\, \hat g_k + (1 - \beta_t) \nabla \log L_k, \qquad
        \beta_t = \beta / t^\sigma, \qquad
        d = \max_j \|\hat g_j\| \sum_k \frac{\hat g_k}{\|\hat g_k\|}

    :math:`\nabla \log L_k = \nabla L_k / L_k`: the scale of a loss does not matter. The heads get
    the gradient of their log loss, as in the paper: each is scaled by 1 / L_k.

    Deviations:
        - The divisor is :math:`|L_k|`, and 1 where that is 0: a log loss needs positive losses, and
          negative ones keep their direction here. The paper adds 1e-8 to losses and to norms.
        - The average of objective k stays as it is while k has no gradient.

    Args:
        num_objectives: K.
        seed: unused.
        beta: share of the memory; in [0, 1).
        decay: sigma, how fast that share falls; at least 0.

    Example:
        Gradients (1, 0) and (0, 2) of the losses 1 and 4: those of the logs are (1, 0), (0, 1/2).

        >>> method = DBMTL(2, beta=0.0)
        >>> method.direction(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 4.0]))
        tensor([1., 1.])
    """

    paper = "Lin et al., 2023, arXiv 2308.12029"
    checked_against = "textbook twin on log losses by autograd"
    on_host = ("count",)

    count: Tensor

    def __init__(
        self, num_objectives: int, seed: int = 0, *, beta: float = 0.9, decay: float = 0.0
    ) -> None:
        super().__init__(num_objectives, seed)
        fraction(self, beta=beta)
        nonnegative(self, decay=decay)
        self.beta, self.decay = beta, decay
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device="cpu"))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw beta from [0.1, 0.9], and sigma 0 or 1/2."""
        return {
            "beta": trial.suggest_float("beta", 0.1, 0.9),
            "decay": trial.suggest_categorical("decay", [0.0, 0.5]),
        }

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Average the gradients of the log losses, and return their sum at one length."""
        self.count += 1
        share = self.beta / self.count.item() ** self.decay
        tracked, seen = self.memory(jacobian), (largest(jacobian) > 0)[:, None]
        tracked.mul_(torch.where(seen, share, 1).to(tracked))
        tracked.addcmul_(jacobian.to(tracked), (1 - share) / divisors(losses.to(tracked))[:, None])
        norms = lengths(tracked)
        weights = torch.where(norms > 0, norms.max() / norms, 0)
        return weights.to(tracked) @ tracked

    def balance(self, step: Step) -> None:
        """Find the direction and apply it; the heads descend their log losses."""
        step.release()
        self.compares(step.shared)
        jacobian = step.jacobian()
        losses = step.values.to(jacobian.device)
        step.assign(self.direct(jacobian, losses), head_weights=1 / divisors(losses))
