"""Two valleys and a ridge in the plane: the toy problem on which gradient surgery is shown."""

from typing import Literal

import torch
from torch import Tensor

from mtbench.errors import UsageError
from mtbench.training.task import Recipe
from mtbench_tasks._analytic import Analytic

SCALES = {"equal": (1.0, 1.0), "unequal": (0.1, 1.0)}

STARTS = {
    "equal": ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)),
    "unequal": ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)),
}

LEAST = 5e-6


class Toy(Analytic):
    r"""CAGrad's toy problem, and its unequally scaled variant of Nash-MTL and FAMO.

    .. math::
        f_i &= s_i \bigl(h_i \max(\tanh(x_2 / 2), 0) + q_i \max(-\tanh(x_2 / 2), 0)\bigr) \\
        h_1 &= \log \max(|(-x_1 - 7) / 2 + \tanh x_2|, \epsilon) + 6 \\
        h_2 &= \log \max(|(-x_1 + 3) / 2 - \tanh x_2 + 2|, \epsilon) + 6 \\
        q_{1,2} &= \bigl((x_1 \mp 7)^2 + 0.1 (x_2 + 8)^2\bigr) / 10 - 20

    with :math:`\epsilon = 5 \cdot 10^{-6}`. Above :math:`x_2 = 0` each objective has a narrow
    valley of its own, which traps descent of the sum; below lies the bowl with the Pareto set,
    :math:`x_1 \in [-7, 7]`, :math:`x_2` from -8.434 (ends) to -8.355 (middle). The seed chooses the
    start, so ``--seeds 3`` runs all of ``equal`` and ``--seeds 5`` all of ``unequal``.

    Recipe: that of the papers (Adam, 1e-3), except for 50,000 steps: CAGrad's 100,000 are
    ``--epochs 200``.

    Liu et al., NeurIPS 2021, arXiv 2110.14048; Navon et al., ICML 2022, arXiv 2202.01017; Liu et
    al., NeurIPS 2023, arXiv 2306.03792.

    Args:
        scaling: ``equal``, s = (1, 1), or ``unequal``, s = (0.1, 1).
        start: one start (x1, x2) for every seed.
    """

    recipe = Recipe(
        epochs=100, batch_size=1, lr=1e-3, weight_decay=0.0, schedule="constant", select="last"
    )
    every = 500
    dimensions = 2

    def __init__(
        self,
        *,
        scaling: Literal["equal", "unequal"] = "equal",
        start: tuple[float, ...] | None = None,
    ) -> None:
        if start is not None and len(start) != 2:
            raise UsageError(f"start must be two numbers, found {len(start)}")
        self.scale = SCALES[scaling]
        self.starts = STARTS[scaling] if start is None else (start,)

    def value(self, k: int, x: Tensor) -> Tensor:
        """Return f_1 or f_2."""
        x1, x2 = x[..., 0], x[..., 1]
        tanh = x2.tanh()
        inner = (-x1 + 3) / 2 - tanh + 2 if k else (-x1 - 7) / 2 + tanh
        upper = inner.abs().clamp(min=LEAST).log() + 6
        lower = ((x1 + 7 if k else x1 - 7).square() + 0.1 * (x2 + 8).square()) / 10 - 20
        half = (x2 / 2).tanh()
        zero = torch.zeros_like(half)  # `maximum` halves the gradient at x2 = 0, `relu` kills it
        return self.scale[k] * (upper * half.maximum(zero) + lower * (-half).maximum(zero))

    def start(self, seed: int) -> Tensor:
        """Return the start whose turn it is."""
        return torch.tensor(self.starts[seed % len(self.starts)])

    def pareto_set(self) -> Tensor:
        """Return, for each x_1, the x_2 at which the two gradients oppose each other."""
        x1 = torch.linspace(-7, 7, 2001, dtype=torch.float64)
        # Below zero f_i = s_i q_i c with c = -tanh(x2 / 2). In x1 the gradients cancel with weights
        # (7 + x1, 7 - x1) / 14, whose mean of the q_i is `bowl`; what remains is a root in x2.
        low, high = torch.full_like(x1, -9.0), torch.full_like(x1, -8.0)
        for _ in range(50):
            x2 = (low + high) / 2
            half = (x2 / 2).tanh()
            bowl = (49 - x1.square() + 0.1 * (x2 + 8).square()) / 10 - 20
            slope = -0.02 * (x2 + 8) * half - bowl * (1 - half.square()) / 2
            low, high = torch.where(slope < 0, x2, low), torch.where(slope < 0, high, x2)
        return torch.stack([x1, (low + high) / 2], dim=1)
