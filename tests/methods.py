"""Every method in the tree, by a name that runs."""

from mtbench.plugins.registry import entries

BASES = {
    "cr_mogm": "cr_mogm+pcgrad",
    "damped": "damped+mgda",
    "gramian_ema": "gramian_ema+cagrad",
    "norm_matched": "norm_matched+imtl",
    "samo": "samo+fairgrad",
}
"""Wrappers, each around a method of another family."""

METHODS = [BASES.get(name, name) for name in entries("method")]
