"""Suites: a comparison as a file. Which tasks, methods, budget and seeds, and what is searched.

Packages announce suites by an entry point in the group ``mtbench.suites`` that names a package of
``.toml`` files, whose names are the suites'.
"""

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mtbench.errors import UsageError, did_you_mean
from mtbench.training import toml

EVERY = "all"
"""Among the methods: every one of the registry that stands alone."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TaskSetting(_Strict):
    """A task as a suite runs it.

    Attributes:
        name: the task's.
        set: its own parameters.
        recipe: what of its recipe is changed.
        needs_data: whether it is given ``--data``.
    """

    name: str
    set: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    needs_data: bool = False


class Budget(_Strict):
    """What every method gets on every task.

    Attributes:
        trials: to choose parameters by; none leaves the defaults.
        tuning_seed: of the trials.
        seeds: number of final cells.
        first_seed: of the final cells, counted up from there.
    """

    trials: Annotated[int, Field(ge=0)]
    seeds: Annotated[int, Field(ge=1)]
    first_seed: Annotated[int, Field(ge=0)] = 0
    tuning_seed: Annotated[int, Field(ge=0)] = 1000

    @model_validator(mode="after")
    def _seeds_are_fresh(self) -> "Budget":
        if self.trials and self.tuning_seed in self.final_seeds:
            raise ValueError(
                f"tuning_seed must be none of the final seeds {self.first_seed} to "
                f"{self.final_seeds[-1]}, found {self.tuning_seed}"
            )
        return self

    @property
    def final_seeds(self) -> range:
        """The seeds that are reported."""
        return range(self.first_seed, self.first_seed + self.seeds)


Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class Ranges(_Strict):
    """What is searched beside a method's own parameters, log-uniformly; what is absent is not.

    Attributes:
        lr: lowest and highest learning rate.
        weight_decay: likewise.
    """

    lr: Range | None = None
    weight_decay: Range | None = None


class Suite(_Strict):
    """A comparison.

    Attributes:
        version: of this format.
        name: what it is called.
        title: what it compares, in words.
        tasks: what is compared on.
        methods: what is compared, ``wrapper+base`` included; ``all`` stands for every method that
            stands alone.
        budget: what each gets.
        search: the common ranges; by default those of `Search.around`, in `comparing.tuning`.
        fixed: by method, parameters that are not searched.
        precision: ``fp32``, or ``bf16`` autocast.
        device: to train on.
    """

    version: Literal[1]
    name: str
    title: str
    tasks: Annotated[list[TaskSetting], Field(min_length=1)]
    methods: Annotated[
        list[str],
        Field(min_length=1),
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    ]
    budget: Budget
    search: Ranges | None = None
    fixed: dict[str, dict[str, Any]] = {}
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Suite":
        for i, task in enumerate(self.tasks):
            if task in self.tasks[:i]:
                raise ValueError(f"tasks.{i}: is the same as task {self.tasks.index(task)}")
        for i, method in enumerate(self.methods):
            if method in self.methods[:i]:
                raise ValueError(f"methods.{i}: {method!r} is named twice")
        return self


_TABLES: dict[str, type[BaseModel]] = {
    "": Suite, "tasks": TaskSetting, "budget": Budget, "search": Ranges
}  # fmt: skip


def shipped() -> dict[str, Path]:
    """Return the files of the installed suites, by name."""
    found: dict[str, Path] = {}
    for point in entry_points(group="mtbench.suites"):
        spec = find_spec(point.value)
        for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
            found |= {file.stem: file for file in sorted(folder.glob("*.toml"))}
    return found


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
            raise UsageError(
                f"no suite {given!r}: {did_you_mean(given, known)} (or give a .toml file)"
            )
        file = known[given]
    try:
        content = toml.load(file)
    except OSError as error:
        raise UsageError(f"suite {file}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # broken TOML or UTF-8
        raise UsageError(f"{file}: is no TOML: {error}") from error
    try:
        return Suite.model_validate(content)
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
