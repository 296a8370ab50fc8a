"""The weights that a method found, as constants: do its *dynamics* matter?"""

import csv
import math
import statistics
from typing import Literal

from mtbench.errors import RunError, UsageError
from mtbench.plugins.method import Method
from mtbench.training.cell.rundir import RunDirectory

Kind = Literal["mean", "final"]


def frozen_weights(run: RunDirectory, kind: Kind, task: str, method: Method) -> list[float]:
    r"""Return a run's K weights, from the T steps that ``steps.csv`` has a line for.

    ``mean`` is :math:`\frac{1}{T} \sum_t w_{tk}`, ``final`` is :math:`w_{Tk}`, as large as the
    method made them. A method on the Gramian leaves its heads unweighted; who takes its weights as
    constants of the losses, weights these too.

    Args:
        run: trained on the task.
        kind: which weights.
        task: its name.
        method: the run's.

    Raises:
        RunError: the run has not finished or has diverged, or the file does not parse.
        UsageError: the run is of another task, or its method has no weights, or does more.
    """
    if (other := run.spec().task) != task:
        raise UsageError(f"--weights-from {run.path}: is of task {other}, wanted {task}")
    if not method.is_weighted_sum:
        raise UsageError(f"--weights-from {run.path}: {does_more(method)}")
    result = run.result()
    status = "unfinished" if result is None else result.status
    if status != "finished":
        raise RunError(f"--weights-from {run.path}: is {status}; give a run that finished")
    found = _weights(run)
    if not all(math.isfinite(w) for weights in found for w in weights):
        raise UsageError(
            f"--weights-from {run.path}: {run.spec().method} has no weights on record, since it "
            "finds a direction: give the run of a method that weighs"
        )
    return [statistics.fmean(weights) if kind == "mean" else weights[-1] for weights in found]


def does_more(method: Method) -> str:
    """Return why constant weights are not what a method does without its dynamics."""
    return (
        f"{method.name} descends no weighted sum of the losses, so its weights do not say what it "
        "does: take them from a method that weighs and does no more"
    )


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
