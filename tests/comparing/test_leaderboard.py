"""The leaderboard, on records written by hand: every number can be checked on paper."""

import csv
import io
import json
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mtbench.comparing.judging import leaderboard
from mtbench.comparing.judging.leaderboard import Board
from mtbench.comparing.judging.leaderboard.formats import marks
from mtbench.errors import RunError
from mtbench.training.cell.rundir import RunDirectory, Spec, find_runs
from mtbench.training.task import RESERVED

METRICS = {
    "dice": {"objective": "mask", "higher_is_better": True, "primary": True},
    "error": {"objective": "grade", "higher_is_better": False, "primary": True},
    "extra": {"objective": "grade", "higher_is_better": True, "primary": False},
}


DIVERGED: dict[str, Any] = {"status": "diverged", "best_epoch": None, "val": None, "score": None}


def result(spec: Spec, **own: Any) -> dict[str, Any]:
    """Return what a finished cell's ``result.json`` holds; `stl` is the reference."""
    return {
        "version": 1, "status": "finished", "task": spec.task, "method": spec.method,
        "reference": spec.method == "stl", "seed": spec.seed, "hash": spec.hash,
        "selection": "rule", "epochs": 2, "metrics": METRICS, "notes": {}, "environment": {},
        "idle": [], "nonfinite": [], "plugins": {}, "times": {},
        "best_epoch": 1, "val": {}, "score": 0.5,
        "cost": {
            "seconds_per_step": 0.25, "peak_mib": 100.0, "train_seconds": 1800.0,
            "passes": "F + B", "parameters": 9,
        },
    } | own  # fmt: skip


def cell(
    out: Path, method: str, seed: int, dice: float = 0.5, error: float = 1.0, *,
    status: str = "finished", seconds: float = 0.25, peak: float = 100.0, score: float = 0.5,
    idle: Any = (), **spec: Any,
) -> RunDirectory:  # fmt: skip
    """Write one cell."""
    fields: dict[str, Any] = {
        "task": "made_up", "task_params": {"size": 8}, "method": method, "method_params": {},
        "data": "d", "recipe": {"epochs": 2, "batch_size": 4, "lr": 0.1}, "seed": seed,
    }  # fmt: skip
    run = RunDirectory.at(out, Spec(**fields | spec))
    if status == "unfinished":
        return run
    metrics = {"dice": dice, "error": error, "extra": 7.0}
    ended = {"val": metrics, "score": score} if status == "finished" else DIVERGED
    found = result(run.spec(), idle=idle, **ended)
    found["cost"] |= {"seconds_per_step": seconds, "peak_mib": peak}
    if status == "finished" and run.spec().stage == "final":
        run.write_text("test.json", json.dumps({"metrics": metrics}))
    run.write_text("result.json", json.dumps(found))
    return run


def diverge(file: Path) -> None:
    """Let a finished cell's result be that of one which diverged."""
    file.write_text(json.dumps(json.loads(file.read_text()) | DIVERGED))


def board(out: Path, baseline: str | None = None, plain: str | None = None) -> Board:
    [only] = leaderboard.boards(list(find_runs([out])), baseline, plain)
    return only


def rows(found: Board) -> dict[str, pd.Series]:
    return {row["method"]: row for _, row in found.rows.iterrows()}


def test_no_metric_can_be_called_like_a_column(tmp_path: Path) -> None:
    """The task's contract names the columns; here it is held to those that there are."""
    cell(tmp_path, "stl", 0)
    found = board(tmp_path)
    metrics = {f"{name}{end}" for name in METRICS for end in ("", "_sd")}
    written = pd.read_csv(io.StringIO(leaderboard.to_csv([found], cost=True))).columns
    assert {*found.rows.columns, *written} - metrics <= RESERVED


def test_json_keeps_all_digits(tmp_path: Path) -> None:
    cell(tmp_path, "stl", 0, error=1.25e-13)
    cell(tmp_path, "ew", 0, error=math.pi * 1e-13)
    found = board(tmp_path)
    [read] = json.loads(leaderboard.to_json([found]))
    assert {row["method"]: row["error"] for row in read["rows"]}["ew"] == math.pi * 1e-13
    assert all(row["first"] is None for row in read["rows"])  # one seed: nothing to resample


def test_delta_m_by_hand(tmp_path: Path) -> None:
    cell(tmp_path, "stl", 0, dice=0.5, error=2.0)
    cell(tmp_path, "stl", 1, dice=0.8, error=1.0)
    cell(tmp_path, "ew", 0, dice=0.6, error=1.0)  # -20 % and -50 %: better is negative
    cell(tmp_path, "ew", 1, dice=0.4, error=1.5)  # +50 % and +50 %
    found = rows(board(tmp_path))
    # Of the means: dice 0.5 against 0.65, error 1.25 against 1.5.
    assert found["ew"]["delta_m"] == pytest.approx(100 * (3 / 13 - 1 / 6) / 2)
    # Both draws of one seed give the limits: (-20 - 50) / 2 and (50 + 50) / 2.
    assert found["ew"]["delta_m_low"] == pytest.approx(-35)
    assert found["ew"]["delta_m_high"] == pytest.approx(50)
    assert found["stl"][["delta_m", "delta_m_low", "delta_m_high"]].tolist() == [0, 0, 0]
    assert found["ew"]["dice"] == pytest.approx(0.5)
    assert found["ew"]["dice_sd"] == pytest.approx(0.2 / math.sqrt(2))
    assert found["ew"]["extra"] == 7


