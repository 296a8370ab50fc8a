"""LDC-MTL: learnt weights, and a penalty on the differences between weighted losses."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import nonnegative

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-20
_EQUAL = 1e-6


class LossDiscrepancyControl(Scalarizer):
    r"""Minimise a weighted sum of relative losses, and how far the weighted losses lie apart.

    With :math:`l_k = L_k / L_k^0`, the loss over that of the first step, and learnt logits x, (K,),

    .. math:: \sum_k \sigma_k l_k + \lambda \sum_{k=1}^{K-1}
        \bigl| \sigma_k l_k - \sigma_{k+1} l_{k+1} \bigr|, \qquad \sigma = \mathrm{softmax}(x)

    over the model and x: the paper's bilevel problem (the lower level minimises the weighted sum
    over the model, the upper one the differences over x) as one penalised problem, which the
    authors' code descends by one gradient. x is a trainable parameter, 0 at the start: hand
    ``balancer.parameters()`` to the optimizer.

    A large lambda makes the weight of a loss that is below its neighbours negative: the loss is
    raised. Below 1/2 that cannot happen: an objective has at most two neighbours.

    **Our reading**, where the authors' runs differ from one another: the weights come from free
    logits (as in their CelebA and QM9 runs) and not from a router network that reads the features
    (NYUv2); through a softmax (NYUv2), where CelebA has sigmoids over their sum; relative losses
    are as NYUv2's but for a common factor, where QM9 takes their logarithms, CelebA none, and
    Cityscapes, whose lambda is the default here, penalises the losses' plain difference.

    A loss of exactly 0 (no label in this batch) is left out, and its neighbours become neighbours;
    sigma is then the softmax over the rest. :math:`L_k^0` is the absolute loss of the first step
    with a label. Weighted losses that are equal to six digits have no difference: as at the first
    step, where rounding would otherwise choose its sign, and so who is descended faster.

    Args:
        num_objectives: K.
        seed: unused.
        penalty: lambda; at least 0.

    Example:
        At the first step all relative losses are 1 and all weights 1/K.

        >>> x = torch.tensor([4.0, 1.0], requires_grad=True)
        >>> LossDiscrepancyControl(2).backward(Step([x[0], x[1]], shared=[x]))
        tensor([0.1250, 0.5000])
    """

    paper = "Xiao et al., arXiv 2502.08585, and the authors' code"
    checked_against = "its formula by autograd"
    is_symmetric = False

    initial: Tensor

    def __init__(self, num_objectives: int, seed: int = 0, *, penalty: float = 0.1) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, penalty=penalty)
        self.penalty = penalty
        self.logits = nn.Parameter(torch.zeros(num_objectives))
        self.register_buffer("initial", torch.zeros(num_objectives))  # 0: no label seen yet

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw lambda log-uniformly from [0.001, 0.5]."""
        return {"penalty": trial.suggest_float("penalty", 1e-3, 0.5, log=True)}

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the penalised sum, and the weights that the losses have in it."""
        labelled = step.values != 0
        first = labelled & (self.initial == 0)
        sizes = step.values.abs().clamp(min=_LEAST)
        self.initial.copy_(torch.where(first, sizes, self.initial))
        least = torch.finfo(self.logits.dtype).min
        sigma = self.logits.masked_fill(~labelled, least).softmax(dim=0)
        weights = sigma / self.initial.masked_fill(self.initial == 0, 1)
        # Each |a - b| is (a - b) times a sign, so all of it is a sum of the losses with slopes.
        order = labelled.logical_not().argsort(stable=True)  # those with a label are neighbours
        values = (weights.detach() * step.values)[order]
        gaps = values[:-1] - values[1:]
        none = (gaps.abs() <= _EQUAL * values[1:].abs()) | ~labelled[order[1:]]
        signs = gaps.sign().masked_fill(none, 0)
        slopes = torch.ones_like(values)
        slopes[:-1] += self.penalty * signs
        slopes[1:] -= self.penalty * signs
        weights = weights * slopes[order.argsort()]
        return step.total(weights), weights
