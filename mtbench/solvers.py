"""Exact solvers on the K x K Gramian of the objectives' gradients.

All work in float64, never raise, and return finite weights; `mtbench.balancing.solvers` says more.
"""

from mtbench.balancing.solvers import (
    cagrad,
    cone_projections,
    equal_projections,
    fair_shares,
    min_norm,
    shorten,
)

__all__ = [
    "cagrad",
    "cone_projections",
    "equal_projections",
    "fair_shares",
    "min_norm",
    "shorten",
]
