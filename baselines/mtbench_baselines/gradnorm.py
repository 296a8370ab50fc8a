"""GradNorm: loss weights that make objectives train at one rate."""

from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.step import Space, Step
from mtbench_baselines._adam import descend
from mtbench_baselines._checks import at_least, nonnegative, one_of, positive

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-3


class GradNorm(Balancer):
    r"""Minimise a weighted sum whose weights make all objectives train at one rate.

    A step descends :math:`\sum_k w_k L_k`; then w descends

    .. math:: L_\mathrm{grad} = \sum_k \bigl| G_k - \bar G\, r_k^\alpha \bigr|, \qquad
        G_k = \|\nabla_W w_k L_k\|, \qquad
        r_k = \frac{L_k / L_k(0)}{\tfrac1K \sum_j L_j / L_j(0)}

    with :math:`\bar G` the mean of G and :math:`\bar G\, r_k^\alpha` held constant, and is scaled
    to the sum K. As :math:`\|\nabla_W w_k L_k\| = w_k \|\nabla_W L_k\|`, the gradient is
    :math:`\mathrm{sign}(G_k - \bar G\, r_k^\alpha)\, \|\nabla_W L_k\|` and needs no second
    differentiation. Heads get the w_k-weighted gradient, as in the paper (Algorithm 1).

    Deviations:
        - W is all shared parameters; the paper takes a subset, usually the last shared layer.
          ``space="features"`` takes the norms at the features instead: K encoder backwards less.
        - w is moved by Adam, kept in the state, on the gradient in units of the mean norm, so that
          the scale of the losses does not matter, down to 1e-7 of that mean; w_k is raised to
          0.001 before the scaling to the sum K.
        - L_k(0) is the loss of the first step in which objective k has a label (a loss and a
          gradient that are not 0); objectives without one in this step are left out of all means.

    Args:
        num_objectives: K.
        seed: unused.
        alpha: strength of the pull towards one training rate; at least 0.
        lr: Adam's learning rate for w.
        space: where gradient norms are taken.
        update_weights_every: steps from one move of w to the next; those in between descend the
            weighted sum, and cost F + H + E.

    Example:
        At the first step every r_k is 1; the objective of the larger gradient loses weight.

        >>> x = torch.ones(2, requires_grad=True)
        >>> method = GradNorm(2)
        >>> method.backward(Step([x[0] ** 2, 3 * x[1]], shared=[x]))
        tensor([1., 1.], dtype=torch.float64)
        >>> method.loss_weights
        tensor([1.0250, 0.9750], dtype=torch.float64)
    """

    paper = "Chen et al., ICML 2018, arXiv 1711.02257, eq. 1-2 and Algorithm 1"
    passes = "F + H + K E"
    checked_against = "its definition by double backward; LibMTL 1.1.5"
    on_host = ("loss_weights", "initial", "first_moment", "second_moment", "count", "left")

    loss_weights: Tensor
    initial: Tensor
    first_moment: Tensor
    second_moment: Tensor
    count: Tensor
    left: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        alpha: float = 1.5,
        lr: float = 0.025,
        space: Space = "shared",
        update_weights_every: int = 1,
    ) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, alpha=alpha)
        positive(self, lr=lr)
        one_of(self, get_args(Space), space=space)
        at_least(self, 1, update_weights_every=update_weights_every)
        self.alpha, self.lr, self.update_weights_every = alpha, lr, update_weights_every
        self.space = space
        zeros = torch.zeros(num_objectives, dtype=torch.float64, device="cpu")
        self.register_buffer("loss_weights", zeros + 1)
        self.register_buffer("initial", zeros.clone())  # 0: no label seen yet
        self.register_buffer("first_moment", zeros.clone())
        self.register_buffer("second_moment", zeros.clone())
        self.register_buffer("count", zeros.clone())
        # Steps till the next move.
        self.register_buffer("left", torch.zeros((), dtype=torch.long, device="cpu"))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw alpha from [0, 3]."""
        return {"alpha": trial.suggest_float("alpha", 0.0, 3.0)}

    def balance(self, step: Step) -> Tensor:
        """Apply the weights, then move them."""
        weights = self.loss_weights.clone()
        step.release()
        if self.left > 0:
            step.backward(weights, "features", head_weights=weights)
            self.left -= 1
            return weights
        norms = step.gramian(self.space).diagonal().sqrt()
        step.backward(weights, self.space, head_weights=weights)
        if norms.isfinite().all():  # not an overflow that a gradient scaler will skip
            self._move(norms, step.host_values)
            self.left.fill_(self.update_weights_every - 1)
        return weights

    def _move(self, norms: Tensor, losses: Tensor) -> None:
        active = (norms > 0) & (losses != 0)
        count = active.sum().clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return torch.where(active, values, 0).sum() / count

        self.initial.copy_(torch.where(active & (self.initial == 0), losses, self.initial))
        progress = (losses / self.initial.masked_fill(self.initial == 0, 1)).clamp(min=0)
        rate = progress / mean(progress).clamp(min=1e-300)
        weighted = self.loss_weights * norms
        target = mean(weighted) * rate**self.alpha
        grad = (weighted - target).sign() * norms / mean(norms).clamp(min=1e-300)

        kept = (self.loss_weights, self.first_moment, self.second_moment, self.count)
        descend(*kept, grad, self.lr, active)
        self.loss_weights.clamp_(min=_LEAST)
        self.loss_weights *= self.num_objectives / self.loss_weights.sum()
