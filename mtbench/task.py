"""What a benchmark task is: data, model, losses and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtbench.errors import UsageError
from mtbench.model import MultitaskModel

Batch = dict[str, Any]
"""What a split yields. ``batch["inputs"]`` goes to the encoder; the rest is the task's own."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while something long is prepared."""


@dataclass(frozen=True)
class Metric:
    """What the trainer and the leaderboard must know of a metric.

    Attributes:
        objective: the objective it judges.
        higher_is_better: its direction.
        primary: whether it counts for model selection, delta-m and ranks.
    """

    objective: str
    higher_is_better: bool = True
    primary: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a cell is optimised, by AdamW.

    Attributes:
        epochs: passes over the training split.
        batch_size: samples a step.
        lr: the peak learning rate.
        weight_decay: of the model's parameters; a balancer's own get none.
        schedule: ``cosine`` rises linearly over the first 5 % of the steps and falls to zero.
        select: which epoch's weights are tested: ``last``, or ``best`` by the trainer's rule on the
            validation split, which small validation splits make a lottery.
        clip: the largest norm of the whole gradient, or none.
    """

    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    select: Literal["best", "last"] = "best"
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"lr must be positive, found {self.lr}")
        if not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"weight_decay must not be negative, found {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip must be positive or none, found {self.clip}")


class Split(ABC):
    """One part of the data."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the samples at `indices`.

        Args:
            indices: (B,) integers.
            generator: the only source of randomness for augmentation; None means none is wanted.
        """


@dataclass(frozen=True)
class Splits:
    """The data of a cell.

    Attributes:
        train: what is learnt from.
        val: what epochs and hyper-parameters are selected on.
        test: what is reported.
        fingerprint: identifies the content; it is part of the cell's spec.
        notes: what a person should know of the data, printed and recorded.
    """

    train: Split
    val: Split
    test: Split
    fingerprint: str
    notes: Mapping[str, Any] = field(default_factory=dict)


class Meter(ABC):
    """Accumulates metrics over the batches of a split."""

    @abstractmethod
    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return every metric; NaN where it is undefined on what was seen."""


Predictor = Callable[[Any], list[Any]]
"""Maps ``batch["inputs"]`` to the K heads' outputs of a trained model, without gradients."""


@dataclass(frozen=True)
class History:
    """How one cell went.

    Attributes:
        method: its name.
        seed: its seed.
        epochs: the records of ``epochs.jsonl``: ``epoch``, ``train_loss``, ``val_loss``, ``val``.
    """

    method: str
    seed: int
    epochs: Sequence[Mapping[str, Any]]


class Task(ABC):
    """A benchmark task; its own parameters are the keyword-only arguments of ``__init__``.

    Attributes:
        objectives: the names of the K objectives, in the order of heads and losses.
        metrics: by name; at least one primary metric for each objective.
        recipe: the default recipe, possibly set by ``__init__``.
        dependent: the parameters whose default depends on other parameters, with the values in
            use; a spec records these.
    """

    objectives: ClassVar[tuple[str, ...]]
    metrics: Mapping[str, Metric]
    recipe: Recipe = Recipe()
    dependent: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def setup(self, seed: int, progress: Progress) -> Splits:
        """Load the data and split it; the same seed gives the same splits to every method.

        Raises:
            DataError: the data is absent or broken.
        """

    @abstractmethod
    def model(self) -> MultitaskModel:
        """Return a fresh model, initialised from torch's global generator."""

    @abstractmethod
    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return the K losses, each on the graph even where no sample has a label."""

    @abstractmethod
    def meter(self) -> Meter:
        """Return a fresh meter."""

    def figures(self, predictor: Predictor, splits: Splits, folder: Path) -> list[Path]:
        """Draw what a person wants to see of a trained model; return the files written."""
        return []

    def overview(self, cells: Sequence[History], folder: Path) -> list[Path]:
        """Draw what a person wants to see of all cells side by side; return the files written."""
        return []

    def predict(self, predictor: Predictor, inputs: Sequence[Path], folder: Path) -> list[Any]:
        """Apply a trained model to a user's files.

        Returns:
            One JSON-able record per input; pictures go to `folder`.
        """
        raise UsageError(f"task {_name(type(self))} does not predict on files")

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return (count, what, why) rows: what of a data source is used, repaired and dropped."""
        raise UsageError(f"task {_name(cls)} has no data to inspect")

    @classmethod
    def preview(cls, source: str, data: Path | None, picture: Path) -> None:
        """Draw a few cases of a data source with their labels."""
        raise UsageError(f"task {_name(cls)} has no data to preview")


def _name(task: type[Task]) -> str:
    return task.__module__.rpartition(".")[2].removeprefix("mtbench_plugin_")
