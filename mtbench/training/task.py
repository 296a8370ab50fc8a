"""What a benchmark task is: data, model, losses and metrics."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import torch
from torch import Tensor

from mtbench.balancing.model import MultitaskModel
from mtbench.balancing.signatures import must_take, name_of
from mtbench.errors import PluginError, UsageError

Batch = dict[str, Any]
"""What a split yields. ``batch["inputs"]`` goes to the encoder; the rest is the task's own.

Where every objective has samples of its own, they are a `mtbench.PerObjective` of K inputs, each of
which has a length, and `losses` and the meter get outputs of as many samples each."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while something long is prepared."""


@dataclass(frozen=True)
class Metric:
    """What the trainer and the leaderboard must know of a metric.

    Attributes:
        objective: the objective it judges, or None if it judges all of them together. The
            single-task row has the value that its separate models' outputs give.
        higher_is_better: its direction.
        primary: whether it counts for model selection, delta-m and ranks.
        chance: what a guess has, where a guess has the same on any data, such as 0.5 of AUROC. A
            leaderboard tells where the single-task row is no better.
    """

    objective: str | None
    higher_is_better: bool = True
    primary: bool = False
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a cell is optimised.

    There is no early stopping: methods would be compared on different budgets, and the rule would
    reward those that are fast at first. ``select="best"`` keeps the best epoch and shortens
    nobody's run.

    Attributes:
        epochs: passes over the training split.
        batch_size: samples a step.
        lr: the peak learning rate.
        optimizer: ``adamw``, ``adam`` (whose weight decay is added to the gradient), ``sgd`` with
            momentum 0.9, or ``muon`` for the encoder's weight matrices and AdamW for all else.
            The Adams forget a direction's length and ``sgd`` does not: so methods that differ in
            length rank otherwise. Each wants a learning rate of its own. Or ``lbfgs``: a step finds
            the method's weights and lowers the losses' sum with these, heads included, by 20
            iterations of L-BFGS with a line search, at up to 25 further evaluations. What it has
            learnt of the sum's curvature is kept while the weights stay. It wants the training
            split as one batch, the same at each look, and a method that weights losses and has no
            parameter of its own; ``lr`` is where its line search begins, usually 1.
        encoder_lr: the encoder's learning rate, as a multiple of ``lr``, which all else has.
        weight_decay: of the model's parameters; a balancer's own get none.
        schedule: ``cosine`` rises linearly over the first 5 % of the steps and falls to zero;
            ``step`` halves the rate after half of the steps.
        select: which epoch's weights are tested: ``last``, or ``best`` by the trainer's rule on the
            validation split, which small validation splits make a lottery.
        clip: the largest norm of the whole gradient, or none.
        accumulate: the parts in which a batch goes through the model, one after another, in the
            memory of one part. The step is the whole batch's, to rounding, and every backward pass
            costs a forward pass more.
        nonfinite: what is done where a loss or a gradient is infinite or NaN: ``stop`` the cell,
            which has diverged; ``skip`` the step, up to 1 % of all steps; or go on, from this
            step, in ``fp32`` where the run was in bf16. The last two keep a copy of the method's
            state.
    """

    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-3
    optimizer: Literal["adamw", "adam", "sgd", "muon", "lbfgs"] = "adamw"
    encoder_lr: float = 1.0
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    select: Literal["best", "last"] = "best"
    clip: float | None = None
    nonfinite: Literal["stop", "skip", "fp32"] = "stop"
    accumulate: int = 1

    def __post_init__(self) -> None:
        for own in fields(self):
            choices, value = get_args(own.type), getattr(self, own.name)
            if get_origin(own.type) is Literal and value not in choices:
                known = " or ".join(map(repr, choices))
                raise UsageError(f"{own.name} must be {known}, found {value!r}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"accumulate must be at most batch_size, {self.batch_size}, found {self.accumulate}"
            )
        for name in ("lr", "encoder_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be positive, found {getattr(self, name)}")
        if not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"weight_decay must not be negative, found {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip must be positive or none, found {self.clip}")
        wrong = [name for name, value in _SEARCHED.items() if getattr(self, name) != value]
        if self.optimizer == "lbfgs" and wrong:
            wanted, found = (
                ", ".join(f"{name}={of[name]!r}" for name in wrong)
                for of in (_SEARCHED, vars(self))
            )
            raise UsageError(f"optimizer=lbfgs wants {wanted}, found {found}")

    def refuse_precision(self, precision: str) -> None:
        """Refuse to fall back to fp32 from fp32."""
        if self.nonfinite == "fp32" and precision == "fp32":
            raise UsageError("nonfinite=fp32 lowers bf16 to fp32, and the run is at fp32 already")

    def record(self) -> dict[str, Any]:
        """Return what a spec says of it.

        What the first specs did not have is left out at its default, so that the same recipe has
        the same record then and now. A cell's hash is also of its plugins' code.
        """
        later = {f.name: f.default for f in fields(self) if f.name in _LATER}
        return {k: v for k, v in vars(self).items() if k not in later or v != later[k]}


_SEARCHED = {
    "encoder_lr": 1,
    "weight_decay": 0,
    "schedule": "constant",
    "clip": None,
    "nonfinite": "stop",
}
"""What an optimizer that searches for a step's length itself leaves no room for."""

