"""What is kept of a cell while it is trained: checkpoint, log, and the selected weights."""

import copy
import csv
import io
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtbench import seeding
from mtbench.errors import RunError
from mtbench.plugins.code import core_digest
from mtbench.training.cell.rundir import Precision, RunDirectory
from mtbench.training.machine import numerics
from mtbench.training.trainer.learner import Learner
from mtbench.training.trainer.numbers import Made
from mtbench.training.trainer.optimization import Descent

CHECKPOINT_VERSION = 1

LOGGED = 500
"""About how many steps have a line in ``steps.csv``."""


class OutdatedError(RunError):
    """A checkpoint was begun by another mtbench, and this one cannot go on with it."""


@dataclass
class Progress:
    """Where a cell stands: all that is kept beside weights and generators."""

    epoch: int = 0
    position: int = 0
    sums: list[float] = field(default_factory=list)
    counted: int = 0  # steps in the sums
    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = -math.inf
    seconds: float = 0.0
    threads: int = 0
    batched: bool | None = None
    diagnostics: dict[str, dict[str, float]] = field(default_factory=dict)
    peak_mib: float = 0.0
    processes: int = 1
    precision: Precision = "fp32"
    nonfinite: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.time)  # in seconds since 1970
    notes: dict[str, list[float]] = field(default_factory=dict)  # sum and count of each, so far
    validation_passes: int = 0  # asked by the method beside the steps' own
    search_passes: int = 0  # asked by the optimizer, each with its backward pass


