"""What a suite will take, from a few real steps of each method on each task."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtbench.balancing.engine import Engine
from mtbench.comparing.planning.grid import Entry, Grid
from mtbench.training.cell.rundir import RunDirectory, Spec
from mtbench.training.task import Batch, Progress, Split, Splits
from mtbench.training.trainer.batches import Batches
from mtbench.training.trainer.observer import Silent
from mtbench.training.trainer.trainer import Trainer

STEPS = 8
"""Steps that are timed, the first of which pays for what is set up once."""


@dataclass(frozen=True)
class Cost:
    """What a method takes on a task.

    Attributes:
        entry: the method on the task.
        step: seconds a step; on a CPU those of the processor, whatever else it works on.
        cell: seconds a cell; NaN if the method cannot train there.
    """

    entry: Entry
    step: float
    cell: float


def probe(grid: Grid, progress: Progress) -> Iterator[Cost]:
    """Yield the costs of each entry, on one thread.

    Raises:
        DataError: a task's data is absent or broken.
    """
    for entries in grid.tasks.values():
        splits = entries[0].request.task.setup(grid.first_seed, progress)
        for entry in entries:
            yield _cost(grid, entry, splits)


def _cost(grid: Grid, entry: Entry, splits: Splits) -> Cost:
    request, choice = entry.setting(0, None)
    recipe = request.recipe
    held = choice.method(len(request.task.objectives), 0, **choice.params).holds_out
    enough = math.ceil(STEPS * recipe.batch_size / (1 - held))
    some = dataclasses.replace(splits, train=_Some(splits.train, enough))
    short = dataclasses.replace(request, recipe=dataclasses.replace(recipe, epochs=1))
    spec = short.spec(
        choice,
        splits.fingerprint,
        grid.first_seed,
        grid.suite.precision,
        grid.device,
        stage="trial",
    )
    clock = _Clock(time.process_time if grid.device == "cpu" else time.perf_counter)
    with tempfile.TemporaryDirectory(prefix="mtbench-plan-") as folder:
        run = RunDirectory.at(Path(folder), spec)
        engine = Engine(batched=False) if grid.device == "cpu" else None
        try:
            batches = Batches(splits.train, recipe.batch_size, grid.first_seed, grid.device, held)
            Trainer(
                spec, request.task, some, choice.method, run, clock, threads=1, engine=engine
            ).run()
        except Exception:  # a broken method is the sweep's to record
            return Cost(entry, math.nan, math.nan)
    epoch = batches.steps * clock.step + clock.evaluation
    return Cost(entry, clock.step, recipe.epochs * epoch)


class _Some(Split):
    """The first samples of a split."""

    def __init__(self, split: Split, count: int) -> None:
        self.split, self.count = split, min(count, len(split))

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        return self.split.batch(indices, generator)


class _Clock(Silent):
    """An observer that takes times: of a step, batch included, and of an epoch's end."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.ticks: list[float] = []
        self.end = math.nan

    @property
    def step(self) -> float:
        first, *rest = self.ticks[1:] if len(self.ticks) > 2 else self.ticks  # told in bunches
        return (rest[-1] - first) / len(rest) if rest else math.nan

    @property
    def evaluation(self) -> float:
        return self.end - self.ticks[-1] if self.ticks else math.nan

    def started(self, spec: Spec, epochs: int, steps: int, done: int) -> None:
        self.ticks.append(self.now())

    def stepped(self, epoch: int, losses: dict[str, float]) -> None:
        self.ticks.append(self.now())

    def evaluated(self, record: dict[str, Any]) -> None:
        self.end = self.now()
