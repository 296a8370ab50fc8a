"""Which trial is next, where any number of processes and folders work on one study."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mtbench import seeding
from mtbench.comparing.tuning.draws import Draw
from mtbench.comparing.tuning.mode import Mode
from mtbench.training.cell.rundir import RunDirectory

LIVE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
"""The states of trials that count, or will."""


class Queue:
    """The trials of a study, as one folder's processes take them in turn.

    Who calls `next` holds the folder's lock; a process is known to live by its cell's.

    Args:
        study: Optuna's.
        mode: how trials are chosen.
        seed: of Optuna's sampler.
        owner: of the trials: the folder.
        out: the folder of run directories.
    """

    def __init__(self, study: optuna.Study, mode: Mode, seed: int, owner: str, out: Path) -> None:
        self.study, self.mode, self.seed, self.owner, self.out = study, mode, seed, owner, out
        self._reseed(len(study.trials))

    def next(self, count: int, draws: Sequence[Draw]) -> optuna.Trial | None:
        """Return the trial to run, None where `count` are done or under way.

        Args:
            count: how many the study is to have.
            draws: the official trials.
        """
        self._give_up()
        while len(live := self.live()) < count:
            if not self.study.get_trials(states=(TrialState.WAITING,)):
                attrs: dict[str, Any] = {"owner": self.owner}
                asked: dict[str, Any] = {}
                if self.mode.official:
                    attrs["draw"] = next(i for i in range(count) if i not in live)
                    asked = draws[attrs["draw"]].asked
                self.study.enqueue_trial(asked, user_attrs=attrs)
            trial = self.study.ask()
            self._reseed(trial.number)
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # its owner gave it up
                trial.set_user_attr("owner", self.owner)
                if self.counts(trial, count):
                    return trial
                self.study.tell(trial, state=TrialState.FAIL)
        return None

    def counts(self, trial: optuna.Trial, count: int) -> bool:
        """Return whether a trial is one of those wanted: other folders may have been faster."""
        before = [
            other
            for other in self.study.get_trials(states=(*LIVE, TrialState.WAITING))
            if other.number < trial.number
        ]
        if not self.mode.official:
            return len(before) < count
        draw = trial.user_attrs.get("draw")  # none if somebody else queued it
        taken = [other.user_attrs.get("draw") for other in before]
        return draw in range(count) and draw not in taken

    def live(self) -> dict[int, FrozenTrial]:
        """Return the trials that count, or are under way, by their number."""
        found = self.study.get_trials(states=LIVE)
        if not self.mode.official:
            return {trial.number: trial for trial in found}
        return {t.user_attrs["draw"]: t for t in reversed(found) if "draw" in t.user_attrs}

    def _give_up(self) -> None:
        """Fail the trials whose processes, on this folder, have died; queue them again."""
        for old in self.study.get_trials(states=(TrialState.RUNNING,)):
            cell = old.user_attrs.get("cell")
            ours = old.user_attrs.get("owner") == self.owner
            if ours and (cell is None or RunDirectory(self.out / cell).holder() is None):
                with suppress(ValueError):  # it ended since: that is told before the cell is free
                    self.study.tell(old.number, state=TrialState.FAIL)
                    if not self.mode.official:  # there the missing draw is queued
                        self.study.enqueue_trial(old.params, user_attrs={"owner": self.owner})

    def _reseed(self, number: int) -> None:
        """Take a sampler that does not repeat what it, or another process, drew before."""
        seed = seeding.derive(self.seed, "sampler", number) % 2**32
        self.study.sampler = self.mode.make_sampler(seed)
