"""What the solvers share: gradients as cosines and lengths, and definite linear systems."""

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
    G: Array = gramian.detach().cpu().double().numpy()
    if not np.isfinite(G).all():
        return None
    n = np.sqrt(G.diagonal().clip(0))
    if not n.all():
        if not n.any():
            return None
        n[n == 0] = n[n > 0].min()
    return G / n / n[:, None], n


def uniform(gramian: Tensor) -> Tensor:
    """Return what stands for a solution where there is none."""
    return torch.full((len(gramian),), 1 / len(gramian), dtype=torch.float64)


def shorten(gramian: Tensor, weights: Tensor, longest: float) -> Tensor:
    """Return the weights, scaled down where :math:`J^T w` is longer than that; 0 for no limit."""
    length = (weights @ gramian.to(weights) @ weights).clamp(min=0).sqrt().item()
    return weights * (longest / length) if 0 < longest < length else weights


def definite(M: Array) -> Array:
    """Return ``M + ridge I`` with a ridge of 1e-12, or the least one in steps of 100 that suffices.

    More is needed only for a Gramian that is not semidefinite, as from float32 products.
    """
    unit, ridge = np.eye(len(M)), RIDGE
    while dpotrf(M + 0.5 * ridge * unit)[1]:
        ridge *= 100
    definite: Array = M + ridge * unit
    return definite


def solve(A: Array, b: Array) -> Array:
    """Solve ``A x = b`` for a definite A, by Cholesky."""
    x: Array
    _, x, failed = dposv(A, b)
    if failed:
        scale = np.abs(A).max()
        _, x, _ = dposv(definite(A / scale) * scale, b)
    return x
