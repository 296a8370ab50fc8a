"""last_layer: the base looks at the gradients of the last shared layer, and balances all."""

from torch import Tensor

from mtbench.balancing.balancer import Balancer, Scalarizer
from mtbench.balancing.step import Step
from mtbench.balancing.wrapper import Wrapper
from mtbench.errors import StepError, UsageError
from mtbench_baselines._groups import checked, grouped


class LastLayer(Wrapper):
    r"""Find weights from the gradients of the last shared layer W, and use them for all layers.

    .. math:: w = w\bigl(J_W J_W^\top\bigr), \qquad d = \sum_k w_k \nabla_\theta L_k

    as GradNorm does, and MGDA on request: a step costs about one encoder backward instead of K.
    Gradients of earlier layers may oppose each other otherwise, which the base does not see.

    W are the tensors of the module whose parameters come last in the encoder, normalisation
    included. Which those are goes by names, which a step in training knows; in your own loop hand
    over ``shared=encoder.named_parameters()``, or without this wrapper the last layer's parameters.

    Args:
        base: a method that finds weights from gradients of shared parameters.
        seed: unused.
        named: a regular expression: W are the parameters in whose names it is found.

    Example:
        MGDA of the gradients 1 and -1 in y; those in x are 3 and 1.

        >>> import torch
        >>> from mtbench_baselines.mgda import MGDA
        >>> x, y = (torch.ones(1, requires_grad=True) for _ in range(2))
        >>> encoder = [("first.weight", x), ("last.weight", y)]
        >>> method = LastLayer(MGDA(2))
        >>> method.backward([3 * x[0] + y[0], x[0] - y[0]], shared=encoder)
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> x.grad, y.grad
        (tensor([2.]), tensor([0.]))
    """

    paper = "Chen et al. (GradNorm), ICML 2018, arXiv 1711.02257, section 3"
    passes = "F + H + E, and K backwards of the last layer"
    checked_against = "Step(shared=) of the last layer"

    def __init__(self, base: Balancer, seed: int = 0, *, named: str = "") -> None:
        super().__init__(base, seed)
        if isinstance(base, Scalarizer) or not base.is_weighted_sum or base.at_features:
            raise UsageError(
                f"{self._called} wraps methods that find weights from gradients of shared "
                f"parameters, found {base._called}"
            )
        _, patterns = checked(self._called, "layer", (named,))
        self.pattern = patterns[0] if named else None

    def balance(self, step: Step) -> Tensor | None:
        """Let the base balance the step as if the last layer were all that is shared."""
        if self.pattern is None:
            *_, last = grouped(self._called, step, "layer", ())
            return self.base.balance(step.at([step.named_shared[i] for i in last]))
        chosen = [pair for pair in step.named_shared if self.pattern.search(pair[0])]
        if not chosen:
            names = ", ".join(name for name, _ in step.named_shared)
            raise StepError(
                f"{self._called}: no shared parameter is called like {self.pattern.pattern!r}, "
                f"found {names}"
            )
        return self.base.balance(step.at(chosen))
