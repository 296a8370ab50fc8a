"""FAMO: all losses fall at one rate, found without any objective's own gradient."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import LossesFn, Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._adam import descend
from mtbench_baselines._checks import FINITE, nonnegative, per_objective, positive

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-20


class FAMO(Scalarizer):
    r"""Descend a weighted sum of the losses' logarithms; weigh up what the last step helped least.

    With lower bounds b and logits :math:`\xi`, (K,), :math:`z = \mathrm{softmax}(\xi)`, a step is

    .. math:: \nabla \sum_k c\, z_k \log(L_k - b_k), \qquad
        c = \Bigl(\sum_k \frac{z_k}{L_k - b_k}\Bigr)^{-1}

    c constant, which is a convex combination of the objectives' gradients. After the optimizer's
    step the losses of the same batch are computed again (`after_step`), and :math:`\xi` descends

    .. math:: \delta = \frac{\partial z}{\partial \xi}^{\!\top}
        \bigl(\log(L - b) - \log(L^+ - b)\bigr) + \gamma\, \xi

    by Adam: an objective that improved more than the others loses weight.

    The decay, gamma, is ``weight_decay`` of Adam, as in the authors' code, whose module has 0.01
    and whose benchmark has 1e-5; the paper's Algorithm 2 has 0.001. Tune it. That module also clips
    the shared gradient to the norm 1; in their benchmark the clip comes too early to act.

    Deviations:
        - nothing is added to :math:`L - b` before the logarithm (1e-8 in the authors' code), so
          that the losses' unit does not matter;
        - an objective without a label in this batch (its loss is exactly 0, before or after) has
          no weight in the step, and its logit and moments stay as they are;
        - where a loss is below its bound the logarithm does not exist: its weight is
          :math:`c z_k / |L_k - b_k|` and its logit stays. Give bounds to losses that may go
          negative.

    Args:
        num_objectives: K.
        seed: unused.
        lr: Adam's learning rate for the logits; above 0.
        decay: gamma; at least 0.
        minima: b, K numbers below which the losses never fall; by default all 0.

    Example:
        The first loss was halved, the second stayed; its weight grows.

        >>> x = torch.tensor([2.0, 1.0], requires_grad=True)
        >>> method = FAMO(2)
        >>> method.backward(Step([x[0], x[1]], shared=[x]))  # (1/4, 1/2) / (3/4)
        tensor([0.3333, 0.6667], dtype=torch.float64)
        >>> method.after_step(lambda: [torch.tensor(1.0), torch.tensor(1.0)])
        >>> method.logits
        tensor([-0.0250,  0.0250], dtype=torch.float64)
    """

    paper = "Liu et al., NeurIPS 2023, arXiv 2306.03792, Algorithm 1, and the authors' code"
    passes = "2 F + H + E"
    checked_against = "torchjd 0.18"

    logits: Tensor
    minima: Tensor
    losses: Tensor
    first_moment: Tensor
    second_moment: Tensor
    count: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        lr: float = 0.025,
        decay: float = 0.001,
        minima: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(num_objectives, seed)
        positive(self, lr=lr)
        nonnegative(self, decay=decay)
        bounds = per_objective(self, FINITE, 0.0, minima=minima)
        self.lr, self.decay = lr, decay
        self.register_buffer("minima", torch.tensor(bounds, dtype=torch.float64), persistent=False)
        for name in ("logits", "losses", "first_moment", "second_moment", "count"):
            self.register_buffer(name, torch.zeros(num_objectives, dtype=torch.float64))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the logits' learning rate and their decay log-uniformly."""
        return {
            "lr": trial.suggest_float("lr", 1e-3, 0.1, log=True),
            "decay": trial.suggest_float("decay", 1e-5, 0.1, log=True),
        }

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return a sum with that gradient, and its weights."""
        self.losses.copy_(step.values)
        sizes = (self.losses - self.minima).abs().clamp(min=_LEAST)
        weights = self._shares(self.losses != 0) / sizes
        weights = weights / weights.sum()
        return step.total(weights), weights

    def _shares(self, labelled: Tensor) -> Tensor:
        """Return z over the objectives with a label, (K,); 0 for the others, if there are any."""
        least = torch.finfo(self.logits.dtype).min
        return self.logits.masked_fill(~labelled, least).softmax(dim=0)

    def after_step(self, losses_fn: LossesFn) -> None:
        """Move the logits by what the optimizer's step did to the losses."""
        with torch.no_grad():
            after = torch.stack([loss.reshape(()) for loss in losses_fn()]).to(self.losses)
        before = self.losses
        moves = (before != 0) & (after != 0) & (before > self.minima) & (after > self.minima)
        moves &= after.isfinite()
        ratios = (before - self.minima) / (after - self.minima).masked_fill(~moves, 1)
        gains = ratios.masked_fill(~moves, 1).log()
        shares = self._shares(moves)
        grad = shares * (gains - shares @ gains) + self.decay * self.logits
        kept = (self.logits, self.first_moment, self.second_moment, self.count)
        descend(*kept, grad, self.lr, moves)
