"""Trained models: reading one back, and what is made of it once."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mtbench import seeding
from mtbench.balancing.signatures import name_of
from mtbench.errors import PluginError, RunError
from mtbench.plugins.method import Method
from mtbench.training.cell.rundir import SEALED, RunDirectory, Spec
from mtbench.training.task import Splits, Task
from mtbench.training.trainer.learner import Learner, build
from mtbench.training.trainer.record import check_cell, fits

EXTRA_STATE = "_extra_state"
"""What torch calls that part of a module's state which is neither parameter nor buffer."""


def load_trained(run: RunDirectory, task: Task, method: Method) -> Learner:
    """Return the selected model of a finished cell.

    Raises:
        RunError: the cell has no selected weights, or the file is corrupt.
    """
    state = run.load("best.pt")
    if state is None:
        raise RunError(f"{run.path}: has no trained weights (best.pt) yet; finish the run first")
    spec = run.spec()
    check_cell(run.path / "best.pt", state, spec.hash)
    with fits(run, "best.pt"):
        spec = spec.model_copy(update={"precision": state["precision"]})
        return restore(spec, task, method, state["model"], state["balancer"])


def restore(
    spec: Spec,
    task: Task,
    method: Method,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Learner:
    """Return a trained model on the CPU from the state dicts of model and balancer.

    The balancer's extra state, which only training needs, may be left out.
    """
    spec = spec.model_copy(update={"device": "cpu"})
    with seeding.preserved():
        model, balancer = build(spec, task, method)
    model.load_state_dict(weights)
    absent, unknown = balancer.load_state_dict(state, strict=False)
    if unknown or not all(name.endswith(EXTRA_STATE) for name in absent):
        raise KeyError(f"the balancer's {(unknown + absent)[0]}")
    return Learner(spec, task, model, balancer)


def conclude(
    run: RunDirectory, task: Task, splits: Splits, method: Method, *, sealed: bool = False
) -> list[Path]:
    """Fit what the task's `predict` needs and draw its figures, unless that is done.

    Args:
        run: a finished cell.
        task: the cell's.
        splits: likewise.
        method: likewise.
        sealed: keep new figures out of sight until the test is opened.

    Returns:
        The figures' files, where they are not sealed.
    """
    if not sealed:
        run.unseal()
    if not (run.path / "best.pt").exists():
        return run.pictures()
    predictor = load_trained(run, task, method).predict
    if run.fitted() is None and (fitted := task.fit(predictor, splits)):
        try:
            text = json.dumps(fitted, indent=2)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"{name_of(type(task))}: what fit returns goes into fitted.json: {error}"
            ) from error
        run.write_text("fitted.json", text)
    drawing = run.path / ".figures"  # while it is there, the figures are not all drawn
    place = run.path / SEALED if sealed else run.path
    if drawing.exists() or not (run.pictures() or (run.path / SEALED).exists()):
        drawing.mkdir(exist_ok=True)
        task.figures(predictor, splits, drawing)
        for file in drawing.iterdir():
            place.mkdir(exist_ok=True)
            file.replace(place / file.name)
        shutil.rmtree(drawing)
    return run.pictures()
