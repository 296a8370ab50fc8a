"""A cell that mtbench's own trainer has trained, for other loops to repeat."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from mtbench import Balancer, MultitaskModel, seeding
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import RunDirectory, Spec
from mtbench.training.task import Batch, Splits, Task
from mtbench.training.trainer.learner import build
from mtbench.training.trainer.observer import Silent
from mtbench.training.trainer.trainer import Trainer
from tests.conftest import TINY


@dataclass
class Reference:
    """How mtbench trained a cell, and what another loop starts from."""

    spec: Spec
    task: Task
    splits: Splits
    method: Any
    expected: dict[str, torch.Tensor]

    def start(self) -> tuple[MultitaskModel, Balancer]:
        """Return model and balancer as the trainer begins, and seed what it seeds."""
        found = build(self.spec, self.task, self.method)
        seeding.seed_everything(seeding.derive(self.spec.seed, "training"))
        return found

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the trainer's batches."""
        size, split = self.spec.recipe["batch_size"], self.splits.train
        shuffle = seeding.generator(self.spec.seed, "order", number)
        order = torch.randperm(len(split), generator=shuffle)
        for position, indices in enumerate(order.split(size)):
            yield split.batch(
                indices, seeding.generator(self.spec.seed, "augmentation", number, position)
            )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Train the tiny task by a method with mtbench's own loop; each method once."""
    out = tmp_path_factory.mktemp("own")

    @cache
    def train(method: str) -> Reference:
        given = {"epochs": "3", "schedule": "constant", "select": "last", "weight_decay": "0.1"}
        request = Request.of("tiny", [method], given, [TINY])
        splits = request.task.setup(0, lambda *_: None)
        spec = request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")
        run = RunDirectory.at(out, spec)
        found = request.choices[0].method
        Trainer(spec, request.task, splits, found, run, Silent(), 1).run()
        state = run.load("checkpoint.pt")
        assert state is not None
        return Reference(spec, request.task, splits, found, state["model"])

    return train
