"""The host does not wait for the device in a task's losses, whatever labels are missing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtbench.plugins.registry import find
from mtbench.training.data import labelled_loss
from mtbench.training.task import Task
from mtbench_tasks._dense import losses as dense
from mtbench_tasks._lesion import losses as lesion
from tests.syncs import Device

MISSING = torch.tensor([True, False, False])
CLASSES = torch.tensor([-1, 0, 2])
NUMBERS = torch.tensor([torch.nan, 0.5, 1.0])
PLANES = torch.rand(3, 3, 4, 4).masked_fill(MISSING[:, None, None, None], torch.nan)

LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[Any, ...]]] = {
    "classes": (
        lambda x, y: labelled_loss(F.cross_entropy, x, y), (3, 4), (CLASSES,),
    ),
    "numbers": (lambda x, y: labelled_loss(F.mse_loss, x, y), (3,), (NUMBERS,)),
    "yes or no": (
        lambda x, y: labelled_loss(F.binary_cross_entropy_with_logits, x, y), (3,), (NUMBERS,),
    ),
    "mask": (lesion.segmentation_loss, (3, 1, 4, 4), (PLANES[:, :1].nan_to_num(), ~MISSING)),
    "grade": (lambda x, y: lesion.grade_loss(x, y, "ce"), (3, 4), (CLASSES,)),
    "grade, emd": (lambda x, y: lesion.grade_loss(x, y, "emd"), (3, 4), (CLASSES,)),
    "guidance": (lesion.guidance_loss, (3,), (NUMBERS,)),
    "segmentation": (
        dense.segmentation_loss, (3, 4, 2, 2), (CLASSES[:, None, None].expand(3, 2, 2),),
    ),
    "depth": (dense.depth_loss, (3, 1, 4, 4), (PLANES[:, :1],)),
    "normals": (dense.normals_loss, (3, 3, 4, 4), (PLANES,)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_reads(name: str) -> None:
    loss, shape, labels = LOSSES[name]
    output = torch.randn(shape, requires_grad=True)
    device = Device([output, labels])
    with device.watched() as found:
        value = loss(output, *labels)
        torch.autograd.grad(value, output)
    assert not found + device.uploads
    assert value.item() > 0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("digits", {}),
        ("domains", {}),
        ("gradnorm_toy", {"samples": 50}),
        ("pinn", {"samples": 20}),
        ("pinn", {"samples": 20, "equation": "klein_gordon"}),
        ("pinn", {"samples": 20, "equation": "stokes"}),
        ("thyroid", {"cases": 30, "image_size": 32, "width": 2}),
        ("toy", {}),
    ],
)
def test_no_task_reads(name: str, parameters: dict[str, Any]) -> None:
    task = find("task", name).load(Task)(**parameters)
    split = task.setup(0, lambda *_: None).train
    batch = split.batch(torch.arange(8) % len(split))
    model = task.model()
    device = Device([list(model.parameters()), list(model.buffers()), batch])
    with device.watched() as found:
        losses = task.losses(model(batch["inputs"]), batch)
        torch.autograd.backward(losses)
    assert not found + device.uploads
