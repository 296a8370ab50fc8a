"""What `mtbench plan` promises is what the board then tells, as often as it says."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mtbench.cli import plan
from mtbench.comparing.claim import Claim
from mtbench.comparing.judging import deciding, leaderboard
from mtbench.comparing.judging.deciding import prospect
from mtbench.comparing.judging.leaderboard import Board, Recorded
from mtbench.comparing.judging.leaderboard import board as boards
from mtbench.comparing.judging.leaderboard.ranking import Ranking
from mtbench.comparing.planning import cost
from mtbench.comparing.planning.grid import Cell, Grid, Order
from mtbench.comparing.planning.pilot import Scatter, _luck, scatter
from mtbench.comparing.planning.suite import Budget, Suite
from mtbench.training.cell.result import Result
from mtbench.training.cell.rundir import RunDirectory, Spec
from tests.comparing.test_leaderboard import result
from tests.conftest import TINY

STUDIES, REPETITIONS, DEVIATION = 120, 20, 3.0
ERROR = {"objective": "a", "higher_is_better": False, "primary": True}


def study(rng: np.random.Generator, effect: float, resplit: float | None) -> list[Recorded]:
    """Cells of three rows: a metric of about 1, so that its hundredths are points of delta-m."""
    n = REPETITIONS
    shared = rng.normal() * math.sqrt(resplit or 0.0)  # what all folds of a collection have alike
    base = 1 + rng.normal(0, 0.02, n)
    differences = effect + DEVIATION * (rng.normal(size=n) + shared)
    scores = {"stl": 1 + rng.normal(0, 0.001, n), "ls": base, "new": base + differences / 100}
    cells = []
    for method, values in scores.items():
        for r, value in enumerate(values.tolist()):
            cells.append(replace(record(method, r, resplit), test={"error": value}, odd=[]))
    return cells


@cache
def record(method: str, repetition: int, resplit: float | None) -> Recorded:
    spec = Spec(
        task="t", task_params={}, method=method, method_params={}, data="d", seed=repetition,
        recipe={"epochs": 1, "batch_size": 1},
    )  # fmt: skip
    ended = Result(**result(spec, metrics={"error": ERROR}, score=1.0))
    claim = Claim(
        suite="s", digest="d", task="t", label=method, repetition=repetition, draw=None, places={},
        sampler="sobol", trials=1, repetitions=REPETITIONS, seeds=1, rows=3, margin=2.0,
        against=["ls"], resplit=resplit,
    )  # fmt: skip
    return Recorded(RunDirectory.__new__(RunDirectory), spec, ended, [claim])


@pytest.mark.parametrize(
    ("effect", "resplit"), [(0.0, None), (2.5, None), (4.0, None), (5.0, 0.3125)]
)
def test_the_board_tells_as_often_as_was_promised(
    monkeypatch: pytest.MonkeyPatch, effect: float, resplit: float | None
) -> None:
    monkeypatch.setattr(Ranking, "delta", np.zeros((3, 3)))  # intervals are not asked for
    rng = np.random.default_rng(0)
    told = []
    for _ in range(STUDIES):
        cells = study(rng, effect, resplit)
        monkeypatch.setattr(boards, "read_cells", lambda _, cells=cells: (cells, []))
        [found] = leaderboard.boards([], "ls")
        told += found.pairs.loc[found.pairs["method"] == "new", "told"].tolist()
    promised = prospect(
        effect, DEVIATION, REPETITIONS, margin=2.0, comparisons=2, test_train_ratio=resplit or 0.0
    )
    assert len(told) == STUDIES
    for word, share in promised.shares.items():
        spread = math.sqrt(share * (1 - share) / STUDIES)
        assert told.count(word) / STUDIES == pytest.approx(share, abs=3 * spread + 0.01), word


def test_what_a_busy_machine_does_besides_is_no_cost(tmp_path: Path) -> None:
    (plugin := tmp_path / "waits.py").write_text(
        """
import time
import mtbench

class Waits(mtbench.Scalarizer):
    \"\"\"The plain sum, on a processor that others have in between.\"\"\"

    def objective(self, step):
        time.sleep(0.05)
        return step.total(), step.ones
