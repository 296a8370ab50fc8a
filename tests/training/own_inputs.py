"""A task with a batch per objective: two regressions, each on samples of its own."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtbench import Metric, MultitaskModel, Recipe, Splits, Task
from mtbench.training.data import (
    PerObjectiveSplit,
    TensorSplit,
    TorchmetricsMeter,
    fingerprint,
    labelled_loss,
)
from mtbench.training.task import Batch, Meter, Progress

SIZES = {"near": 20, "far": 7}


class Domains(Task):
    """Two linear maps, on samples around different means."""

    objectives = tuple(SIZES)
    metrics = {  # noqa: RUF012
        name: Metric(name, higher_is_better=False, primary=True) for name in SIZES
    }
    own_inputs = True
    recipe = Recipe(epochs=3, batch_size=8, lr=1e-2, select="last")

    def _part(self, seed: int, k: int, name: str) -> TensorSplit:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(SIZES[name], 3, generator=generator) + k
        return TensorSplit(x, **{name: x.sum(1) - k})

    def _split(self, seed: int, rule: Literal["cycle", "once"]) -> PerObjectiveSplit:
        return PerObjectiveSplit(
            {name: self._part(seed + 7 * k, k, name) for k, name in enumerate(SIZES)}, rule
        )

    def setup(self, seed: int, progress: Progress) -> Splits:
        mark = fingerprint(torch.tensor(list(SIZES.values())))
        return Splits(self._split(0, "cycle"), self._split(1, "once"), self._split(2, "once"), mark)

    def model(self) -> MultitaskModel:
        encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
        return MultitaskModel.single_feature(encoder, [nn.Linear(8, 1) for _ in SIZES])

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        mse = nn.functional.mse_loss
        return [
            labelled_loss(mse, output[:, 0], batch[name])
            for name, output in zip(SIZES, outputs, strict=True)
        ]

    def meter(self) -> Meter:
        import torchmetrics

        return _Meter(self, {name: torchmetrics.MeanAbsoluteError() for name in SIZES})


class _Meter(TorchmetricsMeter):
    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        super().update([output[:, 0] for output in outputs], batch)
