"""Tuning: how hyper-parameters are drawn, tried, and the best of them chosen."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from mtbench import seeding
from mtbench.errors import MtbenchError, RunError, UsageError
from mtbench.plugins.method import Method
from mtbench.training.cell import Choice, Request
from mtbench.training.config import Chosen, Config
from mtbench.training.locks import Lock
from mtbench.training.rundir import RunDirectory, Spec
from mtbench.training.task import Recipe, Splits
from mtbench.training.trainer import SELECTION, Observer, Trainer, primary_metrics

SEED = 1000
"""The default seed of trials: away from those of final cells, which count up from 0."""

FACTOR = 10.0
"""How far from the recipe's own value, each way, a common parameter is searched by default."""


@dataclass(frozen=True)
class Search:
    """What is searched beside a method's own parameters: log-uniform ranges, None to leave alone.

    Attributes:
        lr: of the recipe's learning rate.
        weight_decay: of the recipe's weight decay.
    """

    lr: tuple[float, float] | None
    weight_decay: tuple[float, float] | None

    def __post_init__(self) -> None:
        for name, bounds in self.ranges.items():
            if not 0 < bounds[0] < bounds[1] < float("inf"):
                raise UsageError(
                    f"range of {name} must be 0 < low < high, found {bounds[0]:g} {bounds[1]:g}"
                )

    @classmethod
    def around(cls, recipe: Recipe) -> "Search":
        """Return the default: within `FACTOR` of the recipe's own; a weight decay of 0 stays 0."""
        lr, decay = recipe.lr, recipe.weight_decay
        return cls((lr / FACTOR, lr * FACTOR), (decay / FACTOR, decay * FACTOR) if decay else None)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The ranges that are searched, by the recipe's key."""
        return {key: bounds for key, bounds in vars(self).items() if bounds is not None}


@dataclass(frozen=True)
class Draw:
    """One trial of the official ruleset.

    Attributes:
        params: the method's own parameters that are searched.
        recipe: the recipe's.
        asked: the same as the answers to what was asked of Optuna.
    """

    params: dict[str, Any]
    recipe: dict[str, float]
    asked: dict[str, Any]


def draw(method: Method, num_objectives: int, search: Search, count: int, seed: int) -> list[Draw]:
    """Return the trials of the official ruleset: independent, and fixed before any is run.

    The common parameters of a trial are the same for every method. A longer list begins with the
    shorter one.
    """
    common = np.random.default_rng(seeding.derive(seed, "common")).random((count, 2))
    sampler = optuna.samplers.RandomSampler(seeding.derive(seed, "own", method.name) % 2**32)
    with _quiet():
        study = optuna.create_study(sampler=sampler)
    found = []
    for row in common:
        recipe = {
            key: float(np.exp(np.interp(share, (0, 1), np.log(bounds))))
            for share, (key, bounds) in zip(row, vars(search).items(), strict=True)
            if bounds is not None
        }
        trial = study.ask()
        params = method.suggest(trial, num_objectives)
        asked = {**trial.params, **{f"recipe.{key}": value for key, value in recipe.items()}}
        found.append(Draw(params, recipe, asked))
    return found


SAMPLERS: dict[str, Any] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
}
PRUNERS = ("none", "median", "hyperband")
LIVE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
"""The states of trials that count, or will."""

CONNECT = 10
"""Seconds in which a database server must answer."""

OPENINGS = 5
"""How often an empty database is opened, where others make Optuna's tables at the same time."""


@dataclass(frozen=True)
class Mode:
    """How trials are chosen.

    Attributes:
        sampler: of `SAMPLERS`, or None for the official ruleset.
        pruner: of `PRUNERS`.
        multi: whether every primary metric is an objective of its own.
    """

    sampler: str | None = None
    pruner: str = "none"
    multi: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in (None, *SAMPLERS):
            raise UsageError(f"sampler must be one of {', '.join(SAMPLERS)}, found {self.sampler}")
        if self.pruner not in PRUNERS:
            raise UsageError(f"pruner must be one of {', '.join(PRUNERS)}, found {self.pruner}")
        if self.official and (self.multi or self.pruner != "none"):
            raise UsageError("a pruner or several objectives need a sampler")
        if self.multi and self.pruner != "none":
            raise UsageError("Optuna prunes single-objective studies only: not with several")
        if self.multi and self.sampler == "cmaes":
            raise UsageError("sampler cmaes has one objective only: take tpe, gp or nsgaii")
        if self.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
            raise UsageError("sampler cmaes needs the package cmaes: pip install cmaes")

    @property
    def official(self) -> bool:
        """Whether the trials are those of `draw`."""
        return self.sampler is None

    @property
    def name(self) -> str:
        """The mode in one word."""
        parts = [self.sampler or "official", self.pruner, "multi" if self.multi else "none"]
        return "-".join(part for part in parts if part != "none")


