"""A sweep's parts: which cells there are, who holds one, what is made of a crash."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from mtbench.cli.status import _summary
from mtbench.comparing import claim
from mtbench.comparing.judging import leaderboard
from mtbench.comparing.planning import survey as surveying
from mtbench.comparing.planning.grid import Cell, Grid, Order, best
from mtbench.comparing.planning.suite import Suite
from mtbench.comparing.planning.survey import (
    TRAINED,
    State,
    Survey,
    crash,
    failed,
    record_crash,
)
from mtbench.comparing.running.executors import Outcome
from mtbench.comparing.running.sweep import check_data, prepare, sweep
from mtbench.comparing.running.worker import Assignment, Worker
from mtbench.errors import DataError, RunError, UsageError
from mtbench.plugins.code import core_digest
from mtbench.plugins.method import Method
from mtbench.training.cell.rundir import RunDirectory, Spec, find_runs
from mtbench.training.machine.locks import HeldError
from mtbench.training.trained.frozen import frozen_weights
from mtbench.training.trainer import record, trainer
from mtbench.training.trainer.record import OutdatedError
from mtbench_baselines.ls import LinearScalarization
from tests.processes import PROCESSES

Made = Callable[..., Grid]

BROKEN = '''
from mtbench.balancing.balancer import Scalarizer
class Broken(Scalarizer):
    """Fails."""
    paper = "none"
    def objective(self, step):
        raise ZeroDivisionError("one\\nthing")
'''


@pytest.fixture
def make(tiny: Path) -> Made:
    def made(*plugins: Path, **changed: Any) -> Grid:
        content = {
            "version": 1, "name": "mine", "title": "t", "methods": ["ew", "ls"],
            "budget": {"trials": 2, "seeds": 2},
            "tasks": [{"name": "tiny", "recipe": {"epochs": 1}}],
        }  # fmt: skip
        suite = Suite.model_validate(content | changed)
        return Grid(Order(suite, None, (tiny, *plugins)))

    return made


def work(grid: Grid, out: Path, numbers: Sequence[int] | None = None) -> list[Path]:
    """Do it in this process; return what was trained."""
    prepare(out)
    worker = Counting(grid, out, out / ".sweep" / "me.cell")
    worker.run(numbers)
    assert not worker.note.exists()
    return worker.trained


class Counting(Worker):
    def __init__(self, grid: Grid, out: Path, note: Path) -> None:
        super().__init__(grid, out, note)
        self.trained: list[Path] = []

    def _train(self, cell: Cell, spec: Spec, run: RunDirectory) -> None:
        self.trained.append(run.path)
        super()._train(cell, spec, run)


def test_trials_come_first_and_then_seed_by_seed(make: Made) -> None:
    grid = make()
    said = [str(cell).removeprefix("tiny epochs=1 ") for cell in grid.cells]
    assert said == [
        "ew trial 0", "ew trial 1", "ls trial 0", "ls trial 1",
        "ew seed 0", "ls seed 0", "ew seed 1", "ls seed 1",
    ]  # fmt: skip
    stages = [grid.spec(cell, "f", cell.trial).stage for cell in grid.cells]
    assert stages == ["trial"] * 4 + ["final"] * 4
    assert {cell.seed for cell in grid.cells if cell.trial is not None} == {1000}


def test_every_method_gets_the_same_learning_rates(make: Made) -> None:
    grid = make(methods=["stl", "ew", "ls"])
    drawn = [[draw.recipe for draw in entry.draws[0]] for entry in grid.entries]
    assert drawn[0] == drawn[1] == drawn[2]
    for entry in grid.entries:
        for trial, recipe in enumerate(drawn[0]):
            request, _ = entry.setting(0, trial)
            assert (request.recipe.lr, request.recipe.epochs) == (recipe.get("lr", 1e-2), 1)


def test_a_final_cell_has_the_parameters_that_its_trial_was_trained_with(
    make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where today's code would draw others by that trial's number, and trials are kept."""
    grid = make(methods=["ls"], budget={"trials": 3, "seeds": 1})
    work(grid, tmp_path, [0, 1, 2])
    [entry] = grid.entries
    states = Survey(grid, tmp_path).look()
    won = best([states[trial].score for trial in grid.trials(entry, 0)])
    assert won  # the defaults would not tell
    path = states[grid.cells[won]].run
    assert path is not None
    trial = RunDirectory(path).spec()

    def suggest(trial: Any, num_objectives: int) -> dict[str, Any]:
        return {"weights": (trial.suggest_float("weight", 0.1, 0.2),) * num_objectives}

    monkeypatch.setattr(LinearScalarization, "suggest", staticmethod(suggest))
    grid = make(methods=["ls"], budget={"trials": 3, "seeds": 1})
    [path] = work(grid, tmp_path)
    final = RunDirectory(path).spec()
    assert final.stage == "final"
    assert (final.method_params, final.recipe) == (trial.method_params, trial.recipe)
    assert {state.status for state in Survey(grid, tmp_path).look().values()} == {"finished"}


