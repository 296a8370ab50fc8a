"""ConsMTL: fair weights on the trunk, and heads that learn to pull z where all want it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.engine import grad
from mtbench.balancing.solvers import fair_shares
from mtbench.balancing.step import Step
from mtbench_baselines._checks import nonnegative, positive
from mtbench_baselines._norms import norm

if TYPE_CHECKING:
    from optuna import Trial

_LIMIT = 0.1


class ConsMTL(Weighting):
    r"""Balance the trunk as FairGrad does, and teach heads to pull z in the joint direction.

    The weights w are FairGrad's, of :math:`(G w)_k = w_k^{-1/\alpha}`, and the shared parameters
    get :math:`\sum_k w_k \nabla L_k`. With the gradient at the latent representation and the joint
    one,

    .. math:: \delta_k = \partial L_k / \partial z, \qquad \delta = \sum_k w_k \delta_k,

    head k descends its own loss and, besides,

    .. math:: L_k^\mathrm{extra} = -\lambda\, \langle \delta_k, \delta \rangle

    differentiated through :math:`\delta_k`, with :math:`\delta` constant. As in the authors' code,
    that gradient is clipped to a tenth of the norm of the loss's own.

    Deviations:
        - The equation for w is solved exactly.
        - The code multiplies the trunk's gradient by K, and then clips it to the norm 1.
        - Other features than z are left out of :math:`\delta`.

    Cost: the heads' backward twice, and once through the second.

    Args:
        num_objectives: K.
        seed: unused.
        weight: lambda; at least 0.
        alpha: FairGrad's; above 0.

    Example:
        Linear heads of unit weights: the extra loss pulls each one's weight towards the other's.

        >>> z = torch.ones(1, 2, requires_grad=True) * 1.0
        >>> heads = [torch.tensor(row, requires_grad=True) for row in ([1.0, 0.0], [0.0, 1.0])]
        >>> step = Step([(z @ head).sum() for head in heads], features=z)
        >>> ConsMTL(2).head_slopes(step, torch.ones(2))[0]
        (tensor([-1., -1.]),)
    """

    paper = "Qin, Wang and Yan, CVPR 2025, pp. 10067-10076, and the authors' code"
    passes = "F + 3 H + K E"
    checked_against = "a twin in plain autograd, scipy.optimize.least_squares for the weights"
    needs_features = True
    finds_front = False  # the weights grow as gradients cancel: the step does not shrink

    def __init__(
        self, num_objectives: int, seed: int = 0, *, weight: float = 1.0, alpha: float = 2.0
    ) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, weight=weight)
        positive(self, alpha=alpha)
        self.weight, self.alpha = weight, alpha

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw lambda log-uniformly from [0.01, 10]."""
        return {"weight": trial.suggest_float("weight", 1e-2, 10.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return FairGrad's weights."""
        return fair_shares(gramian, 1 / self.alpha)

    def balance(self, step: Step) -> Tensor:
        """Apply the weights, and add the extra gradients to the heads'."""
        step.release(heads=False)
        weights = self.weigh(step.gramian(), step.host_values)
        before = [[None if p.grad is None else p.grad.clone() for p in h] for h in step.heads]
        step.backward(weights)
        slopes = self.head_slopes(step, weights)
        for head, saved, slope in zip(step.heads, before, slopes, strict=True):
            own = [
                p.grad if b is None or p.grad is None else p.grad - b
                for p, b in zip(head, saved, strict=True)
            ]
            scale = (_LIMIT * norm(own) / norm(slope).clamp(min=1e-300)).clamp(max=1)
            for parameter, extra in zip(head, slope, strict=True):
                if extra is not None and parameter.grad is not None:
                    parameter.grad.add_(extra * scale)
        return weights

    def head_slopes(self, step: Step, weights: Tensor) -> list[Sequence[Tensor | None]]:
        """Return per objective the extra loss's gradient at its head, not clipped.

        It is times the step's loss scale, as what is in ``.grad``.
        """
        sensitivities = step.sensitivities
        joint = sum(w * s.detach() for w, s in zip(weights.tolist(), sensitivities, strict=True))
        extras = [-self.weight * (s * joint).sum() for s in sensitivities]
        return [
            step.ranks.sums(grad([extra], head, [torch.full_like(extra, step.loss_scale)]))
            for extra, head in zip(extras, step.heads, strict=True)
        ]