class Recorder:
    """Writes a cell's files as it is trained, and finds where it was broken off.

    Args:
        run: the cell's directory.
        cell: the spec's hash.
        learner: whose weights are kept.
        descent: whose state is kept.
        steps: an epoch.
        epochs: of the run.

    Attributes:
        at: where the cell stands.
        rows: of ``steps.csv``.
        step_seconds: what the last steps took.
    """

    def __init__(
        self,
        run: RunDirectory,
        cell: str,
        learner: Learner,
        descent: Descent,
        steps: int,
        epochs: int,
    ) -> None:
        self._run, self._learner, self._descent, self._steps = run, learner, descent, steps
        self._cell = cell
        self._objectives = learner.task.objectives
        self._every = max(1, steps * epochs // LOGGED)
        self.at = Progress(sums=[0.0] * len(self._objectives), precision=learner.precision)
        self.rows: list[list[Any]] = []
        self.step_seconds: deque[float] = deque(maxlen=1000)
        self._best: dict[str, Any] | None = None  # not yet on disk
        self._written = time.perf_counter()

    def resume(self) -> bool:
        """Take up the checkpoint; return whether there is one.

        Raises:
            RunError: it is broken, or of something else.
            OutdatedError: as `refuse_outdated`.
        """
        state = self._run.load("checkpoint.pt", self._learner.device)
        if state is None:
            return False
        file = self._run.path / "checkpoint.pt"
        check_cell(file, state, self._cell)
        refuse_outdated(file, state)
        with fits(self._run, "checkpoint.pt"):
            self._learner.load(state)
            self._descent.load_state_dict(state["optimizer"])
            self.at = Progress(**state["progress"])
            seeding.set_global_state({k: _cpu(v) for k, v in state["rng"].items()})
            self.step_seconds.extend(state["step_seconds"])
            self.rows = state["rows"]
        self._learner.precision = self.at.precision
        self._learner.engine.batched = self.at.batched
        if self.at.history and not file.with_name("best.pt").exists():
            raise RunError(
                f"{file.with_name('best.pt')}: the selected weights are gone; delete the folder to "
                "train this cell from its start"
            )
        self._write_log()  # may have been cut, or be ahead of the checkpoint
        return True

    @property
    def age(self) -> float:
        """The seconds since the last checkpoint, or since the start."""
        return time.perf_counter() - self._written

    def checkpoint(self) -> None:
        """Write where the cell stands."""
        self.at.precision = self._learner.precision
        self.at.batched = self._learner.engine.batched
        self.measure_memory()
        # These first: a checkpoint that says it is at the end must not lack its last lines.
        self._write_selected()
        self._write_log()
        self._run.save(
            "checkpoint.pt",
            {
                "version": CHECKPOINT_VERSION,
                "cell": self._cell,
                "code": core_digest(),
                **self._learner.state(),
                "optimizer": self._descent.state_dict(),
                "progress": vars(self.at),
                "rng": seeding.global_state(),
                "rows": self.rows,
                "step_seconds": list(self.step_seconds),
            },
        )
        self._written = time.perf_counter()

    def diverge(self) -> None:
        """Write how far the cell came: the epochs that have ended."""
        self.rows = [row for row in self.rows if row[1] < self.at.epoch]
        self._write_selected()
        self._write_log()

    def logs(self, position: int) -> bool:
        """Return whether the step at a position of this epoch has a line in ``steps.csv``."""
        return self._index(position) % self._every == 0

    def enter(self, made: Made) -> dict[str, float]:
        """Take in a step; return its losses by name."""
        losses = made.read["loss"]
        self.at.sums = [a + b for a, b in zip(self.at.sums, losses, strict=True)]
        self.at.counted += 1
        self.step_seconds.append(made.seconds)
        for name, value in zip(made.noted, made.read["note"], strict=True):
            total, count = self.at.notes.get(name, (0.0, 0))
            self.at.notes[name] = [total + value, count + 1]
        if self.logs(made.position):
            shown = made.read.get("weight", [math.nan] * len(losses))
            norm = made.read["gradient"][0]
            index = self._index(made.position)
            self.rows.append([index, self.at.epoch, made.lr, norm, *losses, *shown])
        return dict(zip(self._objectives, losses, strict=True))

    def end_epoch(
        self, losses: dict[str, float], metrics: dict[str, float], score: float, keep: bool
    ) -> dict[str, Any]:
        """Close an epoch; return its record.

        Args:
            losses: on the validation split.
            metrics: likewise.
            score: by the selection rule.
            keep: whether its weights are kept whatever the score.
        """
        at = self.at
        means = [total / at.counted if at.counted else math.nan for total in at.sums]
        record = {
            "epoch": at.epoch,
            "train_loss": dict(zip(self._objectives, means, strict=True)),
            "val_loss": losses,
            "val": metrics,
            "score": score,
            **at.diagnostics,
        }
        if at.notes:
            record["notes"] = {name: total / count for name, (total, count) in at.notes.items()}
        if keep or score > at.best_score or not at.history:
            at.best_score = score
            state = {name: copy.copy(part) for name, part in self._learner.state().items()}
            for part in state.values():  # on the device, copies would count as the method's memory
                part.update({key: _own(value) for key, value in part.items()})
            precision = self._learner.precision
            self._best = {**state, "cell": self._cell, "epoch": at.epoch, "precision": precision}
        at.history.append(record)
        at.epoch, at.position = at.epoch + 1, 0
        at.sums, at.counted = [0.0] * len(self._objectives), 0
        at.diagnostics, at.notes = {}, {}
        return record

    def select(self) -> dict[str, Any]:
        """Load the selected weights; return the record of their epoch."""
        file = self._run.path / "best.pt"
        best = self._run.load(file.name, self._learner.device)
        if best is None:
            raise RunError(
                f"{file}: is gone, which had the selected weights: delete the folder to train this "
                "cell from its start"
            )
        check_cell(file, best, self._cell)
        with fits(self._run, "best.pt"):
            self._learner.load(best)
            self._learner.precision = best["precision"]
            record: dict[str, Any] = self.at.history[best["epoch"]]
        return record

    def measure_memory(self) -> float:
        """Return the peak so far, in MiB, broken-off parts of the run included."""
        peak = numerics.peak_memory(torch.device(self._learner.device))
        self.at.peak_mib = max(self.at.peak_mib, peak)
        return self.at.peak_mib

    def _index(self, position: int) -> int:
        return self.at.epoch * self._steps + position

    def _write_selected(self) -> None:
        if self._best is not None:
            self._run.save("best.pt", self._best)
            self._best = None

    def _write_log(self) -> None:
        lines = [json.dumps(record) + "\n" for record in self.at.history]
        self._run.write_text("epochs.jsonl", "".join(lines))
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        names: Sequence[str] = self._objectives
        losses, weights = [f"loss_{n}" for n in names], [f"weight_{n}" for n in names]
        writer.writerow(["step", "epoch", "lr", "grad_norm", *losses, *weights])
        writer.writerows(self.rows)
        self._run.write_text("steps.csv", table.getvalue())


def refuse_outdated(file: Path, state: Mapping[str, Any]) -> None:
    """Check that this mtbench can go on with a checkpoint.

    Raises:
        OutdatedError: it is of another version, or was begun with other code of mtbench.
    """
    if state.get("version") != CHECKPOINT_VERSION:
        raise OutdatedError(
            f"{file}: is of version {state.get('version')}, and this mtbench reads version "
            f"{CHECKPOINT_VERSION}: go on with the mtbench that wrote it, or delete the folder "
            "to train this cell from its start"
        )
    if state.get("code") != core_digest():
        raise OutdatedError(
            f"{file}: was begun with other code of mtbench: begin it again with --no-resume (a "
            "sweep: --other-code keep), or go on with the mtbench that wrote it"
        )


def is_outdated(run: RunDirectory) -> bool:
    """Return whether another mtbench has begun a cell, and this one cannot go on with it.

    It is asked of every open cell, so no tensor of the checkpoint is read. Whose a broken
    checkpoint is, is not known: who goes on with the cell, says what is broken.
    """
    try:
        state = run.load("checkpoint.pt", lazily=True)
        if state is not None:
            refuse_outdated(run.path / "checkpoint.pt", state)
    except RunError as error:
        return isinstance(error, OutdatedError)
    return False


def check_cell(file: Path, state: Mapping[str, Any], cell: str) -> None:
    """Check that a tensor file is of a cell.

    Raises:
        RunError: it is of another one.
    """
    if (found := state.get("cell")) != cell:
        whose = "names no cell (" if found is None else f"is of another cell ({found}, "
        raise RunError(
            f"{file}: {whose}wanted {cell}); it was moved here: delete the folder to train this "
            "cell from its start"
        )


@contextmanager
def fits(run: RunDirectory, name: str) -> Iterator[None]:
    """Explain a tensor file that loads, but is of another model or program."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{run.path / name}: is not of this model ({type(error).__name__}); mtbench or a "
            "plugin has changed since: delete the folder to train this cell from its start"
        ) from error


def _own(value: Any) -> Any:
    """Return a copy that training leaves as it is, on the CPU if it is a tensor."""
    return value.to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _cpu(value: Any) -> Any:
    """Return generator states on the CPU, where torch wants them whatever the device."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, list | tuple):
        return type(value)(_cpu(item) for item in value)
    return value
