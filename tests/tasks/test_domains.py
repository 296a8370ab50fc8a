"""Digits in four domains: an image of each in a sample, unequal numbers, one encoder."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from mtbench.errors import UsageError
from mtbench.testing import TaskContract
from mtbench.training.task import Splits
from mtbench_tasks.domains import NOISE, SHARES, Domains, seen_in


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


def whole(splits: Splits, part: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each domain's images and labels, once."""
    split = getattr(splits, part)
    batch = split.batch(torch.arange(len(split)))
    counts = {name: len(x) for name, x in batch.items() if name != "inputs"}
    if part == "train":  # the rarer begin again
        counts = dict(zip(counts, splits.notes["training digits"].values(), strict=True))
    images = dict(zip(SHARES, batch["inputs"], strict=True))
    return (
        {name: images[name][:count] for name, count in counts.items()},
        {name: batch[name][:count] for name, count in counts.items()},
    )


def test_no_training_digit_is_in_two_domains_or_held_out() -> None:
    splits = setup(Domains())
    looks, labels = whole(splits, "train")
    del looks["noisy"]
    looks["inverted"] = 1 - looks["inverted"]
    looks["turned"] = looks["turned"].rot90(-1, (2, 3))
    seen = [image.numpy().tobytes() for images in looks.values() for image in images]
    held = [
        image.numpy().tobytes()
        for part in ("val", "test")
        for image in whole(splits, part)[0]["plain"]
    ]
    every = {(image / 16).astype("float32").tobytes() for image in load_digits().images}
    assert len(every) == 1797
    assert len({*seen, *held}) == len(seen) + len(held)
    assert {*seen, *held} < every
    counts = [len(found) for found in labels.values()]
    assert sum(counts) == 1150
    for count, share in zip(counts, SHARES.values(), strict=True):
        assert abs(count - 1150 * share / 15) <= 1


def test_test_images_are_the_same_at_every_seed() -> None:
    first, other, fold = (
        whole(setup(task, seed), "test")[0]
        for task, seed in ((Domains(), 0), (Domains(), 1), (Domains(fold=1), 0))
    )
    for name in SHARES:
        assert torch.equal(first[name], other[name])
        assert not torch.equal(first[name][:300], fold[name][:300])


def test_the_loss_and_the_metric_by_hand() -> None:
    task = Domains()
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
