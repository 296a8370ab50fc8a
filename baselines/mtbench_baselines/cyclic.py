"""cyclic: one objective's gradient a step, and the base on the momenta of all."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer, Weighting
from mtbench.balancing.engine import gramian, without_autocast
from mtbench.balancing.jacobian import vector
from mtbench.balancing.step import Step
from mtbench.balancing.wrapper import Wrapper, weighting
from mtbench_baselines._checks import fraction
from mtbench_baselines._tracked import Remembering

if TYPE_CHECKING:
    from optuna import Trial


class Cyclic(Wrapper, Remembering):
    r"""Let the base balance running averages of the gradients, of which one is renewed a step.

    In turn, objective k's average, (d,), 0 at the start and renewed :math:`t_k` times, becomes

    .. math:: m_k \leftarrow \beta m_k + (1 - \beta) g_k, \qquad
        \hat m_j = \frac{m_j}{1 - \beta^{t_j}}, \qquad d = \sum_j w_j \hat m_j

    with the base's weights w for the Gramian of the :math:`\hat m_j`. A step costs one encoder
    backward instead of K. ``cyclic+config`` is the direction of M-ConFIG.

    Deviations: M-ConFIG divides d by the second moment of d with its averaging undone. That is left
    out. An optimizer with a second moment and without a momentum of its own comes near: it divides
    by that of d itself, and so steps further where gradients are noisy. Heads get the gradient of
    their own loss in every step. An objective without a label is passed over, of which the paper
    does not speak. One that had no turn yet is left out; the authors' code stands still until each
    had one.

    Args:
        base: a method on the Gramian of the shared parameters.
        seed: unused.
        beta: memory, in [0, 1).

    Example:
        The first step knows one gradient, the second one both.

        >>> from mtbench_baselines.mgda import MGDA
        >>> method = Cyclic(MGDA(2), beta=0.5)
        >>> for _ in range(2):
        ...     x = torch.ones(2, requires_grad=True)
        ...     method.backward(Step([x[0], 2 * x[1]], shared=[x]))
        tensor([1., 0.], dtype=torch.float64)
        tensor([0.8000, 0.2000], dtype=torch.float64)
        >>> x.grad
        tensor([0.8000, 0.4000])
    """

    paper = "Liu et al. (M-ConFIG), ICLR 2025, arXiv 2408.11104, without its second moment"
    passes = "F + H + E"
    is_weighted_sum = False
    is_symmetric = False
    checked_against = "a twin with one backward a step; torchjd 0.18's ConFIG on the averages"
    on_host = ("count", "turn")
    ages = ("count",)

    base: Weighting
    count: Tensor
    turn: Tensor

    def __init__(self, base: Balancer, seed: int = 0, *, beta: float = 0.9) -> None:
        super().__init__(base, seed)
        self.base = weighting(self._called, base, at_shared=True)
        fraction(self, beta=beta)
        self.beta = beta
        self.register_buffer(
            "count", torch.zeros(self.num_objectives, dtype=torch.float64, device="cpu")
        )
        self.register_buffer("turn", torch.zeros((), dtype=torch.long, device="cpu"))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw 1 - beta log-uniformly from [0.01, 1]."""
        return {"beta": 1 - trial.suggest_float("one_minus_beta", 1e-2, 1.0, log=True)}

    def balance(self, step: Step) -> Tensor:
        """Renew one average, and let the base balance them all."""
        k = self._next(step)
        step.release()
        self.compares(step.shared)
        gradient = vector(step.gradient(k), step.shared)
        tracked = self.memory(gradient)
        if gradient.isfinite().all():  # an overflow leaves no trace
            tracked[k].lerp_(gradient.to(tracked), 1 - self.beta)
            self.count[k] += 1
            self.turn.fill_((k + 1) % self.num_objectives)
            corrections = 1 - self.beta ** self.count.clamp(min=1)
            product = gramian([tracked]) / corrections[:, None] / corrections
            weights = self.base.weigh(product, step.host_values).to(corrections)
            with without_autocast(tracked):
                step.assign((weights / corrections).to(tracked) @ tracked)
        else:
            weights = torch.zeros_like(self.count)
            weights[k] = 1
            step.assign(gradient)
        return weights

    def _next(self, step: Step) -> int:
        """Return whose turn it is, those without a label passed over."""
        K, turn, losses = self.num_objectives, int(self.turn), step.host_values
        for k in ((turn + i) % K for i in range(K)):
            if losses[k] != 0 or vector(step.gradient(k), step.shared).any():
                return k
        return turn
