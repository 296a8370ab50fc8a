"""RLW: random loss weights, the litmus test of every weighting."""

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import one_of

if TYPE_CHECKING:
    from optuna import Trial

Distribution = Literal["normal", "dirichlet"]


class RandomLossWeighting(Scalarizer):
    r"""Minimise :math:`\sum_k w_k L_k` with weights drawn anew in every step, of sum 1.

    .. math:: w = \mathrm{softmax}(\xi),\ \xi \sim \mathcal{N}(0, I_K)
        \qquad\text{or}\qquad w \sim \mathrm{Dirichlet}(1, \dots, 1)

    The mean weight is 1/K, so on average the step is that of ``ew`` divided by K.

    Deviation: LibMTL takes the softmax of the Dirichlet sample as well, which draws the weights
    together; a sample of the Dirichlet distribution has the sum 1 as it is.

    Args:
        num_objectives: K.
        seed: seeds the weights.
        distribution: ``normal`` or ``dirichlet``.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> weights = RandomLossWeighting(2).backward(Step([x[0] ** 2, 3 * x[1]], shared=[x]))
        >>> torch.equal(x.grad, weights * torch.tensor([2.0, 3.0])), round(weights.sum().item(), 6)
        (True, 1.0)
    """

    paper = "Lin et al., TMLR 2022, arXiv 2111.10603"
    checked_against = "torchjd 0.18 and LibMTL 1.1.5 at one state of the generator (normal)"

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        distribution: Distribution = "normal",
    ) -> None:
        super().__init__(num_objectives, seed)
        one_of(self, get_args(Distribution), distribution=distribution)
        self.distribution = distribution

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the distribution."""
        return {"distribution": trial.suggest_categorical("distribution", get_args(Distribution))}

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the weighted sum, and the weights."""
        count = self.num_objectives
        if self.distribution == "normal":
            weights = torch.randn(count, generator=self.generator, device="cpu").softmax(dim=0)
        else:  # Dirichlet(1, ..., 1): exponential variables divided by their sum
            draws = torch.empty(count, dtype=torch.float64, device="cpu").exponential_(
                generator=self.generator
            )
            weights = draws / draws.sum()
        weights = weights.to(step.values, non_blocking=True)
        return step.total(weights), weights