def test_delta_m_of_a_negative_reference(tmp_path: Path) -> None:
    """Losses of analytic tasks are negative: lower is better there too."""
    cell(tmp_path, "stl", 0, dice=-0.5, error=-2.0)
    cell(tmp_path, "ew", 0, dice=-0.4, error=-3.0)  # -20 % and -50 %: both better
    assert rows(board(tmp_path))["ew"]["delta_m"] == pytest.approx(-35)


def test_a_reference_next_to_zero_is_no_unit(tmp_path: Path) -> None:
    """An analytic task's single-task model reaches its minimum, 0."""
    cell(tmp_path, "stl", 0, dice=0.5, error=1e-12)
    cell(tmp_path, "ew", 0, dice=0.4, error=0.1)
    found = board(tmp_path)
    assert found.rows["delta_m"].isna().all()
    assert any("single-task error is next to 0" in note for note in leaderboard.notes(found))
    assert not any("exactly one locally run" in note for note in leaderboard.notes(found))


def test_a_small_reference_that_decides_delta_m_is_told(tmp_path: Path) -> None:
    cell(tmp_path, "stl", 0, dice=0.01)
    for method in ("ew", "uw"):
        cell(tmp_path, method, 0, dice=0.5)
    [note] = [one for one in leaderboard.notes(board(tmp_path)) if "by more than all" in one]
    assert note.endswith("so Δm is mostly that: dice (0.01)")


