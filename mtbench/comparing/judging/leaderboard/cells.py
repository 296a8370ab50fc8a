"""Cells as a leaderboard needs them: every file is read once."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtbench.comparing import claim
from mtbench.comparing.claim import Claim
from mtbench.errors import RunError
from mtbench.plugins import params
from mtbench.training.cell.config import Chosen
from mtbench.training.cell.result import Result
from mtbench.training.cell.rundir import RunDirectory, Spec

BUDGET = ("epochs", "batch_size")

LARGEST = 1e100
"""A number of this size is undefined: no sum or picture holds it."""

MOST = 10**12
"""Epochs, or samples in a batch: more are no recipe, and no array's index."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A cell's record; what is asked of its result is there and of the right type.

    Attributes:
        run: its folder.
        spec: what it is.
        result: what came of it, None while it is unfinished.
        claims: of suites.
        test: the test metrics of a final cell that has a result.
        odd: what speaks against believing it, a line each.
        chosen: how its parameters were found, where it was run from a file that says so.
    """

    run: RunDirectory
    spec: Spec
    result: Result | None
    claims: list[Claim] = field(default_factory=list)
    test: dict[str, float] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)
    chosen: Chosen | None = None

    @classmethod
    def read(cls, run: RunDirectory) -> "Recorded":
        """Read a cell, and open its test metrics.

        Raises:
            RunError: a file does not parse, or lacks what it must have.
        """
        cell = cls(run, run.spec(), run.result(), claim.read(run), chosen=Chosen.read(run))
        for key in BUDGET:
            if not _counts(found := cell.spec.recipe.get(key)):
                raise RunError(
                    f"{run.path / 'spec.json'}: its recipe's {key} must be a whole number from 1 "
                    f"to {MOST}, found {found!r}"
                )
        if cell.result is not None:
            if cell.result.seed != cell.spec.seed:
                raise RunError(
                    f"{run.path / 'result.json'}: is of seed {cell.result.seed} in the folder of "
                    f"seed {cell.spec.seed}; delete it to train the cell again"
                )
            if cell.spec.stage == "final":
                cell.test.update(_numbers(run, tested=not cell.diverged))
        return cell

    def claimed(self, suite: Claim | None, row: str) -> list[Claim]:
        """Return what a suite says of the cell as one of a row; others may have it too."""
        board = None if suite is None else suite.board
        return [claim for claim in self.claims if (claim.board, claim.label) == (board, row)]

    @property
    def setting(self) -> dict[str, Any]:
        """The task's parameters without those that change nothing, as far as the record says so."""
        idle = () if self.result is None else self.result.idle
        return {key: value for key, value in self.spec.task_params.items() if key not in idle}

    @property
    def measured(self) -> Any:
        """What two runs of the cell have alike; undefined numbers are."""
        return self.done.status, repr(sorted(self.val.items())), repr(sorted(self.test.items()))

    @property
    def done(self) -> Result:
        """The result of a cell that has one."""
        assert self.result is not None
        return self.result

    @property
    def diverged(self) -> bool:
        """Whether training ended in a loss that is not finite."""
        return self.done.status == "diverged"

    @property
    def score(self) -> float:
        """The selection score on validation, NaN of a diverged cell."""
        return math.nan if self.done.score is None else self.done.score

    @property
    def val(self) -> dict[str, float]:
        """The validation metrics of the selected epoch, none of a diverged cell."""
        return _defined(self.done.val or {})

    @property
    def ended(self) -> float:
        """When it ended, in seconds since 1970, as far as the record says so."""
        return self.done.times.get("ended", -math.inf)


def _numbers(run: RunDirectory, *, tested: bool) -> dict[str, float]:
    """Return the test metrics; what is undefined is left out."""
    metrics = run.open_test()
    if tested and not metrics and not (file := run.path / "test.json").exists():
        raise RunError(
            f"{file}: is missing; delete result.json and repeat the run, which writes both again"
        )
    found = {k: value for k, value in metrics.items() if value is not None}
    if odd := [value for value in found.values() if not is_number(value)]:
        raise RunError(
            f"{run.path / 'test.json'}: {odd[0]!r} is no number; delete the folder to run the cell "
            "again"
        )
    return _defined(found)


def _defined(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not abs(value) >= LARGEST}


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST


