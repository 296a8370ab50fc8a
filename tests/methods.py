"""Every method in the tree, by a name that runs."""

from mtbench.balancing.balancer import Balancer
from mtbench.plugins.registry import entries

BASES = {
    "cr_mogm": "cr_mogm+pcgrad",
    "cyclic": "cyclic+config",
    "damped": "damped+mgda",
    "every": "every+mgda",
    "gramian_ema": "gramian_ema+cagrad",
    "grouped": "grouped+pcgrad",
    "last_layer": "last_layer+gradnorm",
    "log": "log+upgrad",
    "norm_matched": "norm_matched+imtl",
    "only": "only+cagrad",
    "samo": "samo+fairgrad",
    "unit": "unit+mgda",
}
"""Wrappers, each around a method of another family."""

METHODS = [
    BASES.get(name, name)
    for name, entry in entries("method").items()
    if not entry.load(Balancer).needs_residuals  # which most losses have not
]

NAMELESS = [name for name in METHODS if not name.startswith("last_layer")]
"""Those that do without the parameters' names."""