def test_what_one_row_of_two_does_and_what_another_seed_says_is_not_most(tmp_path: Path) -> None:
    for seed, error in enumerate((-20.0, 8.0)):
        for method in ("stl", "uw"):
            cell(tmp_path, method, seed, error=error)
    cell(tmp_path, "ew", 1, error=8.0)  # as stl at this seed, and 14 from its mean of -6
    cell(tmp_path, "ls", 0, error=-20.0)
    cell(tmp_path, "ls", 1, error=80.0)
    cell(tmp_path, "mgda", 0, error=-20.0)
    cell(tmp_path, "mgda", 1, error=80.0)
    assert not any("by more than all" in note for note in leaderboard.notes(board(tmp_path)))
    cell(tmp_path, "pcgrad", 1, error=80.0)
    assert any("by more than all" in note for note in leaderboard.notes(board(tmp_path)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [0.0, None])
def test_a_metric_that_is_0_everywhere_or_that_others_lack_is_no_noise(
    tmp_path: Path, error: float | None
) -> None:
    for method in ("stl", "ew"):
        run = cell(tmp_path, method, 0, error=0.0 if error == 0 else 1.0)
        if method == "ew":
            run.write_text("test.json", json.dumps({"metrics": {"dice": 0.5, "error": error}}))
    assert not any("by more than all" in note for note in leaderboard.notes(board(tmp_path)))


@pytest.mark.filterwarnings("error")
def test_a_number_that_no_sum_can_hold_is_undefined(tmp_path: Path) -> None:
    for seed in (0, 1):
        cell(tmp_path, "stl", seed, error=1.0 + seed)
        cell(tmp_path, "ew", seed, error=1e308)
        cell(tmp_path, "uw", seed, error=1e308 if seed else 1.5)
    found = board(tmp_path)
    assert rows(found)["ew"]["reason"] == "no error"
    assert rows(found)["uw"]["delta_m"] == pytest.approx(100 * (1.75 / 1.5 - 1) / 2)
    assert any("counts as the worst: uw (1 of 2 seeds)" in note for note in found.remarks)


def test_delta_m_uses_the_seeds_that_both_have(tmp_path: Path) -> None:
    cell(tmp_path, "stl", 1, dice=0.5, error=2.0)
    cell(tmp_path, "ew", 0, dice=0.1, error=9.0)
    cell(tmp_path, "ew", 1, dice=0.6, error=1.0)
    cell(tmp_path, "uw", 0)
    found = rows(board(tmp_path))
    assert found["ew"]["delta_m"] == pytest.approx(-35)
    assert math.isnan(found["uw"]["delta_m"])


def test_mean_rank_by_hand(tmp_path: Path) -> None:
    cell(tmp_path, "a", 0, dice=0.9, error=3.0)  # ranks 1, 3
    cell(tmp_path, "b", 0, dice=0.8, error=1.0)  # 2.5, 1
    cell(tmp_path, "c", 0, dice=0.8, error=2.0)  # 2.5, 2
    found = board(tmp_path)
    assert list(found.rows["method"]) == ["b", "a", "c"]  # best first
    assert list(found.rows["mean_rank"]) == [1.75, 2.0, 2.25]


def test_cost_is_the_median_step_and_the_highest_peak(tmp_path: Path) -> None:
    for seed, (seconds, peak) in enumerate([(0.1, 10.0), (0.2, 30.0), (0.9, 20.0)]):
        cell(tmp_path, "ew", seed, seconds=seconds, peak=peak)
    row = rows(board(tmp_path))["ew"]
    assert (row["seconds_per_step"], row["peak_mib"]) == (0.2, 30.0)


def test_an_incomplete_row_is_shown_not_ranked(tmp_path: Path) -> None:
    for seed in (0, 1):
        cell(tmp_path, "ew", seed, dice=0.5)
        cell(tmp_path, "uw", seed, dice=0.6)
    cell(tmp_path, "rlar", 0, dice=0.99, error=0.01)  # the best, at the one seed that it has
    cell(tmp_path, "rlar", 1, status="unfinished")
    found = board(tmp_path)
    assert list(found.rows["method"]) == ["uw", "ew", "rlar"]  # the best of all is last
    assert list(found.rows["complete"]) == [True, True, False]
    assert found.rows["mean_rank"].tolist()[:2] == [1.25, 1.75]  # as if it were not there
    assert math.isnan(found.rows["mean_rank"].iloc[2])
    shown = leaderboard.readable(found).iloc[2]
    assert shown["rank ↓"] == "-"
    assert shown["dice ↑"] == "0.990"
    said = "\n".join(leaderboard.notes(found))
    assert "shown, not ranked" in said
    assert "unfinished, not in the table: rlar seed1-" in said


def test_divergence_counts_as_the_worst(tmp_path: Path) -> None:
    """It neither ends the comparison nor helps: the seed has the worst number that is there."""
    for seed in (0, 1):
        cell(tmp_path, "stl", seed, dice=0.5, error=2.0)
        cell(tmp_path, "ls", seed, status="diverged")
    cell(tmp_path, "ew", 0, dice=0.6, error=1.0)
    cell(tmp_path, "ew", 1, status="diverged")  # dice 0.5, error 2.0
    found = board(tmp_path)
    by_name = rows(found)
    assert (by_name["ew"]["seeds"], by_name["ew"]["diverged"]) == (1, 1)
    assert by_name["ew"]["delta_m"] == pytest.approx(-35 / 2)
    assert by_name["ls"]["delta_m"] == 0
    assert found.rows["method"].tolist() == ["ew", "stl", "ls"]  # who diverged is below a tie
    assert found.rows["complete"].all()
    shown = leaderboard.readable(found).set_index("method")
    assert shown["seeds"].to_dict() == {
        "stl": "2",
        "ew": "1 (+1 diverged)",
        "ls": "0 (+2 diverged)",
    }
    assert shown.loc["ls", "dice ↑"] == "-"


def test_who_diverged_stands_below_the_only_row_that_is_finished(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, status="diverged")
    cell(tmp_path, "uw", 0)
    assert board(tmp_path).rows["method"].tolist() == ["uw", "ew"]


def test_the_mean_of_what_did_not_diverge_is_not_best(tmp_path: Path) -> None:
    """It is of other seeds, perhaps of easier ones: Δm and rank say what the row is worth."""
    for seed in (0, 1):
        cell(tmp_path, "stl", seed)
        cell(tmp_path, "ew", seed, dice=0.4)
        cell(tmp_path, "uw", seed, dice=0.9, status="finished" if seed else "diverged")
    found = board(tmp_path)
    best = dict(zip(found.rows["method"], marks(found, "dice ↑"), strict=True))
    assert best == {"stl": "", "ew": "best", "uw": ""}


@pytest.mark.parametrize("seeds", [range(1, 4), range(1, 5)])  # fewer, and as many others
def test_means_over_other_seeds_are_not_marked(tmp_path: Path, seeds: range) -> None:
    for method, own in (("ew", range(4)), ("uw", seeds)):
        for seed in own:
            cell(tmp_path, method, seed, dice=0.5 + seed / 10)
    found = board(tmp_path)
    assert found.rows["complete"].all()
    assert marks(found, "dice ↑") == ["", ""]
    assert "best" in marks(found, "rank ↓")


def test_what_is_printed_alike_is_best_alike(tmp_path: Path) -> None:
    """0.7125, a share of 80, is printed as 0.713; numpy rounds it to 0.712."""
    for method, dice in (("stl", 0.5), ("ew", 0.7125), ("uw", 0.713), ("mgda", 0.7)):
        cell(tmp_path, method, 0, dice=dice)
    found = board(tmp_path)
    printed = dict(zip(found.rows["method"], leaderboard.readable(found)["dice ↑"], strict=True))
    assert printed["ew"] == printed["uw"] == "0.713"
    best = dict(zip(found.rows["method"], marks(found, "dice ↑"), strict=True))
    assert best == {"stl": "", "ew": "best", "uw": "best", "mgda": "second"}


def test_all_diverged_is_a_table_all_the_same(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, status="diverged")
    found = board(tmp_path)
    assert leaderboard.readable(found)["seeds"].tolist() == ["0 (+1 diverged)"]
    assert "0 (+1 diverged)" in leaderboard.to_markdown(found)
    assert not any("one seed" in note for note in leaderboard.notes(found))


def test_no_reference_no_delta_m(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0)
    found = board(tmp_path)
    assert leaderboard.readable(found)["Δm % ↓"].tolist() == ["-"]
    said = leaderboard.notes(found)
    assert any("no Δm" in note and "single-task" in note for note in said)
    assert any("one seed" in note for note in said)
    for seed in (0, 1):
        for method in ("stl", "ew"):
            cell(tmp_path, method, seed, dice=0.5 + seed / 100)
    [said] = leaderboard.notes(board(tmp_path))
    assert "2 seeds: a 95 % interval cannot cover" in said
    for seed in range(2, 6):
        for method in ("stl", "ew"):
            cell(tmp_path, method, seed, dice=0.5 + seed / 100)
    assert leaderboard.notes(board(tmp_path)) == []


@pytest.mark.parametrize(("scores", "told"), [([0.52, 0.5, 0.49], True), ([0.6, 0.61, 0.6], False),
                                              ([0.5], True), ([0.51], False)])  # fmt: skip
def test_a_reference_that_is_no_better_than_a_guess_is_told(
    tmp_path: Path, scores: list[float], told: bool
) -> None:
    for seed, score in enumerate(scores):
        for method in ("stl", "ew"):
            run = cell(tmp_path, method, seed, dice=score)
            result = json.loads((run.path / "result.json").read_text())
            result["metrics"]["dice"]["chance"] = 0.5
            run.write_text("result.json", json.dumps(result))
    notes = leaderboard.notes(board(tmp_path))
    assert any("the single-task dice" in n and "from a guess, 0.5" in n for n in notes) is told


def test_a_reference_that_diverged_in_every_cell_is_no_unit(tmp_path: Path) -> None:
    for seed in (0, 1):
        cell(tmp_path, "stl", seed, status="diverged")
        cell(tmp_path, "ew", seed, dice=0.5 + seed / 100)
    found = board(tmp_path)
    assert found.rows["delta_m"].isna().all()
    assert "no Δm: every single-task cell diverged" in found.remarks


def test_two_references_are_none(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0)
    cell(tmp_path, "stl", 0, recipe={"epochs": 2, "batch_size": 4, "lr": 0.1})
    cell(tmp_path, "stl", 0, recipe={"epochs": 2, "batch_size": 4, "lr": 0.2})
    found = board(tmp_path)
    assert found.rows["delta_m"].isna().all()
    assert any("exactly one" in note for note in leaderboard.notes(found))


def test_an_undefined_metric_of_the_reference_is_not_zero(tmp_path: Path) -> None:
    cell(tmp_path, "stl", 0, dice=math.nan)
    cell(tmp_path, "ew", 0, dice=0.6)
    assert math.isnan(rows(board(tmp_path))["ew"]["delta_m"])


@pytest.mark.parametrize(
    "changed",
    [
        {"recipe": {"epochs": 3, "batch_size": 4, "lr": 0.1}},
        {"recipe": {"epochs": 2, "batch_size": 8, "lr": 0.1}},
        {"task_params": {"size": 16}},
        {"data": "e"},
        {"precision": "bf16"},
        {"task": "another"},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_what_may_not_be_compared_is_apart(tmp_path: Path, changed: dict[str, Any]) -> None:
    cell(tmp_path, "ew", 0)
    cell(tmp_path, "uw", 0)
    cell(tmp_path, "ew", 0, **changed)
    found = leaderboard.boards(list(find_runs([tmp_path])))
    assert sorted(len(one.rows) for one in found) == [1, 2]


def test_one_method_with_two_settings_has_two_labelled_rows(tmp_path: Path) -> None:
    for seed in (0, 1):
        cell(tmp_path, "cagrad", seed, dice=0.6, method_params={"c": 0.4, "rescale": True})
        cell(tmp_path, "cagrad", seed, dice=0.7, method_params={"c": 0.8, "rescale": True})
        cell(tmp_path, "ew", seed, recipe={"epochs": 2, "batch_size": 4, "lr": 0.2})
    found = board(tmp_path)
    assert set(found.rows["method"]) == {"cagrad c=0.4", "cagrad c=0.8", "ew"}
    assert set(found.rows["seeds"]) == {2}
    assert rows(found)["cagrad c=0.8"]["dice"] == pytest.approx(0.7)


def test_settings_of_the_recipe_and_the_device_tell_rows_apart(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0)
    cell(tmp_path, "ew", 0, recipe={"epochs": 2, "batch_size": 4, "lr": 0.2})
    cell(tmp_path, "uw", 0)
    cell(tmp_path, "uw", 0, device="cuda")
    names = set(board(tmp_path).rows["method"])
    assert names == {"ew lr=0.1", "ew lr=0.2", "uw device=cpu", "uw device=cuda"}


def test_a_parameter_may_be_called_as_what_else_a_cell_has(tmp_path: Path) -> None:
    for value in (0.1, 1.0):
        for key in ("init", "lr"):
            cell(tmp_path, f"mine_{key}", 0, method_params={key: value})
    cell(tmp_path, "mine_init", 0, method_params={"init": 1.0}, init="0" * 64)
    names = set(board(tmp_path).rows["method"])
    assert names == {
        "mine_init init=0.1 cell.init=none", "mine_init init=1.0 cell.init=none",
        "mine_init init=1.0 cell.init=00000000", "mine_lr lr=0.1", "mine_lr lr=1.0",
    }  # fmt: skip


def test_copies_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    for name, dice in (("a", 0.5), ("b", 0.9)):
        cell(tmp_path / name, "ew", 0, dice=dice)
        cell(tmp_path / name, "uw", 0)
    found = board(tmp_path)
    assert rows(found)["ew"]["dice"] == 0.5
    [note] = [one for one in found.remarks if "in doubt" in one]
    assert re.search(r"another result of it lies in .*/b/.*/ew/.*: .*/a/.*/ew/\S*$", note)


@pytest.mark.parametrize("file", ["spec.json", "result.json"])
def test_an_edited_cell_is_told(tmp_path: Path, file: str) -> None:
    runs = [cell(tmp_path, method, 0) for method in ("ew", "uw")]
    for run in runs:
        result = json.loads((run.path / "result.json").read_text())
        run.write_text("result.json", json.dumps({**result, "hash": run.spec().hash}))
    assert not any("in doubt" in note for note in board(tmp_path).remarks)
    if file == "spec.json":
        text = (runs[0].path / file).read_text().replace("0.1", "0.2")
    else:
        text = (runs[1].path / file).read_text()
    runs[0].write_text(file, text)
    [note] = [one for one in board(tmp_path).remarks if "in doubt" in one]
    assert note.endswith(f"edited, or of another mtbench: {runs[0].path}")


def test_one_that_declares_a_metric_otherwise_turns_nothing_over(tmp_path: Path) -> None:
    for method in ("ew", "uw", "zz"):
        cell(tmp_path, method, 0)
    [path] = tmp_path.glob("*/zz/*/result.json")
    result = json.loads(path.read_text())
    result["metrics"]["dice"]["higher_is_better"] = False
    path.write_text(json.dumps(result))
    found = board(tmp_path)
    assert found.primary == {"dice": True, "error": False}
    assert any("do not say alike" in note and "dice" in note for note in found.remarks)


def test_units_that_are_copies_are_told(tmp_path: Path) -> None:
    for seed in range(6):
        cell(tmp_path, "copied", seed, dice=0.9)
        cell(tmp_path, "ew", seed, dice=0.5 + seed / 100)
    [note] = [one for one in board(tmp_path, "ew").remarks if "same numbers" in one]
    assert note.endswith("say no more than one, and nothing is told: copied")
    found = board(tmp_path, "ew")
    assert rows(found)["copied"]["told"] == "not told apart"
    assert found.pairs["open"].tolist() == [False]  # more of them would tell no more


def test_a_finished_cell_without_its_test_is_damaged(tmp_path: Path) -> None:
    """It counted as the worst, as if a metric were undefined."""
    runs = [cell(tmp_path, method, 0) for method in ("ew", "ls")]
    (runs[0].path / "test.json").unlink()
    found = board(tmp_path)
    assert list(rows(found)) == ["ls"]
    [note] = [one for one in found.remarks if "damaged" in one]
    assert f"{runs[0].path / 'test.json'}: is missing" in note


def test_a_cost_below_0_is_no_result(tmp_path: Path) -> None:
    file = cell(tmp_path, "ew", 0).path / "result.json"
    file.write_text(file.read_text().replace('"train_seconds": ', '"train_seconds": -'))
    with pytest.raises(RunError, match="train_seconds must be at least 0, found -"):
        board(tmp_path)


def test_a_seed_that_parameters_were_chosen_on_is_told(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 7, stage="trial")
    cell(tmp_path, "ew", 7)
    cell(tmp_path, "uw", 7)
    [note] = [one for one in board(tmp_path).remarks if "chosen on a seed" in one]
    assert note.endswith(": ew (seed 7)")


def test_a_cell_in_two_folders_counts_once(tmp_path: Path) -> None:
    cell(tmp_path / "a", "ew", 0, status="unfinished")
    cell(tmp_path / "b", "ew", 0, dice=0.7)
    cell(tmp_path / "c", "ew", 0, status="unfinished")
    cell(tmp_path / "c", "stl", 0)
    found = board(tmp_path)
    assert found.pending == []
    assert rows(found)["ew"]["seeds"] == 1
    assert rows(found)["ew"]["dice"] == pytest.approx(0.7)
    assert rows(found)["ew"]["delta_m"] == pytest.approx(-20)


def test_markdown_is_one_table_whatever_a_label_holds(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, method_params={"mode": "a|b"})
    cell(tmp_path, "ew", 0, method_params={"mode": "c"})
    text = leaderboard.to_markdown(board(tmp_path))
    assert "ew mode=a\\|b" in text
    lines = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_numbers_as_shown(tmp_path: Path) -> None:
    for seed in (0, 1):
        cell(tmp_path, "stl", seed, dice=0.5, error=1.0)
        cell(tmp_path, "ew", seed, dice=0.5 + 0.1 * seed, error=1.0, seconds=0.25, peak=99.6)
        cell(tmp_path, "near", seed, dice=0.500001 + 1e-7 * seed)
    by_name = leaderboard.readable(board(tmp_path)).set_index("method")
    assert by_name.loc["near", "Δm % ↓"] == "0.00 [0.00, 0.00]"  # no -0.00
    shown = by_name.loc["ew"]
    assert shown["dice ↑"] == "0.550 ± 0.071"
    assert shown["error ↓"] == "1.000 ± 0.000"
    assert shown["Δm % ↓"] == "-5.00 [-10.00, 0.00]"
    assert shown["s/step"] == "0.250"
    assert shown["peak MiB"] == "100"
    assert "extra" not in " ".join(shown.index)  # no primary metric


def test_csv_and_json_hold_every_number(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, dice=0.125)
    cell(tmp_path, "uw", 0, status="diverged")
    cell(tmp_path, "ew", 0, data="e", dice=0.25)
    found = leaderboard.boards(list(find_runs([tmp_path])))

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    boards = json.loads(leaderboard.to_json(found), parse_constant=refuse)
    assert len(boards) == 2
    every = {(row["method"], row["dice"]) for one in boards for row in one["rows"]}
    assert every == {("ew", 0.125), ("uw", None), ("ew", 0.25)}
    assert all(one["primary"] == {"dice": True, "error": False} for one in boards)
    table = list(csv.DictReader(io.StringIO(leaderboard.to_csv(found))))
    assert {(row["method"], row["dice"]) for row in table} == {
        ("ew", "0.125"), ("uw", ""), ("ew", "0.25")
    }  # fmt: skip
    assert all(row["extra"] in ("7.0", "") and row["board"] for row in table)


def test_nothing_finished_yet(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, status="unfinished")
    found = board(tmp_path)
    assert found.rows.empty
    assert leaderboard.to_csv([found]) == ""
    assert json.loads(leaderboard.to_json([found]))[0]["rows"] == []
    assert "unfinished, not in the table: ew seed0-" in leaderboard.to_markdown(found)


def test_no_runs_at_all() -> None:
    with pytest.raises(RunError, match="no runs found"):
        leaderboard.boards([])


@pytest.mark.parametrize("text", ["[]", "{}", '{"status": "finished", "metrics": {}}'])
def test_a_result_that_is_none_is_explained(tmp_path: Path, text: str) -> None:
    run = cell(tmp_path, "ew", 0)
    (run.path / "result.json").write_text(text)
    with pytest.raises(RunError, match=r"result\.json: .* delete it"):
        board(tmp_path)


def test_a_result_whose_parts_are_of_another_type_is_explained(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, idle=7)
    with pytest.raises(RunError, match=r"result\.json: .*\(idle: .* list\); delete it"):
        board(tmp_path)


def test_a_name_from_a_result_is_one_harmless_line(tmp_path: Path) -> None:
    run = cell(tmp_path, "ew", 0)
    file = run.path / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"val": {"a\nb\x1b[31m": "x"}}))
    with pytest.raises(RunError) as told:
        board(tmp_path)
    assert str(told.value).isprintable()