_LATER = ("optimizer", "encoder_lr", "accumulate")


RESERVED = frozenset(
    {
        "board", "method", "seeds", "diverged", "units", "trials", "complete", "reason", "delta_m",
        "delta_m_low", "delta_m_high", "iqm", "mean_rank", "first", "difference", "difference_low",
        "difference_high", "p", "p_equivalence", "wins", "told", "hypervolume", "seconds_per_step",
        "cost_ratio", "peak_mib", "passes", "train_hours", "tuning_hours", "rank", "Δm %",
    }
)  # fmt: skip
"""The columns of a leaderboard, which no metric may be called like."""


def shadows(name: str, metrics: Container[str]) -> bool:
    """Return whether a metric would stand in a column that a leaderboard has already.

    Args:
        name: the metric's.
        metrics: the names of all metrics.
    """
    return name in RESERVED or (name.endswith("_sd") and name.removesuffix("_sd") in metrics)


class Split(ABC):
    """One part of the data.

    Attributes:
        by_objective: each objective's own samples, as `mtbench.data.PerObjectiveSplit` has them;
            None if all objectives share each sample.
    """

    by_objective: "Mapping[str, Split] | None" = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        must_take(cls, "batch")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the samples at `indices`.

        Args:
            indices: (B,) integers.
            generator: the only source of randomness for augmentation; None means none is wanted.
        """

    def groups(self) -> Sequence[Hashable] | None:
        """Return each sample's group, such as its patient, which lies in one split only.

        None says that samples are independent.
        """
        return None


@dataclass(frozen=True)
class Splits:
    """The data of a cell.

    Attributes:
        train: what is learnt from.
        val: what epochs and hyper-parameters are selected on.
        test: what is reported.
        fingerprint: identifies the content; it is part of the cell's spec.
        notes: what a person should know of the data, printed and recorded; a list of texts gets
            a line each, and is left out of model cards and exports, for it may name patients.
    """

    train: Split
    val: Split
    test: Split
    fingerprint: str
    notes: Mapping[str, Any] = field(default_factory=dict)


def is_texts(note: Any) -> bool:
    """Return whether a note is a list of texts, none of which is to be read beside another."""
    return isinstance(note, list | tuple) and all(isinstance(text, str) for text in note)


class Meter(ABC):
    """Accumulates metrics over the batches of a split."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("update", "compute"):
            must_take(cls, name)

    @abstractmethod
    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return every metric; NaN where it is undefined on what was seen."""


Predictor = Callable[[Any], list[Any]]
"""Maps ``batch["inputs"]`` to the K heads' outputs of a trained model, without gradients."""


@dataclass(frozen=True)
class Trained:
    """A trained model, as new files are read with it.

    Attributes:
        predictor: the model.
        name: which one it is, for a person.
        fitted: what `Task.fit` returned; empty where it has not been asked.
        others: further models of the same task, to be asked together with this one.
        init: which weights it started from, by their hash: those of another model, which has seen
            what it was trained on; None where it began fresh.
    """

    predictor: Predictor
    name: str
    fitted: Mapping[str, Any]
    others: "tuple[Trained, ...]" = ()
    init: str | None = None

    @property
    def members(self) -> "tuple[Trained, ...]":
        """This model and the others."""
        return (self, *self.others)

    @property
    def label(self) -> str:
        """The names of all members, for a person."""
        return "; ".join(model.name for model in self.members)


class Verdict(NamedTuple):
    """What is to be said of a data source.

    Attributes:
        cases: how many can be used.
        problems: a line for each thing that is left out, or for which a run would be refused.
        doubts: a line for each thing that is used, but looks odd.
    """

    cases: int
    problems: list[str]
    doubts: list[str]


