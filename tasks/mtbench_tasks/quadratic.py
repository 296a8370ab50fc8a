"""Two quadratics in the plane: one common minimum, or a front between two minima."""

from math import cos, pi, sin, sqrt
from typing import Literal

import torch
from torch import Tensor

from mtbench.training.task import Recipe
from mtbench_tasks._analytic import Analytic

STARTS = ((3.0, -2.0), (0.0, -3.0), (-4.0, 4.0), (-3.0, 4.0), (-5.0, -1.0))

U = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)


def _turned(angle: float, first: float, second: float) -> Tensor:
    """Return R(angle) diag(first, second)."""
    c, s = cos(angle), sin(angle)
    return torch.tensor([[c * first, -s * second], [s * first, c * second]], dtype=torch.float64)


B = torch.stack([_turned(pi / 16, 1, 0.1), _turned(-pi / 16, sqrt(3), 0.1)])


class Quadratic(Analytic):
    r"""Two quadratics, without a conflict at the optimum or with one.

    ``elementwise``: :math:`f = (x_1^2, x_2^2)`; x = 0 is the only optimum. ``rotated``:

    .. math:: f_i = \|B_i^\top (x - u_i)\|^2, \quad u_{1,2} = (\pm 1, 0), \quad
        B_1 = R(\tfrac{\pi}{16}) \operatorname{diag}(1, 0.1), \quad
        B_2 = R(-\tfrac{\pi}{16}) \operatorname{diag}(\sqrt 3, 0.1)

    With :math:`A_i = B_i B_i^\top` the Pareto set is
    :math:`x(w) = (\sum_i w_i A_i)^{-1} \sum_i w_i A_i u_i` over the simplex of w. The seed chooses
    the start, so ``--seeds 5`` runs all.

    Deviation: the element-wise form's authors take 50 plain gradient steps of 0.075; here, as in
    all of mtbench, the optimizer is AdamW, and takes 4,000 steps.

    Quinton and Rey, arXiv 2406.16232, and its authors' repository TorchJD/trajectories (starts).

    Args:
        form: ``elementwise`` or ``rotated``.
    """

    recipe = Recipe(
        epochs=80, batch_size=1, lr=1e-2, weight_decay=0.0, schedule="constant", select="last"
    )
    every = 50
    dimensions = 2

    def __init__(self, *, form: Literal["elementwise", "rotated"] = "elementwise") -> None:
        self.form = form

    def value(self, k: int, x: Tensor) -> Tensor:
        """Return f_1 or f_2."""
        if self.form == "elementwise":
            return x[..., k].square()
        seen: Tensor = (x - U[k].to(x)) @ B[k].to(x)
        return seen.square().sum(-1)

    def start(self, seed: int) -> Tensor:
        """Return the start whose turn it is."""
        return torch.tensor(STARTS[seed % len(STARTS)])

    def pareto_set(self) -> Tensor:
        """Return 0, or the line x(w)."""
        if self.form == "elementwise":
            return torch.zeros(2, 2, dtype=torch.float64)
        w = torch.linspace(0, 1, 2001, dtype=torch.float64)
        w = torch.stack([w, 1 - w], dim=1)
        A = B @ B.mT
        pulls = torch.einsum("mk,kij,kj->mi", w, A, U)
        line: Tensor = torch.linalg.solve(torch.einsum("mk,kij->mij", w, A), pulls)
        return line
