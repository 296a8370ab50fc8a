"""One trial: its cell is trained, and the study is told what came of it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from mtbench.training.cell.result import Result
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.task import Metric
from mtbench.training.trainer.evaluation import primary_metrics
from mtbench.training.trainer.observer import Observer
from mtbench.training.trainer.trainer import Trainer


def train(
    trial: optuna.Trial,
    run: RunDirectory,
    trainer: Callable[[Observer], Trainer],
    observer: Observer,
    *,
    multi: bool,
) -> Result | None:
    """Return the result of a trial's cell, which is trained if it has none; None if pruned.

    Args:
        trial: is told each epoch's score, unless it is of several objectives.
        run: the cell, which the caller holds.
        trainer: trains it, given who watches.
        observer: who watches.
        multi: whether the trial has several objectives.
    """
    if run.result() is None:
        try:
            trainer(observer if multi else _Reporter(observer, trial, run)).run()
        except optuna.TrialPruned:
            return None
    run.drop_checkpoint()
    return run.result()


def tell(
    study: optuna.Study,
    trial: optuna.Trial,
    result: Result | None,
    metrics: Mapping[str, Metric],
    *,
    multi: bool,
) -> None:
    """Tell a study the result of a trial, None of a pruned one."""
    if result is None:
        study.tell(trial, state=TrialState.PRUNED)
        return
    trial.set_user_attr("status", result.status)
    primary = primary_metrics(metrics)
    val = {name: (result.val or {}).get(name, math.nan) for name in primary}
    known = {name: value for name, value in val.items() if not math.isnan(value)}
    trial.set_user_attr("val", known)
    trial.set_user_attr("acts", result.acts)
    score = -math.inf
    if result.score is not None:
        trial.set_user_attr("score", score := result.score)
    # Of several objectives, what is undefined is the worst.
    values = [
        known.get(name, -math.inf if metrics[name].higher_is_better else math.inf)
        for name in primary
    ]
    study.tell(trial, values if multi else score)


class _Reporter:
    """An observer that tells a trial of each epoch's score, and may end it by `TrialPruned`."""

    def __init__(self, observer: Observer, trial: optuna.Trial, run: RunDirectory) -> None:
        self.observer, self.trial = observer, trial
        self.last = run.spec().recipe["epochs"] - 1
        # What was cut off may repeat its last epoch: the record is written before the checkpoint.
        self.reported = set()
        for record in run.history():
            self.reported.add(record["epoch"])
            trial.report(record["score"], record["epoch"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.observer, name)

    def evaluated(self, record: dict[str, Any]) -> None:
        """Report an epoch's score."""
        self.observer.evaluated(record)
        if record["epoch"] not in self.reported:
            self.trial.report(record["score"], record["epoch"])
        if record["epoch"] < self.last and self.trial.should_prune():
            raise optuna.TrialPruned