@dataclass(frozen=True)
class Outcome:
    """A trial that has ended.

    Attributes:
        number: the draw's in the official ruleset, else Optuna's.
        status: ``finished``, ``diverged`` or ``pruned``.
        score: by the selection rule on validation, -inf unless finished.
        asked: the searched parameters.
        val: the primary validation metrics, none unless finished.
        method_params: every own parameter.
        recipe: the recipe's values that were searched.
        cell: the run directory, seen from ``--out``.
    """

    number: int
    status: str
    score: float
    asked: dict[str, Any]
    val: dict[str, float]
    method_params: dict[str, Any]
    recipe: dict[str, float]
    cell: str


class Tuning:
    """A study of one method on one task, on which any number of processes may work.

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
        precision: str,
        device: str,
        out: Path,
        storage: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.request, self.splits, self.search, self.mode = request, splits, search, mode
        self.seed, self.precision, self.device = seed, precision, device
        self.out, self.threads = out, threads
        [self.choice] = request.choices
        self.primary = primary_metrics(dict(request.task.metrics))
        [first] = self.draws(1)
        if not first.asked:
            raise UsageError(f"{self.choice.method.name}: there is nothing to search")
        plan = {
            "fixed": self._spec(self.choice, request.recipe).canonical(),
            "search": search.ranges,
            "first draw": first.asked,  # another search space is another study
        }
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{mode.name}-{digest}"
        self.name = f"{request.entry.name}/{self.choice.method.name}/{name}"
        self.folder = out / request.entry.name / self.choice.method.name / f"tune-{name}"
        self.storage = storage or f"sqlite:///{out / 'tune.db'}"

    @property
    def shown(self) -> str:
        """The storage, without what may be a password."""
        return _without_password(self.storage)

    def draws(self, count: int) -> list[Draw]:
        """Return the official trials."""
        objectives = len(self.request.task.objectives)
        return draw(self.choice.method, objectives, self.search, count, self.seed)

    def __enter__(self) -> "Tuning":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"--out {self.out}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        with self.alone():
            file = self.folder / "owner"
            self.owner = file.read_text() if file.exists() else ""
            if not self.owner:
                self.owner = uuid.uuid4().hex
                file.write_text(self.owner)
            self.study = self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.database.remove_session()

    def alone(self) -> AbstractContextManager[None]:
        """Wait for the other processes on this folder; they wait until this context ends."""
        return Lock(self.folder / ".lock").hold(str(self.folder), wait=True)

    def _open(self) -> optuna.Study:
        directions: list[Literal["minimize", "maximize"]] = ["maximize"]
        if self.mode.multi:
            metrics = self.request.task.metrics
            directions = [
                "maximize" if metrics[name].higher_is_better else "minimize"
                for name in self.primary
            ]
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if self.mode.pruner == "median":
            pruner = optuna.pruners.MedianPruner()
        elif self.mode.pruner == "hyperband":
            pruner = optuna.pruners.HyperbandPruner(max_resource=self.request.recipe.epochs)
        with _quiet():
            try:
                self.database = _storage(self.storage)
                study = optuna.create_study(
                    storage=self.database, study_name=self.name, directions=directions,
                    pruner=pruner, load_if_exists=True,
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
                    f"--storage {self.shown}: cannot be opened ({_reason(error)})"
                ) from error
            study.set_metric_names(self.primary if self.mode.multi else ["score"])
            study.sampler = self._sampler(len(study.trials))
        return study

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return a sampler that does not repeat what it, or another process, drew before."""
        seed = seeding.derive(self.seed, "sampler", number) % 2**32
        sampler: optuna.samplers.BaseSampler = SAMPLERS[self.mode.sampler or "random"](seed=seed)
        return sampler

    def run(self, count: int, observer: Observer) -> None:
        """Go on until the study has `count` trials.

        Raises:
            HeldError: a trial's cell is held by a process that does not tune.
            RunError: the storage is lost.
        """
        draws = self.draws(count) if self.mode.official else []
        try:
            with _quiet():
                while self._one(count, draws, observer):
                    pass
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            raise RunError(
                f"--storage {self.shown}: is lost ({_reason(error)}); mend it and the same command "
                "goes on"
            ) from error

    def _one(self, count: int, draws: Sequence[Draw], observer: Observer) -> bool:
        """Run a trial; return whether there was one to run."""
        with ExitStack() as held:
            with self.alone():
                self._give_up()
                trial = self._next(count, draws)
                if trial is None:
                    return False
                spec = self._cell(trial, draws)
                run = RunDirectory.at(self.out, spec)
                trial.set_user_attr("cell", run.path.relative_to(self.out).as_posix())
                trial.set_user_attr("method_params", spec.model_dump(mode="json")["method_params"])
                held.enter_context(run.claim())
            # Until the study knows the outcome: others take a trial whose cell is free for dead.
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # ended by hand: once more
                self._try(trial, spec, run, observer)
        return True

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

    def _next(self, count: int, draws: Sequence[Draw]) -> optuna.Trial | None:
        while len(live := self._live()) < count:
            if not self.study.get_trials(states=(TrialState.WAITING,)):
                attrs: dict[str, Any] = {"owner": self.owner}
                asked: dict[str, Any] = {}
                if self.mode.official:
                    attrs["draw"] = next(i for i in range(count) if i not in live)
                    asked = draws[attrs["draw"]].asked
                self.study.enqueue_trial(asked, user_attrs=attrs)
            trial = self.study.ask()
            self.study.sampler = self._sampler(trial.number)
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # its owner gave it up
                trial.set_user_attr("owner", self.owner)
                if self._counts(trial, count):
                    return trial
                self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _counts(self, trial: optuna.Trial, count: int) -> bool:
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

    def _live(self) -> dict[int, FrozenTrial]:
        """Return the trials that count, or are under way, by their number."""
        found = self.study.get_trials(states=LIVE)
        if not self.mode.official:
            return {trial.number: trial for trial in found}
        return {t.user_attrs["draw"]: t for t in reversed(found) if "draw" in t.user_attrs}

    def _cell(self, trial: optuna.Trial, draws: Sequence[Draw]) -> Spec:
        """Return the spec of a trial, whose parameters are drawn here."""
        task, method = self.request.task, self.choice.method
        own = method.suggest(trial, len(task.objectives))
        recipe = {
            key: trial.suggest_float(f"recipe.{key}", *bounds, log=True)
            for key, bounds in self.search.ranges.items()
        }
        if self.mode.official:
            drawn = draws[trial.user_attrs["draw"]]
            own, recipe = drawn.params, drawn.recipe
        choice = Choice(method, method.resolve(self.choice.params | own))
        return self._spec(choice, _with(self.request.recipe, recipe))

    def _try(self, trial: optuna.Trial, spec: Spec, run: RunDirectory, observer: Observer) -> None:
        task, method = self.request.task, self.choice.method
        result = run.result()
        if result is None:
            watcher = observer if self.mode.multi else _Reporter(observer, trial, run, spec)
            trainer = Trainer(spec, task, self.splits, method, run, watcher, self.threads)
            try:
                result = trainer.run()
            except optuna.TrialPruned:
                self.study.tell(trial, state=TrialState.PRUNED)
                return
        trial.set_user_attr("status", result["status"])
        val = {name: result.get("val", {}).get(name, math.nan) for name in self.primary}
        known = {name: value for name, value in val.items() if not math.isnan(value)}
        trial.set_user_attr("val", known)
        if result["status"] == "finished":
            trial.set_user_attr("score", result["score"])
        score = result.get("score", -math.inf)
        self.study.tell(trial, self._values(known) if self.mode.multi else score)

    def _values(self, val: dict[str, float]) -> list[float]:
        """Return the objectives of a multi-objective study; what is undefined is the worst."""
        values = []
        for name in self.primary:
            worst = -math.inf if self.request.task.metrics[name].higher_is_better else math.inf
            values.append(val.get(name, worst))
        return values

    def _spec(self, choice: Choice, recipe: Recipe) -> Spec:
        request = dataclasses.replace(self.request, recipe=recipe)
        return request.spec(
            choice, self.splits, self.seed, self.precision, self.device, stage="trial"
        )

    def outcomes(self) -> list[Outcome]:
        """Return the trials that have ended, best score first, of equals the earliest."""
        found = []
        for number, trial in self._live().items():
            if trial.state is TrialState.RUNNING:
                continue
            attrs, score = trial.user_attrs, -math.inf
            pruned = trial.state is TrialState.PRUNED
            status = "pruned" if pruned else attrs["status"]
            if status == "finished":
                score = attrs["score"]
            recipe = {key: trial.params[f"recipe.{key}"] for key in self.search.ranges}
            found.append(
                Outcome(
                    number, status, score, trial.params, attrs.get("val", {}),
                    attrs["method_params"], recipe, attrs["cell"],
                )
            )  # fmt: skip
        return sorted(found, key=lambda outcome: (-outcome.score, outcome.number))

    @property
    def elsewhere(self) -> int:
        """How many trials are under way in other processes."""
        return len(self.study.get_trials(states=(TrialState.RUNNING,)))

    def best(self, outcomes: Sequence[Outcome]) -> Config | None:
        """Return the best trial as something to run, None where none has finished."""
        if not outcomes or outcomes[0].status != "finished":
            return None
        best, states = outcomes[0], [outcome.status for outcome in outcomes]
        recipe = dataclasses.asdict(self.request.recipe) | best.recipe
        return Config(
            task=self.request.entry.name,
            method=self.choice.method.name,
            precision=self.precision,  # type: ignore[arg-type]  # pydantic checks it
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


class _Reporter:
    """An observer that tells a trial of each epoch's score, and may end it by `TrialPruned`."""

    def __init__(
        self, observer: Observer, trial: optuna.Trial, run: RunDirectory, spec: Spec
    ) -> None:
        self.observer, self.trial = observer, trial
        self.last = spec.recipe["epochs"] - 1
        # What was cut off may repeat its last epoch: the record is written before the checkpoint.
        self.reported = {record["epoch"] for record in run.history()}
        for record in run.history():
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


def _with(recipe: Recipe, changed: dict[str, Any]) -> Recipe:
    return dataclasses.replace(recipe, **changed)


def _reason(error: BaseException) -> str:
    """Return an error's first line; that of what lies below, where Optuna hides it."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        error = error.__cause__
    return str(error).partition("\n")[0].rstrip(".")


def _without_password(url: str) -> str:
    kind, separator, rest = url.partition("://")
    return f"{kind}://...@{rest.rpartition('@')[2]}" if separator and "@" in rest else url


def _storage(text: str) -> optuna.storages.BaseStorage:
    """Return the storage of a database URL, ``journal:PATH`` or ``PATH.log``."""
    kind = text.partition("://")
    if kind[2]:
        # A server may close what was idle during an epoch: each connection is tried before use.
        engine: dict[str, Any] = {"pool_pre_ping": True}
        if kind[0].startswith("postgresql"):
            engine["connect_args"] = {"connect_timeout": CONNECT}
        for _ in range(OPENINGS - 1):
            with suppress(IntegrityError, ProgrammingError):  # another makes the tables just now
                return optuna.storages.RDBStorage(text, engine_kwargs=engine)
            time.sleep(1)
        return optuna.storages.RDBStorage(text, engine_kwargs=engine)
    if text.startswith("journal:") or text.endswith(".log"):
        backend = JournalFileBackend(text.removeprefix("journal:"))
        return optuna.storages.JournalStorage(backend)
    raise UsageError(
        "--storage must be a database URL such as sqlite:///tune.db, journal:PATH or PATH.log, "
        f"found {text!r}"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling on stderr what is told here, and of what is experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
