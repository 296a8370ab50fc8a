"""EPO search: the Pareto point where all weighted losses are equal."""

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench_baselines._checks import positive
from mtbench_baselines._preference import drawn, ray

if TYPE_CHECKING:
    from optuna import Trial

Array = NDArray[np.float64]


class EPO(Weighting):
    r"""Follow the convex combination of gradients that leads to :math:`r_1 L_1 = \dots = r_K L_K`.

    r, (K,), is the preference: the exact Pareto optimum for r is where the front meets the ray of
    equal :math:`r_k L_k`. With

    .. math:: \hat L_k = \frac{r_k L_k}{\sum_j r_j L_j}, \qquad
        \mu = \sum_k \hat L_k \log(K \hat L_k), \qquad a_k = r_k \bigl(\log(K \hat L_k) - \mu\bigr)

    mu is the distance from the ray, :math:`c = G a` the progress towards it along each gradient,
    and the weights w, on the simplex, solve one of two linear programs:

    - far from the ray, :math:`\mu > \epsilon`: balance, :math:`\max_w c^\top w`, with
      :math:`(G w)_k \ge 0` for the largest :math:`r_k L_k` and :math:`(G w)_k \ge c_k` where
      :math:`c_k \le 0`; should no c be positive, :math:`G w \ge 0`;
    - on it: descend, :math:`\max_w \mathbf 1^\top G w`, with :math:`G w \ge 0` and
      :math:`c^\top w \ge \min(0, \max_k c_k)`.

    So balancing may raise a loss that is too low; descending raises none.

    Deviations:
        - G is divided by its mean diagonal entry, which changes no solution.
        - Where a program has none, w is r, normalised, as in the authors' code.
        - Losses are meant to be positive: one that is not, or without a gradient, is left out.
        - w sums to 1, is of the shared parameters' gradients, and heads get that of their own loss.
          The authors' training multiplies w by K, finds it from all parameters, and weighs heads.

    Args:
        num_objectives: K.
        seed: unused.
        preference: r, K numbers above 0, taken as they are: their ratios set the ray, their size
            how much a low loss may rise; by default all 1.
        tolerance: epsilon; above 0.

    Example:
        The first loss is too large: only its gradient leads to the ray.

        >>> EPO(2).weights(torch.eye(2), torch.tensor([3.0, 1.0])).tolist()
        [1.0, 0.0]
    """

    paper = "Mahapatra and Rajan, ICML 2020"
    checked_against = "cvxpy with Clarabel on the authors' programs"
    sees_zero_rows = True
    needs_positive = True

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        preference: tuple[float, ...] | None = None,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__(num_objectives, seed)
        self.ray = ray(self, preference, device="cpu")
        positive(self, tolerance=tolerance)
        self.tolerance = tolerance

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw each preference log-uniformly from [0.1, 10]; scaled to the sum K."""
        values = drawn(trial, num_objectives)
        return {"preference": tuple(r * num_objectives / sum(values) for r in values)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the solution for the objectives that have a gradient and a positive loss."""
        active = (gramian.diagonal() > 0) & (losses > 0)
        weights = torch.zeros(len(losses), dtype=torch.float64, device="cpu")
        if active.any():
            chosen = active.numpy()
            G = gramian.double().numpy()[chosen][:, chosen]
            r = self.ray.numpy()[chosen]
            found = _solve(G, losses.double().numpy()[chosen], r, self.tolerance)
            weights[active] = torch.from_numpy(found)
        return weights


def _solve(G: Array, losses: Array, r: Array, tolerance: float) -> Array:
    """Return the weights (K,) for K objectives with a gradient and a positive loss."""
    G = G / G.diagonal().mean()
    scaled = r * losses
    logs = np.log(scaled / scaled.mean())
    share = scaled / scaled.sum()
    distance = share @ logs
    anchor = r * (logs - distance)
    gain = G @ anchor
    floor = np.zeros(len(r))
    extra, least = np.zeros((0, len(r))), np.zeros(0)
    if distance > tolerance:
        aim = gain
        if (gain > 0).any():
            floor = np.where(gain > 0, -inf, gain)
            floor[scaled == scaled.max()] = 0
    else:
        aim = G.sum(axis=0)
        extra, least = gain[None], np.array([min(0.0, gain.max())])
    bound = np.isfinite(floor)
    found = linprog(
        -aim,
        A_ub=-np.vstack([G[bound], extra]),
        b_ub=-np.concatenate([floor[bound], least]),
        A_eq=np.ones((1, len(r))),
        b_eq=[1.0],
        bounds=(0, None),
    )
    found_w = r if found.x is None else np.maximum(found.x, 0)
    w: Array = found_w / found_w.sum()
    return w
