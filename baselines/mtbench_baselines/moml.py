"""MOML: weights that descend all validation losses which the next step would lead to."""

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from mtbench.balancing.solvers import min_norm
from mtbench.balancing.step import Step
from mtbench_baselines._bilevel import Ahead, Bilevel
from mtbench_baselines._checks import one_of

if TYPE_CHECKING:
    from optuna import Trial

Normalise = Literal["l2", "none"]


class MOML(Bilevel):
    r"""Descend :math:`\sum_j w_j L_j`, and move w along MGDA's direction of the validation losses.

    With :math:`w = \mathrm{softmax}(a)`, all parameters :math:`\theta`, heads too, and the
    validation losses V,

    .. math:: \theta' = \theta - \alpha \textstyle\sum_j w_j \nabla L_j(\theta), \qquad
        h_k = \nabla_a V_k(\theta') = -\alpha
        \Bigl(\frac{\partial w}{\partial a}\Bigr)^{\!\top} \bigl(
        \langle \nabla V_k(\theta'), \nabla L_j(\theta) \rangle\bigr)_{j}

    Adam moves a, from 0, along :math:`\sum_k \gamma_k h_k`, where gamma makes this the shortest
    convex combination; then the model moves. Where Auto-Lambda descends the sum of the V_k, this
    seeks what lowers them all. Heads are weighted too.

    Deviations:
        - One virtual step, as in the authors' code; the paper allows several.
        - The model's step is on the batch of the virtual one; in the authors' code on a third one.
        - An objective without a gradient in the batch keeps a_k and its moments, and in h the w of
          the others are divided by their sum: of one alone h is 0. A validation loss that does
          not depend on a is left out of gamma.

    Args:
        num_objectives: K.
        seed: unused.
        rate: alpha, the length of the virtual step; above 0.
        lr: Adam's learning rate for a; above 0.
        normalise: ``l2`` divides each h_k by its length, as LibMTL does after 1.1.5; the authors'
            code for Office-31 does so only to find gamma. ``none`` is the paper's.
        share: of the training samples that are kept for validation and not trained on, in [0, 1);
            0 takes another batch of those that are, as the authors' later code does.

    Example:
        Either loss falls faster where the second one has more weight. Where each pulled at a
        parameter of its own, no change of the weights would lower both, and they would stay.

        >>> from mtbench import Step
        >>> x = torch.ones(1, requires_grad=True)
        >>> def step():
        ...     return Step([x[0], 2 * x[0]], shared=[x], validation=step)
        >>> MOML(2, lr=0.1).backward(step())
        tensor([0.4502, 0.5498], dtype=torch.float64)
    """

    paper = "Ye et al., NeurIPS 2021, arXiv 2102.07624, by the authors' code"
    passes = "2 F + 2 H + 2 K E"
    checked_against = "autograd through the virtual step, and scipy's SLSQP"

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        rate: float = 1e-3,
        lr: float = 1e-3,
        normalise: Normalise = "l2",
        share: float = 0.0,
    ) -> None:
        super().__init__(num_objectives, seed, 0.0, rate, lr, share)
        one_of(self, get_args(Normalise), normalise=normalise)
        self.normalise = normalise

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw both rates log-uniformly."""
        return {
            "rate": trial.suggest_float("rate", 1e-4, 1e-1, log=True),
            "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        }

    def current(self) -> Tensor:
        """Return w."""
        return self.state.softmax(dim=0)

    def slope(self, step: Step, ahead: Ahead) -> Tensor:
        """Return the shortest combination of the validation losses' gradients in a, over -alpha."""
        found = ahead.times(step, step.losses)
        weights = self.current() * found.any(0)  # of those with a label in the training batch
        weights = weights / weights.sum().clamp(min=1e-300)
        rows = weights * (found - (found @ weights)[:, None])
        lengths = torch.linalg.vector_norm(rows, dim=1)
        rows, lengths = rows[lengths != 0], lengths[lengths != 0]
        if not len(rows) or not rows.isfinite().all():
            return rows.sum(0)
        if self.normalise == "l2":
            rows = rows / lengths[:, None]
        return min_norm(rows @ rows.T) @ rows