def test_every_repetition_is_a_study_of_its_own(make: Made, tmp_path: Path) -> None:
    grid = make(budget={"trials": 2, "seeds": 1, "repetitions": 2})
    said = [str(cell).removeprefix("tiny epochs=1 ") for cell in grid.cells]
    assert said[:6] == [
        "ew repetition 0 trial 0", "ew repetition 0 trial 1", "ls repetition 0 trial 0",
        "ls repetition 0 trial 1", "ew seed 0", "ls seed 0",
    ]  # fmt: skip
    assert [cell.seed for cell in grid.cells[6:]] == [1001] * 4 + [1] * 2
    first, second = grid.entries[1].draws
    assert first[0] == second[0] != first[1] != second[1]  # the defaults, then other points
    trained = [RunDirectory(path).spec().stage for path in work(grid, tmp_path)]
    assert trained == (["trial"] * 4 + ["final"] * 2) * 2
    claims = [one for run in find_runs([tmp_path]) for one in claim.read(run)]
    assert len(claims) == 12
    assert {(c.suite, c.digest, c.repetitions) for c in claims} == {("mine", grid.suite.digest, 2)}
    assert {c.repetition for c in claims} == {0, 1}
    places = {tuple(c.places) for c in claims}
    assert ("recipe.lr", "recipe.weight_decay", "spread", "weight_0", "weight_1") in places


def test_what_the_suite_fixes_has_no_place_in_a_range(make: Made) -> None:
    fixed = {"name": "ls", "set": {"weights": [1.0, 2.0]}, "label": "fixed"}
    grid = make(methods=[fixed, {"name": "cagrad", "set": {"c": 0.4}, "label": "c"}, "ls"])
    places = {
        cell.entry.label: set(grid.claim(cell, 1).places) for cell in grid.cells if cell.trial == 1
    }
    assert places["fixed"] == places["c"] == {"recipe.lr", "recipe.weight_decay"}
    assert places["ls"] > places["fixed"]


def test_another_suite_claims_what_is_there(make: Made, tmp_path: Path) -> None:
    work(make(), tmp_path)
    other = make(name="other")
    states = Survey(other, tmp_path).look()
    assert {state.status for state in states.values()} == {"open"}
    finals = [states[cell].note for cell in other.cells if cell.trial is None]
    trials = [states[cell].note for cell in other.cells if cell.trial is not None]
    assert set(trials) == {TRAINED}
    assert set(finals) == {""}  # whose parameters they will have, is not known yet
    assert "; 4 of the open ones are trained, for another suite" in str(_summary(states, 1))
    assert work(other, tmp_path) == []  # nothing is trained
    assert all(state.closed for state in Survey(other, tmp_path).look().values())
    for run in find_runs([tmp_path]):
        assert [one.suite for one in claim.read(run)] == ["mine", "other"]


