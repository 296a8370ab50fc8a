"""What a suite says of a cell: beside its spec, why it is run and what it is one of.

A folder may hold anything: cells of other suites, of `mtbench run`, of exploratory tuning. Who is
ranked comes from the suite, and this is where the folder remembers it. A cell may serve several.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from mtbench.errors import RunError, first_fault
from mtbench.training.cell.rundir import RunDirectory

FILE = "suites.json"


def tag(suite: str, digest: str) -> str:
    """Return what titles of boards call a suite of some content."""
    return f"{suite}@{digest[:6]}"


class Claim(BaseModel):
    """One suite's claim on a cell.

    Attributes:
        suite: its name.
        digest: of its content, title excepted: a suite that was changed is another one.
        task: the column's title.
        label: the row's.
        repetition: of the whole study, counted from 0.
        draw: a trial's number; of a final cell, that of the trial which gave it its parameters,
            None where there were no trials.
        sampler: what the trials are drawn by.
        places: of a trial, where in its range each parameter lies, from 0 to 1.
        trials: how many each repetition has.
        repetitions: how many are planned.
        seeds: final cells that each repetition has.
        rows: how many the suite has on this task.
        margin: of equivalence, percent of delta-m.
        resplit: the ratio of test to training samples where repetitions split one collection
            again, 0 where each has a population of its own, None where all have the same data.
        against: the rows that all others are compared with.
        fixed: parameters that the suite gives the row, those of the recipe as ``recipe.KEY``.
        weights_from: the row whose weights this final cell has as constants, empty for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    suite: str
    digest: str
    task: str
    label: str
    repetition: Annotated[int, Field(ge=0, lt=1000)]
    draw: Annotated[int, Field(ge=0, lt=1000)] | None
    sampler: str
    places: dict[str, float]
    trials: Annotated[int, Field(ge=0, le=1000)]
    repetitions: Annotated[int, Field(ge=1, le=1000)]
    seeds: Annotated[int, Field(ge=1, le=1000)]
    rows: Annotated[int, Field(ge=1, le=2000)]  # a suite names 1000, `all` may add to them
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    against: list[str]
    resplit: Annotated[float, Field(ge=0, le=2)] | None = None
    fixed: dict[str, JsonValue] = {}
    weights_from: str = ""

    @model_validator(mode="after")
    def _is_planned(self) -> "Claim":
        if self.repetition >= self.repetitions:
            raise ValueError(f"repetition {self.repetition} of {self.repetitions}, from 0")
        if self.draw is not None and self.draw >= self.trials:
            raise ValueError(f"trial {self.draw} of {self.trials}, from 0")
        return self

    @property
    def board(self) -> tuple[str, str]:
        """What claims on one board have in common."""
        return self.digest, self.task

    @property
    def tag(self) -> str:
        """What titles of boards call the suite."""
        return tag(self.suite, self.digest)

    @property
    def plan(self) -> tuple[Any, ...]:
        """What all claims on one board say alike, for it is of the suite."""
        budget = self.trials, self.repetitions, self.seeds
        return (*budget, self.margin, tuple(self.against), self.resplit)

    @property
    def place(self) -> tuple[str, str, str, int, int | None]:
        """Where in the suite the cell is, at its seed."""
        return (*self.board, self.label, self.repetition, self.draw)

    @property
    def study_is_unit(self) -> bool:
        """Whether what is compared is repetitions of the whole study; else it is seeds."""
        return (self.trials > 0 or self.resplit is not None) and self.repetitions > 1

    @property
    def planned(self) -> int:
        """How many units are planned."""
        return self.repetitions if self.study_is_unit else self.repetitions * self.seeds

    @property
    def chosen_once(self) -> bool:
        """Whether all units share one choice of parameters, whose luck no interval then holds."""
        return self.trials > 0 and self.repetitions == 1


_CLAIMS = TypeAdapter(list[Claim])


def parse(raw: bytes, origin: str) -> list[Claim]:
    """Return the claims that a file holds.

    Raises:
        RunError: it does not parse.
    """
    try:
        return _CLAIMS.validate_json(raw)
    except ValidationError as error:
        raise RunError(
            f"{origin}: {first_fault(error)}; delete it and sweep again, which writes it"
        ) from error


def read(run: RunDirectory) -> list[Claim]:
    """Return the claims on a cell, none where no suite has run it.

    Raises:
        RunError: they do not parse.
    """
    file = run.path / FILE
    try:
        raw = file.read_bytes() if file.is_file() else b"[]"
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})") from error
    return parse(raw, str(file))


def add(run: RunDirectory, claim: Claim) -> None:
    """Note a claim, in the stead of an earlier one of the same place; the caller holds the cell.

    A suite of `all` methods may have more rows than it had.
    """
    known = read(run)
    if claim not in known:
        run.write_text(FILE, text([*(one for one in known if one.place != claim.place), claim]))


def text(claims: Sequence[Claim]) -> str:
    """Return what the file says of claims."""
    content = [one.model_dump(mode="json", exclude_defaults=True) for one in claims]
    return json.dumps(content, indent=1)
