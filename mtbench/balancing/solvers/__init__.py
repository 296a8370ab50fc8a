r"""Exact solvers on the K x K Gramian :math:`G = J J^\top` of the objectives' gradients.

All work in float64, are invariant to the scale of the gradients, never raise, and return finite
weights for every finite Gramian: zero rows, equal rows, rank deficiency, scales 1e-12 to 1e12.
A Gramian that is zero or not finite has no solution to find; the weights are then uniform.

They see gradients as cosines and lengths. What a solution does where gradients depend on each other
to within the rounding of float32, so that the definition leaves it open or without bound, each
function says; a ridge of 1e-12 on the cosines decides most of it.
"""

from mtbench.balancing.solvers._ball import cagrad
from mtbench.balancing.solvers._cone import cone_projections, min_norm
from mtbench.balancing.solvers._equal import equal_projections
from mtbench.balancing.solvers._fair import fair_shares
from mtbench.balancing.solvers._linear import shorten

__all__ = [
    "cagrad",
    "cone_projections",
    "equal_projections",
    "fair_shares",
    "min_norm",
    "shorten",
]
