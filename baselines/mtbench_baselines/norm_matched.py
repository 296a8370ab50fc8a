"""norm_matched: the base's direction, at the length of the plain sum's gradient."""

import torch
from torch import Tensor

from mtbench.balancing.balancer import Aggregator, Weighting
from mtbench.balancing.engine import unhooked
from mtbench.balancing.jacobian import accumulate
from mtbench.balancing.step import Step
from mtbench.balancing.wrapper import Wrapper
from mtbench_baselines._norms import norm


class NormMatched(Wrapper):
    r"""Rescale the base's update of the shared parameters to the length of that of ``ew``.

    .. math:: d \leftarrow d\, \frac{\bigl\| \sum_k g_k \bigr\|}{\|d\|}

    An ablation: methods' updates differ in length by orders of magnitude, which acts as another
    learning rate. What is left of a difference to ``ew`` under this wrapper is the direction's. An
    update of 0 stays 0. The heads' gradients, and a balancer's own parameters', are the base's. So
    are those of what several losses reach beside the compared parameters (``shared=``,
    ``last_layer``), for which the weights that are recorded do not hold.

    Example:
        MGDA finds (0.8, 0.4) for the gradients (1, 0) and (0, 2); their sum is (1, 2).

        >>> import torch
        >>> from mtbench_baselines.mgda import MGDA
        >>> x = torch.ones(2, requires_grad=True)
        >>> _ = NormMatched(MGDA(2)).backward(Step([x[0], 2 * x[1]], shared=[x]))
        >>> x.grad
        tensor([2.0000, 1.0000])
    """

    paper = "ours; an ablation"
    passes = "+ H + E, unless around a Weighting or Aggregator on the shared parameters"
    checked_against = "the definition"

    def balance(self, step: Step) -> Tensor | None:
        """Let the base act, and rescale what it added to the shared ``.grad``s."""
        plain = self._plain(step) * step.loss_scale
        before = [parameter.grad for parameter in step.shared]
        for parameter in step.shared:
            parameter.grad = None
        with unhooked(step.shared, after=True):  # they are told of the rescaled one
            weights = self.base.balance(step)
        length = norm([parameter.grad for parameter in step.shared])
        divisor = torch.where(length > 0, length, 1)
        for parameter, old in zip(step.shared, before, strict=True):
            new = parameter.grad
            if new is not None:
                new.div_(divisor).mul_(plain)  # their ratio may be out of range
                if parameter._post_accumulate_grad_hooks:
                    step.engine.hooked[id(parameter)] = parameter
            if old is not None:
                parameter.grad = old
                if new is not None:
                    accumulate(parameter, new)
        if weights is None:
            return None
        return weights.to(divisor, non_blocking=True) * (plain / divisor)

    def _plain(self, step: Step) -> Tensor:
        """Return the length of the plain sum's gradient, from what the base asks for too."""
        plain = type(self.base).balance in (Weighting.balance, Aggregator.balance)
        if plain and not self.base.at_features:
            step.release()  # it asks for nothing else
        if isinstance(self.base, Weighting) and self.base.space == "shared":
            return step.gramian().sum().clamp(min=0).sqrt()
        if isinstance(self.base, Aggregator):
            return norm([step.jacobian().sum(0)])
        return norm(step.gradient(step.total()))
