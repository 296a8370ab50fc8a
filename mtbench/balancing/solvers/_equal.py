"""The direction that has equal projections on all gradients, in closed form."""

import numpy as np
import torch
from torch import Tensor

from mtbench.balancing.solvers._linear import cosines, definite, solve, uniform

_LONGEST = 10.0


def equal_projections(gramian: Tensor) -> Tensor:
    r"""Return the weights with which :math:`d = J^\top w` has equal projections on all gradients.

    .. math:: \langle d, g_k\rangle / \|g_k\| = \text{const} \ge 0, \qquad \textstyle\sum_k w_k = 1

    Of the affine hull of the unit gradients the point nearest to the origin has equal projections.
    With the cosines C its coefficients are :math:`u \propto (C + 1 1^\top)^{-1} 1`, which is
    :math:`C^{-1} 1` where that exists, and :math:`w_k \propto u_k / \|g_k\|`. For dependent
    gradients a ridge of 1e-12 picks the least u. Where 0 lies in the affine hull (opposite
    gradients, or more of them than dimensions), d is 0.

    From K = 3 on weights may be negative. Where their sum falls below a tenth of
    :math:`\sum_k |w_k|`, that sum is set to 10, and not :math:`\sum_k w_k` to 1: this would be a
    step without bound and, for a negative sum, one that makes every objective worse.

    Args:
        gramian: G, (K, K). A zero gradient gets weight 0.

    Returns:
        w, (K,), float64.

    Example:
        >>> import torch
        >>> equal_projections(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """
    scaled = cosines(gramian)
    if scaled is None:
        return uniform(gramian)
    C, norms = scaled
    live = (C.diagonal() > 0).astype(float)
    C += live * live[:, None]
    C.flat[:: len(C) + 1] += 1 - live
    w = solve(definite(C), live) / norms
    return torch.from_numpy(w / max(w.sum(), np.abs(w).sum() / _LONGEST))
