"""A study of one method on one task, from its storage to the best trial."""

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from mtbench.comparing.tuning import outcome, trial
from mtbench.comparing.tuning.draws import Draw, Search, draw
from mtbench.comparing.tuning.mode import Mode
from mtbench.comparing.tuning.outcome import Outcome
from mtbench.comparing.tuning.queue import Queue
from mtbench.comparing.tuning.storage import open_storage, quiet, reason
from mtbench.errors import MtbenchError, RunError, UsageError, writable
from mtbench.inert import without_password
from mtbench.training.cell.config import Chosen, Config
from mtbench.training.cell.request import Choice, Request
from mtbench.training.cell.rundir import Precision, RunDirectory, Spec
from mtbench.training.machine.locks import Lock
from mtbench.training.task import Recipe, Splits
from mtbench.training.trainer.evaluation import primary_metrics
from mtbench.training.trainer.observer import Observer
from mtbench.training.trainer.selection import SELECTION
from mtbench.training.trainer.trainer import Trainer


class Tuning:
    """A study, on which any number of processes may work.

    Trials are cells of stage ``trial`` below `out`. Processes on one folder take trials in turn,
    and see by a cell's lock whether the process of a trial still lives: where it does not, the
    trial is given up in the study and its parameters are tried again, which goes on with its cell.
    Processes on other folders may share the storage. Of their trials it is not known whether they
    are alive: they are left alone, until somebody tunes in that folder again.

    Args:
        request: the task, the one method, and the recipe; what is searched replaces its values.
        splits: what ``task.setup`` returned for `seed`.
        search: what is searched in the recipe.
        mode: how trials are chosen.
        seed: of the cells, and of what is drawn.
        precision: of the cells.
        device: of the cells.
        out: the folder for run directories.
        storage: an Optuna database URL, ``journal:PATH`` or ``PATH.log``; SQLite in `out` by
            default.
        threads: of torch on the CPU.

    Raises:
        UsageError: there is nothing to search, or the storage cannot be opened.
    """

    def __init__(
        self,
        request: Request,
        splits: Splits,
        search: Search,
        mode: Mode,
        *,
        seed: int,
        precision: Precision,
        device: str,
        out: Path,
        storage: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.request, self.splits, self.search, self.mode = request, splits, search, mode
        self.seed, self.precision, self.device = seed, precision, device
        self.out, self.threads = out, threads
        [self.choice] = request.choices
        self.metrics = request.task.metrics
        self.primary = primary_metrics(self.metrics)
        self.first = self.draws(2)[1]  # trial 0 is the defaults
        if not self.first.asked:
            raise UsageError(f"{self.choice.method.name}: there is nothing to search")
        plan = {
            "fixed": self._spec(self.choice, request.recipe).canonical(),
            "search": search.ranges,
            "first draw": self.first.asked,  # another search space is another study
        }
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{mode.name}-{digest}"
        self.name = f"{request.entry.name}/{self.choice.method.name}/{name}"
        self.folder = out / request.entry.name / self.choice.method.name / f"tune-{name}"
        file = URL.create("sqlite", database=str(out / "tune.db"))  # a path may hold ? or %
        self.storage = storage or file.render_as_string()

    @property
    def shown(self) -> str:
        """The storage, without what may be a password."""
        return without_password(self.storage)

    def draws(self, count: int) -> list[Draw]:
        """Return the official trials."""
        objectives = len(self.request.task.objectives)
        return draw(self.choice.method, objectives, self.search, count, self.seed)

    def __enter__(self) -> "Tuning":
        with writable(f"--out {self.out}", "choose another folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self.alone():
            file = self.folder / "owner"
            owner = file.read_text() if file.exists() else ""
            if not owner:
                owner = uuid.uuid4().hex
                file.write_text(owner)
            self.study = self._open()
            self.queue = Queue(self.study, self.mode, self.seed, owner, self.out)
        return self

    def __exit__(self, *_: object) -> None:
        self.database.remove_session()

    def alone(self) -> AbstractContextManager[None]:
        """Wait for the other processes on this folder; they wait until this context ends."""
        return Lock(self.folder / ".lock").hold(str(self.folder), wait=True)

    def _open(self) -> optuna.Study:
        directions: list[Literal["minimize", "maximize"]] = ["maximize"]
        if self.mode.multi:
            directions = [
                "maximize" if self.metrics[name].higher_is_better else "minimize"
                for name in self.primary
            ]
        with quiet():
            try:
                self.database = open_storage(self.storage)
                study = optuna.create_study(
                    storage=self.database, study_name=self.name, directions=directions,
                    pruner=self.mode.make_pruner(self.request.recipe.epochs), load_if_exists=True,
                )  # fmt: skip
            except MtbenchError:
                raise
            except ImportError as error:
                raise UsageError(
                    f"--storage {self.shown}: its driver is not installed; for PostgreSQL: pip "
                    "install 'mtbench-toolkit[postgresql]'"
                ) from error
            except Exception as error:  # SQLAlchemy, each driver and Optuna have their own
                raise UsageError(
                    f"--storage {self.shown}: cannot be opened ({reason(error, self.storage)})"
                ) from error
            study.set_metric_names(self.primary if self.mode.multi else ["score"])
        return study

    def run(self, count: int, observer: Observer) -> None:
        """Go on until the study has `count` trials.

        Raises:
            HeldError: a trial's cell is held by a process that does not tune.
            RunError: the storage is lost.
        """
        draws = self.draws(count) if self.mode.official else []
        try:
            with quiet():
                while self._one(count, draws, observer):
                    pass
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            raise RunError(
                f"--storage {self.shown}: is lost ({reason(error, self.storage)}); mend it and "
                "the same command goes on"
            ) from error

    def _one(self, count: int, draws: Sequence[Draw], observer: Observer) -> bool:
        """Run a trial; return whether there was one to run."""
        with ExitStack() as held:
            with self.alone():
                taken = self.queue.next(count, draws)
                if taken is None:
                    return False
                spec = self.cell(taken, draws)
                run = RunDirectory.at(self.out, spec)
                taken.set_user_attr("cell", run.path.relative_to(self.out).as_posix())
                taken.set_user_attr("method_params", spec.model_dump(mode="json")["method_params"])
                held.enter_context(run.claim())

            def trainer(watcher: Observer) -> Trainer:
                task, method = self.request.task, self.choice.method
                return Trainer(spec, task, self.splits, method, run, watcher, self.threads)

            # Until the study knows the outcome: others take a trial whose cell is free for dead.
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # ended by hand: once more
                result = trial.train(taken, run, trainer, observer, multi=self.mode.multi)
                trial.tell(self.study, taken, result, self.metrics, multi=self.mode.multi)
        return True

    def cell(self, taken: optuna.Trial, draws: Sequence[Draw]) -> Spec:
        """Return the spec of a trial, whose parameters are drawn here."""
        task, method = self.request.task, self.choice.method
        drawn = draws[taken.user_attrs["draw"]] if self.mode.official else None
        if drawn is None or drawn.asked:  # so that Optuna's figures know the parameters
            own = method.suggest(taken, len(task.objectives))
            recipe = {
                key: taken.suggest_float(f"recipe.{key}", *bounds, log=True)
                for key, bounds in self.search.ranges.items()
            }
        if drawn is not None:
            own, recipe = drawn.params, drawn.recipe
        choice = Choice(method, method.resolve(self.choice.params | own))
        return self._spec(choice, dataclasses.replace(self.request.recipe, **recipe))  # type: ignore[arg-type]

    def _spec(self, choice: Choice, recipe: Recipe) -> Spec:
        request = dataclasses.replace(self.request, recipe=recipe)
        return request.spec(
            choice, self.splits.fingerprint, self.seed, self.precision, self.device, stage="trial"
        )

    def outcomes(self) -> list[Outcome]:
        """Return the trials that have ended, best score first, of equals the earliest."""
        return outcome.ended(self.queue.live())

    @property
    def elsewhere(self) -> int:
        """How many trials are under way in other processes."""
        return len(self.study.get_trials(states=(TrialState.RUNNING,)))

    def best(self, outcomes: Sequence[Outcome]) -> Config | None:
        """Return the best trial as something to run, None where none has finished."""
        if not outcomes or outcomes[0].status != "finished":
            return None
        best, states = outcomes[0], [one.status for one in outcomes]
        recipe = dataclasses.asdict(self.request.recipe) | best.recipe
        return Config(
            task=self.request.entry.name,
            method=self.choice.method.name,
            precision=self.precision,
            task_params=self.request.task_params,
            method_params=best.method_params,
            recipe=recipe,
            chosen=Chosen(
                ruleset="official" if self.mode.official else "exploratory",
                mode=self.mode.name,
                by=SELECTION if recipe["select"] == "best" else f"{SELECTION} of the last epoch",
                score=best.score,
                trial=best.number,
                trials={state: states.count(state) for state in sorted(set(states))},
                seed=self.seed,
                search={key: list(bounds) for key, bounds in self.search.ranges.items()},
                cell=best.cell,
                study=self.name,
            ),
        )
