"""Digits in four domains: an image of each in a sample, unequal numbers, one encoder."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from mtbench.errors import UsageError
from mtbench.testing import TaskContract
from mtbench.training.task import Splits
from mtbench_tasks.domains import NOISE, SHARES, Domains, Rows, seen_in


def setup(task: Domains, seed: int = 0) -> Splits:
    return task.setup(seed, lambda *_: None)


class TestDomainsContract(TaskContract):
    @pytest.fixture
    def make(self) -> type[Domains]:
        return Domains


def test_how_digits_look() -> None:
    images = torch.rand(50, 8, 8)

    def look(domain: str) -> Tensor:
        return seen_in(domain, images, torch.Generator().manual_seed(0))[:, 0]

    assert torch.equal(look("plain"), images)
    assert torch.equal(look("inverted") + look("plain"), torch.ones(50, 8, 8))
    assert torch.equal(look("turned")[:, 7, 0], images[:, 0, 0])  # the corner at the top left
    assert (look("noisy") - images).std().item() == pytest.approx(NOISE, rel=0.05)


def numbered(again: bool) -> Rows:
    """Domains of 6, 3 and 2 images, whose pixels are their numbers."""
    counts = {"a": 6, "b": 3, "c": 2}
    images = {
        name: torch.arange(n).float()[:, None, None, None].expand(n, 1, 8, 8)
        for name, n in counts.items()
    }
    return Rows(images, {name: torch.arange(n) for name, n in counts.items()}, again)


@pytest.mark.parametrize("again", [True, False])
def test_rarer_domains_begin_again_or_are_absent(again: bool) -> None:
    split = numbered(again)
    assert len(split) == 6
    batch = split.batch(torch.tensor([5, 0, 2, 3]))
    assert batch["a"].tolist() == [5, 0, 2, 3]
    assert batch["b"].tolist() == ([2, 0, 2, 0] if again else [-1, 0, 2, -1])
    assert batch["c"].tolist() == ([1, 0, 0, 1] if again else [-1, 0, -1, -1])
    for k, name in enumerate("abc"):
        here = batch[name] >= 0
        assert torch.equal(batch["inputs"][here, k, 0, 0, 0], batch[name][here].float())


def test_no_training_digit_is_in_two_domains_or_held_out() -> None:
    splits = setup(Domains())
    looks = {name: image for name, image in splits.train.images.items() if name != "noisy"}
    looks["inverted"] = 1 - looks["inverted"]
    looks["turned"] = looks["turned"].rot90(-1, (2, 3))
    seen = [image.numpy().tobytes() for images in looks.values() for image in images]
    held = [image.numpy().tobytes() for image in splits.test.images["plain"]]
    held += [image.numpy().tobytes() for image in splits.val.images["plain"]]
    every = {(image / 16).astype("float32").tobytes() for image in load_digits().images}
    assert len(every) == 1797
    assert len({*seen, *held}) == len(seen) + len(held)
    assert {*seen, *held} < every
    counts = [len(labels) for labels in splits.train.labels.values()]
    assert sum(counts) == 1150
    for count, share in zip(counts, SHARES.values(), strict=True):
        assert abs(count - 1150 * share / 15) <= 1


def test_test_images_are_the_same_at_every_seed() -> None:
    rows = torch.arange(300)
    first, other, fold = (
        setup(task, seed).test.batch(rows)
        for task, seed in ((Domains(), 0), (Domains(), 1), (Domains(fold=1), 0))
    )
    assert torch.equal(first["inputs"], other["inputs"])
    assert not torch.equal(first["inputs"], fold["inputs"])


def test_one_encoder_and_a_head_for_each_domain() -> None:
    torch.manual_seed(0)
    model = Domains().model()
    inputs = torch.rand(3, 4, 1, 8, 8, requires_grad=True)
    outputs = model(inputs)
    for k, output in enumerate(outputs):
        (gradient,) = torch.autograd.grad(output.square().sum(), inputs, retain_graph=True)
        assert gradient.flatten(2).any(2).nonzero()[:, 1].unique().tolist() == [k]
        alone = model.encoder(inputs[:, k : k + 1])[0]
        assert torch.allclose(alone, model.encoder(inputs)[0][:, k : k + 1], atol=1e-6)


def test_the_loss_and_the_metric_leave_out_absent_images() -> None:
    task = Domains(rule="once")
    batch = {name: torch.tensor([3, -1]) for name in SHARES}
    outputs = [torch.zeros(2, 10) for _ in SHARES]
    outputs[0][1] = 100.0
    for loss in task.losses(outputs, batch):
        assert loss.item() == pytest.approx(math.log(10))
    meter = task.meter()
    outputs[0][0, 3] = 1.0
    meter.update(outputs, batch)
    assert meter.compute() == {
        "accuracy_plain": 1, "accuracy_inverted": 0, "accuracy_turned": 0, "accuracy_noisy": 0,
    }  # fmt: skip


def test_refusals() -> None:
    with pytest.raises(UsageError, match="width must be at least 1, found 0"):
        Domains(width=0)
    with pytest.raises(UsageError, match="fold must be 0 to 4, found 5"):
        Domains(fold=5)
