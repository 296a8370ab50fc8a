"""K regressions of one kind whose losses have different scales: GradNorm's toy problem."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.errors import UsageError
from mtbench.training.data import TensorSplit, fingerprint, known, labelled_loss
from mtbench.training.task import Batch, Meter, Metric, Progress, Recipe, Splits, Task
from mtbench_tasks._bounds import at_least

INPUTS, OUTPUTS, LAYERS = 250, 100, 4

COMMON, OWN = 10.0, 3.5
"""Variances of the elements of B and of eps_k."""

HELD_OUT = 2_000
"""Samples of the validation and of the test split."""


class Head(nn.Linear):
    """An affine map whose result has the scale of its target."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__(width, OUTPUTS)
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, `OUTPUTS`)."""
        return self.scale * super().forward(inputs)


class Ratios(Meter):
    """Squared errors as shares of what predicting zero, the targets' mean, would leave."""

    def __init__(self, objectives: Sequence[str]) -> None:
        self.sums = {name: torch.zeros(2, dtype=torch.float64) for name in objectives}

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""
        for (name, sums), output in zip(self.sums.items(), outputs, strict=True):
            here = known(batch[name])
            target = batch[name][here].double()
            errors = output[here].double() - target
            sums += torch.stack([errors.square().sum(), target.square().sum()]).cpu()

    def compute(self) -> dict[str, float]:
        """Return ``nmse_OBJECTIVE`` of every objective."""
        return {
            f"nmse_{name}": float(errors / zero) if zero else math.nan
            for name, (errors, zero) in self.sums.items()
        }


class GradNormToy(Task):
    r"""Regression onto K functions that differ in little but the scale of their squared error.

    .. math:: f_k(x) = \sigma_k \tanh((B + \epsilon_k) x), \quad
        B_{ij} \sim N(0, 10), \; \epsilon_{k,ij} \sim N(0, 3.5)

    with x of 250 dimensions and f_k of 100; a trunk of four layers of 100 units is shared, each
    objective has an affine head. The functions share B; the trunk is too narrow for K of them, so
    what one gets, another lacks. With scales 1 and 100 the second loss and its gradients are 10,000
    times the first's, and their sum is the second alone: a method that looks at relative progress
    or at directions treats both alike.

    The metric is the mean squared error as a share of the target's mean square, the paper's
    :math:`L_k(t) / L_k(0)`. B, :math:`\epsilon_k`, and the validation and test samples are the
    same at every seed; the training samples are drawn by it.

    Chen et al., ICML 2018, arXiv 1711.02257, section 4. Our reading: the second number of N is a
    variance, x is uniform on the unit sphere (the paper does not say), K = 2 has the scales 1 and
    100. Deviation: a head's output is multiplied by :math:`\sigma_k`; otherwise its weights have to
    grow a hundredfold, which Adam takes long for whatever the other objectives do.

    Args:
        scales: :math:`\sigma_1, \sigma_2, ...`; there are as many objectives.
        samples: of the training split.
        width: of the trunk's layers.
    """

    objectives: tuple[str, ...] = ("f1", "f2")
    recipe = Recipe(epochs=20, batch_size=100, lr=3e-3, weight_decay=0.0, select="last")

    def __init__(
        self,
        *,
        scales: tuple[float, ...] = (1.0, 100.0),
        samples: int = 10_000,
        width: int = 100,
    ) -> None:
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise UsageError(f"scales must be one or more positive numbers, found {scales}")
        at_least(1, samples=samples, width=width)
        self.scales, self.samples, self.width = scales, samples, width
        self.objectives = tuple(f"f{k}" for k in range(1, len(scales) + 1))
        self.metrics = {
            f"nmse_{name}": Metric(name, higher_is_better=False, primary=True, chance=1.0)
            for name in self.objectives
        }

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Draw the training inputs by the seed, and all else as always."""
        shape = OUTPUTS, INPUTS
        common = math.sqrt(COMMON) * torch.randn(shape, generator=seeding.generator(0, "common"))
        matrices = [
            common + math.sqrt(OWN) * torch.randn(shape, generator=seeding.generator(0, name))
            for name in self.objectives
        ]

        def drawn(count: int, seed: int, part: str) -> TensorSplit:
            x = torch.randn(count, INPUTS, generator=seeding.generator(seed, part))
            x = F.normalize(x)
            targets = [s * (x @ m.T).tanh() for s, m in zip(self.scales, matrices, strict=True)]
            return TensorSplit(x, groups=None, **dict(zip(self.objectives, targets, strict=True)))

        return Splits(
            drawn(self.samples, seed, "train"),
            drawn(HELD_OUT, 0, "val"),
            drawn(HELD_OUT, 0, "test"),
            fingerprint=fingerprint(*matrices),
            notes={"samples": [self.samples, HELD_OUT, HELD_OUT]},
        )

    def model(self) -> MultitaskModel:
        """Return the trunk and its heads."""
        layers: list[nn.Module] = []
        for layer in range(LAYERS):
            layers += [nn.Linear(self.width if layer else INPUTS, self.width), nn.ReLU()]
        heads = [Head(self.width, scale) for scale in self.scales]
        return MultitaskModel.single_feature(nn.Sequential(*layers), heads)

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return each objective's mean squared error, in its own scale."""
        return [
            labelled_loss(F.mse_loss, output, batch[name])
            for name, output in zip(self.objectives, outputs, strict=True)
        ]

    def residuals(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return each objective's errors, 0 without a target."""
        return [
            (output.float() - batch[name]).nan_to_num(nan=0.0)
            for name, output in zip(self.objectives, outputs, strict=True)
        ]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return Ratios(self.objectives)