def is_number(value: Any) -> bool:
    """Return whether a record's value is one; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_cells(runs: Iterable[RunDirectory]) -> tuple[list[Recorded], list[str]]:
    """Read cells; one counts once, however many folders hold it: a finished copy, all claims.

    Returns:
        the cells, and a line for each that is damaged.
    """
    known: dict[str, Recorded] = {}
    damaged = []
    for run in runs:
        try:
            cell = Recorded.read(run)
        except RunError as error:
            damaged.append(str(error))
            continue
        key = cell.spec.canonical()
        if _is_of_another(cell):
            cell.odd.append(f"edited, or of another mtbench: {run.path}")
        other = known.setdefault(key, cell)
        if other is cell:
            continue
        kept, left = (cell, other) if other.result is None else (other, cell)
        if left.result is not None and left.measured != kept.measured:
            kept.odd.append(f"another result of it lies in {left.run.path}: {kept.run.path}")
        kept.claims.extend(one for one in left.claims if one not in kept.claims)
        known[key] = replace(kept, chosen=kept.chosen or left.chosen)
    return list(known.values()), damaged


def _is_of_another(cell: Recorded) -> bool:
    """Return whether a folder's name or a result is of another spec than lies there."""
    own = cell.spec.hash
    named = re.fullmatch(r"seed-?\d+-([0-9a-f]{12})", cell.run.path.name)
    recorded = own if cell.result is None else cell.result.hash
    return recorded != own or (named is not None and named[1] != own)


def budgets(specs: Mapping[str, Spec]) -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
    """Return the epochs and the batch size of most rows, and those of the others by name."""
    spent = {name: (s.recipe["epochs"], s.recipe["batch_size"]) for name, s in specs.items()}
    usual = max(spent.values(), key=list(spent.values()).count)
    return usual, {name: own for name, own in spent.items() if own != usual}


def group_key(spec: Spec) -> str:
    """Return what cells have in common that may be compared."""
    recipe = {k: spec.recipe[k] for k in BUDGET}
    common = [spec.task, spec.task_params, spec.data, recipe, spec.precision]
    return json.dumps(common, sort_keys=True)


def titles(groups: Sequence[Recorded]) -> list[str]:
    """Return a title for each group, given one cell of it; they differ."""

    def title(cell: Recorded, setting: Mapping[str, Any]) -> str:
        budget = {key: cell.spec.recipe[key] for key in BUDGET}
        return f"{cell.spec.task} {params.own_keys({**setting, **budget})}"

    short = [title(cell, cell.setting) for cell in groups]
    data = in_short(cell.spec.data for cell in groups)
    return [
        told
        if short.count(told) == 1
        else f"{title(cell, cell.spec.task_params)} data={data[cell.spec.data]} "
        f"precision={cell.spec.precision}"
        for told, cell in zip(short, groups, strict=True)
    ]


def in_short(fingerprints: Iterable[str]) -> dict[str, str]:
    """Return how each fingerprint begins, or a hash of each where some begin alike."""
    known = set(fingerprints)
    if len({one[:12] for one in known}) == len(known):
        return {one: one[:12] for one in known}
    return {one: hashlib.sha256(one.encode()).hexdigest()[:12] for one in known}


def labels(cells: Sequence[Recorded]) -> list[str]:
    """Return each cell's row: its method, and the settings in which cells of the method differ."""
    settings = [_settings(cell.spec) for cell in cells]
    totals = Counter(cell.spec.method for cell in cells)
    counts = Counter(
        (cell.spec.method, key, repr(value))
        for cell, setting in zip(cells, settings, strict=True)
        for key, value in setting.items()
    )
    found = []
    meant: dict[str, str] = {}
    for cell, setting in zip(cells, settings, strict=True):
        method = cell.spec.method
        differing = {
            k: v for k, v in setting.items() if counts[method, k, repr(v)] < totals[method]
        }
        label = f"{method} {params.own_keys(differing)}".strip()
        exact = repr(sorted(differing.items()))
        if meant.setdefault(label, exact) != exact:  # 1 and "1" read the same
            label += f" #{hashlib.sha256(exact.encode()).hexdigest()[:6]}"
        found.append(label)
    return found


def _settings(spec: Spec) -> dict[str, Any]:
    own = spec.method_params
    recipe = {k: v for k, v in spec.recipe.items() if k not in BUDGET}
    others = {
        "device": spec.device,
        "init": spec.init and spec.init[:8],
        **{f"{name}.py": digest[:8] for name, digest in spec.plugins.items()},
    }
    return {
        **{f"recipe.{k}" if k in own else k: v for k, v in recipe.items()},
        **own,
        **{f"cell.{k}" if k in own else k: v for k, v in others.items()},
    }
