"""How often the host waits for the device in a step.

Parameters, buffers and what the optimizer keeps lie on the device; a batch is the host's until it
is sent there. A method with a solver has waited already by the time of its uploads, so they count
for the others alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtbench import Method, Weighting
from tests.methods import METHODS
from tests.syncs import Device, tensors
from tests.training.test_numbers import Odd, _Regressions, trainer

COPIES = 1
"""Of the Gramian and the losses together, to the solver of a `Weighting`."""

NEEDS = {
    # All has a closed form on the device.
    "chebyshev": 0,
    "excess_mtl": 0,
    "graddrop": 0,
    "metabalance": 0,
    # A program over the K losses.
    "go4align": 1,
    # Whether gradients are finite, and their products with those of another batch.
    "auto_lambda": 2,
    "moml": 2,
    # A solver.
    "gradnorm": COPIES,
    "grouped+pcgrad": COPIES,
    "last_layer+gradnorm": COPIES,
    "samo+fairgrad": COPIES,
    # A solver, and scales that the optimizer moves on the device.
    "imtl": COPIES + 1,
    "norm_matched+imtl": COPIES + 1,
    # Whether rows of the Jacobian are zero, or finite.
    "db_mtl": 1,
    "sam_gs": 1,
    # Whose turn it is, whether it is finite, and a solver on what is kept.
    "cyclic+config": 3,
    "trimmed_mean": 1,
    # The same, and a solver on what is kept.
    "moco": 2,
    "modo": 3,
    # Norms; torch's matrix exponential asks how large its argument is, and so does its backward.
    "rotograd": 1 + 3,
}
"""Reads in a step, at most, where it is neither a `Scalarizer` nor a `Weighting` without memory."""


def reads(out: Path, method: str, odd: Odd = "", **given: Any) -> tuple[Any, Device, list[str]]:
    """Return a loop after its fourth step, and what the host has read in that one."""
    trained = trainer(out, method, _Regressions(5, odd), **given)
    loop = trained.prepare()
    loop.learner.model.train()
    for position in range(3):
        loop.step(loop.batches.at(0, position))
        loop.record.at.position += 1
    model, balancer = loop.learner.model, loop.learner.balancer
    modules = [*model.modules(), *balancer.modules()]
    kept = [getattr(m, name) for m in modules for name in getattr(m, "on_host", ())]
    moved = [[*m.parameters(), *m.buffers()] for m in (model, balancer)]
    there = [x for x in tensors(moved) if not any(x is y for y in kept)]
    memory = [there, loop.descent.state_dict(), vars(trained.engine)]
    device = Device(memory)
    with device.watched() as found:
        loop.step(loop.batches.at(0, 3))
    return loop, device, list(found)


def bound(method: str, balancer: Any) -> int:
    if method in NEEDS:
        return NEEDS[method]
    return {True: 0, isinstance(balancer, Weighting): COPIES}[True]


@pytest.mark.parametrize("odd", ["", "mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_reads_what_a_solver_needs(tmp_path: Path, method: str, odd: Odd) -> None:
    loop, device, found = reads(tmp_path, method, odd, clip=1.0)
    allowed = bound(method, loop.learner.balancer)
    if odd:
        # Whether a head without labels has a gradient of its own; asked again by what descends.
        allowed += 1 + method.endswith("imtl")
    assert len(found) <= allowed, found
    assert allowed or not device.uploads, device.uploads


@pytest.mark.parametrize("method", METHODS)
def test_what_a_solver_reads_stays_where_it_is(method: str) -> None:
    balancer = Method.find(method)(3).to("meta")
    for module in balancer.modules():
        kept = getattr(module, "on_host", ())
        buffers = dict(module.named_buffers(recurse=False))
        assert set(kept) <= set(buffers)
        for name, buffer in buffers.items():
            assert buffer.device.type == ("cpu" if name in kept else "meta")


@pytest.mark.parametrize(
    "given", [{"nonfinite": "skip"}, {"nonfinite": "fp32", "precision": "bf16"}]
)
def test_what_decides_before_the_optimizer_reads_once(tmp_path: Path, given: Any) -> None:
    _, _, found = reads(tmp_path, "ew", **given)
    assert len(found) == 1, found


def test_the_numbers_of_many_steps_come_in_one_copy(tmp_path: Path) -> None:
    loop, device, _ = reads(tmp_path, "uw")
    assert len(loop.numbers.pending) == 4
    with device.watched() as found:
        loop.count()
    assert len(found) == 1, found
    assert not loop.numbers.pending
    assert len(loop.record.rows) == 4


X = torch.tensor([2.0, 0.0, 3.0])
READS: list[Callable[[Tensor], object]] = [
    lambda x: x[0].item(), lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x.cpu(),
    lambda x: x.to("cpu"), lambda x: x.to(torch.zeros(1)), lambda x: bool(x.any()),
    lambda x: float(x.sum()), lambda x: int(x[0]), lambda x: x[x > 0], lambda x: x.nonzero(),
    lambda x: x[x[2].long() - 1], lambda x: torch.zeros(3).copy_(x), lambda x: torch.equal(x, x),
    lambda x: x.cpu().tolist(), lambda x: x.clone().requires_grad_().square().sum().item(),
    lambda x: torch.tensor([1.0], device=x.device).item(), lambda x: x.view(3, 1).T[0, 0].item(),
    lambda x: torch.zeros(3).to(x).sum().item(), lambda x: torch.ones_like(x).max().item(),
    lambda x: x.new_tensor([1.0]).item(),
]  # fmt: skip


@pytest.mark.parametrize("read", READS)
def test_every_way_to_read_is_counted_once(read: Callable[[Tensor], object]) -> None:
    x = X.clone()
    device = Device(x)
    with device.watched() as found:
        read(x)
    assert len(found) == 1, found


UPLOADS: list[Callable[[Tensor], object]] = [
    lambda x: torch.zeros(3).to(x), lambda x: torch.zeros(3).to(x.device),
    lambda x: x.new_tensor([1.0]), lambda x: torch.tensor([1.0], device=x.device),
    lambda x: x[torch.tensor([0, 2])], lambda x: x[[0, 2]], lambda x: x.copy_(torch.zeros(3)),
]  # fmt: skip


@pytest.mark.parametrize("upload", UPLOADS)
def test_an_upload_that_is_waited_for_is_counted(upload: Callable[[Tensor], object]) -> None:
    x = X.clone()
    device = Device(x)
    with device.watched() as found:
        upload(x)
    assert len(device.uploads) == 1, device.uploads
    assert not found


def test_what_does_not_wait_is_not_counted() -> None:
    x = X.clone()
    device = Device(x)
    with device.watched() as found:
        torch.where(x.sum() > 0, x, 0).masked_fill(x > 0, 1).to(x.device)
        x[x.argmax(keepdim=True)], x.sort(), x.norm(), x.clone()
        x[x > 2] = 1.0
        torch.tensor([1.0, 2.0]).tolist(), torch.rand(3).sum().item()
        torch.zeros(3).to(x, non_blocking=True) * x
        torch.nn.utils.clip_grad_norm_([x], 1.0)
    assert not found + device.uploads
