"""LibMTL's weightings without its models: its package import asks for torchvision."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest


def weighting():
    """Return the module LibMTL.weighting, or skip the test where LibMTL is not installed."""
    found = find_spec("LibMTL")
    if found is None:
        pytest.skip("LibMTL is not installed")
    package = ModuleType("LibMTL")  # the package as a mere folder: its __init__ is never run
    package.__path__ = list(found.submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "LibMTL", package)
        return import_module("LibMTL.weighting")


def method(name, num_objectives, shared=(), **attributes):
    """Return LibMTL's method `name` as its trainer would set it up, for CPU tensors.

    Args:
        shared: the shared parameters.
        attributes: what the trainer would set besides: epoch, train_loss_buffer.
    """
    made = getattr(weighting(), name)()
    made.task_num, made.device, made.rep_grad = num_objectives, "cpu", False
    made.get_share_params = lambda: iter(shared)
    made.zero_grad_share_params = lambda: [p.grad.zero_() for p in shared if p.grad is not None]
    for key, value in attributes.items():
        setattr(made, key, value)
    made.init_param()
    return made
