"""The weights that a method found, as constants: do its *dynamics* matter?"""

import csv
import math
import statistics
from typing import Literal

from mtbench.errors import RunError, UsageError
from mtbench.training.cell.rundir import RunDirectory

Kind = Literal["mean", "final"]


def frozen_weights(run: RunDirectory, kind: Kind, task: str) -> list[float]:
    r"""Return a run's K weights, from the T steps that ``steps.csv`` has a line for.

    ``mean`` is :math:`\frac{1}{T} \sum_t w_{tk}`, ``final`` is :math:`w_{Tk}`, as large as the
    method made them. A method on the Gramian leaves its heads unweighted; who takes its weights for
    ``ls``, weights these too.

    Args:
        run: trained on the task.
        kind: which weights.
        task: its name.

    Raises:
        RunError: the run has not finished or has diverged, or the file does not parse.
        UsageError: the run is of another task, or its method has no weights.
    """
    if (other := run.spec().task) != task:
        raise UsageError(f"--weights-from {run.path}: is of task {other}, wanted {task}")
    status = (run.result() or {"status": "unfinished"}).get("status")
    if status != "finished":
        raise RunError(f"--weights-from {run.path}: is {status}; give a run that finished")
    found = _weights(run)
    if not all(math.isfinite(w) for weights in found for w in weights):
        raise UsageError(
            f"--weights-from {run.path}: {run.spec().method} has no weights on record, since it "
            "finds a direction: give the run of a method that weighs"
        )
    return [statistics.fmean(weights) if kind == "mean" else weights[-1] for weights in found]


def moves(run: RunDirectory) -> bool:
    """Return whether a run's weights change as it goes; those of a fixed sum do not."""
    return any(len(set(weights)) > 1 for weights in _weights(run))


def _weights(run: RunDirectory) -> list[list[float]]:
    """Return each objective's weights, by step."""
    file = run.path / "steps.csv"
    if not file.is_file():  # a pipe may never end
        raise RunError(f"{file}: is no file; give a run that finished")
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        names = [name for name in (rows[0] if rows else ()) if name.startswith("weight_")]
        found = [[float(row[name]) for row in rows] for name in names]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: cannot be read ({error}); give a run that finished") from error
    if not found:
        raise RunError(f"{file}: has no steps; give a run that finished")
    return found
