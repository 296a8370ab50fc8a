"""The equation of Nash-MTL, FairGrad and PIVRG: fair shares of the improvement."""

import numpy as np
import torch
from torch import Tensor

from mtbench.balancing.solvers._linear import Array, cosines, solve, uniform

_STEEP = 8
_ITERATIONS = 300
_FARTHEST = 1.5  # that log x_k moves in an iteration
_LEAST = 1e-300


def fair_shares(gramian: Tensor, power: float = 1.0, shares: Tensor | None = None) -> Tensor:
    r"""Return the weights w > 0 that solve a power law between weight and improvement.

    .. math:: (G w)_k = c_k\, w_k^{-p}

    :math:`(Gw)_k = \langle g_k, d\rangle` is what objective k gains along :math:`d = J^\top w`. The
    solution is the one minimum of the convex function
    :math:`\tfrac12 w^\top G w - \sum_k c_k \int^{w_k} t^{-p} dt`, found by Newton's method for
    :math:`\log w`; where that overshoots and p is at least 1, the function is minimised along the
    step. For p below 0.1 the iterations may end before gradients that cancel are solved.

    For orthogonal gradients :math:`w_k = (c_k / \|g_k\|^2)^{1/(1+p)}`. Gradients that cancel make w
    grow without bound, while float32 gradients cancel to noise. With b_k that value times 1e4, or
    times :math:`10^{10/(1+p)}` if that is less, what is solved is

    .. math:: (G w)_k = c_k\, w_k^{-p}\, \bigl(1 - (w_k / b_k)^{8+p}\bigr)

    which has exactly one solution for every Gramian (for p = 1, below K^(1/9) b), and at b / 30
    differs by 1e-12. Gradients at an obtuse angle whose lengths differ by more than 1e3 may meet
    the bound, too, but for p = 1.

    Args:
        gramian: G, (K, K). A zero gradient counts as orthogonal to all, as long as the shortest.
        power: p, above 0. 1 is Nash-MTL, 1/alpha is FairGrad.
        shares: c, (K,), positive; 1 by default.

    Returns:
        w, (K,), float64.

    Example:
        >>> import torch
        >>> fair_shares(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    scaled = cosines(gramian)
    if scaled is None:
        return uniform(gramian)
    C, norms = scaled
    c = 1.0 if shares is None else shares.double().numpy(force=True)
    unit = (c / norms**2) ** (1 / (1 + power))
    lengths = unit * norms
    lengths /= lengths.max()
    C *= lengths
    C *= lengths[:, None]
    C.flat[:: len(C) + 1] = lengths * lengths
    return torch.from_numpy(unit * _newton(C, power))


def _newton(A: Array, p: float) -> Array:
    """Solve the equation for x = w / (its value for orthogonal gradients): ``A x = a / x^p``."""
    a, bound = A.diagonal(), _bound(p)
    # A fixed-point step from x = 1. Where gradients cancel, A x is near 0 and says nothing.
    x: Array = (a / np.maximum(A.sum(1), a / 4)) ** (1 / (1 + p))
    damped = a / bound ** (_STEEP + p)
    start = move = x
    slope = largest = 0.0
    for _ in range(_ITERATIONS):
        push, brake = a * x**-p, damped * x**_STEEP
        residual = push - brake - A.dot(x)
        # Below p = 1 some x_k may have to fall by many powers of ten, which no line to them allows;
        # and there Newton's method needs no search.
        if p >= 1 and abs(move.dot(residual)) > 0.5 * slope > 0:
            reach = _reach(A, start, move, p)
            x = start + reach * move
            if reach * largest < 1e-6:  # rounding is all that is left
                break
            slope = 0.0
            continue
        H = A.copy()
        H.flat[:: len(H) + 1] += (p * push + _STEEP * brake) / x
        move = solve(H, residual)
        slope = move.dot(residual)
        step = move / x
        largest = max(map(abs, step.tolist()))
        if largest > _FARTHEST:
            step = np.clip(step, -_FARTHEST, _FARTHEST)
        start, x = x, np.maximum(x * np.exp(step), _LEAST)
        if largest < 1e-6:
            break
    return x


def _reach(A: Array, x: Array, z: Array, p: float) -> float:
    """Return, within a few percent, where on ``x + s z`` the function is least."""
    a, bound = A.diagonal(), _bound(p)
    Az = A @ z
    linear, curvature = x @ Az, z @ Az
    low, high = 0.0, 1 / max((-z / x).max(), 1e-12)
    s: float = min(1.0, high / 2)
    for _ in range(40):
        y = x + s * z
        if linear + s * curvature < (a * z) @ (y**-p * (1 - (y / bound) ** (_STEEP + p))):
            low = s
        else:
            high = s
        if high <= 1.05 * low:
            break
        s = min(4 * s, (low + high) / 2)
    return s


def _bound(p: float) -> float:
    """Return the x beyond which rounding, 1e-16 x, is seen in x^-p, or float32's in A x."""
    bound: float = 10 ** (10 / (1 + p))
    return min(1e4, bound)
