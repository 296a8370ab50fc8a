r"""Exact solvers on the K x K Gramian :math:`G = J J^\top` of the objectives' gradients.

All work in float64, are invariant to the scale of the gradients, never raise, and return finite
weights for every finite Gramian: zero rows, equal rows, rank deficiency, scales 1e-12 to 1e12.
A Gramian that is zero or not finite has no solution to find; the weights are then uniform.

Both problems minimise a convex function over the simplex whose minimiser on the affine hull of any
face has a closed form. Wolfe's min-norm-point algorithm (Math. Programming 11, 1976) then ends at
the exact minimiser after finitely many faces. At K = 2 to 8 the arithmetic of a face is smaller
than one call of numpy, hence plain Python floats.
"""

from collections.abc import Sequence
from math import inf, isfinite, sqrt
from operator import mul

import torch
from torch import Tensor

Row = Sequence[float]

_CANCEL = 1e-4
"""``||g_w|| / sum_k w_k ||g_k||`` below which float32 gradients cancel to rounding noise."""
_EPS = 1e-14


def _dot(x: Row, y: Row) -> float:
    return float(sum(map(mul, x, y)))


def _normalise(gramian: Tensor) -> list[list[float]]:
    """Return the Gramian divided by its trace; empty where there is nothing to solve."""
    G: list[list[float]] = gramian.detach().double().tolist()
    trace = sum(row[i] for i, row in enumerate(G))
    if not 0 < trace < inf or not all(isfinite(sum(row)) for row in G):
        return []
    return [[entry / trace for entry in row] for row in G]


def _uniform(gramian: Tensor) -> Tensor:
    return torch.full((len(gramian),), 1 / len(gramian), dtype=torch.float64)


def _norms(G: Sequence[Row]) -> list[float]:
    """Return the rows' norms; the least positive one for zeros, so that they can be divided by."""
    squares = [row[i] for i, row in enumerate(G)]
    least = min(square for square in squares if square > 0)
    return [sqrt(max(square, least)) for square in squares]


def _solve(face: Sequence[int], G: Sequence[Row], a: Row, *sides: Row) -> list[list[float]]:
    """Solve ``(G + t 1 1^T) x = side`` on a face, for every side, by Cholesky.

    Solved for ``u = x / a``, a = 1 / norms: the cosines are well scaled whatever the norms are. The
    multiple of 1 1^T changes nothing where sum x is fixed, and makes affinely independent points,
    0 among them, a definite system. A row that depends on those before it gets 0 (pivot infinity).
    """
    t = 1 / sum(a[i] * a[i] for i in face)
    L: list[list[float]] = []
    for i in face:
        row: list[float] = []
        for j, lower in zip(face, L, strict=False):
            row.append(((G[i][j] + t) * a[i] * a[j] - _dot(row, lower)) / lower[-1])
        pivot = (G[i][i] + t) * a[i] * a[i] - _dot(row, row)
        row.append(sqrt(pivot) if pivot > _EPS else inf)
        L.append(row)
    solutions = []
    for side in sides:
        u: list[float] = []
        for i, row in zip(face, L, strict=True):
            u.append((side[i] * a[i] - _dot(row, u)) / row[-1])
        for n in reversed(range(len(u))):
            u[n] /= L[n][n]
            for m in range(n):
                u[m] -= L[n][m] * u[n]
        solutions.append([value * a[i] for value, i in zip(u, face, strict=True)])
    return solutions