def test_a_part_of_the_repetitions(make: Made) -> None:
    whole = make(budget={"trials": 1, "seeds": 1, "repetitions": 3})
    part = Grid(replace(whole.order, repetitions={(whole.entries[1].task, "ls"): 2}))
    assert list(map(str, part.cells)) == [
        str(c) for c in whole.cells if c.entry.label == "ls" and c.repetition < 2
    ]


PARTED = '''
from dataclasses import replace
from pathlib import Path
from mtbench.errors import DataError, UsageError
from tests.tiny import Tiny
class Parted(Tiny):
    """Has data in parts."""
    def __init__(self, *, fold: int = 0) -> None:
        super().__init__()
        if fold > LAST:
            raise UsageError("fold must be 0 to LAST")
        self.fold = fold
    def setup(self, seed, progress):
        if self.fold == 1 and Path(__file__).with_name("broken").exists():
            raise DataError("fold 1 has no images")
        return replace(super().setup(seed, progress), fingerprint=f"{seed} of {self.fold}")
'''


@pytest.mark.parametrize(
    ("parts", "wanted", "resplit"), [([1, 0], [1, 0, 1], 1.25), ("repetition", [0, 1, 2], 0.0)]
)
def test_repetitions_may_have_data_of_their_own(
    make: Made, tmp_path: Path, parts: list[int] | str, wanted: list[int], resplit: float
) -> None:
    """Of one suite they are one board, whatever their data."""
    (plugin := tmp_path / "parted.py").write_text(PARTED.replace("LAST", str(max(wanted))))
    task = {"name": "parted", "recipe": {"epochs": 1}, "resample": {"fold": parts}}
    budget = {"trials": 1, "seeds": 1, "repetitions": 3}
    grid = make(plugin, tasks=[task], budget=budget, against=["ls"])
    assert len(work(grid, tmp_path)) == 12
    runs = list(find_runs([tmp_path]))
    for run in runs:
        [own] = claim.read(run)
        spec = run.spec()
        assert spec.task_params["fold"] == wanted[own.repetition]
        assert spec.data == f"{spec.seed} of {wanted[own.repetition]}"
    [board] = leaderboard.boards(runs, "ls")
    assert board.rows["units"].tolist() == [3, 3]
    assert board.suite is not None
    assert (board.unit, board.suite.resplit) == ("repetition", resplit)
    assert board.title.startswith("parted epochs=1 fold=")


def test_every_fold_is_set_up_before_a_sweep(make: Made, tmp_path: Path) -> None:
    """The last one's data would else be missed hours later; a population differs by a number."""
    (plugin := tmp_path / "parted.py").write_text(PARTED.replace("LAST", "1"))
    (tmp_path / "broken").touch()
    for parts, wrong in (([0, 1], True), ("repetition", False)):
        task = {"name": "parted", "recipe": {"epochs": 1}, "resample": {"fold": parts}}
        grid = make(plugin, tasks=[task], budget={"trials": 0, "seeds": 1, "repetitions": 2})
        with pytest.raises(DataError, match="fold 1 has") if wrong else nullcontext():
            check_data(grid, lambda *_: None)


def test_numbered_folds_are_all_of_a_task(make: Made, tmp_path: Path) -> None:
    """Some of them, taken for all, would give intervals that are too wide."""
    (plugin := tmp_path / "parted.py").write_text(PARTED.replace("LAST", "2"))
    task = {"name": "parted", "resample": {"fold": [0, 1]}}
    found = r"tasks\.0: resample: fold must name all folds, found 2, and parted takes fold = 2, too"
    with pytest.raises(UsageError, match=found):
        make(plugin, tasks=[task], budget={"trials": 0, "seeds": 1, "repetitions": 2})


