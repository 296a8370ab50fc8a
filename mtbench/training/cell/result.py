"""``result.json``: what a cell that has ended says of itself."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mtbench.training.task import is_texts, shadows


class Part(BaseModel):
    """Part of a record: what must be there; more may be."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class Declared(Part):
    """What a metric is, as the task declares it."""

    objective: str | None
    higher_is_better: bool
    primary: bool
    chance: float | None = None


class Spent(Part):
    """What training took: seconds, MiB, passes as the method counts them."""

    seconds_per_step: float
    train_seconds: float
    peak_mib: float
    passes: str
    parameters: int
    validation_passes: int = 0
    search_passes: int = 0

    @model_validator(mode="after")
    def _is_no_gain(self) -> Self:
        for name, value in self:
            if isinstance(value, int | float) and value < 0:  # NaN where no step was made
                raise ValueError(f"{name} must be at least 0, found {value}")
        return self


class Result(Part):
    """The file; what a diverged cell lacks has a default."""

    version: Literal[1]
    status: Literal["finished", "diverged"]
    task: str
    method: str
    reference: bool
    seed: int
    hash: str
    selection: str
    epochs: int
    metrics: dict[str, Declared] = Field(min_length=1)
    notes: dict[str, Any]
    idle: list[str]
    acts: float | None = None
    reason: str | None = None
    nonfinite: list[dict[str, Any]]
    best_epoch: int | None = None
    val: dict[str, float] | None = None
    score: float | None = None
    cost: Spent
    environment: dict[str, str | int]
    plugins: dict[str, str]
    times: dict[str, float]

    @field_validator("metrics")
    @classmethod
    def _are_no_columns(cls, metrics: dict[str, Declared]) -> dict[str, Declared]:
        for name in metrics:
            if shadows(name, metrics):
                raise ValueError(f"metric {name!r:.80} is called like a column of leaderboards")
        return metrics

    @property
    def public_notes(self) -> dict[str, Any]:
        """The notes that may be given away.

        A list of texts tells of single cases and files, whose names may be patients'; how many
        there are is a note of its own.
        """
        return {key: note for key, note in self.notes.items() if not is_texts(note)}

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        missing = {part is None for part in (self.best_epoch, self.val, self.score)}
        if missing != {self.status == "diverged"}:
            raise ValueError("a finished cell has best_epoch, val and score, a diverged one none")
        return self
