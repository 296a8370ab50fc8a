"""A run as a TOML file: what `mtbench tune` writes and `mtbench run --config` takes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtbench.errors import RunError, UsageError, first_fault, writable
from mtbench.plugins import params
from mtbench.training.cell import toml
from mtbench.training.machine.cache import writing

if TYPE_CHECKING:
    from mtbench.training.cell.request import Request
    from mtbench.training.cell.rundir import RunDirectory

FILE = "chosen.json"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chosen(_Strict):
    """How the parameters were found; a cell that is run with them has it as `FILE`.

    Attributes:
        ruleset: ``official`` for trials drawn beforehand, else ``exploratory``: not to be ranked.
        mode: the same in detail, such as ``tpe-median``.
        by: the rule, on the validation split.
        score: of the chosen trial by that rule.
        trial: which one it is.
        trials: how many there were, diverged and pruned ones among them.
        seed: of the trials: final seeds must be others.
        search: the ranges of the recipe's values that were searched.
        cell: the chosen trial's run directory, seen from the ``--out`` of the tuning.
        study: its name in the storage.
    """

    ruleset: Literal["official", "exploratory"]
    mode: str
    by: str
    score: float
    trial: int = Field(ge=0)
    trials: dict[str, int]
    seed: int = Field(ge=0)
    search: dict[str, list[float]]
    cell: str
    study: str

    @classmethod
    def read(cls, run: "RunDirectory") -> "Chosen | None":
        """Return how a cell's parameters were found, None where nothing is said of it.

        Raises:
            RunError: it does not parse.
        """
        remedy = "repeat the `mtbench run --config` that wrote it"
        found = run.read(FILE, remedy)
        try:
            return None if found is None else cls.model_validate(found)
        except ValidationError as error:
            raise RunError(f"{run.path / FILE}: {first_fault(error)}; {remedy}") from error

    def write(self, run: "RunDirectory") -> None:
        """Note it beside a cell; the caller holds the cell."""
        run.write_text(FILE, self.model_dump_json(indent=2))


class Config(_Strict):
    """What to run.

    Attributes:
        version: of this format.
        task: the task's name, and `task_params` as far as they are no defaults.
        method: the method's name, and `method_params` likewise.
        recipe: the optimisation, likewise.
        precision: ``fp32`` or ``bf16``.
        chosen: where the parameters come from, if from tuning.
    """

    version: Literal[1] = 1
    task: str
    method: str
    precision: Literal["fp32", "bf16"] = "fp32"
    task_params: dict[str, Any] = {}
    method_params: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    chosen: Chosen | None = None

    @classmethod
    def read(cls, file: Path) -> "Config":
        """Return what a file says.

        Raises:
            UsageError: there is none, it is no TOML, or a key is missing, unknown, or has no such
                value.
        """
        try:
            return cls.model_validate(toml.load(file))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            found = "" if first["type"] == "missing" else f", found {first['input']!r}"
            raise UsageError(f"{file}: {where}: {first['msg']}{found}") from error

    def check(
        self, file: Path, seeds: range, plugins: Sequence[Path], options: Sequence[str]
    ) -> "Request":
        """Return it as what can be run; check what only the task and the method can tell.

        That the seeds are fresh is checked, too.

        Raises:
            UsageError: an unknown name or parameter, a value that does not fit, or a seed that
                the parameters were chosen on.
        """
        from mtbench.training.cell.request import Request  # torch, which reading does not take

        try:
            given = self.overrides(self.task, [self.method])
            found = Request.of(self.task, [self.method], given, plugins, options)
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from error
        if self.chosen is not None and self.chosen.seed in seeds:
            raise UsageError(
                f"{file}: its parameters were chosen on seed {self.chosen.seed}; final seeds must "
                "be others: give another --seed"
            )
        return found

    def overrides(self, task: str, methods: list[str]) -> dict[str, str]:
        """Return the overrides, as of the command line, of a run of that task and those methods.

        Parameters of a task or a method that is not run are left out.
        """
        part = "" if "+" in self.method else f"{self.method}."
        shares = [
            (f"{self.task}.", self.task_params if task == self.task else {}),
            (part, self.method_params if self.method in methods else {}),
            ("recipe.", self.recipe),
        ]
        return {
            owner + key: params.text(value)
            for owner, share in shares
            for key, value in share.items()
        }

    def write(self, file: Path) -> None:
        """Write the file.

        Raises:
            RunError: it cannot be written.
        """
        lines = ["# mtbench run --config THIS; options on the command line win over it", ""]
        lines += _table("", self.model_dump(exclude_none=True))
        with writable(str(file)), writing(file) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(name: str, content: Mapping[str, Any]) -> list[str]:
    """Return the TOML lines of a table and those in it, plain keys first."""
    lines = [f"[{name}]"] if name else []
    lines += [f"{_key(k)} = {_toml(v)}" for k, v in content.items() if not isinstance(v, dict)]
    for key, inner in content.items():
        if isinstance(inner, dict):
            lines += ["", *_table(f"{name}.{key}".lstrip("."), inner)]
    return lines


def _key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Path):  # the file may be used from another folder
        value = value.absolute()
    return json.dumps("none" if value is None else str(value), ensure_ascii=False)
