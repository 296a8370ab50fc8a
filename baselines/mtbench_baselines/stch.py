"""STCH: a smooth maximum of the losses relative to where they stood after a warm-up."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import at_least, positive

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-20


class SmoothTchebycheff(Scalarizer):
    r"""Minimise a smooth maximum of the logarithms of the losses, each relative to its nadir.

    .. math:: K \mu \log \sum_k \exp\frac{\log(L_k / n_k)}{\mu}

    the smooth Tchebycheff scalarization :math:`\mu \log \sum_k \exp(\lambda_k (f_k - z_k) / \mu)`
    of the paper with :math:`f_k = \log(L_k / n_k)`, :math:`\lambda_k = 1`, z = 0, times K,
    as in the authors' code for multitask learning. For :math:`\mu \to 0` only the worst objective
    is descended; at :math:`\mu = 1` the logarithm of the sum of :math:`L_k / n_k` is.
    Its gradient is :math:`\sum_k w_k \nabla L_k` with

    .. math:: w_k = \frac{K}{L_k} \mathrm{softmax}_k\bigl(\log(L / n) / \mu\bigr)

    Warm-up, as in that code: in epochs 0 to ``warmup`` the sum of :math:`\log L_k` is minimised (as
    ``si`` does), and the nadir n_k is the mean of L_k over epoch ``warmup``. Epochs are counted by
    `after_epoch`; a loop that does not call it stays in the warm-up.

    A loss of exactly 0 (no label in this batch) is left out of the maximum and of the nadir; an
    objective without a label in epoch ``warmup`` counts as being at its nadir. Of a negative loss
    the absolute value is taken in w and n. These are our decisions.

    Args:
        num_objectives: K.
        seed: unused.
        mu: smoothness; above 0.
        warmup: the epoch, counted from 0, whose losses are the nadir.

    Example:
        After the warm-up the losses are at 1/2 and 1 of their nadirs 2 and 1.

        >>> method = SmoothTchebycheff(2, warmup=0)
        >>> for losses in ([2.0, 1.0], [1.0, 1.0]):
        ...     x = torch.tensor(losses, requires_grad=True)
        ...     weights = method.backward(Step([x[0], x[1]], shared=[x]))
        ...     method.after_epoch()
        >>> weights  # 2 (1/3, 2/3)
        tensor([0.6667, 1.3333], dtype=torch.float64)
    """

    paper = "Lin et al., ICML 2024, arXiv 2402.19078, and the authors' code (STCH_MTL)"
    checked_against = "torchjd 0.18, on log(L / n)"

    epoch: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(
        self, num_objectives: int, seed: int = 0, *, mu: float = 1.0, warmup: int = 4
    ) -> None:
        super().__init__(num_objectives, seed)
        positive(self, mu=mu)
        at_least(self, 0, warmup=warmup)
        self.mu, self.warmup = mu, warmup
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.register_buffer("sums", torch.zeros(num_objectives, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_objectives, dtype=torch.float64))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw mu log-uniformly from [0.01, 1], the paper's range, and the warm-up."""
        return {
            "mu": trial.suggest_float("mu", 0.01, 1.0, log=True),
            "warmup": trial.suggest_int("warmup", 0, 5),
        }

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return a sum with that gradient, and the weights w."""
        losses = step.values.to(self.sums)
        labelled = losses != 0
        sizes = losses.abs().clamp(min=_LEAST)
        weights = (1 / sizes).masked_fill(~labelled, 0)
        noted = labelled & (self.epoch == self.warmup)
        self.sums += losses.abs().where(noted, 0)
        self.counts += noted
        nadir = torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1), sizes)
        ratios = (sizes / nadir).log() / self.mu
        shares = ratios.masked_fill(~labelled, torch.finfo(ratios.dtype).min).softmax(dim=0)
        smooth = self.num_objectives * shares * weights
        weights = torch.where(self.epoch > self.warmup, smooth, weights)
        return step.total(weights), weights

    def after_epoch(self) -> None:
        """Count the epoch."""
        self.epoch += 1
