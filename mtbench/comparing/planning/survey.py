"""How far a suite's cells are in a folder, and which of them other code has made."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mtbench.comparing import claim
from mtbench.comparing.claim import Claim
from mtbench.comparing.planning.grid import Cell, Entry, Grid, best, frozen
from mtbench.errors import RunError
from mtbench.plugins.code import core_digest
from mtbench.training.cell.rundir import RunDirectory, Spec
from mtbench.training.trainer.record import is_outdated

CRASHES = 2
"""How often a cell may crash before it counts as failed."""

INCOMPLETE = "incomplete.json"
"""Where a finished cell lacks figures, or what the task fits to its model: why."""

TRAINED = "trained for another suite"
"""Said of an open cell that a sweep only has to claim."""

CORE = "mtbench"
"""What the code beside plugins is called."""


def record_crash(run: RunDirectory, reason: str, details: str = "") -> None:
    """Note that a cell crashed; once too often, and it has failed."""
    before = crash(run)
    count = 1 + (before["crashes"] if before else 0)
    record = {
        "crashes": count, "reason": _written(" ".join(reason.split())),
        "details": _written(details), "code": core_digest(),
    }  # fmt: skip
    run.write_text("crash.json", json.dumps(record, indent=2))
    if count >= CRASHES:
        (run.path / "crash.json").replace(run.path / "failed.json")


def _written(text: str) -> str:
    """Return a text without lone surrogates, which names of files bring and no record may hold."""
    return text.encode(errors="backslashreplace").decode()


def crash(run: RunDirectory) -> dict[str, Any] | None:
    """Return the record of a cell's crashes, None if there was none.

    Raises:
        RunError: it does not parse, or is none.
    """
    for name in ("failed.json", "crash.json"):
        record = run.read(name, "delete it")
        if record is not None:
            count, reason = record.get("crashes"), record.get("reason")
            if not (isinstance(count, int) and isinstance(reason, str)):
                raise RunError(f"{run.path / name}: is no record of crashes; delete it")
            return record
    return None


def record_incomplete(run: RunDirectory, reason: str, details: str = "") -> None:
    """Note why a finished cell lacks its figures, or what the task fits to its model."""
    record = {"reason": _written(" ".join(reason.split())), "details": _written(details)}
    run.write_text(INCOMPLETE, json.dumps(record, indent=2))


def failed(run: RunDirectory) -> bool:
    """Return whether a cell is given up."""
    return (run.path / "failed.json").exists()


Status = Literal["open", "running", "finished", "diverged", "failed"]


@dataclass(frozen=True)
class State:
    """How far a cell is.

    Attributes:
        status: in a word.
        note: the selection score, or why there is none; `TRAINED`.
        score: on the validation split; minus infinity where there is none.
        seconds: that training took.
        run: its directory, once there is one.
        other: what of a trained cell is not as it would be made now: ``mtbench``, plugins whose
            code has changed, or fields of its spec.
        incomplete: why a finished cell lacks its figures, or what the task fits to its model.
    """

    status: Status
    note: str = ""
    score: float = -math.inf
    seconds: float = math.nan
    run: Path | None = None
    other: tuple[str, ...] = ()
    incomplete: str = ""

    @property
    def closed(self) -> bool:
        """Whether nothing is left to do."""
        return self.status not in ("open", "running")


class Survey:
    """Looks at a folder, again and again; what is finished is read once.

    Cells are found by all of their specs but the data's fingerprint, so no data is needed. Where
    there is none, the cell counts that other code has made for the same place in the suite, unless
    the order is to train such cells again.

    Args:
        grid: the cells.
        out: the folder.
    """

    def __init__(self, grid: Grid, out: Path) -> None:
        self.grid, self.out, self.anew = grid, out, grid.order.other_code == "anew"
        self._known: set[Path] = set()
        self._at: dict[str, list[Path]] = {}
        self._placed: dict[tuple[Any, ...], list[Path]] = {}
        self._specs: dict[tuple[Cell, int | None], tuple[Spec, str, Claim]] = {}
        self._closed: dict[Path, State] = {}
        self._claims: dict[Path, list[Claim]] = {}

    def look(self) -> dict[Cell, State]:
        """Return every cell's state.

        Raises:
            RunError: a record does not parse.
        """
        self._find()
        found: dict[Cell, State] = {}
        taken: dict[tuple[Entry, int], int | None] = {}
        for cell in self.grid.cells:  # what others need stands before them
            study = cell.entry, cell.repetition
            if cell.trial is not None:
                found[cell] = self._state(cell, cell.trial)
            elif cell.entry.weights_from:
                found[cell] = self._frozen(cell, found)
            else:
                trials = self.grid.trials(*study)
                if study not in taken and all(found[trial].closed for trial in trials):
                    scores = [found[trial].score for trial in trials]
                    taken[study] = best(scores) if scores else None
                if study not in taken:
                    found[cell] = State("open")
                    continue
                trial, tried = taken[study], None
                if trial is not None and (cell, trial) not in self._specs:
                    run = found[trials[trial]].run
                    assert run is not None  # that of a closed trial
                    tried = RunDirectory(run).spec()
                found[cell] = self._state(cell, trial, tried)
        return found

    def _frozen(self, cell: Cell, found: Mapping[Cell, State]) -> State:
        """Return the state of a cell that has the weights of another."""
        sources = {source: found[source] for source in self.grid.needs(cell)}
        if not all(state.closed for state in sources.values()):
            return State("open")
        if (cell, None) in self._specs:
            return self._state(cell, None)
        runs = {c: None if s.run is None else RunDirectory(s.run) for c, s in sources.items()}
        try:
            origin, spec = frozen(cell, runs)
        except RunError as error:
            return State("failed", str(error))
        return self._state(cell, None, spec, origin)

    def begun(self) -> list[Cell]:
        """Return the open cells of the last look that other code has begun: no other can go on."""
        found = []
        for (cell, _), (spec, key, claimed) in self._specs.items():
            own = set(self._at.get(key, ()))
            there = own | set(self._placed.get(_place(claimed, spec), ()))
            if any(self._closed.get(path) for path in there):
                continue
            parts = [path for path in there if (path / "checkpoint.pt").exists()]
            if any(path not in own or is_outdated(RunDirectory(path)) for path in parts):
                found.append(cell)
        return found

    def _find(self) -> None:
        for folder in {entry.folder(self.out) for entry in self.grid.entries}:
            for path in _cells_in(folder):
                if path not in self._known:
                    self._known.add(path)
                    spec = RunDirectory(path).spec()
                    self._at.setdefault(_key(spec), []).append(path)
                    self._claims[path] = claim.read(RunDirectory(path))
                    for one in self._claims[path]:
                        self._placed.setdefault(_place(one, spec), []).append(path)

    def _state(
        self, cell: Cell, trial: int | None, tried: Spec | None = None, weights_from: str = ""
    ) -> State:
        if (cell, trial) not in self._specs:
            made = self.grid.spec(cell, "", trial, tried)
            self._specs[cell, trial] = made, _key(made), self.grid.claim(cell, trial, weights_from)
        spec, key, own = self._specs[cell, trial]
        states = [self._read(path, own) for path in self._at.get(key, ())]
        # Data that has changed makes a second directory: what is left to do there is to be seen.
        state = min(states, key=lambda state: state.closed, default=State("open"))
        if state.closed or self.anew:
            return state
        others = (self._look_at(path) for path in self._placed.get(_place(own, spec), ()))
        return next((replace(o, other=_other(o, spec)) for o in others if trained(o)), state)

    def _read(self, path: Path, own: Claim) -> State:
        state = self._look_at(path)
        if state.closed and own not in self._claims[path]:
            self._claims[path] = claim.read(RunDirectory(path))
            if own not in self._claims[path]:  # a cell of another suite is still to be claimed
                return State("open", TRAINED, run=path, other=state.other)
        return state

    def _look_at(self, path: Path) -> State:
        if path not in self._closed:
            state = state_of(RunDirectory(path))
            if is_open(state, self.anew):
                return State("running" if RunDirectory(path).holder() else "open", run=path)
            if state.incomplete:  # until a worker has drawn its figures
                return state
            self._closed[path] = state
        return self._closed[path]


def state_of(run: RunDirectory) -> State:
    """Return the state of a run directory that nobody works on.

    Raises:
        RunError: a record does not parse, or is none.
    """
    result = run.result()
    if result is None:
        if failed(run) and (record := crash(run)):
            return State("failed", record["reason"], run=run.path, other=_core(record))
        return State("open", run=run.path)
    seconds, other = result.cost.train_seconds, _core(result.environment)
    if result.score is None:
        return State("diverged", result.reason or "", seconds=seconds, run=run.path, other=other)
    said = f"score {result.score:.4g}"
    lacking = run.read(INCOMPLETE, "delete it") or {}
    incomplete = str(lacking.get("reason", ""))
    return State("finished", said, result.score, seconds, run.path, other, incomplete)


def is_open(state: State, anew: bool) -> bool:
    """Return whether a cell is to be trained: also one of other code, if such are trained anew."""
    return not state.closed or (anew and bool(state.other))


def trained(state: State) -> bool:
    """Return whether a cell has a result; one that failed has none."""
    return state.status in ("finished", "diverged")


class Earlier:
    """Finds trained cells by their place in a suite, whatever code has made them.

    Args:
        out: the folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._placed: dict[Path, dict[tuple[Any, ...], list[RunDirectory]]] = {}

    def find(self, entry: Entry, own: Claim, spec: Spec) -> RunDirectory | None:
        """Return that of a place and of the same data, None if there is none.

        Args:
            entry: the row and the task.
            own: says the place.
            spec: what the cell would be now; one that is so comes first.
        """
        folder = entry.folder(self.out)
        if folder not in self._placed:
            placed = self._placed[folder] = {}
            for run in map(RunDirectory, _cells_in(folder)):
                for one in claim.read(run):
                    placed.setdefault(_place(one, run.spec()), []).append(run)
        found = [
            run
            for run in self._placed[folder].get(_place(own, spec), ())
            if run.spec().data == spec.data and trained(state_of(run))
        ]
        return min(found, key=lambda run: run.spec() != spec, default=None)


def _cells_in(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if (path / "spec.json").exists()]


def _key(spec: Spec) -> str:
    return spec.model_copy(update={"data": ""}).canonical()


def _place(one: Claim, spec: Spec) -> tuple[Any, ...]:
    """Return where in a suite a cell is, whatever its spec says beside that."""
    return (*one.place, spec.seed, spec.stage)


def _core(environment: Mapping[str, Any]) -> tuple[str, ...]:
    return () if environment.get("code") == core_digest() else (CORE,)


def _other(state: State, spec: Spec) -> tuple[str, ...]:
    """Return what of a closed cell is not as a spec says it."""
    assert state.run is not None
    made = RunDirectory(state.run).spec()
    plugins = sorted({*made.plugins, *spec.plugins})
    names = [name for name in plugins if made.plugins.get(name) != spec.plugins.get(name)]
    theirs, ours = (
        one.model_dump(mode="json", exclude={"data", "plugins"}) for one in (made, spec)
    )
    fields = [field for field in ours if theirs[field] != ours[field]]
    return (*state.other, *names, *fields)
