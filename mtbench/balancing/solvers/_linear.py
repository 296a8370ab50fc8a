"""What the solvers share: gradients as cosines and lengths, and definite linear systems."""

from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv, dpotrf
from torch import Tensor

Array = NDArray[np.float64]

RIDGE = 1e-12
"""Angles far below its root, 1e-6, are noise in float32 gradients: they count as none."""


def cosines(gramian: Tensor) -> tuple[Array, Array] | None:
    """Return the gradients' cosines C, (K, K), and norms n, (K,), as ``G = n C n``.

    A zero gradient has cosine 0 with all, itself too, and counts as long as the shortest other one,
    so that norms can be divided by. Nothing to solve is None: a Gramian that is zero or not finite.
    """
    G: Array = gramian.double().numpy(force=True)
    if not np.isfinite(G).all():
        return None
    n = np.sqrt(np.maximum(G.diagonal(), 0))
    if np.count_nonzero(n) < len(n):
        if not n.any():
            return None
        n[n == 0] = n[n > 0].min()
    C = G / n
    C /= n[:, None]
    return C, n


def uniform(gramian: Tensor) -> Tensor:
    """Return what stands for a solution where there is none."""
    return torch.full((len(gramian),), 1 / len(gramian), dtype=torch.float64, device="cpu")


def shorten(gramian: Tensor, weights: Tensor, longest: float, times: float = 1.0) -> Tensor:
    """Return the weights w times `times`, or less, so that J^T w is not longer; 0 for no limit."""
    G, w = gramian.double().numpy(force=True), weights.double().numpy(force=True)
    length = times * sqrt(max(w.dot(G.dot(w)), 0.0))
    return torch.from_numpy(w * (times * longest / length if 0 < longest < length else times))


def definite(M: Array) -> Array:
    """Return ``M + ridge I`` with a ridge of 1e-12, or the least one in steps of 100 that suffices.

    More is needed only for a Gramian that is not semidefinite, as from float32 products.
    """
    found, ridge, diagonal = M.copy(), RIDGE, slice(None, None, len(M) + 1)
    found.flat[diagonal] += ridge / 2
    while dpotrf(found)[1]:
        found.flat[diagonal] += (100 - 1) * ridge / 2
        ridge *= 100
    found.flat[diagonal] += ridge / 2
    return found


def solve(A: Array, b: Array) -> Array:
    """Solve ``A x = b`` for a definite A, by Cholesky."""
    x: Array
    _, x, failed = dposv(A, b)
    if failed:
        scale = np.abs(A).max()
        _, x, _ = dposv(definite(A / scale) * scale, b)
    return x