"""
    )
    suite = Suite.model_validate(
        {
            "version": 1, "name": "s", "title": "t", "methods": ["waits"],
            "tasks": [{"name": "tiny"}], "budget": {"trials": 0, "seeds": 1},
        }
    )  # fmt: skip
    [found] = cost.probe(Grid(Order(suite, plugins=(TINY, plugin))), lambda *_: None)
    assert 0 < found.step < 0.05


def planned(seeds: int, repetitions: int, trials: int = 0) -> Grid:
    suite = {
        "version": 1, "name": "s", "title": "t",
        "methods": ["ew", "ls", {"name": "ls", "weights_from": "best", "label": "frozen"}],
        "tasks": [{"name": "tiny", "measured": {"deviation": 1.0, "origin": "a pilot"}}],
        "budget": {"trials": trials, "seeds": seeds, "repetitions": repetitions},
    }  # fmt: skip
    return Grid(Order(Suite.model_validate(suite), plugins=(TINY,)))


@pytest.mark.parametrize(("seeds", "repetitions", "looks"), [(4, 6, [24]), (12, 1, [12])])
def test_a_plan_looks_when_a_sweep_does(
    monkeypatch: pytest.MonkeyPatch, seeds: int, repetitions: int, looks: list[int]
) -> None:
    seen = []

    def ended(*_: Any, looks: list[int] | None = None, **__: Any) -> deciding.Prospect:
        seen.append(looks)
        return deciding.Prospect({}, 0.0)

    monkeypatch.setattr(deciding, "prospect", ended)
    monkeypatch.setattr(deciding, "smallest_effect", lambda *_, **__: 1.0)
    monkeypatch.setattr(deciding.Prospect, "told", lambda *_: 1.0)
    plan._power(planned(seeds, repetitions), [], {}, "", 1)
    assert [one for one in seen if one] == 4 * [looks]


def test_a_plan_counts_what_has_trials_and_what_runs() -> None:
    grid = planned(1, 6, trials=3)
    runs, *others = (cost.Cost(entry, 0.1, 10.0) for entry in grid.entries)
    broken = [replace(one, step=math.nan, cell=math.nan) for one in others]
    cells, time = plan._time(grid, [runs, *broken], 2)
    assert cells.endswith(
        "x methods 3 x repetitions 6 x (trials 3 + seeds 1) - trials of frozen = 54"
    )
    assert time.startswith("time: 4 min on one core, 2 min with --jobs 2")
    assert time.endswith("without 2 rows that do not run")
    assert "20 s with --jobs 64" in plan._time(grid, [runs], 64)[1]  # a trial, then a final cell
    assert plan._time(grid, broken, 2)[1] == "time: not known, for no row runs"
    [untuned, *_] = planned(1, 6).entries
    assert "10 s with --jobs 64" in plan._time(grid, [cost.Cost(untuned, 0.1, 10.0)], 64)[1]


def test_samples_that_are_held_out_make_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost._Clock, "step", 1.0)
    monkeypatch.setattr(cost._Clock, "evaluation", 0.0)
    suite = Suite.model_validate(
        {
            "version": 1, "name": "s", "title": "t",
            "methods": ["ew", {"name": "bilevel", "label": "half", "set": {"share": 0.5}}],
            "tasks": [{"name": "tiny"}], "budget": {"trials": 0, "seeds": 1},
        }
    )  # fmt: skip
    plugins = (TINY, TINY.parent / "training" / "bilevel.py")
    costs = cost.probe(Grid(Order(suite, plugins=plugins)), lambda *_: None)
    assert [one.cell for one in costs] == [4 * 6, 4 * 3]  # four epochs of 48 samples, 8 a step


def test_a_pilot_tells_of_each_setting_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of the pairs that the suite asks about, whatever else a board has."""
    tasks = [{"name": "gradnorm_toy", "set": {"scales": [s]}} for s in (2.0, 1.0, 9.0)]
    grid = Grid(
        Order(
            Suite.model_validate(
                {
                    "version": 1, "name": "s", "title": "t", "methods": ["ew", "ls"],
                    "tasks": tasks, "budget": {"trials": 0, "seeds": 6}, "against": ["ew"],
                }
            ),
        )
    )  # fmt: skip
    found = []
    for entry, deviation in zip(grid.entries[::2], (2.0, 3.0, 9.0), strict=True):
        made = grid.spec(Cell(entry, 0), "data", None)
        spec = Spec.model_validate_json(made.model_dump_json())  # as a record has it
        one = Recorded(RunDirectory(tmp_path), spec, {})
        told = {"ew": [deviation, deviation, math.nan], "ls": [99.0] * 3}
        pairs = pd.concat([pd.DataFrame({"against": k, "deviation": v}) for k, v in told.items()])
        found.append(
            Board(entry.task, {}, pd.DataFrame(), [], cells={"ew": [one]}, pairs=pairs,
                  baseline="ew")
        )  # fmt: skip
    asked = {"ew": found[:2]}
    monkeypatch.setattr(leaderboard, "boards", lambda _, row: asked[row])
    titles = list(grid.tasks)
    assert scatter(grid, tmp_path, "ls") == {
        titles[0]: Scatter(2.0, "by the pilot"), titles[1]: Scatter(3.0, "by the pilot"),
    }  # fmt: skip
    tuned = grid.suite.model_copy(update={"budget": Budget(trials=4, seeds=2, repetitions=8)})
    others = scatter(Grid(Order(tuned)), tmp_path, "ls")[titles[0]]
    assert others == Scatter(
        2.0, "by the pilot, whose repetitions are of one seed, not of 4 trials and 2 seeds"
    )
    asked["ew"] = found[:1]
    another = f"by the pilot on another setting: {titles[0]}"
    assert scatter(grid, tmp_path, "ls")[titles[2]] == Scatter(2.0, another)


