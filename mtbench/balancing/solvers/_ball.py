"""CAGrad's problem: the best worst case in a ball around the mean gradient."""

from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtbench.balancing.solvers._cone import nonnegative
from mtbench.balancing.solvers._linear import Array, cosines, definite, solve, uniform

_CANCEL = 1e4
"""Weights above this, in units of what they move, amplify float32 rounding to something seen."""
_ROUNDS = 10


def cagrad(gramian: Tensor, c: float) -> Tensor:
    r"""Return the weights with which :math:`d = J^\top \omega` solves CAGrad's problem.

    .. math:: \max_d \min_k \langle g_k, d\rangle \quad \text{s.t.}\quad \|d - g_0\| \le c\|g_0\|,
        \qquad g_0 = \tfrac1K \textstyle\sum_k g_k

    d is the point nearest to g_0 with :math:`\langle g_k, d\rangle \ge \lambda` for all k, for the
    largest lambda at which it lies in the ball: :math:`d = g_0 + \sum_k z_k g_k`, z >= 0, z_k > 0
    only where :math:`\langle g_k, d\rangle = \lambda`, and :math:`\omega = 1/K + z`. On a given
    support z is affine in lambda, which then is the root of a quadratic equation.

    Where objectives are in balance, many d are optimal, and z grows without bound as lambda nears
    its largest value. lambda stops where :math:`\sum_k z_k \|g_k\| = 10^4 c\|g_0\|`: d is then
    close to the optimal point nearest to g_0, and float32 gradients may still be multiplied by z.
    (A zero gradient counts as the shortest other one there.)

    Args:
        gramian: G, (K, K).
        c: radius of the ball around g_0, in units of its norm; at least 0.

    Returns:
        The weights omega, (K,), float64. They are not on the simplex.

    Example:
        At c = 0, the mean; two orthogonal unit gradients keep its direction.

        >>> import torch
        >>> cagrad(torch.eye(2), c=0.0)
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> cagrad(torch.eye(2), c=0.5)
        tensor([0.7500, 0.7500], dtype=torch.float64)
    """
    scaled = cosines(gramian)
    if scaled is None:
        return uniform(gramian)
    C, norms = scaled
    norms /= norms.max()
    K = len(C)
    b = C.dot(norms) / K  # <g_k, g_0> / ||g_k||; y = z ||g_k|| below
    radius = c * sqrt(max(b.dot(norms) / K, 0.0))
    if radius < 1e-12:  # c = 0, or a mean that is zero but for rounding
        return uniform(gramian)
    y = _largest_level(definite(C), b, norms, radius)
    return torch.from_numpy(1 / K + y / norms)


def _largest_level(M: Array, b: Array, norms: Array, radius: float) -> Array:
    """Return y = z ||g|| at the largest lambda, given b_k = <g_k, g_0> / ||g_k||.

    The support and lambda are found together, as in `nonnegative`. Should that not settle, lambda
    is bracketed and the support found for each.
    """
    a = 1 / norms
    sides = np.array([a, b])
    now = b * norms
    high = (now + radius * norms).min()  # the least that one could be given, were it alone
    support = now < high
    y: Array
    for _ in range(_ROUNDS):
        level, y = _on_support(M, sides, support, radius)
        side = level * a - b
        signs = np.where(support, y, M.dot(y) - side)
        wrong = signs < 0
        if not np.count_nonzero(wrong):
            return y
        wrong &= support | (signs < -1e-14 * (np.abs(y).sum() + np.abs(side).max()))
        if not np.count_nonzero(wrong):
            return y
        support = support ^ wrong
        if not support.any():
            break
    found: Array = np.zeros(len(b))
    low = now.min()
    level = (low + high) / 2
    for _ in range(_ROUNDS + 50):
        y = nonnegative(M, (level * a - b)[None], support[None])[0]
        support = y > 0
        if y @ M @ y <= radius * radius and y.sum() <= _CANCEL * radius:
            low, found = level, y
        else:
            high = level
        last, level = level, (low + high) / 2
        if support.any():
            root, _ = _on_support(M, sides, support, radius)
            if abs(root - last) <= 1e-14 * abs(last):
                return y
            if low < root < high:
                level = root
    return found


def _on_support(
    M: Array, sides: Array, support: NDArray[np.bool_], radius: float
) -> tuple[float, Array]:
    """Return the largest lambda for a support, and y: there ``lambda p - q``, 0 elsewhere."""
    F = support.nonzero()[0]
    ours = sides[:, F]
    p, q = both = solve(M[F[:, None], F], ours.T).T
    # ||sum_k y_k g_k||^2 = pp lambda^2 - 2 pq lambda + qq
    (pp, pq), (_, qq) = both.dot(ours.T).tolist()
    level = (pq + sqrt(max(pq * pq - pp * (qq - radius * radius), 0.0))) / pp
    if (total := p.sum()) > 0:
        level = min(level, (_CANCEL * radius + q.sum()) / total)
    y: Array = np.zeros(len(M))
    y[F] = level * p - q
    return level, y