class Table(NamedTuple):
    """A table for a person.

    Attributes:
        title: what it shows.
        head: the columns' names.
        rows: as many cells each.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Evaluation(NamedTuple):
    """What a trained model is worth on data that it has not seen.

    Attributes:
        tables: the most important numbers.
        notes: a line for each thing that a person should know before they believe them.
        files: those that were written, the page to begin with first.
    """

    tables: Sequence[Table]
    notes: Sequence[str]
    files: Sequence[Path]


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
        idle: the parameters that change nothing, given the others: a board's title and a model's
            card leave them out.
        own_inputs: whether every objective has samples of its own: a batch's inputs are
            `mtbench.PerObjective`.
        apart: the options of `predict` by which one file has several readings: what is written of
            the others begins with ``TO_OPTION``, or ``TO_OPTION1``, ``TO_OPTION2``, ...
    """

    objectives: tuple[str, ...]
    metrics: Mapping[str, Metric]
    recipe: Recipe = Recipe()
    dependent: Mapping[str, Any] = MappingProxyType({})
    idle: frozenset[str] = frozenset()
    own_inputs: bool = False
    apart: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("setup", "model", "losses", "residuals", "meter", "figures", "fit"):
            must_take(cls, name)
        if "setup" in vars(cls):
            setattr(cls, "setup", _of_splits(vars(cls)["setup"]))  # noqa: B010 - a method

    @abstractmethod
    def setup(self, seed: int, progress: Progress) -> Splits:
        """Load the data and split it; the same seed gives the same splits to every method.

        Raises:
            DataError: the data is absent or broken.
        """

    def recall(self, fingerprint: str) -> None:
        """Take note that a model exists, trained on data of a fingerprint, before any `setup`.

        What training alone starts from, such as a file of pretrained weights, need then not be
        there; `setup` still gives the fingerprint that it would give with it.
        """
        return

    def begin(self, fitted: Mapping[str, Any]) -> None:
        """Take note, before any `setup`, that training starts from a trained model's weights.

        `setup` may then tell, in its notes, what of validation and test that model has seen.

        Args:
            fitted: what `fit` returned of it; empty where it is no model of this task.
        """
        return

    @abstractmethod
    def model(self) -> MultitaskModel:
        """Return a fresh model, initialised from torch's global generator."""

    @abstractmethod
    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return the K losses, each on the graph even where no sample has a label."""

    def residuals(self, outputs: Sequence[Any], batch: Batch) -> Sequence[Tensor] | None:
        """Return per objective what its loss squares, on the graph, for methods that look there.

        Loss k is the mean of the squares, up to a factor; a sample without a label has 0. None says
        that the losses are no mean squares.
        """
        return None

    @abstractmethod
    def meter(self) -> Meter:
        """Return a fresh meter."""

    def figures(self, predictor: Predictor, splits: Splits, folder: Path) -> list[Path]:
        """Draw what a person wants to see of a trained model; return the pictures.

        Their tables may lie beside them.
        """
        return []

    def overview(self, cells: Sequence[History], folder: Path) -> list[Path]:
        """Draw what a person wants to see of all cells side by side; return the files written."""
        return []

    def fit(self, predictor: Predictor, splits: Splits) -> dict[str, Any]:
        """Return what `predict` needs beside the weights, found on training and validation.

        Such as a calibration; JSON-able. It is asked once, of the model that is kept.
        """
        return {}

    def predict(self, trained: Trained, path: Path, to: Path) -> dict[str, Any]:
        """Apply a trained model to a user's file.

        Further keyword-only parameters become options of ``mtbench predict``. One that is a path
        is a file here: if several are read, or a folder was given, that at the same place in it.

        Args:
            trained: the model.
            path: the file.
            to: folder and first part of the name of whatever is written.

        Returns:
            A JSON-able record.

        Raises:
            DataError: the file cannot be read; others may still be.
        """
        raise UsageError(f"task {name_of(type(self))} does not predict on files")

    def evaluate(self, trained: Trained, data: Path | None, to: Path) -> Evaluation:
        """Judge a trained model on data that it has not seen.

        Further keyword-only parameters become options of ``mtbench evaluate``.

        Args:
            trained: the model.
            data: where the data lies.
            to: a folder, which is there, for whatever is written. It may be moved at the end, so
                what is written does not name it.

        Raises:
            DataError: the data is absent or broken, or the model was trained on all of it.
        """
        raise UsageError(f"task {name_of(type(self))} does not evaluate on other data")

    def joins(self, other: "Task") -> bool:
        """Return whether `predict` and `evaluate` may ask a model of another task with this one's.

        It is one of `Trained.others` then; `other` is of this class.
        """
        return False

    @classmethod
    def reads(cls, path: Path) -> bool:
        """Return whether `predict` is for such a file, when a folder is read."""
        return True

    def card(self, fitted: Mapping[str, Any]) -> str:
        """Return the sections of a model card that only the task can write, in Markdown.

        What goes in and comes out, what it is meant for, where its limits are.
        """
        return ""

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return (count, what, why) rows: what of a data source is used, repaired and dropped."""
        raise UsageError(f"task {name_of(cls)} has no data to inspect")

    @classmethod
    def preview(cls, source: str, data: Path | None, picture: Path) -> None:
        """Draw a few cases of a data source with their labels."""
        raise UsageError(f"task {name_of(cls)} has no data to preview")

    @classmethod
    def verify(cls, source: str, data: Path | None) -> Verdict:
        """Read all of a data source; return what of it is broken, and what looks odd.

        Further keyword-only parameters of this, of `inspect` and of `export` become options of
        their commands.
        """
        raise UsageError(f"task {name_of(cls)} has no data to verify")

    @classmethod
    def export(cls, source: str, data: Path | None, to: Path) -> Verdict:
        """Write a data source's cases as other programs read them; return what was left out.

        Args:
            source: its name.
            data: where it lies.
            to: an empty folder, or one that is to be made. It may be moved at the end.
        """
        raise UsageError(f"task {name_of(cls)} has no data to export")

    @classmethod
    def template(cls) -> str:
        """Return a text file that describes a user's own data, with examples, to be filled in."""
        raise UsageError(f"task {name_of(cls)} has no template: it does not read a user's own data")


