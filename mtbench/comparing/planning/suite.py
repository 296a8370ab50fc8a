"""Suites: a comparison as a file. Which tasks, methods, budget and seeds, and what is searched.

Packages announce suites by an entry point in the group ``mtbench.suites`` that names a package of
``.toml`` files, whose names are the suites'.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mtbench.comparing.judging.deciding import MARGIN
from mtbench.comparing.shipped import shipped
from mtbench.errors import UsageError, did_you_mean
from mtbench.plugins import params
from mtbench.training.cell import toml

EVERY = "all"
"""Among the methods: every one of the registry that stands alone."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


BEST = "best"
"""Stands for the row that validates best, of those whose weights move."""

EACH = "repetition"
"""Stands for the number of the repetition."""

VALIDATION = 0.2
"""What share of the parts that are not tested is held out of training, as tasks do it."""

Parts = Annotated[list[int | str], Field(min_length=2, max_length=1000)]
Resample = Annotated[dict[str, Parts | Literal["repetition"]], Field(min_length=1, max_length=1)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class Ranges(_Strict):
    """What is searched beside a method's own parameters, log-uniformly; what is absent is not.

    Attributes:
        lr: lowest and highest learning rate.
        weight_decay: likewise.
        origin: who set them, when, and by what pilot.
    """

    lr: Range | None = None
    weight_decay: Range | None = None
    origin: str = ""


class Measured(_Strict):
    """What a pilot of a task has shown; it plans a suite, and is no part of what it says.

    Attributes:
        deviation: of one unit's paired difference of delta-m, in points: the median of the pairs.
        seconds: that a final cell took, the median of the methods; None where that is not known.
        origin: by which runs, when, and on what machine.
    """

    deviation: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    origin: str


class TaskSetting(_Strict):
    """A task as a suite runs it.

    Attributes:
        name: the task's.
        set: its own parameters.
        recipe: what of its recipe is changed.
        resample: a parameter that gives each repetition data of its own, and what it is there.
            A list has all folds of one collection, which are tested in turn, such as ``{fold =
            ["1/5", "2/5", "3/5", "4/5", "5/5"]}`` or ``{fold = [0, 1, 2, 3, 4]}``: their
            differences are correlated, and the test is the corrected one. ``{phantom_seed =
            "repetition"}`` is the repetition's number: each has a population of its own.
        search: the common ranges on this task, instead of the suite's.
        needs_data: whether it is given ``--data``.
        measured: how it scatters, and what it costs.
    """

    name: str
    set: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    resample: Resample | None = None
    search: Ranges | None = None
    needs_data: bool = False
    measured: Measured | None = None

    @model_validator(mode="after")
    def _is_resampled_by_one(self) -> "TaskSetting":
        for key, parts in (self.resample or {}).items():
            if key in self.set:
                raise ValueError(f"{key!r} is in set and in resample")
            if isinstance(parts, list) and not _are_folds(key, parts):
                raise ValueError(
                    f'resample: a list must be the folds of one collection, fold = ["1/n", ..., '
                    f'"n/n"] or [0, ..., n - 1], found {key} = {parts}; populations of their own '
                    f'are {key} = "{EACH}"'
                )
        return self

    @property
    def title(self) -> str:
        """What tells tasks of a suite apart."""
        told = {
            key: parts if parts == EACH else f"{parts[0]}..{parts[-1]}"
            for key, parts in (self.resample or {}).items()
        }
        return f"{self.name} {params.own_keys({**self.set, **self.recipe, **told})}".strip()

    def data_of(self, repetition: int) -> dict[str, int | str]:
        """Return the parameters that a repetition has for itself."""
        return {
            key: repetition if parts == EACH else parts[repetition % len(parts)]
            for key, parts in (self.resample or {}).items()
        }

    @property
    def resplit(self) -> float | None:
        """The ratio of test to training samples where repetitions split one collection again.

        0 where each has a population of its own, None where all have the same data.
        """
        for parts in (self.resample or {}).values():
            return 0.0 if parts == EACH else 1 / (1 - VALIDATION) / (len(parts) - 1)
        return None


def _are_folds(key: str, parts: list[int | str]) -> bool:
    """Return whether parts are all folds of one collection, by what tasks call them."""
    n = len(parts)
    kinds = [set(range(n)), {f"{k + 1}/{n}" for k in range(n)}]
    return key == "fold" and set(parts) in kinds


class MethodSetting(_Strict):
    """A row: a method, or a variant of one.

    Attributes:
        name: the method's, ``wrapper+base`` included.
        set: its own parameters that are not searched.
        recipe: what of the task's recipe is changed.
        times: how many times the task's epochs it trains: a row of another budget, such as the
            hours of a method whose step costs so many times as much.
        label: what the row is called, the name by default.
        weights_from: another row, or ``best``: the final cells have, as constants, the weights that
            this row's found in the same repetition at the same seed, and its learning rate and all
            else. They need no trials of their own.
        weights_of: the run's mean or its final ones.
    """

    name: str
    set: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    times: Annotated[int, Field(ge=1, le=1000)] = 1
    label: str = ""
    weights_from: str = ""
    weights_of: Literal["mean", "final"] = "mean"

    @model_validator(mode="after")
    def _variants_are_named(self) -> "MethodSetting":
        other_budget = self.times > 1
        if (self.set or self.recipe or other_budget or self.weights_from) and not self.label:
            raise ValueError(f"a variant needs a label, found none for {self.name!r}")
        if self.weights_from and (self.recipe or other_budget or "weights" in self.set):
            raise ValueError(f"{self.label!r} has weights and recipe of {self.weights_from!r}")
        if other_budget and "epochs" in self.recipe:
            raise ValueError(f"{self.label!r} says epochs and how many times the task's: say one")
        return self

    @property
    def row(self) -> str:
        """What the row is called."""
        return self.label or self.name


class Budget(_Strict):
    """What every method gets on every task.

    Attributes:
        trials: to choose parameters by, in each repetition; none leaves the defaults.
        seeds: number of final cells of a repetition.
        repetitions: of the whole study: trials of its own, and seeds of its own. With one, what
            is told holds for the parameters that were chosen once.
        tuning_seed: of the first repetition's trials, counted up from there.
        first_seed: of the final cells, likewise.
    """

    trials: Annotated[int, Field(ge=0, le=1000)]
    seeds: Annotated[int, Field(ge=1, le=1000)]
    repetitions: Annotated[int, Field(ge=1, le=1000)] = 1
    first_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    tuning_seed: Annotated[int, Field(ge=0, lt=2**31)] = 1000

    @model_validator(mode="after")
    def _seeds_are_fresh(self) -> "Budget":
        tuning = range(self.tuning_seed, self.tuning_seed + self.repetitions)
        every = range(self.first_seed, self.first_seed + self.seeds * self.repetitions)
        if self.trials and tuning.start < every.stop and every.start < tuning.stop:
            raise ValueError(
                f"tuning_seed must be none of the final seeds {every[0]} to {every[-1]}, found "
                f"{self.tuning_seed}" + (f" to {tuning[-1]}" if self.repetitions > 1 else "")
            )
        return self

    @property
    def cells(self) -> int:
        """How many a row has on a task."""
        return self.repetitions * (self.trials + self.seeds)

    def final_seeds(self, repetition: int) -> range:
        """Return the seeds that a repetition reports."""
        begin = self.first_seed + self.seeds * repetition
        return range(begin, begin + self.seeds)


def _settings(given: object) -> object:
    """Return methods as tables, where they are names."""
    several = given if isinstance(given, list) else [given]
    return [{"name": one} if isinstance(one, str) else one for one in several]


class Suite(_Strict):
    """A comparison.

    Attributes:
        version: of this format.
        name: what it is called.
        title: what it compares, in words.
        tasks: what is compared on.
        methods: what is compared; a name alone stands for the method as it is, ``all`` for every
            method that stands alone.
        against: the rows that all others are compared with; their questions are what a sweep
            ``--until decided`` decides.
        margin: percent of delta-m within which two rows count as equivalent.
        budget: what each gets.
        search: the common ranges; by default those of `Search.around`, in `comparing.tuning`.
        precision: ``fp32``, or ``bf16`` autocast.
        device: to train on.
    """

    version: Literal[1]
    name: str
    title: str
    tasks: Annotated[list[TaskSetting], Field(min_length=1, max_length=1000)]
    methods: Annotated[
        list[MethodSetting], Field(min_length=1, max_length=1000), BeforeValidator(_settings)
    ]
    against: list[str] = []
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] = MARGIN
    budget: Budget
    search: Ranges | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Suite":
        titles = [task.title for task in self.tasks]
        for i, task in enumerate(self.tasks):
            if task.title in titles[:i]:  # by it cells and boards are known
                raise ValueError(
                    f"tasks.{i}: is the same as task {titles.index(task.title)} in what names it, "
                    f"{task.title!r}: compare other ranges or data in a suite of their own"
                )
            if task.resample and self.budget.repetitions < 2:
                raise ValueError(f"tasks.{i}: resample needs `repetitions` in the budget")
        rows = [method.row for method in self.methods]
        for i, row in enumerate(rows):
            if row in rows[:i]:
                raise ValueError(f"methods.{i}: {row!r} is named twice")
        return self

    @property
    def digest(self) -> str:
        """Of all that the suite says, but its title and what was measured."""
        content = self.model_dump(mode="json", exclude={"title"})
        content["device"] = self.device.partition(":")[0]  # which of several is no part of a cell
        for task in content["tasks"]:
            del task["measured"]
            if task["resample"] is None:  # so that digests from before there was such a key stay
                del task["resample"]
        for method in content["methods"]:
            if method["times"] == 1:
                del method["times"]
            if not method["weights_from"]:
                del method["weights_from"], method["weights_of"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def tag(self) -> str:
        """What titles of boards call it."""
        from mtbench.comparing.claim import tag  # torch, which reading a suite does not take

        return tag(self.name, self.digest)


_TABLES: dict[str, type[BaseModel]] = {
    "": Suite, "tasks": TaskSetting, "methods": MethodSetting, "budget": Budget, "search": Ranges,
    "measured": Measured,
}  # fmt: skip


def load(given: str) -> Suite:
    """Return a suite.

    Args:
        given: an installed suite's name, or the path of a ``.toml`` file.

    Raises:
        UsageError: no such suite, or the file is none.
    """
    file = Path(given)
    if file.suffix != ".toml":
        known = shipped()
        if given not in known:
            hint = did_you_mean(given, known, listed="mtbench list suites")
            raise UsageError(f"unknown suite {given!r}: {hint} (or give a .toml file)")
        file = known[given]
    try:
        return Suite.model_validate(toml.load(file))
    except ValidationError as error:
        raise UsageError(f"{file}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """Return the first thing that is wrong, in a line."""
    found = error.errors()
    # A misspelt key is also a missing one; the former says more.
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        table = next((k for k in reversed(first["loc"][:-1]) if isinstance(k, str)), "")
        hint = did_you_mean(str(first["loc"][-1]), _TABLES[table].model_fields)
        return f"unknown key {where}: {hint}"
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "value_error":  # one of ours, which names what it found
        return ": ".join(filter(None, [where, str(first["ctx"]["error"])]))
    rule = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {rule}, found {first['input']!r}"
