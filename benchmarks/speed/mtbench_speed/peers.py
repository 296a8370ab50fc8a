"""The same step by other libraries, each with its own defaults; all of them are optional."""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mtbench_speed.contestants import Run
from mtbench_speed.models import Problem

Arguments = Callable[[int], dict[str, Any]]
PACKAGES = {"torchjd": "torchjd", "LibMTL": "LibMTL"}


def _none(_: int) -> dict[str, Any]:
    return {}


AGGREGATORS: dict[str, tuple[str, Arguments]] = {
    "aligned_mtl": ("AlignedMTL", _none),
    "cagrad": ("CAGrad", lambda _: {"c": 0.5}),
    "config": ("ConFIG", _none),
    "dualproj": ("DualProj", _none),
    "excess_mtl": ("ExcessMTL", _none),
    "fairgrad": ("FairGrad", lambda _: {"alpha": 2.0}),
    "graddrop": ("GradDrop", _none),
    "gradvac": ("GradVac", _none),
    "imtl_g": ("IMTLG", _none),
    "krum": ("Krum", lambda _: {"n_byzantine": 0}),
    "mgda": ("MGDA", _none),
    "nash_mtl": ("NashMTL", lambda K: {"n_tasks": K}),
    "pcd": ("PCD", _none),
    "pcgrad": ("PCGrad", _none),
    "rgw": ("Random", _none),
    "trimmed_mean": ("TrimmedMean", lambda K: {"trim_number": int(0.4 * K)}),
    "upgrad": ("UPGrad", _none),
}
SCALARIZATIONS: dict[str, tuple[str, Arguments]] = {
    "cosmos": ("COSMOS", lambda K: {"lambda_": 1.0, "weights": torch.ones(K) / K}),
    "dwa": ("DWA", _none),
    "ew": ("Sum", _none),
    "famo": ("FAMO", lambda K: {"shape": K}),
    "gls": ("GeometricMean", _none),
    "imtl_l": ("IMTLL", lambda K: {"shape": K}),
    "ls": ("Constant", lambda K: {"weights": torch.ones(K)}),
    "pbi": ("PBI", lambda K: {"theta": 5.0, "weights": torch.ones(K) / K}),
    "rlw": ("Random", _none),
    "stch": ("STCH", lambda _: {"mu": 1.0}),
    "uw": ("UW", lambda K: {"shape": K}),
}
LIBMTL: dict[str, tuple[str, dict[str, Any]]] = {  # those that are sound; MGDA at K = 2 alone
    "dwa": ("DWA", {"T": 2.0}),
    "ew": ("EW", {}),
    "gls": ("GLS", {}),
    "gradnorm": ("GradNorm", {"alpha": 1.5}),
    "gradvac": ("GradVac", {"beta": 0.5}),
    "imtl": ("IMTL", {}),
    "mgda": ("MGDA", {"mgda_gn": "none"}),
    "pcgrad": ("PCGrad", {}),
    "rlw": ("RLW", {"dist": "Normal"}),
    "uw": ("UW", {}),
}


def versions() -> dict[str, str | None]:
    """Return each library's version, None where it is not installed."""
    found: dict[str, str | None] = {}
    for library, package in PACKAGES.items():
        try:
            found[library] = version(package) if find_spec(package) else None
        except PackageNotFoundError:
            found[library] = "of unknown version"
    return found


def _torchjd(part: str) -> Any:
    return None if find_spec("torchjd") is None else import_module(f"torchjd.{part}")


def aggregator(name: str, objectives: int) -> Any:
    """Return torchjd's aggregator of a method of ours, None where it has none."""
    module = _torchjd("aggregation")
    if module is None or name not in AGGREGATORS:
        return None
    found, arguments = AGGREGATORS[name]
    return getattr(module, found)(**arguments(objectives))


def gramian_weighting(name: str, objectives: int) -> Any:
    """Return torchjd's function from a Gramian to weights, None where it has none."""
    return getattr(aggregator(name, objectives), "gramian_weighting", None)


def _autojac(problem: Problem, name: str, chunk: int | None = None) -> Run | None:
    made = aggregator(name, problem.objectives)
    if made is None:
        return None
    autojac = _torchjd("autojac")
    shared = list(problem.model.encoder.parameters())
    heads = [list(head.parameters()) for head in problem.model.heads]

    def run(at: int) -> None:
        features, losses = problem.forward(at)
        autojac.mtl_backward(
            losses, features=features, tasks_params=heads, shared_params=shared,
            parallel_chunk_size=chunk,
        )  # fmt: skip
        autojac.jac_to_grad(shared, made)
        problem.model.zero_grad()

    return run


def _autogram(problem: Problem, name: str) -> Run | None:
    weighting = gramian_weighting(name, problem.objectives)
    if weighting is None:
        return None
    model = deepcopy(problem.model)  # the engine leaves hooks on it
    engine = _torchjd("autogram").Engine(model.encoder, batch_dim=None)

    def run(at: int) -> None:
        losses = torch.stack(problem.forward(at, model)[1])
        torch.autograd.backward([losses], [weighting(engine.compute_gramian(losses))])
        model.zero_grad()

    return run


def _scalarization(problem: Problem, name: str) -> Run | None:
    module = _torchjd("scalarization")
    if module is None or name not in SCALARIZATIONS:
        return None
    found, arguments = SCALARIZATIONS[name]
    device = problem.inputs.device
    given = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in arguments(problem.objectives).items()
    }
    made = getattr(module, found)(**given).to(device)

    def run(at: int) -> None:
        made(torch.stack(problem.forward(at)[1])).backward()
        if hasattr(made, "update"):  # FAMO's
            made.update(torch.stack(problem.forward(at)[1]))
        problem.model.zero_grad()
        made.zero_grad()

    return run


def _vmapped(problem: Problem, name: str) -> Run | None:
    return _autojac(problem, name) or _scalarization(problem, name)


@cache
def _weightings() -> Any:
    """Return LibMTL.weighting, None where it is not installed.

    The package itself is never imported: it asks for torchvision.
    """
    found = find_spec("LibMTL")
    if found is None:
        return None
    package = ModuleType("LibMTL")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["LibMTL"] = package
    try:
        return import_module("LibMTL.weighting")
    finally:
        del sys.modules["LibMTL"]


def _zero(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.zero_()


def _libmtl(problem: Problem, name: str) -> Run | None:
    module, K = _weightings(), problem.objectives
    if module is None or name not in LIBMTL or (name == "mgda" and K > 2):
        return None
    found, arguments = LIBMTL[name]
    made = getattr(module, found)()
    shared = list(problem.model.encoder.parameters())
    made.task_num, made.device, made.rep_grad = K, problem.inputs.device, False
    made.epoch, made.train_loss_buffer = 1, torch.ones(K, 2).numpy()
    made.get_share_params = lambda: iter(shared)
    made.zero_grad_share_params = partial(_zero, shared)
    made.init_param()

    def run(at: int) -> None:
        made.backward(torch.stack(problem.forward(at)[1]), **arguments)
        problem.model.zero_grad()
        made.zero_grad()

    return run


PEERS: dict[str, Callable[[Problem, str], Run | None]] = {
    "torchjd": _vmapped,
    "torchjd, loop": partial(_autojac, chunk=1),
    "torchjd, Gramian": _autogram,
    "LibMTL": _libmtl,
}
"""By name, what makes one step of a method of ours, None where the library has no such method."""
