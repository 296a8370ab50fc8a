"""A task that trains in a second: two regressions from one small network."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtbench import Metric, MultitaskModel, Split, Splits, Task
from mtbench.training.task import Batch, Meter, Progress, Recipe


class TinySplit(Split):
    def __init__(self, seed: int, count: int, missing: bool, sleep: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = torch.stack([self.x.sum(1), self.x[:, 0] - self.x[:, 1]], 1)
        if missing:
            self.y[::2, 1] = torch.nan
        self.sleep = sleep

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        x = self.x[indices]
        if generator is not None:
            time.sleep(self.sleep)
            x = x + 0.01 * torch.randn(x.shape, generator=generator)
        return {"inputs": x, "y": self.y[indices]}


class TinyMeter(Meter):
    def __init__(self) -> None:
        self.errors: list[list[Tensor]] = [[], []]

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        for k, output in enumerate(outputs):
            error = (output[:, 0] - batch["y"][:, k]).abs()
            self.errors[k].append(error[~error.isnan()])

    def compute(self) -> dict[str, float]:
        first, second = (float(torch.cat(errors).mean()) for errors in self.errors)
        return {"mae_sum": first, "within": float((torch.cat(self.errors[1]) < 0.5).float().mean()),
                "mae_difference": second}  # fmt: skip


class Encoder(nn.Sequential):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (super().forward(x),)


class First(nn.Linear):
    def forward(self, features: tuple[Tensor, ...]) -> Tensor:  # type: ignore[override]
        return super().forward(features[0])


class Tiny(Task):
    """Two regressions.

    Args:
        missing: hide half of the second objective's labels.
        explode: turn a loss to NaN.
        sleep: seconds that a training batch takes to come.
        data: unused.
    """

    objectives = ("sum", "difference")
    metrics = {  # noqa: RUF012
        "mae_sum": Metric("sum", higher_is_better=False, primary=True),
        "within": Metric("difference", primary=True),
        "mae_difference": Metric("difference", higher_is_better=False),
    }
    recipe = Recipe(epochs=4, batch_size=8, lr=1e-2)

    def __init__(
        self,
        *,
        missing: bool = False,
        explode: bool = False,
        sleep: float = 0.0,
        activation: Literal["tanh", "relu"] = "tanh",
        data: Path | None = None,
    ) -> None:
        self.missing, self.explode, self.sleep, self.data = missing, explode, sleep, data
        self.activation = nn.Tanh if activation == "tanh" else nn.ReLU

    def setup(self, seed: int, progress: Progress) -> Splits:
        progress("making numbers", 1, 1)
        parts = [TinySplit(3 * seed + i, 48, self.missing, self.sleep) for i in range(3)]
        return Splits(*parts, fingerprint="tiny-1", notes={"rows": 48})

    def model(self) -> MultitaskModel:
        encoder = Encoder(nn.Linear(4, 16), self.activation(), nn.Dropout(0.1))
        return MultitaskModel(encoder, [First(16, 1), First(16, 1)])

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        found = []
        for k, output in enumerate(outputs):
            known = ~batch["y"][:, k].isnan()
            error = (output[known, 0].float() - batch["y"][known, k]).square()
            found.append(error.mean() if known.any() else output.sum() * 0)
        if self.explode:
            found[0] = found[0] * torch.nan
        return found

    def meter(self) -> Meter:
        return TinyMeter()
