"""SAMO: give any method the gradients of flatter losses, sharpness-aware and cheap."""

from collections.abc import Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.accumulation import tangent
from mtbench.balancing.balancer import Balancer
from mtbench.balancing.distributed import Summed
from mtbench.balancing.step import Step
from mtbench.balancing.wrapper import Wrapper
from mtbench.errors import UsageError
from mtbench_baselines._checks import positive, unit_interval
from mtbench_baselines._moving import moved
from mtbench_baselines._norms import norm

if TYPE_CHECKING:
    from optuna import Trial


class SAMO(Wrapper):
    r"""Hand the base, per objective, the gradient at a point where that loss is higher.

    Objective k's shared gradient :math:`\nabla L_k(\theta)` is replaced by
    :math:`\nabla L_k(\theta + \epsilon_k)`,

    .. math:: \epsilon_k = \rho \frac{v_k}{\|v_k\|}, \qquad
        v_k = \alpha\, g_0 + (1 - \alpha)\, \hat g_k, \qquad
        g_0 = \nabla \tfrac1K \textstyle\sum_j L_j(\theta)

    g_0 is the global gradient. The local one is estimated by two forward passes,

    .. math:: \hat g_k = \frac{L_k(\theta + \mu z_k) - L_k(\theta - \mu z_k)}{2\mu}\, z_k, \qquad
        z_k \sim N(0, I)

    and scaled, layer by layer (one parameter tensor each), to the norm of g_0 there (in the
    authors' runs on CelebA, not on NYUv2); so of the difference only its sign counts. Head k's
    parameters are moved by rho along their own gradient meanwhile. All parameters are put back bit
    for bit. ``alpha=1`` is sharpness-aware minimisation with the global gradient (G-SAM in the
    paper), and needs no estimate.

    The base sees the losses at theta, with these gradients, and no features: a method that needs
    features, or works at them, cannot be the base.

    Deviations:
        - Every forward pass is a whole one (`Step.again` gives all losses).
        - Layers that draw (dropout) or count (batch norm's running statistics) see every pass; the
          authors' code puts them to rest.
        - A gradient that is 0 moves nothing.

    Args:
        base: the method inside.
        seed: seeds z.
        rho: how far theta is moved; above 0. The default is that of the authors' code.
        alpha: the share of the global gradient, in [0, 1]. The paper tries 0.3, 0.5 and 0.7.
        mu: the step of the estimate; above 0.

    Example:
        L = x^2 at x = 1, moved by 0.1: the gradient is 2.2.

        >>> from mtbench_baselines.ew import EqualWeights
        >>> x = torch.ones(1, requires_grad=True)
        >>> def step():
        ...     return Step([(x**2).sum()], shared=[x], again=step)
        >>> SAMO(EqualWeights(1), rho=0.1).backward(step())
        tensor([1.])
        >>> x.grad, x.detach()
        (tensor([2.2000]), tensor([1.]))
    """

    paper = "Ban, Subramani and Ji, ICCV 2025, arXiv 2507.07883"
    passes = "(1 + 3 K) F + 2 H + (1 + K) E"
    needs_again = True
    is_weighted_sum = False
    checked_against = "a twin on copies of the model, one per objective"

    def __init__(
        self,
        base: Balancer,
        seed: int = 0,
        *,
        rho: float = 0.001,
        alpha: float = 0.5,
        mu: float = 0.01,
    ) -> None:
        super().__init__(base, seed)
        for what, looks in (("residuals", base.needs_residuals), ("features", base.at_features)):
            if looks:
                raise UsageError(
                    f"{self._called} gives its base gradients of K moved points, which have no "
                    f"{what} in common, found {base._called}, which looks at them: wrap another "
                    "method"
                )
        positive(self, rho=rho, mu=mu)
        unit_interval(self, alpha=alpha)
        self.rho, self.alpha, self.mu = rho, alpha, mu

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw rho log-uniformly from [0.0001, 0.1], alpha from [0, 1]."""
        return {
            "rho": trial.suggest_float("rho", 1e-4, 1e-1, log=True),
            "alpha": trial.suggest_float("alpha", 0.0, 1.0),
        }

    def balance(self, step: Step) -> Tensor | None:
        """Collect the gradients at the moved points, and let the base balance them."""
        mean = step.total() / step.num_objectives
        shared = step.shared
        step.release()  # its parameters get moved
        grads = iter(step.gradient(mean, (*shared, *chain(*step.heads))))
        global_grads = list(islice(grads, len(shared)))
        head_grads = [list(islice(grads, len(head))) for head in step.heads]
        losses = []
        for k, head in enumerate(step.heads):
            reached = step.reached_by(k)
            moves = self._towards(self._direction(step, k, global_grads))
            with moved((*shared, *head), (*moves, *self._towards(head_grads[k]))):
                there = step.again()
                found = there.gradient(there.losses[k], reached)
            losses.append(tangent(step.losses[k], reached, found))
        return self.base.balance(
            Step(
                losses,
                shared=step.named_shared,
                again=step.again,
                validation=step.validation,
                engine=step.engine,
                loss_scale=step.loss_scale,
                ranks=Summed(step.ranks),
            )
        )

    def _direction(
        self, step: Step, k: int, global_grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Return v_k, tensor by tensor."""
        if self.alpha == 1:
            return list(global_grads)
        seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
        noise = [
            torch.randn(p.shape, generator=_on(p, seed + i), dtype=p.dtype, device=p.device)
            for i, p in enumerate(step.shared)
        ]
        ends = []
        for sign in (1, -1):
            with torch.no_grad(), moved(step.shared, [sign * self.mu * z for z in noise]):
                ends.append(step.again().losses[k].detach().double())
        slope = (ends[0] - ends[1]).sign()
        return [
            None
            if g is None
            else (1 - self.alpha) * slope.to(z) * z * (norm([g]) / norm([z])).to(z) + self.alpha * g
            for g, z in zip(global_grads, noise, strict=True)
        ]

    def _towards(self, direction: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return a direction at the length rho, or 0."""
        length = norm(direction)
        scale = torch.where(length > 0, self.rho / length, 0)
        return [None if part is None else part * scale.to(part) for part in direction]


def _on(parameter: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(parameter.device).manual_seed(seed)
