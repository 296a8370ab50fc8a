"""NTK weights: residuals converge at one mean rate, where objectives have as many of them."""

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import at_least


class NTKWeights(Scalarizer):
    r"""Descend :math:`\sum_k w_k L_k`, weighted by the traces of the residuals' kernels.

    For physics-informed networks: :math:`L_k` is the mean of :math:`r_{ki}^2`, where
    :math:`r_{ki}` is what is wrong with an equation, or on its boundary, at point i. Every R steps

    .. math:: w_k = \frac{\sum_j \operatorname{tr} K_j}{\operatorname{tr} K_k}, \qquad
        \operatorname{tr} K_k = \sum_i \lVert \nabla r_{ki} \rVert^2

    over all parameters, heads too, and the weights are kept in between. The mean of a kernel's
    eigenvalues is the mean rate at which its residuals fall, up to a loss's own factor, which is
    left out: half the mean square gets the same weight. With N_k residuals in the mean, weighted
    rates go as :math:`1 / N_k^2`: they are equal where all N_k are, as in the paper. Heads are
    weighted too.

    It needs the residuals: ``balancer.backward(losses, residuals=[r_1, ...])`` or
    `mtbench.Task.residuals`, as ``pinn`` has it. The first step checks, by gradients, that each
    loss is the mean of their squares, up to a factor.

    Deviations:
        - A trace is the mean over ``probes`` residuals, drawn without replacement, times their
          number: it is unbiased, and its inverse is not quite. With ``probes`` of their number or
          more it is exact. In the authors' code it is exact over a batch of 300 points of each
          kind, at one backward pass each. Random signs (Hutchinson) would take one pass for all
          residuals, but where their gradients are alike the sum may be near 0, and the weight is
          its inverse.
        - Weights count from the step that finds them, in the authors' code from the next one.
        - Each component of a residual is a residual, which is our reading.
        - An objective whose trace is 0 or not finite keeps its weight, 1 at first; where all are,
          the next step tries again. Both are our decisions.

    Args:
        num_objectives: K.
        seed: draws the residuals.
        steps: R, at least 1; 100 as in the authors' code, in the paper 1,000.
        probes: how many residuals of each objective, at least 1.

    Example:
        The gradients of the residuals x and 3 y are 1 and 3 long: traces 1 and 9.

        >>> x = torch.ones(2, requires_grad=True)
        >>> r = [x[:1], 3 * x[1:]]
        >>> NTKWeights(2).backward([part.square().mean() for part in r], residuals=r)
        tensor([10.0000,  1.1111], dtype=torch.float64)
    """

    paper = "Wang, Yu and Perdikaris, JCP 2022, arXiv 2007.14527, by the authors' code"
    passes = "F + H + E; every R-th step, probes times K (H + E) more"
    needs_residuals = True
    checked_against = "the trace of J J^T by torch.func, on all residuals; the definition"
    on_host = ("left",)

    kept: Tensor
    left: Tensor

    def __init__(
        self, num_objectives: int, seed: int = 0, *, steps: int = 100, probes: int = 10
    ) -> None:
        super().__init__(num_objectives, seed)
        at_least(self, 1, steps=steps, probes=probes)
        self.steps, self.probes = steps, probes
        self.register_buffer("kept", torch.ones(num_objectives, dtype=torch.float64))
        # Steps till the traces are looked at again; -1: none were found yet.
        self.register_buffer("left", torch.tensor(-1, device="cpu"))

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Find new weights where they are due; return the weighted sum, and the weights."""
        if self.left > 0:
            self.left -= 1
        else:
            if self.left < 0:
                step.refuse_residuals()
            self._find(step)
        weights = self.kept.clone()
        return step.total(weights), weights

    def _find(self, step: Step) -> None:
        traces = torch.stack(
            [self._trace(step, k, residual) for k, residual in enumerate(step.residuals)]
        )
        known = (traces > 0) & traces.isfinite()
        if known.any():
            found = torch.where(known, traces, 0).sum() / traces
            self.kept.copy_(torch.where(known, found, self.kept))
            self.left.fill_(self.steps - 1)

    def _trace(self, step: Step, k: int, residual: Tensor | None) -> Tensor:
        """Return the trace of an objective's kernel, 0 without labels."""
        total = torch.zeros_like(self.kept[k])
        if residual is None:
            return total
        each = residual.flatten()
        drawn = torch.randperm(len(each), generator=self.generator, device="cpu")[: self.probes]
        own = step.reached_by(k)
        for i in drawn.tolist():
            for grad in step.gradient(each[i], own):
                if grad is not None:
                    total += grad.double().square().sum()
        return total * (len(each) / max(len(drawn), 1))