def _minimise(
    G: Sequence[Row], face: list[int], b: Row | None = None, radius: float = 0.0, floor: float = 0.0
) -> tuple[list[float], float]:
    r"""Minimise a convex function of :math:`g_w = J^\top w` over the simplex, face by face.

    Without b: :math:`\tfrac12 \|g_w\|^2`. Else :math:`b^\top w + r\,h(\|g_w\|)` with
    :math:`b = J g_0`, r = radius, where h(s) = s for s >= f = floor, and the parabola
    :math:`s^2 / 2f + f / 2` that continues it below.

    On the affine hull of a face S, let p be the point nearest to the origin and P the projection on
    the directions of S. The minimiser is :math:`g_w = p - \mu P g_0` with
    :math:`\mu = \max(\|p\| / \sqrt{r^2 - \|P g_0\|^2},\ f / r)`, and mu = 0 for the first function;
    where :math:`\|P g_0\| \ge r` there is none: the function falls along :math:`-P g_0` for ever.

    Args:
        G: the Gramian, (K, K), of trace 1.
        face: where to start: one objective, or all; should the minimiser not lie inside the latter,
            the shortest gradient is the next start.
        b: (K,).
        radius: r.
        floor: f.

    Returns:
        The weights w, (K,), and mu, which is max(||g_w||, f) / r.
    """
    K = len(G)
    norms = _norms(G)
    a = [1 / norm for norm in norms]
    ones = [1.0] * K
    pull = b or [0.0] * K
    reach0 = sqrt(max(sum(pull) / K, 0.0))  # ||g_0||
    w = [0.0] * K
    for i in face:
        w[i] = 1 / len(face)
    mu = 0.0
    entered = -1
    for iteration in range(20 * K):
        w_s = [w[i] for i in face]
        x, *rest = _solve(face, G, a, ones, *([] if b is None else [b]))
        mass = sum(x)
        if not 0 < mass < inf:  # a Gramian that is not positive semidefinite
            break
        target = [value / mass for value in x]
        bounded = True
        if b is not None:
            y = rest[0]
            slant = sum(y)
            v = [p * slant - value for p, value in zip(target, y, strict=True)]  # g_v = -P g_0
            room = radius * radius + min(sum(v[n] * b[i] for n, i in enumerate(face)), 0.0)
            bounded = room > _EPS * radius * radius
            if bounded:
                square = sum(
                    p * q * G[i][j]
                    for p, i in zip(target, face, strict=True)
                    for q, j in zip(target, face, strict=True)
                )
                mu = max(sqrt(max(square, 0.0) / room), floor / radius)
                target = [p + mu * value for p, value in zip(target, v, strict=True)]
            else:
                target = [now + value for now, value in zip(w_s, v, strict=True)]
        if not bounded or min(target) < 0:
            if iteration == 0 and len(face) > 1:
                face = [min(range(K), key=lambda i: G[i][i])]
                w = [0.0] * K
                w[face[0]] = 1.0
                continue
            # Walk towards the target until the first weight reaches zero; that objective leaves.
            # What lies beyond the target counts too where the function falls for ever.
            steps = [
                now / (now - then) if then < (now if not bounded else 0.0) else inf
                for now, then in zip(w_s, target, strict=True)
            ]
            step = min(steps)
            n = steps.index(step)
            if step == inf or (step == 0 and face[n] == entered):  # rounding told it to come in
                break
            for i, now, then in zip(face, w_s, target, strict=True):
                w[i] = max(now + step * (then - now), 0.0)
            w[face.pop(n)] = 0.0
            continue
        for i, value in zip(face, target, strict=True):
            w[i] = value
        if len(face) == K:
            break
        # Optimal over the simplex if no gradient of the objectives left out lies below the others'.
        slope = [_dot(row, w) + mu * value for row, value in zip(G, pull, strict=True)]
        level = _dot(w, slope)
        size = _dot(w, norms)
        noise = 1e-12 * (size + mu * reach0)
        gaps = [
            inf if i in face else (slope[i] - level + noise * (norms[i] + size)) * a[i]
            for i in range(K)
        ]
        entered = min(range(K), key=gaps.__getitem__)
        if gaps[entered] >= 0:
            break
        face.append(entered)
    total = sum(w)
    return [value / total for value in w], mu


def min_norm(gramian: Tensor) -> Tensor:
    r"""Return the weights of the shortest vector in the convex hull of the gradients.

    .. math:: \min_{w \ge 0,\ \sum_k w_k = 1} w^\top G w

    The solution w satisfies :math:`(Gw)_i \ge w^\top G w` for all i.

    Args:
        gramian: G, (K, K).

    Returns:
        w, (K,), float64.

    Example:
        >>> import torch
        >>> min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    G = _normalise(gramian)
    if not G:
        return _uniform(gramian)
    w, _ = _minimise(G, list(range(len(G))))
    return torch.tensor(w, dtype=torch.float64)


def cagrad(gramian: Tensor, c: float) -> Tensor:
    r"""Return the weights with which :math:`d = J^\top \omega` solves CAGrad's problem.

    .. math:: \max_d \min_k \langle g_k, d\rangle \quad \text{s.t.}\quad \|d - g_0\| \le c\|g_0\|,
        \qquad g_0 = \tfrac1K \textstyle\sum_k g_k

    by its dual: w minimises :math:`g_w^\top g_0 + c\|g_0\|\|g_w\|` over the simplex, and
    :math:`d = g_0 + c\|g_0\|\, g_w / \|g_w\|`, so :math:`\omega = 1/K + w\, c\|g_0\| / \|g_w\|`.

    Where g_w vanishes (the objectives in w's support are in balance), many d are optimal and the
    formula picks one by rounding noise. Below ``||g_w|| = f = 1e-4 sum_k w_k ||g_k||``, where
    float32 gradients cancel to noise, ``||g_w||`` is replaced by the parabola that continues it
    smoothly at f; then :math:`d = g_0 + c\|g_0\|\, g_w / f`, which tends to the optimal d nearest
    to g_0. (In f a zero gradient counts as the shortest other one.)

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
    G = _normalise(gramian)
    if not G:
        return _uniform(gramian)
    K = len(G)
    b = [sum(row) / K for row in G]
    radius = c * sqrt(max(sum(b) / K, 0.0))
    if radius < 1e-12:  # c = 0, or a mean that is zero but for rounding
        return _uniform(gramian)
    norms = _norms(G)
    best = min(range(K), key=lambda i: b[i] + radius * norms[i])
    w, mu = _minimise(G, [best], b, radius, floor=1e-9 * min(norms))
    noise = _CANCEL * _dot(w, norms)
    if mu * radius < noise:
        w, mu = _minimise(G, [best], b, radius, floor=noise)
    return torch.tensor([1 / K + value / mu for value in w], dtype=torch.float64)
