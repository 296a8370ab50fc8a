"""Nonnegative least squares by pivoting: the min-norm point, and projections on the dual cone."""

from functools import cache
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtbench.balancing.solvers._linear import Array, cosines, definite, solve, uniform

_BLOCKS = 10
_FEW = 3
"""So many systems are solved one by one; to stack them takes longer."""
_LARGE = 20
"""From this K on all are: flops cost more than calls, and a stack has systems of full size."""
_TINY = 1e-300

_unit = cache(np.eye)


def nonnegative(M: Array, sides: Array, support: NDArray[np.bool_]) -> Array:
    r"""Return per row b of `sides` the x >= 0 that minimises :math:`x^\top M x / 2 - b^\top x`.

    Where x is positive, Mx = b; where it is 0, Mx >= b. On a support F that is linear,
    :math:`x_F = M_{FF}^{-1} b_F`. Whatever has the wrong sign then changes sides, all of it (Júdice
    and Pires, Comput. Oper. Res. 21, 1994), which takes a few rounds at any K but may cycle; from
    the eleventh on only the first of it does, which ends for every definite M (Murty, 1974).

    Args:
        M: (K, K), definite, with entries of order 1.
        sides: (R, K).
        support: (R, K), the guess of where x is positive.
    """
    R, K = sides.shape
    solution = np.zeros((R, K))
    rows = np.arange(R)
    for iteration in range(_BLOCKS + 20 * K):
        x = restricted(M, sides, support)
        signs = np.where(support, x, x.dot(M) - sides)
        wrong = signs < 0
        if not np.count_nonzero(wrong):  # any() takes five times as long
            break
        noise = 1e-14 * (np.abs(x).sum(1, keepdims=True) + np.abs(sides).max(1, keepdims=True))
        wrong &= support | (signs < -noise)
        if not np.count_nonzero(wrong):
            break
        if iteration >= _BLOCKS:
            wrong &= wrong.cumsum(1) == 1
        support = support ^ wrong
        open_ = wrong.any(1)
        if np.count_nonzero(open_) < len(rows):
            solution[rows] = x
            rows, sides, support = rows[open_], sides[open_], support[open_]
    solution[rows] = x
    return np.maximum(solution, 0)


def restricted(M: Array, sides: Array, support: NDArray[np.bool_]) -> Array:
    """Return per row b of `sides` the x with ``Mx = b`` on the support F, and x = 0 elsewhere."""
    R, K = sides.shape
    x: Array = np.zeros((R, K))
    if R > _FEW and K < _LARGE:
        inside = np.where(support[:, :, None] & support[:, None], M, _unit(K))
        x[:] = np.linalg.solve(inside, (support * sides)[:, :, None])[:, :, 0]
    else:
        for row, chosen in enumerate(support):
            F = chosen.nonzero()[0]
            if len(F):
                x[row, F] = solve(M[F[:, None], F], sides[row, F])
    return x


def min_norm(gramian: Tensor) -> Tensor:
    r"""Return the weights of the shortest vector in the convex hull of the gradients.

    .. math:: \min_{w \ge 0,\ \sum_k w_k = 1} w^\top G w

    The solution w satisfies :math:`(Gw)_i \ge w^\top G w` for all i. Where it is not unique, the
    one of least :math:`\sum_k w_k^2 \|g_k\|^2` is returned.

    Args:
        gramian: G, (K, K).

    Returns:
        w, (K,), float64.

    Example:
        >>> import torch
        >>> min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    scaled = cosines(gramian)
    if scaled is None:
        return uniform(gramian)
    C, norms = scaled
    a = 1 / norms
    a /= sqrt(a.dot(a))
    # Were sum w free, a multiple of (sum w)^2 - 2 sum w would be added to w^T G w; x = w ||g||.
    C += a * a[:, None]
    w = a * nonnegative(definite(C), a[None], a[None] > 0)[0]
    return torch.from_numpy(w / w.sum())


def cone_projections(gramian: Tensor, coefficients: Tensor) -> Tensor:
    r"""Return the weights of the projections of some vectors on the gradients' dual cone.

    The projection of :math:`x = J^\top u` is the nearest d with :math:`\langle g_k, d\rangle \ge 0`
    for all k. It is :math:`d = J^\top w` with w = u + v and

    .. math:: \min_{v \ge 0}\ (u + v)^\top G\, (u + v)

    Args:
        gramian: G, (K, K).
        coefficients: (R, K), a row u per vector.

    Returns:
        (R, K), float64, a row w per vector.

    Example:
        g_1 = (1, 0) and g_2 = (-1, 1) have the projections (1/2, 1/2) and (0, 1).

        >>> import torch
        >>> cone_projections(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), torch.eye(2))
        tensor([[1.0000, 0.5000],
                [1.0000, 1.0000]], dtype=torch.float64)
    """
    U: Array = coefficients.double().numpy(force=True)
    scaled = cosines(gramian)
    if scaled is None:
        return torch.from_numpy(U.copy())
    C, norms = scaled
    T = U * norms
    longest = np.maximum(np.abs(T).max(1, keepdims=True), _TINY)
    sides = (T / -longest).dot(C)
    # Accelerated projected gradient steps find most of the supports. They cost the same for one row
    # as for many, and a round of `nonnegative` does not.
    x = ahead = np.maximum(sides, 0)
    rate = 2 / sqrt((C * C).sum())
    keep, push = _unit(len(C)) - rate * C, rate * sides
    for t in range(min(len(U) // 2, 20)):
        before, x = x, np.maximum(ahead.dot(keep) + push, 0)
        ahead = x + t / (t + 3) * (x - before)
    v = nonnegative(definite(C), sides, x > 0) * (longest / norms)
    return torch.from_numpy(U + v)
