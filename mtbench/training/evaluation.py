"""How good a model is on a split, and by which number epochs are chosen."""

import math
import statistics
from collections.abc import Mapping

import torch

from mtbench.balancing.distributed import ALONE, Ranks
from mtbench.training.device import to_device
from mtbench.training.learner import Learner
from mtbench.training.task import Metric, Split

SELECTION = "mean-primary"
"""The rule of ``select="best"``: the epoch with the largest mean of the primary validation metrics,
those that are better when lower counted negative, undefined ones left out; of equals, the first."""


@torch.no_grad()
def evaluate(
    learner: Learner, split: Split, batch_size: int, ranks: Ranks = ALONE
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean losses and the metrics of a split."""
    task = learner.task
    learner.model.eval()
    meter = task.meter()
    sums = torch.zeros(len(task.objectives), dtype=torch.float64)
    for indices in torch.split(torch.arange(len(split)), batch_size):
        batch = to_device(split.batch(indices), learner.device)
        done = learner.forward(batch, ranks.of(len(indices)))
        sums += len(indices) * torch.stack([x.detach().double().cpu() for x in done.losses])
        meter.update(done.outputs, batch)
    means = (sums / max(1, len(split))).tolist()
    return dict(zip(task.objectives, means, strict=True)), meter.compute()


def selection_score(values: Mapping[str, float], metrics: Mapping[str, Metric]) -> float:
    """Return the score of the `SELECTION` rule."""
    signed = [
        values[name] if metric.higher_is_better else -values[name]
        for name, metric in metrics.items()
        if metric.primary and not math.isnan(values[name])
    ]
    return statistics.fmean(signed) if signed else -math.inf


def primary_metrics(metrics: Mapping[str, Metric]) -> list[str]:
    """Return the names of the metrics that are compared."""
    return [name for name, metric in metrics.items() if metric.primary]