def test_one_unit_more_changes_nothing(tmp_path: Path) -> None:
    """What is compared is cut to what is common."""
    for seed in (0, 1):
        cell(tmp_path, "ew", seed, dice=0.5)
        cell(tmp_path, "uw", seed, dice=0.6)
    before = board(tmp_path)
    cell(tmp_path, "ew", 2, dice=0.99)
    after = board(tmp_path)
    assert after.rows["complete"].all()
    for column in ("method", "mean_rank", "first"):
        assert after.rows[column].tolist() == before.rows[column].tolist()


def test_trials_are_counted_and_their_time(tmp_path: Path) -> None:
    for method, count in (("ls", 3), ("uw", 2)):
        for t in range(count):  # one diverged trial is a trial
            cell(
                tmp_path, method, 9, stage="trial", method_params={"w": t},
                status="diverged" if t == 0 else "finished",
            )  # fmt: skip
        cell(tmp_path, method, 0, method_params={"w": 1})
    cell(tmp_path, "uw", 9, stage="trial", method_params={"w": 7}, status="unfinished")
    found = board(tmp_path)
    by_name = rows(found)
    assert [by_name[m]["trials"] for m in ("ls", "uw")] == [3, 2]  # no trial is a row
    assert by_name["ls"]["tuning_hours"] == pytest.approx(1.5)
    assert by_name["ls"]["train_hours"] == pytest.approx(0.5)
    assert leaderboard.readable(found)["trials"].tolist() == ["3", "2"]