def _of_splits(setup: Any) -> Callable[..., Splits]:
    """Return a task's `setup` that refuses to return anything but splits that can be recorded."""

    @wraps(setup)
    def checked(self: Task, *args: Any, **named: Any) -> Splits:
        found = setup.__get__(self, type(self))(*args, **named)  # it may be a class method
        name = name_of(type(self))
        if not isinstance(found, Splits) or not isinstance(found.fingerprint, str):
            what = "no text as its fingerprint" * isinstance(found, Splits)
            raise PluginError(
                f"{name}: setup must return mtbench.Splits(train, val, test, fingerprint='...'), "
                f"found {what or type(found).__name__}"
            )
        for part in ("train", "val", "test"):
            _must_be_usable(getattr(found, part), f"{name}: setup's split {part}", self.objectives)
        try:
            json.dumps(dict(found.notes))
        except (TypeError, ValueError) as error:
            raise PluginError(f"{name}: setup's notes go into result.json: {error}") from None
        return found

    return checked


def _must_be_usable(split: Split, what: str, objectives: Sequence[str]) -> None:
    """Refuse a split without a sample, with objectives' own in another order, or odd groups."""
    if not len(split):
        raise PluginError(f"{what} is empty: give it a sample, or raise mtbench.DataError")
    if split.by_objective is not None and tuple(split.by_objective) != tuple(objectives):
        raise PluginError(
            f"{what} has samples of {', '.join(split.by_objective)}: give those of "
            f"{', '.join(objectives)}, in this order"
        )
    for own in (split.by_objective or {"all": split}).values():
        if (groups := own.groups()) is not None and len(groups) != len(own):
            raise PluginError(f"{what} has {len(groups)} groups of {len(own)} samples: one each")


def must_declare(task: Task) -> None:
    """Refuse a task whose class does not say what it consists of.

    Raises:
        PluginError: objectives, metrics or the recipe are absent or of another kind.
    """
    name, names = name_of(type(task)), getattr(task, "objectives", None)
    if not isinstance(names, tuple | list) or not names:
        raise PluginError(
            f"{name}: objectives must be a tuple of names, as in ('mask', 'risk'), found {names!r}"
        )
    if len(set(names)) < len(names):
        raise PluginError(f"{name}: objectives must have names of their own, found {names!r}")
    metrics = getattr(task, "metrics", None)
    if not isinstance(metrics, Mapping):
        raise PluginError(f"{name}: metrics must be mtbench.Metric by name, found {metrics!r}")
    for key, metric in metrics.items():
        if not isinstance(metric, Metric) or metric.objective not in (*names, None):
            raise PluginError(
                f"{name}: metrics[{key!r}] must be an mtbench.Metric of {', '.join(names)}, or of "
                f"None, found {metric!r}"
            )
    if not any(metric.primary for metric in metrics.values()):
        raise PluginError(
            f"{name}: none of its metrics has primary=True, and those are what is compared"
        )
    if not isinstance(task.recipe, Recipe):
        raise PluginError(f"{name}: recipe must be an mtbench.Recipe(...), found {task.recipe!r}")
