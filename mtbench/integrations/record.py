"""What a run directory says, flattened to names and numbers for a tracking tool."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtbench.errors import RunError
from mtbench.training.cell.rundir import RunDirectory


@dataclass(frozen=True)
class Record:
    """One cell.

    Attributes:
        place: ``task/method/seedS-HASH``, wherever its folder lies.
        task: its name.
        hash: of its spec: what it is known by.
        status: ``unfinished``, ``finished`` or ``diverged``.
        params: the spec, flat: ``task.KEY``, ``method.KEY``, ``recipe.KEY``.
        tags: what cells are looked up by.
        epochs: the metrics of each epoch that has ended.
        once: what a finished cell has one of: validation metrics of the selected epoch
            (``selected/``), cost, and test metrics (``test/``) if they were opened before.
        started: seconds since 1970.
        ended: the same; None while it is unfinished.
    """

    place: Path
    task: str
    hash: str
    status: str
    params: dict[str, Any]
    tags: dict[str, str]
    epochs: list[dict[str, float]]
    once: dict[str, float]
    started: float
    ended: float | None

    @classmethod
    def of(cls, run: RunDirectory) -> "Record":
        """Read a run directory, whose sealed test stays sealed.

        Raises:
            RunError: one of its files does not parse, or its place would be outside of any folder.
        """
        spec, result = run.spec(), run.result()
        place = Path(spec.path)
        if place.is_absolute() or ".." in place.parts:  # nobody's `spec.json` says where we write
            raise RunError(
                f"{run.path / 'spec.json'}: task and method must be plain names, found "
                f"{spec.path!r}; it was edited: remove the folder"
            )
        params = {
            "task": spec.task,
            **{f"task.{key}": value for key, value in spec.task_params.items()},
            "method": spec.method,
            **{f"method.{key}": value for key, value in spec.method_params.items()},
            **{f"recipe.{key}": value for key, value in spec.recipe.items()},
            **spec.model_dump(include={"seed", "data", "init", "precision", "device"}),
        }
        status = "unfinished" if result is None else result.status
        tags = {
            "hash": spec.hash,
            "task": spec.task,
            "method": spec.method,
            "seed": str(spec.seed),
            "stage": spec.stage,
            "status": status,
        }
        once: dict[str, float] = {}
        times: dict[str, float] = {}
        if result is not None:
            if result.reason is not None:
                tags["reason"] = result.reason
            once = _numbers({"selected": result.val or {}, "cost": result.cost.model_dump()})
            times = result.times
        if (run.path / "test.opened").exists():
            once |= _numbers({"test": run.open_test()})
        return cls(
            place=place,
            task=spec.task,
            hash=spec.hash,
            status=status,
            params=params,
            tags=tags,
            epochs=[_numbers(record) for record in run.history()],
            once=once,
            started=times.get("started") or (run.path / "spec.json").stat().st_mtime,
            ended=times.get("ended"),
        )

    def digest(self, count: int) -> str:
        """Return what the first epochs are known by: a cell that is trained anew has others."""
        epochs = json.dumps(self.epochs[:count], sort_keys=True)
        return hashlib.sha256(epochs.encode()).hexdigest()[:12]


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record, ``group/name`` for those in a group."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": number for name, number in _numbers(value).items()}
        elif isinstance(value, int | float) and math.isfinite(value) and key != "epoch":
            found[key] = float(value)
    return found