def test_variants_are_rows_of_their_own(make: Made) -> None:
    twice = {"name": "ew", "recipe": {"epochs": 2}, "label": "ew twice"}
    fixed = {"name": "ls", "set": {"weights": [2, 1]}, "label": "ls 2:1"}
    grid = make(methods=["ew", twice, fixed])
    assert [entry.label for entry in grid.entries] == ["ew", "ew twice", "ls 2:1"]
    assert [entry.request.recipe.epochs for entry in grid.entries] == [1, 2, 1]


def test_what_a_suite_fixes_is_not_searched(make: Made) -> None:
    grid = make(methods=["ew", {"name": "ls", "set": {"weights": [2, 1]}, "label": "ls 2:1"}])
    ls = grid.entries[1]
    weights = [ls.setting(0, trial)[1].params["weights"] for trial in (None, 0, 1)]
    assert weights == [(2.0, 1.0)] * 3


FROZEN = {"name": "ls", "weights_from": "uw", "label": "ls frozen"}
BEST = FROZEN | {"weights_from": "best", "label": "ls of the best"}


def test_a_row_has_the_weights_of_another_as_constants(make: Made, tmp_path: Path) -> None:
    """Of the same repetition and seed; and its learning rate, for only the dynamics are gone."""
    last = FROZEN | {"weights_of": "final", "label": "last"}
    budget = {"trials": 2, "seeds": 1, "repetitions": 2}
    grid = make(methods=[BEST, FROZEN, last, "ew", "uw"], budget=budget, against=["uw"])
    said = [str(cell).removeprefix("tiny epochs=1 ") for cell in grid.cells[:9]]
    assert said[4:] == [
        f"{row} seed 0" for row in ("ew", "uw", "ls of the best", "ls frozen", "last")
    ]
    assert len(work(grid, tmp_path)) == 2 * (2 * 2 + 2 + 2)  # uw is the best that moves: one cell
    states = Survey(grid, tmp_path).look()
    assert {state.status for state in states.values()} == {"finished"}
    runs = {(cell.entry.label, cell.seed): states[cell].run for cell in grid.cells}
    giver = Method.find("uw")
    for seed in (0, 1):
        source, same = (runs[row, seed] for row in ("uw", "ls of the best"))
        assert source is not None
        theirs = RunDirectory(source).spec()
        for row, kind in (("ls frozen", "mean"), ("last", "final")):
            path = runs[row, seed]
            assert path is not None
            spec = RunDirectory(path).spec()
            weights = frozen_weights(RunDirectory(source), kind, "tiny", giver)  # type: ignore[arg-type]
            assert spec.method_params["weights"] == weights != [1.0, 1.0]
            assert (spec.recipe, spec.seed, spec.data) == (theirs.recipe, seed, theirs.data)
        assert same == runs["ls frozen", seed]
    assert work(grid, tmp_path) == []
    [board] = leaderboard.boards(list(find_runs([tmp_path])), "uw")
    assert board.rows["complete"].all()
    assert (
        "ls of the best has, as constants, the weights that were found by: uw (2)" in board.remarks
    )


def test_who_needs_anothers_weights_takes_it_along(make: Made, tmp_path: Path) -> None:
    budget = {"trials": 2, "seeds": 1, "repetitions": 2}
    grid = make(methods=["ew", "uw", FROZEN], budget=budget)
    [title] = grid.tasks
    part = Grid(replace(grid.order, repetitions={(title, "ls frozen"): 1}))
    assert {cell.entry.label for cell in part.cells} == {"uw", "ls frozen"}
    last = len(part.cells) - 1
    trained = [RunDirectory(path).spec() for path in work(part, tmp_path, [last])]
    assert [(s.method, s.stage) for s in trained] == [
        ("uw", "trial"), ("uw", "trial"), ("uw", "final"), ("ls", "final"),
    ]  # fmt: skip