def test_trials_after_a_test_was_opened_are_told(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 9, stage="trial")
    cell(tmp_path, "uw", 9, stage="trial")
    for method in ("ew", "uw"):
        cell(tmp_path, method, 0)
    assert not any("opened" in note for note in leaderboard.notes(board(tmp_path)))
    late = cell(tmp_path, "uw", 9, stage="trial", method_params={"w": 1})
    record = json.loads((late.path / "result.json").read_text())
    record["times"] = {"started": 0.0, "ended": time.time() + 5}  # of the record, not of the file
    late.write_text("result.json", json.dumps(record))
    [note] = [note for note in leaderboard.notes(board(tmp_path)) if "opened" in note]
    assert note.endswith(": uw")


def paired(out: Path, methods: dict[str, float], seeds: int) -> None:
    """Cells whose dice differs between methods by the same at every seed."""
    for seed in range(seeds):
        for method, offset in methods.items():
            cell(out, method, seed, dice=0.5 + 0.01 * seed + offset, error=1 - offset)


def test_verdicts_against_the_baseline(tmp_path: Path) -> None:
    offsets = {"stl": 0, "ls": 0.1, "better": 0.2, "worse": -0.1, "same": 0.1}
    paired(tmp_path, offsets, 8)
    rng = random.Random(0)
    for seed in range(8):
        noisy = rng.uniform(-0.3, 0.3)
        cell(tmp_path, "noisy", seed, dice=0.6 + noisy, error=0.9 - noisy)
    found = board(tmp_path, "ls")
    by_name = rows(found)
    assert {name: row["told"] for name, row in by_name.items()} == {
        "better": "better", "worse": "worse", "stl": "worse", "same": "equivalent", "ls": "",
        "noisy": "not told apart",
    }  # fmt: skip
    assert [by_name[name]["wins"] for name in ("better", "worse", "same")] == [8, 0, 4]
    for name in ("better", "worse", "noisy"):
        row = by_name[name]
        assert row["difference"] == pytest.approx(row["delta_m"] - by_name["ls"]["delta_m"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert (row["difference_high"] < 0) == (row["told"] == "better")
    assert math.isnan(by_name["ls"]["difference"])
    assert found.verdict.startswith(
        "Against ls: better: better; worse: stl, worse; equivalent within 2 %: same; "
        "not told apart: noisy. (8 seeds; paired t-tests, 5 % for all comparisons together, if "
        "their number was fixed beforehand.)"
    )
    shown = leaderboard.readable(found).set_index("method")
    assert shown.loc["same", "verdict"] == "equivalent"
    assert shown.loc["same", "− ls ↓"] == "0.00 [0.00, 0.00]"


def test_with_few_seeds_nothing_is_told(tmp_path: Path) -> None:
    paired(tmp_path, {"stl": 0, "ls": 0.1, "better": 0.2}, 2)
    found = board(tmp_path, "ls")
    assert found.verdict == (
        "Whether anything beats ls cannot be told: it takes at least 6 seeds, found 2."
    )
    assert set(found.rows["told"]) == {"", "not told apart"}


@pytest.mark.parametrize("baseline", ["absent", "rival"])
def test_no_baseline_no_comparison(tmp_path: Path, baseline: str) -> None:
    paired(tmp_path, {"stl": 0, "rival a": 0.1}, 6)
    for w in (0, 1):
        for seed in range(6):
            cell(tmp_path, "rival", seed, method_params={"w": w})
    found = board(tmp_path, baseline)
    assert found.verdict == ""
    assert found.rows["p"].isna().all()
    assert any(f"no comparison with {baseline}" in note for note in leaderboard.notes(found))
    assert board(tmp_path, "rival w=1").baseline == "rival w=1"  # a row may be named


def test_places_are_shares_and_follow_the_rows(tmp_path: Path) -> None:
    paired(tmp_path, {"a": 0.0, "b": 0.2, "c": 0.1}, 4)
    cell(tmp_path, "d", 0, dice=1)
    found = board(tmp_path)
    assert found.rows["method"].tolist() == ["b", "c", "a", "d"]
    assert found.places.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert found.rows["first"].tolist()[:3] == [1, 0, 0]


def test_the_first_place_is_that_of_the_table(tmp_path: Path) -> None:
    """Far ahead in one metric, next to last in the other: first by delta-m, second by rank."""
    for seed in range(4):
        cell(tmp_path, "stl", seed, dice=0.5 + seed / 100, error=1.0)
        cell(tmp_path, "far", seed, dice=0.49 + seed / 100, error=0.2)
        cell(tmp_path, "even", seed, dice=0.5 + seed / 100, error=0.9)
    found = board(tmp_path)
    assert found.rows["method"].tolist() == ["far", "even", "stl"]
    assert found.rows["mean_rank"].tolist() == [2.0, 1.75, 2.25]
    assert found.rows["first"].tolist() == [1, 0, 0]
    assert found.places.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_cost_ratio_and_hypervolume_by_hand(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, seconds=0.2, dice=0.5, error=1.0)
    cell(tmp_path, "uw", 0, seconds=0.3, dice=0.3, error=0.5)
    cell(tmp_path, "mgda", 0, seconds=0.3, dice=0.4, error=0.75)
    by_name = rows(board(tmp_path, plain="ew"))
    assert by_name["uw"]["cost_ratio"] == pytest.approx(1.5)
    # The box is [0.3, 0.5] x [0.5, 1]; a corner of it dominates nothing, its middle a quarter.
    assert by_name["mgda"]["hypervolume"] == pytest.approx(0.25)
    assert by_name["ew"]["hypervolume"] == by_name["uw"]["hypervolume"] == 0


def test_csv_of_the_same_results_is_the_same_bytes(tmp_path: Path) -> None:
    for name, seconds in (("a", 0.1), ("b", 0.7)):
        for seed in range(4):
            for method, dice in (("stl", 0.5), ("ls", 0.6), ("uw", 0.55)):
                cell(tmp_path / name, method, seed, dice=dice + 0.01 * seed, seconds=seconds)
    one, two = (leaderboard.boards(list(find_runs([tmp_path / name])), "ls", "ls") for name in "ab")
    assert leaderboard.to_csv(one) == leaderboard.to_csv(two)
    assert leaderboard.to_csv(one, cost=True) != leaderboard.to_csv(two, cost=True)
    assert "seconds" not in leaderboard.to_csv(one)


def test_a_test_that_holds_no_numbers_is_explained(tmp_path: Path) -> None:
    run = cell(tmp_path, "ew", 0)
    run.write_text("test.json", json.dumps({"metrics": {"dice": "high"}}))
    with pytest.raises(RunError, match=r"test\.json: 'high' is no number"):
        board(tmp_path)


@pytest.mark.parametrize("key", ["epochs", "batch_size"])
@pytest.mark.parametrize("value", [None, "2", 0, 2.5, True, 10**30])
def test_a_recipe_that_counts_nothing_is_explained(tmp_path: Path, key: str, value: Any) -> None:
    """What training costs is worked out of it."""
    cell(tmp_path, "ew", 0, recipe={"epochs": 2, "batch_size": 4, "lr": 0.1, key: value})
    with pytest.raises(RunError, match=rf"spec\.json: its recipe's {key} must be a whole number"):
        board(tmp_path, plain="ew")


@pytest.mark.parametrize("data", [("d", "e"), ("faces-1-64-3f", "faces-1-64-3a")])
def test_titles_tell_boards_apart(tmp_path: Path, data: tuple[str, str]) -> None:
    """However alike fingerprints begin."""
    for own in data:
        cell(tmp_path, "ew", 0, data=own)
    titles = [one.title for one in leaderboard.boards(list(find_runs([tmp_path])))]
    assert len(set(titles)) == 2
    assert all("data=" in title for title in titles)


def test_a_title_leaves_out_what_changes_nothing(tmp_path: Path) -> None:
    """As far as a cell says it: those of earlier versions do not."""
    cell(tmp_path, "ew", 0, task_params={"source": "mine", "noise": 1})
    assert board(tmp_path).title == "made_up source=mine noise=1 epochs=2 batch_size=4"
    cell(tmp_path, "ew", 1, task_params={"source": "mine", "noise": 1}, idle=["noise"])
    assert board(tmp_path).title == "made_up source=mine epochs=2 batch_size=4"
    assert len(board(tmp_path).rows) == 1  # they are of one board all the same
    cell(tmp_path, "ew", 0, task_params={"source": "mine", "noise": 2}, idle=["noise"])
    titles = [one.title for one in leaderboard.boards(list(find_runs([tmp_path])))]
    assert {*re.findall("noise=[12]", " ".join(titles))} == {"noise=1", "noise=2"}


def test_what_only_some_cells_have_tells_rows_apart(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, method_params={"a": 1})
    cell(tmp_path, "ew", 0, method_params={"b": 1})
    cell(tmp_path, "uw", 0, method_params={"a": 1})
    cell(tmp_path, "uw", 0, method_params={"a": "1"})
    names = board(tmp_path).rows["method"].tolist()
    assert {"ew a=1", "ew b=1"} <= set(names)
    assert len(set(names)) == 4
