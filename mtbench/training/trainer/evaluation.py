"""How good a model is on a split."""

from collections.abc import Mapping, Sequence
from itertools import repeat

import torch
from torch import Tensor

from mtbench.balancing.balancer import Judged
from mtbench.balancing.distributed import ALONE, Ranks
from mtbench.balancing.model import PerObjective
from mtbench.balancing.signatures import name_of
from mtbench.errors import PluginError
from mtbench.training.data import known
from mtbench.training.machine.device import to_device
from mtbench.training.task import Batch, Metric, Split, Task
from mtbench.training.trainer.learner import Learner


@torch.no_grad()
def evaluate(
    learner: Learner, split: Split, batch_size: int, ranks: Ranks = ALONE
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean losses and the metrics of a split."""
    task = learner.task
    learner.model.eval()
    meter = task.meter()
    sums = torch.zeros(len(task.objectives), dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for indices in torch.split(torch.arange(len(split)), batch_size):
        batch = to_device(split.batch(indices), learner.device)
        done = learner.forward(batch, ranks.of(len(indices)))
        losses = torch.stack([x.detach().double().cpu() for x in done.losses])
        samples = _samples(batch, len(indices), task.objectives).to(losses)
        sums += torch.where(samples > 0, samples * losses, 0)
        counts += samples
        meter.update(done.outputs, batch)
    means = (sums / counts.clamp(min=1)).tolist()
    return dict(zip(task.objectives, means, strict=True)), _numbers(meter.compute(), task)


def _numbers(found: Mapping[str, float], task: Task) -> dict[str, float]:
    """Return what a meter computed, if all metrics are there."""
    whose = f"{name_of(type(task))}: its meter's compute must return"
    try:
        numbers = {name: float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise PluginError(f"{whose} numbers by name: {error}") from None
    if absent := task.metrics.keys() - numbers.keys():
        raise PluginError(
            f"{whose} all metrics, found no {min(absent)!r}: NaN where it is undefined"
        )
    return numbers


def _samples(batch: Batch, count: int, objectives: Sequence[str]) -> Tensor:
    """Return how many samples of a batch each objective has, (K,): those with a label, if told."""
    inputs = batch["inputs"]
    own = map(len, inputs) if isinstance(inputs, PerObjective) else repeat(count)
    found = []
    for name, samples in zip(objectives, own, strict=False):
        labels = batch.get(name)
        if isinstance(labels, Tensor) and labels.shape[:1] == (samples,):
            samples = int(known(labels).sum())
        found.append(samples)
    return torch.tensor(found)


def judged(values: Mapping[str, float], task: Task) -> list[Judged]:
    """Return a task's metrics as a method is told of them."""
    return [
        Judged(
            name,
            values[name],
            None if metric.objective is None else task.objectives.index(metric.objective),
            metric.higher_is_better,
            metric.primary,
        )
        for name, metric in task.metrics.items()
    ]


def primary_metrics(metrics: Mapping[str, Metric]) -> list[str]:
    """Return the names of the metrics that are compared."""
    return [name for name, metric in metrics.items() if metric.primary]
