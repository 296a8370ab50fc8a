"""MetaBalance: bring every gradient near the norm of the main objective's, layer by layer."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.engine import lengths
from mtbench.balancing.step import Step
from mtbench_baselines._checks import fraction, index, unit_interval
from mtbench_baselines._tracked import Whose, begins_anew

if TYPE_CHECKING:
    from optuna import Trial


class MetaBalance(Balancer):
    r"""Sum gradients that are rescaled, per parameter tensor, to the main objective's norm.

    With objective k's gradient :math:`g_{k,p}` for parameter tensor p, a moving average of its
    norm, and the main objective m,

    .. math:: n_{k,p} \leftarrow \beta n_{k,p} + (1 - \beta) \|g_{k,p}\|, \qquad
        d_p = \sum_k \Bigl(r \frac{n_{m,p}}{n_{k,p}} + 1 - r\Bigr) g_{k,p}

    r = 1 makes all norms those of the main objective, on average; r = 0 is ``ew``. Gradients are
    both enlarged and reduced, as in the authors' code. Heads get the gradient of their own loss.

    Deviations:
        - The averages begin at 0; that they do is corrected for, as an objective may get its first
          label later than the main one. Where all have had as many, it changes nothing.
        - An objective without a gradient keeps its averages; where the main one has none yet, and
          where n is 0, nothing is rescaled.

    Args:
        num_objectives: K.
        seed: unused.
        main: m, from 0; the others are auxiliary to it.
        relax: r, in [0, 1].
        beta: decay of the averages, in [0, 1).

    Example:
        Norms 1 and 4: the second gradient is multiplied by 0.7 / 4 + 0.3.

        >>> x = torch.ones(2, requires_grad=True)
        >>> MetaBalance(2).backward(Step([x[0], 4 * x[1]], shared=[x]))
        >>> x.grad
        tensor([1.0000, 1.9000])
    """

    paper = "He et al., WWW 2022, arXiv 2203.06801"
    passes = "F + H + K E"
    is_weighted_sum = False
    is_symmetric = False
    checked_against = "a plain twin, tensor by tensor"
    sized_later = ("norms", "counts")

    norms: Tensor
    counts: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        main: int = 0,
        relax: float = 0.7,
        beta: float = 0.9,
    ) -> None:
        super().__init__(num_objectives, seed)
        index(self, main=main)
        unit_interval(self, relax=relax)
        fraction(self, beta=beta)
        self.main, self.relax, self.beta = main, relax, beta
        # n, (K, tensors); how many there are is known at the first step.
        self.register_buffer("norms", torch.zeros(num_objectives, 0, dtype=torch.float64))
        self.register_buffer("counts", self.norms.clone())  # steps that n is the average of
        self._whose = Whose(self)

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw r from [0, 1]."""
        return {"relax": trial.suggest_float("relax", 0.0, 1.0)}

    def balance(self, step: Step) -> None:
        """Move the averages and write the rescaled sum."""
        step.release()
        jacobian = step.jacobian()
        spans = list(pairwise(step.offsets))
        self._whose.look(step.shared)
        scales = self._scales([jacobian[:, start:end] for start, end in spans])
        direction = torch.empty_like(jacobian[0])
        for column, (start, end) in zip(scales.to(jacobian).T, spans, strict=True):
            torch.mv(jacobian[:, start:end].T, column, out=direction[start:end])
        step.assign(direction)

    def _scales(self, blocks: list[Tensor]) -> Tensor:
        """Return the factors, (K, tensors)."""
        if begins_anew(self, self.norms, len(blocks), self._whose):
            self.norms = self.norms.new_zeros(self.num_objectives, len(blocks))
            self.counts = torch.zeros_like(self.norms)
        found = [lengths(block) for block in blocks]
        norms = torch.stack(found, dim=1).to(self.norms) if found else self.norms
        active = norms.any(dim=1, keepdim=True) & norms.isfinite()  # an overflow leaves no trace
        moved = self.beta * self.norms + (1 - self.beta) * norms
        self.norms.copy_(torch.where(active, moved, self.norms))
        self.counts += active
        means = self.norms / torch.where(self.counts > 0, 1 - self.beta**self.counts, 1)
        main = means[self.main]
        ratios = torch.where((main > 0) & (means > 0), main / means, 1)
        return self.relax * ratios + 1 - self.relax
