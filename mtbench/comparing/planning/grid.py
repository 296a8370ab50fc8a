"""A suite's cells."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.wrapper import Wrapper
from mtbench.comparing.claim import Claim
from mtbench.comparing.planning.suite import BEST, EVERY, MethodSetting, Ranges, Suite, TaskSetting
from mtbench.comparing.tuning.draws import SAMPLER, Draw, Search, draw
from mtbench.errors import MtbenchError, PluginError, RunError, UsageError, did_you_mean
from mtbench.plugins import params
from mtbench.plugins.method import Method
from mtbench.plugins.registry import entries
from mtbench.training.cell.fit import UnfitError, refuse_unfit
from mtbench.training.cell.request import Choice, Request
from mtbench.training.cell.rundir import RunDirectory, Spec
from mtbench.training.machine.device import device_type
from mtbench.training.task import Recipe
from mtbench.training.trained.frozen import Kind, does_more, frozen_weights, moves

MOST = 1_000_000
"""Cells of a suite: what lists them all must end."""


@dataclass(frozen=True)
class Order:
    """All that a process needs to know of a sweep; it can be pickled.

    Attributes:
        suite: what is compared.
        data: where the data of the tasks that need some lies.
        plugins: plugin files.
        repetitions: how many are run of each task's rows, by (task, row); None for all of all.
        other_code: what is done with cells of other code. ``keep`` counts those that it has made,
            ``anew`` trains them again; either begins again what it has begun. None refuses that.
    """

    suite: Suite
    data: Path | None = None
    plugins: tuple[Path, ...] = ()
    repetitions: Mapping[tuple[str, str], int] | None = None
    other_code: Literal["keep", "anew"] | None = None

    def concludes(self, spec: Spec) -> bool:
        """Return whether a cell gets figures, and what the task fits to its model."""
        return spec.stage == "final" and spec.seed == self.suite.budget.first_seed


@dataclass(frozen=True, eq=False)
class Entry:
    """A row on a task: in each repetition its trials, then its final cells.

    Attributes:
        task: the column's title.
        label: the row's.
        requests: the task, as repetitions have it in turn; their choices are not used.
        choice: the method with its parameters' defaults, and those that the suite fixes.
        fixed: the latter.
        draws: of each repetition's trials.
        resplit: of the task's setting.
        weights_from: of the row's setting.
        weights_of: likewise.
        recipe: what the suite changes of the recipe for the row.
    """

    task: str
    label: str
    requests: list[Request]
    choice: Choice
    fixed: dict[str, Any]
    draws: list[list[Draw]]
    resplit: float | None = None
    weights_from: str = ""
    weights_of: Kind = "mean"
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def request(self) -> Request:
        """The task as the first repetition has it."""
        return self.requests[0]

    def folder(self, out: Path) -> Path:
        """Return where its cells lie below `out`."""
        return out / self.request.entry.name / self.choice.method.name

    def setting(self, repetition: int, trial: int | None) -> tuple[Request, Choice]:
        """Return what a trial runs, the defaults for None."""
        request = self.requests[repetition % len(self.requests)]
        if trial is None:
            return request, self.choice
        drawn, method = self.draws[repetition][trial], self.choice.method
        changed: dict[str, Any] = dict(drawn.recipe)
        recipe = dataclasses.replace(request.recipe, **changed)
        params = method.resolve({**drawn.params, **self.fixed})
        return dataclasses.replace(request, recipe=recipe), Choice(method, params)

    def places(self, repetition: int, trial: int) -> dict[str, float]:
        """Return where in its range each parameter lies that the suite does not fix."""
        drawn = self.draws[repetition][trial]
        # What is asked may be a part of a parameter, such as one of `weights`.
        some_free = bool(drawn.params.keys() - self.fixed.keys())
        return {
            key: place
            for key, place in drawn.places.items()
            if key.startswith("recipe.") or (some_free and key not in self.fixed)
        }


@dataclass(frozen=True)
class Cell:
    """A cell of a suite.

    Attributes:
        entry: the row and the task.
        seed: the cell's.
        trial: its number; None for a final cell.
        repetition: of the whole study.
    """

    entry: Entry
    seed: int
    trial: int | None = None
    repetition: int = 0

    def __str__(self) -> str:
        part = f"seed {self.seed}"
        if self.trial is not None:
            part = f"trial {self.trial}"
            if len(self.entry.draws) > 1:
                part = f"repetition {self.repetition} {part}"
        return f"{self.entry.task} {self.entry.label} {part}"


class Grid:
    """A suite with everything looked up and checked.

    A row is left out on a task where its method cannot be trained.

    Attributes:
        left_out: why, by task and row.
        entries: task by task, in the suite's order.
        cells: in the order in which they are run: a task's trials, then seed by seed, so that what
            is there can be compared at any time.

    Raises:
        UsageError: an unknown name or parameter, a value that does not fit, data that is needed and
            not given, or a row that the suite names and no task can have.
        PluginError: a plugin that does not load.
    """

    def __init__(self, order: Order) -> None:
        self.left_out: dict[tuple[str, str], str] = {}
        self.order, self.suite = order, order.suite
        self.device = device_type(self.suite.device)
        methods = _methods(self.suite, order.plugins)
        self.entries: list[Entry] = []
        self.cells: list[Cell] = []
        self._trials: dict[tuple[Entry, int], list[Cell]] = {}  # asked for at every look
        count = len(self.suite.tasks) * len(methods) * self.suite.budget.cells
        if count > MOST:
            raise UsageError(f"suite {self.suite.name}: at most {MOST} cells, found {count}")
        for i, setting in enumerate(self.suite.tasks):
            with _within(f"{self.suite.name}: tasks.{i}"):
                requests: dict[str, list[Request]] = {}
                found = self._fitting(setting, methods, requests)
            self.entries += found
            for repetition in range(self.suite.budget.repetitions):
                taking_part = [e for e in found if repetition < self._repetitions(e, found)]
                for entry in taking_part:
                    self.cells += self.trials(entry, repetition)
                self.cells += [
                    Cell(entry, seed, None, repetition)
                    for seed in self.suite.budget.final_seeds(repetition)
                    for entry in sorted(taking_part, key=lambda entry: bool(entry.weights_from))
                ]
        present = {entry.label for entry in self.entries}
        for row in self.suite.methods:
            if row.name != EVERY and row.row not in present:
                title = self.suite.tasks[0].title
                raise UsageError(
                    f"suite {self.suite.name}: no task can have a row {row.row!r}; on {title}, "
                    f"{self.left_out[title, row.row]}"
                )

    def _repetitions(self, entry: Entry, others: Sequence[Entry]) -> int:
        """Return how many a row has: as many as were ordered of it, or of who needs its weights."""
        wanted = self.order.repetitions
        if wanted is None:
            return self.suite.budget.repetitions
        rows = [entry, *(other for other in others if _gives(entry, other))]
        return max(wanted.get((row.task, row.label), 0) for row in rows)

    def trials(self, entry: Entry, repetition: int) -> list[Cell]:
        """Return the trials of a row in a repetition."""
        study = entry, repetition
        if study not in self._trials:
            seed = self.suite.budget.tuning_seed + repetition
            count = len(entry.draws[repetition])
            self._trials[study] = [Cell(entry, seed, trial, repetition) for trial in range(count)]
        return self._trials[study]

    def needs(self, cell: Cell) -> list[Cell]:
        """Return what must be closed first: a final cell's parameters are from there."""
        if cell.trial is not None:
            return []
        if not cell.entry.weights_from:
            return self.trials(cell.entry, cell.repetition)
        return [
            dataclasses.replace(cell, entry=entry)
            for entry in self.tasks[cell.entry.task]
            if _gives(entry, cell.entry)
        ]

    @cached_property
    def digest(self) -> str:
        """What a worker's cells must agree on with the sweep's, for they are known by number."""
        said = "\n".join([self.device, *map(str, self.cells)])
        return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()

    @cached_property
    def tasks(self) -> dict[str, list[Entry]]:
        """The entries by task."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.task, []).append(entry)
        return found

    def tell_left_out(self) -> list[str]:
        """Return what a person should know of rows that are not on every task, a line each."""
        return [f"left out on {task}: {why}" for (task, _), why in self.left_out.items()]

    @property
    def first_seed(self) -> int:
        """The seed that is run first."""
        return self.cells[0].seed

    def spec(
        self, cell: Cell, fingerprint: str, trial: int | None, tried: Spec | None = None
    ) -> Spec:
        """Return the spec of a cell.

        Args:
            cell: the cell.
            fingerprint: of the data at its seed.
            trial: which one's parameters it has.
            tried: what a final one has its parameters from: of that trial's cell, for other code
                may have drawn others by that number, and its score is theirs; or of `frozen`.
        """
        request, choice = cell.entry.setting(cell.repetition, trial)
        stage: Literal["trial", "final"] = "final" if cell.trial is None else "trial"
        spec = request.spec(
            choice, fingerprint, cell.seed, self.suite.precision, self.device, stage=stage
        )
        if tried is None:
            return spec
        params = {"recipe": tried.recipe, "method_params": tried.method_params}
        return spec.model_copy(update=params)

    def claim(self, cell: Cell, trial: int | None, weights_from: str = "") -> Claim:
        """Return what the suite says of a cell: of a trial's parameters, or of a row's weights."""
        suite, entry = self.suite, cell.entry
        return Claim(
            suite=suite.name,
            digest=suite.digest,
            task=entry.task,
            label=entry.label,
            repetition=cell.repetition,
            draw=trial,
            sampler=SAMPLER,
            places={} if cell.trial is None else entry.places(cell.repetition, cell.trial),
            trials=suite.budget.trials,
            repetitions=suite.budget.repetitions,
            seeds=suite.budget.seeds,
            rows=len(self.tasks[entry.task]),
            margin=suite.margin,
            resplit=entry.resplit,
            against=suite.against,
            fixed=entry.fixed | {f"recipe.{key}": value for key, value in entry.recipe.items()},
            weights_from=weights_from,
        )

    def _fitting(
        self,
        setting: TaskSetting,
        methods: Sequence[tuple[MethodSetting, Method]],
        known: dict[str, list[Request]],
    ) -> list[Entry]:
        """Return the rows that a task can have; `left_out` tells of the others."""
        found: dict[str, Entry] = {}
        for row, method in sorted(methods, key=lambda one: bool(one[0].weights_from)):
            try:
                if row.weights_from not in ("", BEST, *found):
                    raise UnfitError(
                        f"{row.row} takes the weights of {row.weights_from}, which is left out"
                    )
                found[row.row] = self._entry(setting, row, method, known)
            except UnfitError as error:
                self.left_out[setting.title, row.row] = str(error)
        if not found:
            why = [why for (task, _), why in self.left_out.items() if task == setting.title]
            raise UsageError(f"no row is left: {'; '.join(why)}")
        return [found[row.row] for row, _ in methods if row.row in found]

    def _requests(self, setting: TaskSetting, recipe: Mapping[str, Any]) -> list[Request]:
        given = {f"{setting.name}.{key}": params.text(value) for key, value in setting.set.items()}
        changed = {**setting.recipe, **recipe}
        given |= {f"recipe.{key}": params.text(value) for key, value in changed.items()}
        if setting.needs_data and self.order.data is not None:
            given[f"{setting.name}.data"] = str(self.order.data)
        every = [setting.data_of(r) for r in range(self.suite.budget.repetitions)]
        parts = [part for i, part in enumerate(every) if part not in every[:i]]

        def of(part: Mapping[str, int | str]) -> Request:
            own = {f"{setting.name}.{key}": params.text(value) for key, value in part.items()}
            return Request.of(setting.name, [], given | own, self.order.plugins)

        requests = [of(part) for part in parts]
        # The corrected test takes them for all, and only the task knows how many there are.
        for key, folds in (setting.resample or {}).items():
            if isinstance(folds, list) and 0 in folds:
                try:
                    of({key: len(folds)})
                except UsageError:
                    continue
                raise UsageError(
                    f"resample: {key} must name all folds, found {len(folds)}, and {setting.name} "
                    f"takes {key} = {len(folds)}, too"
                )
        return requests

    def _entry(
        self,
        setting: TaskSetting,
        row: MethodSetting,
        method: Method,
        known: dict[str, list[Request]],
    ) -> Entry:
        budget_of = repr((row.recipe, row.times))
        if budget_of not in known:
            requests = self._requests(setting, row.recipe)
            known[budget_of] = [_times(request, row.times) for request in requests]
        requests = known[budget_of]
        request = requests[0]
        K, budget = len(request.task.objectives), self.suite.budget
        own = method.resolve(row.set)
        balancer = method(K, 0, **own)  # a bad value is told before anything is run
        refuse_unfit(row.row, balancer, request.task, request.recipe.optimizer)
        request.recipe.refuse_precision(self.suite.precision)
        search = _search(setting.search or self.suite.search, request.recipe)
        own_value = dict.fromkeys(search.ranges.keys() & row.recipe.keys())  # which is not searched
        search = dataclasses.replace(search, **own_value)
        trials = 0 if row.weights_from else budget.trials
        draws = [
            draw(method, K, search, trials, budget.tuning_seed + repetition)
            for repetition in range(budget.repetitions)
        ]
        return Entry(
            setting.title, row.row, requests, Choice(method, own), row.set, draws, setting.resplit,
            row.weights_from, row.weights_of, row.recipe,
        )  # fmt: skip


def _gives(entry: Entry, taker: Entry) -> bool:
    """Return whether a row's final cells may give another row's their weights."""
    if taker.weights_from == BEST:
        return not entry.weights_from and entry.choice.method.is_weighted_sum
    return entry.label == taker.weights_from


def frozen(cell: Cell, sources: Mapping[Cell, RunDirectory | None]) -> tuple[str, Spec]:
    """Return whose weights a final cell has as constants, and the spec of its parameters.

    Args:
        cell: of a row with `Entry.weights_from`.
        sources: the cells that it needs, closed, with their directories.

    Raises:
        RunError: none of them has weights to give.
    """
    entry, task = cell.entry, cell.entry.request.entry.name
    any_of_them = entry.weights_from == BEST
    said = "no row has weights that move"
    finished = {}
    for source, run in sources.items():
        result = None if run is None else run.result()
        if run is None or result is None or result.score is None:
            if not any_of_them:
                said = f"{source} has not finished"
            continue
        finished[source] = (result.score, run)
    for source, (_, run) in sorted(finished.items(), key=lambda item: -item[1][0]):
        try:
            giver = source.entry.choice.method
            weights = frozen_weights(run, entry.weights_of, task, giver)
            method = entry.choice.method
            params = method.resolve({**entry.fixed, "weights": tuple(weights)})
            method(len(weights), 0, **params)  # it may not take any, such as negative ones
            if not any_of_them or moves(run):
                spec = run.spec().model_copy(update={"method_params": params})
                return source.entry.label, spec
        except MtbenchError as error:
            if not any_of_them:
                said = str(error)
    raise RunError(f"no weights from {entry.weights_from}: {said}")


def needs_data(order: Order) -> None:
    """Check that data is given where it is needed, and only there.

    Raises:
        UsageError: it is not so.
    """
    wanting = [task.name for task in order.suite.tasks if task.needs_data]
    if wanting and order.data is None:
        raise UsageError(
            f"suite {order.suite.name}: task {wanting[0]} needs data: say --data FOLDER"
        )
    if order.data is not None and not wanting:
        raise UsageError(f"--data {order.data}: no task of suite {order.suite.name} needs data")
    if order.data is not None and not order.data.exists():
        raise UsageError(f"--data {order.data}: does not exist")


def best(scores: Sequence[float]) -> int:
    """Return which trial is taken: the first of the best.

    >>> best([-float("inf"), 0.5, 0.5])
    1
    """
    return max(range(len(scores)), key=scores.__getitem__)


def _methods(suite: Suite, plugins: Sequence[Path]) -> list[tuple[MethodSetting, Method]]:
    found: dict[str, tuple[MethodSetting, Method]] = {}
    known: dict[str, Method] = {}
    registered = entries("method", plugins)
    for i, row in enumerate(suite.methods):
        with _within(f"{suite.name}: methods.{i}"):
            rows = [row]
            if row.name == EVERY:
                rows = [MethodSetting(name=name) for name in _alone(plugins)]
            for each in rows:
                if each.name not in known:
                    known[each.name] = Method.find(each.name, plugins)
                if each.row != each.name and each.row in registered:
                    raise UsageError(
                        f"label {each.row!r} is the name of another method than {each.name!r}: "
                        "choose another label"
                    )
                found.setdefault(each.row, (each, known[each.name]))
    for row, method in found.values():
        _check_source(suite, row, method, found)
    for i, row_name in enumerate(suite.against):
        if row_name not in found:
            raise UsageError(
                f"suite {suite.name}: against.{i}: no row {row_name!r} here: "
                f"{did_you_mean(row_name, found)}"
            )
    return list(found.values())


def _check_source(
    suite: Suite,
    row: MethodSetting,
    method: Method,
    found: Mapping[str, tuple[MethodSetting, Method]],
) -> None:
    """Check that a row which takes another's weights can."""
    if not row.weights_from:
        return
    where = f"suite {suite.name}: row {row.row!r}: weights_from"
    givers = [name for name, (other, _) in found.items() if not other.weights_from]
    if row.weights_from not in (BEST, *givers):
        raise UsageError(
            f"{where}: no row {row.weights_from!r} here that finds weights: "
            f"{did_you_mean(row.weights_from, givers)}"
        )
    if row.weights_from != BEST and not (giver := found[row.weights_from][1]).is_weighted_sum:
        raise UsageError(f"{where}: {does_more(giver)}")
    if "weights" not in method.resolve(row.set):
        raise UsageError(f"{where}: {method.name} has no parameter 'weights': choose one that has")


def _alone(plugins: Sequence[Path]) -> Iterator[str]:
    """Yield every method that needs no other inside."""
    for entry in entries("method", plugins).values():
        try:
            wraps = issubclass(entry.load(Balancer), Wrapper)
        except PluginError:  # a plugin file is listed as a method and may be a task
            if entry.module is not None:
                raise
            continue
        if not wraps:
            yield entry.name


def _times(request: Request, times: int) -> Request:
    """Return a request for so many times the epochs."""
    recipe = dataclasses.replace(request.recipe, epochs=times * request.recipe.epochs)
    return dataclasses.replace(request, recipe=recipe)


def _search(asked: Ranges | None, recipe: Recipe) -> Search:
    if asked is None:
        return Search.around(recipe)
    lr, decay = ((r[0], r[1]) if r else None for r in (asked.lr, asked.weight_decay))
    return Search(lr, decay)


@contextmanager
def _within(where: str) -> Iterator[None]:
    """Say where in a suite an error is."""
    try:
        yield
    except MtbenchError as error:
        raise type(error)(f"suite {where}: {error}") from error
