"""every: the base is asked every R steps, and its weights are kept in between."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer, Weighting
from mtbench.balancing.step import Step
from mtbench.balancing.wrapper import Wrapper, weighting
from mtbench_baselines._checks import at_least

if TYPE_CHECKING:
    from optuna import Trial


class Every(Wrapper):
    r"""Ask the base for weights every R steps, and descend :math:`\sum_k w_k L_k` in between.

    Weights change less from step to step than gradients do, and finding them is what costs K
    encoder backwards: the steps in between cost one. ``every+mgda`` is PSMGD, as far as its
    abstract tells; by others' account it averages the weights, too: ``every+cr_mogm+mgda``. Heads
    get the gradient of their own loss in every step.

    An objective without a gradient when weights are found keeps those that it had (0 before its
    first). A step with gradients that are not finite finds no weights, and the next one tries
    again. Both are our decisions.

    Args:
        base: a method on the Gramian; other wrappers go inside, as in ``every+damped+mgda``.
        seed: unused.
        steps: R, at least 1.

    Example:
        The gradients become equally long, and only the third step sees it.

        >>> from mtbench_baselines.mgda import MGDA
        >>> method = Every(MGDA(2), steps=2)
        >>> for slope in (2.0, 1.0, 1.0):
        ...     x = torch.ones(2, requires_grad=True)
        ...     method.backward(Step([x[0], slope * x[1]], shared=[x]))
        tensor([0.8000, 0.2000], dtype=torch.float64)
        tensor([0.8000, 0.2000], dtype=torch.float64)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    paper = "Xu et al. (PSMGD), AAAI 2025, arXiv 2412.10961; its abstract was read"
    passes = "every R-th step the base's; F + H + E in between"
    checked_against = "the base at every R-th step, and a weighted sum of losses in between"
    on_host = ("kept", "left")

    base: Weighting
    kept: Tensor
    left: Tensor

    def __init__(self, base: Balancer, seed: int = 0, *, steps: int = 10) -> None:
        super().__init__(base, seed)
        self.base = weighting(self._called, base)
        at_least(self, 1, steps=steps)
        self.steps = steps
        self.register_buffer(
            "kept", torch.zeros(self.num_objectives, dtype=torch.float64, device="cpu")
        )
        # Steps till the next ask.
        self.register_buffer("left", torch.zeros((), dtype=torch.long, device="cpu"))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw R log-uniformly from 2 to 64."""
        return {"steps": trial.suggest_int("steps", 2, 64, log=True)}

    def balance(self, step: Step) -> Tensor:
        """Find new weights, or apply those that are kept."""
        if self.left > 0:
            weights = self.kept.clone()
            step.release()
            step.backward(weights, "features")
            self.left -= 1
            return weights
        weights = self.base.balance(step)
        squares = step.gramian(self.base.space).diagonal()
        if squares.any() and squares.isfinite().all():
            self.kept.copy_(torch.where(squares > 0, weights.to(self.kept), self.kept))
            self.left.fill_(self.steps - 1)
        return weights
