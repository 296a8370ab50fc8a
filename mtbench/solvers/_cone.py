"""Nonnegative least squares by pivoting: the min-norm point, and projections on the dual cone."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtbench.solvers._linear import Array, cosines, definite, uniform

_BLOCKS = 10


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
    rows, unit = np.arange(R), np.eye(K)
    for iteration in range(_BLOCKS + 20 * K):
        inside = np.where(support[:, :, None] & support[:, None], M, unit)
        x = np.linalg.solve(inside, (support * sides)[:, :, None])[:, :, 0]
        solution[rows] = x
        noise = 1e-14 * (np.abs(x).sum(1) + np.abs(sides).max(1))
        wrong = np.where(support, x, x @ M - sides + noise[:, None]) < 0
        open_ = wrong.any(1)
        if not open_.any():
            break
        if iteration >= _BLOCKS:
            wrong &= wrong.cumsum(1) == 1
        rows, sides, support = rows[open_], sides[open_], (support ^ wrong)[open_]
    return np.maximum(solution, 0)


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
    a /= np.sqrt(a @ a)
    # Were sum w free, a multiple of (sum w)^2 - 2 sum w would be added to w^T G w; x = w ||g||.
    x = nonnegative(definite(C + np.outer(a, a)), a[None], a[None] > 0)[0]
    w = x * a
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
    U: Array = coefficients.detach().cpu().double().numpy()
    scaled = cosines(gramian)
    if scaled is None:
        return torch.from_numpy(U.copy())
    C, norms = scaled
    K = len(C)
    T = U * norms
    longest = np.abs(T).max(1, keepdims=True)
    longest[longest == 0] = 1
    sides = -(T / longest) @ C
    # Accelerated projected gradient steps find most of the support for less than one solve.
    x = ahead = np.maximum(sides, 0)
    rate = 2 / np.sqrt((C * C).sum())
    for t in range(min(K // 2, 20)):
        before, x = x, np.maximum(ahead + rate * (sides - ahead @ C), 0)
        ahead = x + t / (t + 3) * (x - before)
    v = nonnegative(definite(C), sides, x > 0) * (longest / norms)
    return torch.from_numpy(U + v)