def test_the_best_is_looked_for_only_where_weights_say_all(make: Made) -> None:
    """`rlar` does more than weigh, so no other row's open question keeps it going."""
    grid = make(methods=["ew", "uw", "rlar", BEST], budget={"trials": 0, "seeds": 1})
    [title] = grid.tasks
    part = Grid(replace(grid.order, repetitions={(title, "ls of the best"): 1}))
    assert [cell.entry.label for cell in part.cells] == ["ew", "uw", "ls of the best"]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["ew", BEST], "no weights from best: no row has weights that move"),
        (["graddrop", BEST], "no weights from best: no row has weights that move"),
    ],
)
def test_a_row_whose_weights_nobody_found_fails_alone(
    make: Made, tmp_path: Path, methods: list[Any], said: str
) -> None:
    grid = make(methods=methods, budget={"trials": 0, "seeds": 1})
    assert len(work(grid, tmp_path)) == 1
    first, second = Survey(grid, tmp_path).look().values()
    assert (first.status, second.status, second.run) == ("finished", "failed", None)
    assert said in second.note


def test_a_source_that_diverged_has_no_weights(make: Made, tmp_path: Path) -> None:
    task = {"name": "tiny", "set": {"explode": True}, "recipe": {"epochs": 1}}
    grid = make(methods=["uw", FROZEN], budget={"trials": 0, "seeds": 1}, tasks=[task])
    work(grid, tmp_path)
    *_, last = Survey(grid, tmp_path).look().values()
    assert "uw seed 0 has not finished" in last.note


def test_final_cells_have_the_best_trials_parameters(make: Made, tmp_path: Path) -> None:
    grid = make(budget={"trials": 3, "seeds": 2})
    trained = work(grid, tmp_path)
    assert len(trained) == len(set(trained)) == len(grid.cells) == 10
    for entry in grid.entries:
        runs = list(find_runs([tmp_path / "tiny" / entry.choice.method.name]))
        trials = {run.spec().recipe["lr"]: run for run in runs if run.spec().stage == "trial"}
        scores = {lr: run.result().score for lr, run in trials.items()}
        winner = max(scores, key=lambda lr: scores[lr])
        finals = [run for run in runs if run.spec().stage == "final"]
        assert {run.spec().seed for run in finals} == {0, 1}
        for run in finals:
            assert run.spec().recipe["lr"] == winner
            assert run.spec().method_params == trials[winner].spec().method_params
            assert (run.path / "test.json").exists()
        for run in trials.values():
            assert not (run.path / "test.json").exists()


def test_without_trials_the_defaults_are_run(make: Made, tmp_path: Path) -> None:
    grid = make(budget={"trials": 0, "seeds": 2})
    assert len(work(grid, tmp_path)) == 4
    assert {run.spec().recipe["lr"] for run in find_runs([tmp_path])} == {1e-2}


def test_what_is_finished_is_not_run_again(make: Made, tmp_path: Path) -> None:
    grid = make()
    assert len(work(grid, tmp_path)) == 8
    assert work(grid, tmp_path) == []
    more = make(budget={"trials": 2, "seeds": 3}, methods=["ew", "ls", "uw"])
    assert len(work(more, tmp_path)) == 2 + 5


def others(grid: Grid, out: Path) -> set[tuple[str, ...]]:
    return {state.other for state in Survey(grid, out).look().values()}


def changed_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (surveying, record, trainer):
        monkeypatch.setattr(module, "core_digest", lambda: "changed")


