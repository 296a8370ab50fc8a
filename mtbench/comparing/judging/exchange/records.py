"""The records of a finished cell: what each must be, and how they must agree."""

import json
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from mtbench.comparing import claim
from mtbench.errors import RunError, UsageError, first_fault
from mtbench.plugins.registry import NAME
from mtbench.training.cell import config
from mtbench.training.cell.result import Part, Result
from mtbench.training.cell.rundir import Spec, parse
from mtbench.training.task import Recipe

RECORDS = (config.FILE, "epochs.jsonl", "result.json", "spec.json", claim.FILE, "test.json")

_RECIPE = TypeAdapter(Recipe)


class _Epoch(Part):
    epoch: int
    train_loss: dict[str, float]
    val_loss: dict[str, float]
    val: dict[str, float]
    score: float
    update: dict[str, float]


class _Test(Part):
    loss: dict[str, float]
    metrics: dict[str, float]


_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Finished:
    """What a finished cell says of itself.

    Attributes:
        origin: where it was read.
        spec: of ``spec.json``.
        result: of ``result.json``.
    """

    origin: str
    spec: Spec
    result: Result


@dataclass(frozen=True)
class Checked(Finished):
    """A finished cell whose records were all checked.

    Attributes:
        files: the content of its records by name.
    """

    files: dict[str, bytes]

    @classmethod
    def of(cls, files: dict[str, bytes], origin: str) -> "Checked":
        """Return the cell of some records.

        Raises:
            RunError: one is absent, does not parse, or contradicts another.
        """
        for name in ("spec.json", "result.json"):
            if name not in files:
                raise RunError(f"{origin}: has no {name}")
        spec = parsed(Spec, files["spec.json"], f"{origin}/spec.json")
        result = parsed(Result, files["result.json"], f"{origin}/result.json")
        check_spec(spec, f"{origin}/spec.json")
        _check_result(result, spec, f"{origin}/result.json")
        _check_epochs(result, spec, files.get("epochs.jsonl", b""), origin)
        _check_test(result, spec, files.get("test.json"), f"{origin}/test.json")
        if claim.FILE in files:
            claim.parse(files[claim.FILE], f"{origin}/{claim.FILE}")
        if config.FILE in files:
            parsed(config.Chosen, files[config.FILE], f"{origin}/{config.FILE}")
        return cls(origin, spec, result, files)

    @property
    def path(self) -> str:
        """Where it belongs below a folder of runs."""
        return self.spec.path

    @property
    def claims(self) -> list[claim.Claim]:
        """What suites say of it."""
        return claim.parse(self.files.get(claim.FILE, b"[]"), f"{self.origin}/{claim.FILE}")

    def united(self, other: "Checked") -> "Checked":
        """Return it with what another copy says beside the results, as boards join the two.

        That is all claims of suites, and how its parameters were found where it does not say so.
        """
        files = dict(self.files)
        if config.FILE in other.files:
            files.setdefault(config.FILE, other.files[config.FILE])
        own = self.claims
        if more := [one for one in other.claims if one not in own]:
            files[claim.FILE] = claim.text([*own, *more]).encode()
        return replace(self, files=files)

    @property
    def public(self) -> "Checked":
        """It as it may be given away: without notes on single cases."""
        if (notes := self.result.public_notes) == self.result.notes:
            return self
        result = json.loads(self.files["result.json"]) | {"notes": notes}
        files = self.files | {"result.json": json.dumps(result, indent=2).encode()}
        return replace(self, result=self.result.model_copy(update={"notes": notes}), files=files)

    @property
    def substance(self) -> str:
        """What two runs of one cell must agree on: all but how, when and where they were made.

        Notes name files where they lay; what they say of the data is in its fingerprint.
        """
        made = {"cost", "environment", "notes", "plugins", "times"}
        result = self.result.model_dump(mode="json", exclude=made)
        test = json.loads(self.files.get("test.json", b"null"))
        return json.dumps([result, test], sort_keys=True)


def parsed(model: type[_Model], raw: bytes, where: str) -> _Model:
    """Return JSON as a model, refusing what any later reader of the file would stumble on.

    Raises:
        RunError: it is no such thing.
    """
    try:
        parse(raw.decode())
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise RunError(f"{where}: not of version 1: {first_fault(error)}") from error
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise RunError(f"{where}: does not parse ({error})") from error


def check_spec(spec: Spec, where: str) -> None:
    """Check that a spec's names are plain, and its recipe a recipe.

    Raises:
        RunError: they are not.
    """
    for kind, name in (("task", spec.task), ("method", spec.method)):
        if not NAME.fullmatch(name):
            raise RunError(f"{where}: {kind} {show(name)} is no plain name")
    if not 0 <= spec.seed < 2**63:
        raise RunError(f"{where}: seed must be in [0, 2^63)")
    try:
        recipe = _RECIPE.validate_json(json.dumps(spec.recipe), strict=True)
    except ValidationError as error:
        raise RunError(f"{where}: recipe: {first_fault(error)}") from error
    except UsageError as error:
        raise RunError(f"{where}: recipe: {error}") from error
    if not {"epochs", "batch_size"} <= set(spec.recipe) <= set(asdict(recipe)):
        raise RunError(f"{where}: recipe may have {', '.join(asdict(recipe))}, the first two must")


def _check_result(result: Result, spec: Spec, where: str) -> None:
    for key in ("task", "method", "seed", "hash"):
        if getattr(result, key) != getattr(spec, key):
            raise RunError(
                f"{where}: {key} is {show(getattr(result, key))}, in spec.json "
                f"{show(getattr(spec, key))}"
            )


def _check_epochs(result: Result, spec: Spec, raw: bytes, origin: str) -> None:
    where = f"{origin}/epochs.jsonl"
    try:
        lines = raw.decode().splitlines()
    except ValueError as error:
        raise RunError(f"{where}: does not parse ({error})") from error
    epochs = [parsed(_Epoch, line.encode(), where) for line in lines]
    if [epoch.epoch for epoch in epochs] != list(range(result.epochs)):
        raise RunError(f"{where}: must have epochs 0 to {result.epochs - 1}, one a line")
    for epoch in epochs:
        if lacking := set(result.metrics) - set(epoch.val):
            raise RunError(f"{where}: val of epoch {epoch.epoch} lacks {show(min(lacking))}")
    budget = spec.recipe["epochs"]
    if result.epochs > budget or (result.status == "finished" and result.epochs < budget):
        raise RunError(f"{origin}: trained {result.epochs} epochs of its {budget}")
    if result.status == "diverged":
        return
    if result.best_epoch is None or not 0 <= result.best_epoch < budget:
        raise RunError(f"{origin}/result.json: best_epoch must be one of its epochs")
    best = epochs[result.best_epoch]
    if json.dumps([best.val, best.score]) != json.dumps([result.val, result.score]):
        raise RunError(f"{origin}/result.json: val and score are not those of epoch {best.epoch}")


def _check_test(result: Result, spec: Spec, raw: bytes | None, where: str) -> None:
    tested = spec.stage == "final" and result.status == "finished"
    if tested != (raw is not None):
        rule = "is missing" if tested else f"a {spec.stage} cell that {result.status} has none"
        raise RunError(f"{where}: {rule}")
    if raw is not None:
        unknown = set(parsed(_Test, raw, where).metrics) - set(result.metrics)
        if unknown:
            raise RunError(f"{where}: {show(min(unknown))} is no metric of result.json")


def show(value: object) -> str:
    """Return a value of unknown origin, safe and short enough for a line."""
    return repr(value)[:80]