@pytest.mark.parametrize(
    ("changed", "told"),
    [({}, True), ({"seeds": 1}, False), ({"trials": 0, "resplit": 0.25}, False)],
    ids=["as is", "one seed", "other data"],
)
def test_the_luck_of_tuning_is_what_final_seeds_do_not_explain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], told: bool
) -> None:
    """`ls` has luck of 3 points in each repetition, that both its seeds share; `ew` has none."""
    rng, repetitions, seeds = np.random.default_rng(0), 200, changed.get("seeds", 2)
    luck = np.repeat(rng.normal(0, 3.0, repetitions), seeds)
    noise = {name: rng.normal(0, 1.0, len(luck)) for name in ("ew", "ls", "new")}
    scores = {name: 100 + values for name, values in noise.items()}
    scores |= {"stl": np.full(len(luck), 100.0), "ls": scores["ls"] + luck}
    cells, cell = [], record("stl", 0, None)
    for method, values in scores.items():
        for seed, value in enumerate(values.tolist()):
            spec = cell.spec.model_copy(update={"method": method, "seed": seed})
            ended = Result(**result(spec, metrics={"error": ERROR}, score=1.0))
            own = {"label": method, "repetition": seed // seeds, "repetitions": repetitions}
            more = {"seeds": seeds, "trials": 7, "against": ["ls", "ew"], "rows": 4}
            made = cell.claims[0].model_copy(update=own | more | changed)
            cells.append(Recorded(cell.run, spec, ended, [made], {"error": value}))
    monkeypatch.setattr(boards, "read_cells", lambda _: (cells, []))
    monkeypatch.setattr(Ranking, "delta", np.zeros((3, 4)))  # intervals are not asked for
    found = {row: _luck(leaderboard.boards([], row)[0]) for row in ("ls", "ew")}
    if not told:
        assert set(found.values()) == {None}
        return
    to_ls, to_ew = found["ls"], found["ew"]
    assert to_ls is not None
    assert to_ew is not None
    assert (to_ls.row, to_ls.trials) == ("ls", 7)
    assert to_ls.choice == pytest.approx(3.0, rel=0.2)
    assert to_ls.seed == pytest.approx(math.sqrt(2), rel=0.2)  # of both rows
    assert to_ew.choice < 0.5  # the median of new, stl and ls
    assert to_ew.seed == pytest.approx(math.sqrt(2), rel=0.2)