def test_cells_of_another_mtbench_count_or_are_trained_anew(
    make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make()
    work(grid, tmp_path)
    work(make(name="theirs"), tmp_path)  # claims the same cells
    assert others(grid, tmp_path) == {()}
    changed_core(monkeypatch)
    assert others(grid, tmp_path) == {("mtbench",)}
    assert ("mtbench",) in others(make(name="new"), tmp_path)  # whose trials they might be
    assert work(grid, tmp_path) == []
    anew = Grid(replace(grid.order, other_code="anew"))
    assert {state.status for state in Survey(anew, tmp_path).look().values()} == {"open"}
    assert len(work(anew, tmp_path, [0])) == 1
    [mixed, _] = leaderboard.boards(list(find_runs([tmp_path])))
    assert "cells were not all made by the same code (mtbench)" in mixed.remarks
    assert len(work(anew, tmp_path)) == len(grid.cells) - 1
    assert others(grid, tmp_path) == {()}
    assert work(anew, tmp_path) == []
    for run in find_runs([tmp_path]):
        assert [one.suite for one in claim.read(run)] == ["mine", "theirs"]


METHOD = '''
from mtbench.balancing.balancer import Scalarizer
class Mine(Scalarizer):
    """Sums."""
    paper = "none"
    def objective(self, step):
        return step.total(), step.values.new_ones(step.num_objectives)
'''


def test_cells_of_a_changed_method_count_or_are_trained_anew(make: Made, tmp_path: Path) -> None:
    plugin, out = tmp_path / "mine.py", tmp_path / "out"
    plugin.write_text(METHOD)
    grid = make(plugin, methods=["mine", "ew"])
    work(grid, out)
    whole = Survey(grid, out).look()
    begun = [state.run for state in whole.values() if state.run and "mine" in str(state.run)][-1]
    (begun / "result.json").rename(begun / "checkpoint.pt")  # the last seed's has only begun
    plugin.write_text(METHOD + "# changed")
    grid = make(plugin, methods=["mine", "ew"])
    survey = Survey(grid, out)
    assert {state.other for state in survey.look().values()} == {(), ("mine",)}
    assert [str(cell) for cell in survey.begun()] == ["tiny epochs=1 mine seed 1"]
    kept = work(grid, out)
    assert [path.parent.name for path in kept] == ["mine"]
    assert kept[0] != begun
    [board] = leaderboard.boards(list(find_runs([out])))
    assert "cells were not all made by the same code (mine)" in board.remarks
    assert board.rows["units"].tolist() == [2, 2]
    assert not board.pending
    anew = Grid(replace(grid.order, other_code="anew"))
    assert len(work(anew, out)) == 3  # all of the method's but the one
    assert others(grid, out) == {()}
    [board] = leaderboard.boards(list(find_runs([out])))
    assert board.rows["units"].tolist() == [2, 2]
    assert not any("same code" in remark for remark in board.remarks)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("other_code", ["keep", "anew"])
def test_a_cell_that_another_mtbench_began_is_begun_again_if_asked(
    make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_code: Any
) -> None:
    grid = make(methods=["ew"])
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_result", interrupted)  # its last checkpoint is written
        with pytest.raises(KeyboardInterrupt):
            work(grid, tmp_path, [0])
    [path] = (run.path for run in find_runs([tmp_path]))
    begun = (path / "checkpoint.pt").read_bytes()
    survey = Survey(grid, tmp_path)
    assert survey.look()[grid.cells[0]].status == "open"
    assert survey.begun() == []
    changed_core(monkeypatch)
    assert survey.begun() == [grid.cells[0]]
    (path / "checkpoint.pt").write_bytes(begun[:100])
    assert survey.begun() == []  # whose, is not known; and all other cells can be shown and run
    (path / "checkpoint.pt").write_bytes(begun)
    with pytest.raises(OutdatedError, match="--other-code keep"):
        work(grid, tmp_path, [0])
    assert (path / "checkpoint.pt").read_bytes() == begun  # nothing is lost unasked
    assert crash(RunDirectory(path)) is None
    (tmp_path / ".sweep" / "me.cell").unlink(missing_ok=True)
    asked = Grid(replace(grid.order, other_code=other_code))
    assert work(asked, tmp_path, [0]) == [path]
    result = RunDirectory(path).result()
    assert result is not None
    assert result.environment["code"] == "changed"
    assert crash(RunDirectory(path)) is None
    assert claim.read(RunDirectory(path))


def test_divergence_is_a_result(make: Made, tmp_path: Path) -> None:
    task = {"name": "tiny", "set": {"explode": True}, "recipe": {"epochs": 1}}
    grid = make(tasks=[task])
    assert len(work(grid, tmp_path)) == 8
    states = Survey(grid, tmp_path).look()
    assert {state.status for state in states.values()} == {"diverged"}
    assert all("non-finite loss" in state.note for state in states.values())


@pytest.mark.parametrize("ends", ["finished", "diverged"])
def test_a_cell_that_has_ended_keeps_no_checkpoint(make: Made, tmp_path: Path, ends: str) -> None:
    """Not even if it was killed between result and removal, or an earlier mtbench trained it."""
    task = {"name": "tiny", "set": {"explode": ends == "diverged"}, "recipe": {"epochs": 2}}
    grid = make(methods=["ew"], tasks=[task], budget={"trials": 0, "seeds": 1})
    [path] = work(grid, tmp_path)
    assert RunDirectory(path).result().status == ends
    assert not list(tmp_path.rglob("checkpoint.pt"))
    (path / "checkpoint.pt").write_bytes(b"left over")
    sweep(grid, tmp_path, Nobody(), lambda _: None)
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_a_checkpoint_stays_until_the_result_is_there(make: Made, tmp_path: Path) -> None:
    grid = make(methods=["ew"], budget={"trials": 0, "seeds": 1})
    [path] = work(grid, tmp_path)
    result = path / "result.json"
    result.rename(hidden := path / "hidden.json")
    (path / "checkpoint.pt").write_bytes(b"needed")
    RunDirectory(path).drop_checkpoint()
    assert (path / "checkpoint.pt").exists()
    hidden.rename(result)
    RunDirectory(path).drop_checkpoint()
    assert not (path / "checkpoint.pt").exists()


class Nobody:
    """An executor that starts no worker."""

    log = ""

    def shares(
        self, ready: Callable[[], Sequence[int]], left: int, under_way: int
    ) -> Sequence[None]:
        return ()

    def submit(self, assignments: Sequence[Assignment]) -> None: ...

    def ended(self, seconds: float) -> list[tuple[str, Outcome]]:
        return []

    def stop(self) -> None: ...


def test_a_method_that_raises_is_tried_twice(make: Made, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN)
    grid = make(plugin, methods=["broken", "ew"])
    out = tmp_path / "out"
    trained = work(grid, out)
    counts = [trained.count(path) for path in dict.fromkeys(trained)]
    assert counts == [2] * 2 + [1] * 2 + [2, 1] * 2
    states = Survey(grid, out).look()
    for cell, state in states.items():
        broken = cell.entry.choice.method.name == "broken"
        assert state.status == ("failed" if broken else "finished")
        if broken:
            assert state.note == "ZeroDivisionError: one thing (broken.py, line 7)"
            assert state.run is not None
            record = json.loads((state.run / "failed.json").read_text())
            assert record["crashes"] == 2
            assert "Traceback" in record["details"]
    assert work(grid, out) == []  # until somebody mends it


def test_a_survey_needs_no_data_and_sees_what_is_there(
    make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make()
    survey = Survey(grid, tmp_path)
    assert set(survey.look().values()) == {State("open")}
    work(grid, tmp_path)
    states = survey.look()
    assert {state.status for state in states.values()} == {"finished"}
    assert all(state.score > -math.inf and state.seconds > 0 for state in states.values())
    with monkeypatch.context() as patch:  # what is finished is read once
        patch.setattr(RunDirectory, "read", lambda *_: pytest.fail("read again"))
        patch.setattr(RunDirectory, "spec", lambda *_: pytest.fail("read again"))
        assert survey.look() == states
    path = states[grid.cells[-1]].run
    assert path is not None
    (path / "result.json").unlink()
    assert Survey(grid, tmp_path).look()[grid.cells[-1]].status == "open"
    for text in ("{}", '{"cost": {"train_seconds": 1}, "environment": "mine"}'):
        (path / "result.json").write_text(text)
        with pytest.raises(RunError, match="is no result of version 1"):
            Survey(grid, tmp_path).look()
    (path / "result.json").unlink()
    for text, said in (
        ("{", "does not parse"), ("[]", "does not parse"), ("[" * 100_000, "does not parse"),
        ("{}", "is no record of crashes"), ('{"crashes": "2", "reason": "a"}', "is no record"),
        ('{"crashes": 2, "reason": 5}', "is no record"),
    ):  # fmt: skip
        (path / "failed.json").write_text(text)
        with pytest.raises(RunError, match=rf"failed\.json: {said}"):
            Survey(grid, tmp_path).look()


def hold(run: RunDirectory, held: Event) -> None:
    with run.claim():
        held.set()
        time.sleep(60)


def test_a_cell_is_held_until_its_process_ends(make: Made, tmp_path: Path) -> None:
    grid = make()
    prepare(tmp_path)
    cell = grid.cells[0]
    run = RunDirectory.at(tmp_path, grid.spec(cell, "tiny-1", 0))
    held = PROCESSES.Event()
    holder = PROCESSES.Process(target=hold, args=(run, held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(HeldError, match=f"process {holder.pid} on .* works on it"), run.claim():
        pass
    assert Survey(grid, tmp_path).look()[cell].status == "running"
    assert work(grid, tmp_path, [0]) == []  # it is left to the other
    holder.kill()
    holder.join()
    assert Survey(grid, tmp_path).look()[cell].status == "open"
    assert work(grid, tmp_path, [0]) == [run.path]


def test_a_batch_takes_the_trials_that_it_needs_along(make: Made, tmp_path: Path) -> None:
    grid = make()
    last = len(grid.cells) - 1
    trained = work(grid, tmp_path, [last])  # a final cell of the second method
    assert [RunDirectory(path).spec().stage for path in trained] == ["trial", "trial", "final"]
    assert {path.parent.name for path in trained} == {"ls"}
    assert Worker(grid, tmp_path, tmp_path / "note").run([last, 2]) == (2, last)


def test_crashes_are_counted(make: Made, tmp_path: Path) -> None:
    grid = make()
    run = RunDirectory.at(tmp_path, grid.spec(grid.cells[0], "f", 0))
    assert crash(run) is None
    record_crash(run, "a\n b")
    assert not failed(run)
    noted = crash(run)
    assert noted == {"crashes": 1, "reason": "a b", "details": "", "code": core_digest()}
    record_crash(run, "c: scan_\udcff.png")
    assert failed(run)
    assert crash(run) == noted | {"crashes": 2, "reason": "c: scan_\\udcff.png"}
    assert not (run.path / "crash.json").exists()


def test_a_folder_whose_name_is_no_unicode(make: Made, tmp_path: Path) -> None:
    """`run` trains there, and so does a worker, which writes down at which cell it is."""
    grid = make(methods=["ew"], budget={"trials": 0, "seeds": 1})
    out = tmp_path / os.fsdecode(b"r\xff")
    [path] = work(grid, out)
    assert RunDirectory(path).result() is not None
    (path / "result.json").unlink()
    assignment = Assignment(grid.order, out, "me", None, grid.digest)
    assignment.note.write_bytes(os.fsencode(path))
    assert assignment.blame("died")
    assert crash(RunDirectory(path)) is not None


def test_the_first_of_the_best_trials_is_taken() -> None:
    assert best([0.1, 0.3, 0.3]) == 1
    assert best([-math.inf, -math.inf]) == 0
    assert best([-math.inf, -5.0]) == 1


def test_cells_are_compared_by_their_entry(make: Made) -> None:
    grid = make()
    assert Cell(grid.entries[0], 1) == Cell(grid.entries[0], 1) != Cell(grid.entries[1], 1)
