"""What bilevel methods share: weights that descend validation losses, seen one step ahead."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.engine import products, without_autocast
from mtbench.balancing.jacobian import vector, views
from mtbench.balancing.step import Step
from mtbench_baselines._adam import descend
from mtbench_baselines._checks import fraction, positive
from mtbench_baselines._moving import moved


class Bilevel(Balancer):
    r"""A weighted sum of losses, whose weights descend losses on another batch, by Adam.

    With all parameters :math:`\theta`, heads too, a virtual step of length :math:`\alpha` leads to
    :math:`\theta' = \theta - \alpha \sum_j w_j \nabla L_j(\theta)`, and there the validation losses
    :math:`V_k` depend on the weights by

    .. math:: \frac{\partial V_k(\theta')}{\partial w_j}
        = -\alpha\, \langle \nabla V_k(\theta'), \nabla L_j(\theta) \rangle

    Args:
        num_objectives: K.
        seed: unused.
        rate: alpha; above 0.
        lr: Adam's learning rate; above 0.
        share: of the training samples that are kept for validation and not trained on, in [0, 1);
            0 takes another batch of those that are.
    """

    needs_validation = True
    on_host = ("state", "first_moment", "second_moment", "count")

    state: Tensor
    first_moment: Tensor
    second_moment: Tensor
    count: Tensor

    def __init__(
        self, num_objectives: int, seed: int, start: float, rate: float, lr: float, share: float
    ) -> None:
        super().__init__(num_objectives, seed)
        positive(self, rate=rate, lr=lr)
        fraction(self, share=share)
        self.rate, self.lr, self.holds_out = rate, lr, share
        self.register_buffer(
            "state", torch.full((num_objectives,), start, dtype=torch.float64, device="cpu")
        )
        for name in ("first_moment", "second_moment", "count"):
            self.register_buffer(
                name, torch.zeros(num_objectives, dtype=torch.float64, device="cpu")
            )

    @abstractmethod
    def current(self) -> Tensor:
        """Return the weights (K,) that the state stands for."""

    @abstractmethod
    def slope(self, step: Step, ahead: "Ahead") -> Tensor:
        """Return the state's gradient over -alpha, (K,), from a validation step at theta'."""

    def balance(self, step: Step) -> Tensor:
        """Move the weights by what a virtual step would do, and apply them."""
        step.release()
        weights, ahead = self.current(), Ahead(step)
        if ahead.finite:
            with moved(ahead.parameters, ahead.offsets(-self.rate * weights)):
                slope = -self.rate * self.slope(step.validation(), ahead)
            if slope.isfinite().all():
                kept = (self.state, self.first_moment, self.second_moment, self.count)
                descend(*kept, slope, self.lr, ahead.live)
            weights = self.current()
        step.assign(ahead.mixed(weights), weights)
        return weights


class Ahead:
    """The training gradients of all parameters, to move along and to multiply by.

    Args:
        step: of training.

    Attributes:
        jacobian: of the shared parameters, (K, d).
        parameters: these, and those of the heads.
        live: which objectives have a gradient, (K,).
        finite: whether the Jacobian is.
    """

    def __init__(self, step: Step) -> None:
        self.jacobian = step.jacobian()
        self._shared, self._heads = step.shared, step.heads
        self.parameters = [*self._shared, *chain(*self._heads)]
        sums = iter(step.ranks.sums(list(chain(*step.head_grads))))
        self._own = [
            vector([next(sums) for _ in head], head).to(self.jacobian) / step.loss_scale
            for head in self._heads
        ]
        own = torch.stack([row.any() for row in self._own])
        found = torch.cat([self.jacobian.any(dim=1) | own, self.jacobian.isfinite().all()[None]])
        found = found.cpu()  # in one piece: each makes the host wait
        self.live, self.finite = found[:-1], bool(found[-1])

    def mixed(self, weights: Tensor) -> Tensor:
        """Return the weighted sum of the shared parameters' gradients, (d,)."""
        with without_autocast(self.jacobian):
            return weights.to(self.jacobian) @ self.jacobian

    def offsets(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum of the gradients, parameter by parameter."""
        parts = [(self.mixed(weights), self._shared)]
        parts += [
            (weight * own, head)
            for weight, own, head in zip(weights.tolist(), self._own, self._heads, strict=True)
        ]
        return [offset for row, own in parts for _, offset in views(row, own)]

    def times(self, step: Step, losses: Sequence[Tensor]) -> Tensor:
        """Return the products of another step's losses' gradients and the K of training, (n, K)."""
        return torch.stack([self._times(step, loss) for loss in losses]).cpu()

    def _times(self, step: Step, loss: Tensor) -> Tensor:
        found = iter(step.gradient(loss, self.parameters))
        theirs = [
            vector([next(found) for _ in part], part).to(self.jacobian)
            for part in (self._shared, *self._heads)
        ]
        shared = products(self.jacobian, theirs[0][None])[:, 0]
        own = [a.double() @ b.double() for a, b in zip(self._own, theirs[1:], strict=True)]
        return shared + torch.stack(own)
