"""ExcessMTL: weights from how far each objective still is from its own optimum."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.engine import largest
from mtbench.balancing.step import Step
from mtbench_baselines._checks import positive
from mtbench_baselines._tracked import Whose, begins_anew, new_state

if TYPE_CHECKING:
    from optuna import Trial


class ExcessMTL(Balancer):
    r"""Minimise :math:`\sum_k w_k L_k`, where the weight of a large excess risk grows.

    The excess risk, how far L_k is above its own minimum, is estimated at second order with a
    diagonal curvature from the gradients :math:`g_k^{(s)}` of all steps s up to now, as in AdaGrad:

    .. math:: E_k = g_k^\top H_k^{-1} g_k, \qquad
        H_k = \mathrm{diag}\Bigl(\sum_s (g_k^{(s)})^2\Bigr)^{1/2}

    and with :math:`E_k^0`, that of the first step, the weights, 1 at the start, become

    .. math:: w_k \leftarrow w_k \exp(\eta\, E_k / E_k^0), \qquad \text{scaled to the sum } K

    from the second step on, before they are applied (authors' code). Unlike with losses, an
    objective of noisy labels, whose loss stays large, does not take all the weight. Heads get the
    w_k-weighted gradient, as in that code.

    State: K x d numbers, d being the shared parameters.

    Deviations: the paper takes E^0 from some epochs of warm-up, the authors' code and we from one
    step, the objective's first with a label. No constant is added in H (1e-7 in the authors' code),
    so that the losses' unit does not matter. An objective whose gradient is zero in a step (no
    label in this batch) keeps its state. torchjd applies the first E undivided.

    Args:
        num_objectives: K.
        seed: unused.
        step_size: eta; above 0.

    Example:
        The second gradient falls to a quarter: E/E^0 is 1/sqrt(2) and 1/(4 sqrt(17)) there.

        >>> method = ExcessMTL(2, step_size=1.0)
        >>> for slope in (4.0, 1.0):
        ...     x = torch.ones(2, requires_grad=True)
        ...     weights = method.backward(Step([x[0], slope * x[1]], shared=[x]))
        >>> weights  # 2 softmax(0.7071, 0.0606)
        tensor([1.3124, 0.6876], dtype=torch.float64)
    """

    paper = "He et al., ICML 2024, arXiv 2402.02009, and the authors' code"
    passes = "F + H + K E"
    sized_later = ("roots",)
    checked_against = "textbook twin; torchjd 0.18, from its second step on"

    log_weights: Tensor
    initial: Tensor
    roots: Tensor

    def __init__(self, num_objectives: int, seed: int = 0, *, step_size: float = 0.01) -> None:
        super().__init__(num_objectives, seed)
        positive(self, step_size=step_size)
        self.step_size = step_size
        self.register_buffer("log_weights", torch.zeros(num_objectives, dtype=torch.float64))
        self.register_buffer("initial", torch.zeros(num_objectives, dtype=torch.float64))
        self.register_buffer("roots", torch.zeros(num_objectives, 0))  # d: known in the first step
        self._whose = Whose(self)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw eta log-uniformly from [1e-4, 1]."""
        return {"step_size": trial.suggest_float("step_size", 1e-4, 1.0, log=True)}

    def balance(self, step: Step) -> Tensor:
        """Move the weights, then apply them."""
        step.release()
        jacobian = step.jacobian()
        finite = largest(jacobian).isfinite().all()  # an overflow leaves no trace
        self._whose.look(step.shared)
        if begins_anew(self, self.roots, jacobian.shape[1], self._whose):
            self.initial.zero_()
            self.roots = new_state(jacobian, *jacobian.shape)
        # The root of the sum of squares without squaring, which would leave float32's range.
        excesses = []
        for gradient, root in zip(jacobian, self.roots, strict=True):
            row = gradient.to(root)
            torch.hypot(root, torch.where(finite, row, 0), out=root)
            excesses.append((row / root).nan_to_num_(0) @ row)  # 0 / 0: a parameter without one
        excess = torch.stack(excesses).to(self.initial)
        active = finite & (excess > 0)
        known = active & (self.initial > 0)
        risk = torch.where(known, excess / self.initial.masked_fill(~known, 1), 0)
        self.initial.copy_(torch.where(active & ~known, excess, self.initial))
        moved = self.log_weights + self.step_size * risk
        self.log_weights.copy_(moved - moved.max())
        weights = self.num_objectives * self.log_weights.softmax(dim=0)
        step.backward(weights, head_weights=weights)
        return weights
