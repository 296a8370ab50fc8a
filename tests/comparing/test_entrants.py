"""Who takes part in a board comes from the suite; what is told holds for what was repeated."""

import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from mtbench.comparing import claim
from mtbench.comparing.claim import Claim
from mtbench.comparing.judging import leaderboard
from mtbench.comparing.judging.leaderboard.entrants import largest_block
from mtbench.comparing.running.deciding import open_questions
from mtbench.errors import RunError
from mtbench.training.cell.config import Chosen
from mtbench.training.cell.rundir import RunDirectory, find_runs
from tests.comparing.test_leaderboard import board, cell, diverge, rows


def claimed(run: RunDirectory, **changed: Any) -> RunDirectory:
    """Note that a suite of two trials and `repetitions` repetitions made a cell."""
    fields: dict[str, Any] = {
        "suite": "core", "digest": "d" * 12, "task": "made_up", "label": run.spec().method,
        "repetition": run.spec().seed % 1000, "draw": 0, "sampler": "sobol", "places": {},
        "trials": 2, "repetitions": 8, "seeds": 1, "rows": 4, "margin": 2.0, "against": ["ls"],
    }  # fmt: skip
    claim.add(run, Claim(**fields | changed))
    return run


def study(
    out: Path, method: str, offset: float, repetitions: int = 8, *, places: float = 0.5,
    place_of: str = "recipe.lr", score: float = 0.5, noise: float = 0.002, **changed: Any,
) -> None:  # fmt: skip
    """A row: in each repetition two trials, and a final cell with the second's parameters."""
    rng = random.Random(method)
    changed = {"repetitions": max(8, repetitions)} | changed
    for r in range(repetitions):
        for t in (0, 1):
            where = {place_of: places} if t else {}
            trial = cell(
                out, method, 1000 + r, stage="trial", method_params={"w": t}, score=score + t
            )
            claimed(trial, draw=t, places=where, **changed)
        dice = 0.5 + offset + rng.gauss(0, noise)
        final = cell(out, method, r, dice, 1.0, method_params={"w": 1}, score=score)
        claimed(final, draw=1, **changed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for method, offset in (("stl", 0.0), ("ls", 0.0), ("good", 0.05), ("bad", -0.05)):
        study(tmp_path, method, offset)
    return tmp_path


def test_repetitions_are_the_unit(folder: Path) -> None:
    found = board(folder, "ls", "ew")
    assert found.suite is not None
    assert (found.unit, found.suite.suite, found.margin) == ("repetition", "core", 2.0)
    told = {name: row["told"] for name, row in rows(found).items()}
    assert told == {"good": "better", "bad": "worse", "stl": "equivalent", "ls": ""}
    assert "8 repetitions; paired t-tests" in found.verdict
    assert rows(found)["good"]["trials"] == 16
    assert found.title.startswith("made_up suite=core@dddddd")


def test_a_study_that_was_not_repeated_gives_no_verdict(tmp_path: Path) -> None:
    """Ten seeds of parameters chosen once: the luck of the choice is in no interval."""
    for method, offset in (("stl", 0.0), ("ls", 0.0), ("good", 0.3)):
        for t in (0, 1):
            trial = cell(tmp_path, method, 1000, stage="trial", method_params={"w": t})
            claimed(trial, draw=t, repetitions=1, seeds=10)
        for seed in range(10):
            final = cell(tmp_path, method, seed, 0.5 + offset, method_params={"w": 1})
            claimed(final, draw=1, repetition=0, repetitions=1, seeds=10)
    found = board(tmp_path, "ls")
    assert found.unit == "seed"
    assert found.verdict.startswith("No verdict: all numbers are given the parameters chosen once")
    assert set(found.rows["told"]) == {""}
    assert found.rows["complete"].all()


def test_what_is_not_of_the_suite_is_shown_and_changes_nothing(folder: Path) -> None:
    before = board(folder, "ls")
    cell(folder, "bad", 77, 0.99, 0.01, method_params={"w": 1})  # one seed more of the worst
    cell(folder, "stl", 0, 0.1, 9.0, method_params={"w": 5})  # another single-task row
    cell(folder, "good", 1000, stage="trial", method_params={"w": 9}, score=9.0)  # exploratory
    after = board(folder, "ls")
    official = after.rows[after.rows["complete"]]
    for column in ("method", "delta_m", "mean_rank", "told", "trials", "units"):
        assert official[column].tolist() == before.rows[column].tolist()
    strays = after.rows[~after.rows["complete"]]
    assert strays["method"].tolist() == ["bad (not of the suite)", "stl (not of the suite)"]
    assert set(strays["reason"]) == {"not of the suite"}
    assert strays["delta_m"].isna().all()
    assert after.verdict == before.verdict


def test_a_seed_that_the_suite_does_not_have_is_cut(folder: Path) -> None:
    before = board(folder, "ls")
    more = cell(folder, "bad", 77, 0.99, 0.01, method_params={"w": 1})
    claimed(more, draw=1, repetition=0)
    after = board(folder, "ls")
    pd.testing.assert_frame_equal(after.rows, before.rows)
    assert f"the suite does not have their seeds: bad {more.path.name}" in after.remarks[-1]


def test_where_seeds_are_the_units_they_are_cut_too(tmp_path: Path) -> None:
    """Also where both rows of a question have seeds that the suite does not have."""
    untuned = {"draw": None, "trials": 0, "repetition": 0, "repetitions": 1, "seeds": 6}
    rng = random.Random(0)

    def final(method: str, seed: int, offset: float) -> None:
        made = cell(tmp_path, method, seed, 0.5 + offset + rng.gauss(0, 0.01))
        claimed(made, **untuned)

    for method, offset in (("stl", 0.0), ("ls", 0.0), ("good", 0.002)):
        for seed in range(6):
            final(method, seed, offset)
    before = board(tmp_path, "ls")
    for seed in range(90, 95):
        final("ls", seed, 0.0)
        final("good", seed, 0.3)
    after = board(tmp_path, "ls")
    assert (before.unit, set(before.rows["units"])) == ("seed", {6})
    pd.testing.assert_frame_equal(after.rows, before.rows)
    assert after.verdict == before.verdict
    assert "the suite does not have their seeds: good" in after.remarks[-1]


def test_what_few_claims_say_of_the_suite_does_not_count(folder: Path) -> None:
    before = board(folder, "ls")
    for run in find_runs([folder / "made_up" / "bad"]):
        [own] = claim.read(run)
        claim.add(run, own.model_copy(update={"margin": 90.0, "against": []}))
    after = board(folder, "ls")
    assert (after.verdict, after.margin) == (before.verdict, before.margin)
    assert "cells do not say alike what the suite plans" in "\n".join(after.remarks)


def test_a_suite_that_has_no_result_yet_and_strays(tmp_path: Path) -> None:
    claimed(cell(tmp_path, "ls", 0, status="unfinished"))
    cell(tmp_path, "ew", 0)
    cell(tmp_path, "ew", 1, status="diverged")
    found = board(tmp_path, "ls")
    assert found.rows["method"].tolist() == ["ew (not of the suite)"]
    assert "no comparison with ls" in "\n".join(found.remarks)
    assert "unfinished, not in the table: ls seed0" in leaderboard.to_markdown(found)


def test_a_glance_at_part_of_what_is_planned(tmp_path: Path) -> None:
    """Eight of 20 repetitions: the level is that of a look, and a surer difference is needed."""
    for method, offset in (("stl", 0.0), ("ls", 0.0), ("good", 0.004), ("great", 0.2)):
        study(tmp_path, method, offset, repetitions=8)
    whole = {name: row["told"] for name, row in rows(board(tmp_path, "ls")).items()}
    for run in find_runs([tmp_path]):
        [own] = claim.read(run)
        (run.path / claim.FILE).unlink()
        claim.add(run, own.model_copy(update={"repetitions": 20, "margin": 0.1}))
    found = board(tmp_path, "ls")
    assert "(8 repetitions of 20 planned; paired" in found.verdict
    row = rows(found)
    assert row["great"]["told"] == "better"
    assert whole["good"] == "equivalent"
    assert row["good"]["told"] == "not told apart"


def test_a_decided_row_may_stop_early(tmp_path: Path) -> None:
    for method, offset, count in (("stl", 0, 8), ("ls", 0, 8), ("great", 0.2, 6), ("cut", 0.2, 2)):
        study(tmp_path, method, offset, count)
    found = board(tmp_path, "ls")
    by_name = rows(found)
    assert by_name["great"]["complete"]
    assert (by_name["great"]["told"], by_name["great"]["units"]) == ("better", 6)
    assert by_name["cut"]["reason"] == "2 of 8 repetitions"


def test_a_decided_baseline_keeps_its_rank(tmp_path: Path) -> None:
    """All is told against it at six units; those of the others go on."""
    for method, offset in (("ls", 0.0), ("great", 0.2)):
        study(tmp_path, method, offset, repetitions=6)
    for method, offset in (("stl", 0.1), ("ew", 0.1), ("mid", 0.15)):
        study(tmp_path, method, offset, repetitions=14)
    found = rows(board(tmp_path, "ls"))
    assert found["great"]["told"] == "better"
    assert found["ls"]["complete"]
    assert found["ls"]["mean_rank"] > found["great"]["mean_rank"]


def test_without_a_single_task_row_questions_are_asked_all_the_same(tmp_path: Path) -> None:
    for method, offset in (("ls", 0.0), ("great", 0.2), ("near", 0.01)):
        study(tmp_path, method, offset, noise=0.02)
    near = [("made_up", "near", "ls")]
    assert open_questions("d" * 12, tmp_path, "ew") == near
    for file in tmp_path.glob("made_up/ls/*/test.json"):  # no unit: nothing can be told
        record = json.loads(file.read_text())
        record["metrics"]["error"] = 0.0
        file.write_text(json.dumps(record))
    assert open_questions("d" * 12, tmp_path, "ew") == [("made_up", "great", "ls"), *near]


def test_a_better_trial_makes_the_old_final_stale(folder: Path) -> None:
    before = board(folder, "ls")
    for r in range(8):  # the second trial is the best; these have the first one's parameters
        run = cell(folder, "good", r, dice=0.9, method_params={"w": 0})
        claimed(run, draw=0)
    found = board(folder, "ls")
    pd.testing.assert_frame_equal(found.rows, before.rows)
    [note] = [one for one in found.remarks if one.startswith("not counted")]
    assert note.count("good seed") == 5
    assert note.endswith(", ...")


def test_of_two_cells_with_one_choice_the_later_counts(folder: Path) -> None:
    """A plugin that was changed: the same suite, the same draw, another cell."""
    for r in range(8):
        run = cell(folder, "good", r, dice=0.9, method_params={"w": 1}, plugins={"mine": "b" * 64})
        record = json.loads((run.path / "result.json").read_text())
        run.write_text("result.json", json.dumps(record | {"times": {"ended": 1.0}}))
        claimed(run, draw=1)
    found = board(folder, "ls")
    assert rows(found)["good"]["dice"] == pytest.approx(0.9)
    assert rows(found)["good"]["seeds"] == 8


def test_a_suite_whose_rows_have_become_more_claims_a_cell_once(folder: Path) -> None:
    """The most rows are meant, also where a sweep was stopped before it had claimed all again."""
    before = board(folder, "ls")
    for run in list(find_runs([folder]))[:3]:
        [own] = claim.read(run)
        more = own.model_copy(update={"rows": 7})
        claim.add(run, more)
        assert claim.read(run) == [more]
    found = board(folder, "ls")
    pd.testing.assert_frame_equal(found.rows.drop(columns=PAIRED), before.rows.drop(columns=PAIRED))
    assert found.remarks == before.remarks
    assert found.suite is not None
    assert found.suite.rows == 7


PAIRED = ["difference_low", "difference_high", "p", "p_equivalence", "told"]
"""What depends on how many comparisons there are."""


def test_data_that_has_changed_makes_two_boards(folder: Path) -> None:
    before = board(folder, "ls")
    claimed(cell(folder, "good", 0, dice=0.9, method_params={"w": 1}, data="other"), draw=1)
    first, second = leaderboard.boards(list(find_runs([folder])), "ls")
    pd.testing.assert_frame_equal(first.rows, before.rows)
    assert second.rows["method"].tolist() == ["good"]
    assert (first.title, second.title) == (f"{before.title} data=d", f"{before.title} data=other")


def test_data_of_each_seed_is_one_board(tmp_path: Path) -> None:
    for seed in range(3):
        claimed(cell(tmp_path, "ls", seed, data=f"d{seed}"), trials=0, draw=None)
    assert rows(board(tmp_path))["ls"]["seeds"] == 3


@pytest.mark.parametrize("first", ["with", "without"])
def test_a_copy_without_claims_takes_none_away(tmp_path: Path, first: str) -> None:
    claimed(cell(tmp_path / "with", "ls", 0))
    cell(tmp_path / "without", "ls", 0)
    folders = sorted((tmp_path / "with", tmp_path / "without"), key=lambda f: f.name != first)
    [found] = leaderboard.boards(list(find_runs(folders)))
    assert found.rows["method"].tolist() == ["ls"]
    assert found.suite is not None


def test_a_newcomer_does_not_drive_the_others_out() -> None:
    """Seven rows that lack a unit each, another one, and one that has begun."""
    there = np.ones((8, 20), bool)
    there[range(7), range(7)] = False
    there[7, 1:] = False
    chosen, units = largest_block(there)
    assert chosen.tolist() == [True] * 7 + [False]
    assert units.tolist() == [False] * 7 + [True] * 13


def test_a_search_at_the_edge_is_told(folder: Path) -> None:
    study(folder, "edgy", 0.0, places=0.97)
    said = "\n".join(leaderboard.notes(board(folder, "ls")))
    assert "at the upper end of lr, so a wider range may do better: edgy (8 of 8 searches)" in said
    assert "good: the best trial" not in said
    study(folder, "famo", 0.0, place_of="lr", places=0.97)  # which has an lr of its own
    said = "\n".join(leaderboard.notes(board(folder, "ls")))
    assert "upper end of recipe.lr, so a wider range may do better: edgy" in said
    assert "upper end of lr, so a wider range may do better: famo" in said


def test_an_edge_of_another_suites_range_is_not_told(folder: Path) -> None:
    study(folder, "both", 0.0, places=0.97, suite="first", digest="e" * 12)
    study(folder, "both", 0.0)
    both = leaderboard.boards(list(find_runs([folder])), "ls")
    said = {one.suite.suite: leaderboard.notes(one) for one in both if one.suite}
    assert [name for name, notes in said.items() if "upper end" in str(notes)] == ["first"]


def test_a_baseline_that_validates_below_plain_proves_nothing(folder: Path) -> None:
    study(folder, "ew", 0.0, score=0.6)
    found = board(folder, "ls", "ew")
    told = {name: row["told"] for name, row in rows(found).items()}
    assert told["good"] == "not told apart"
    assert told["bad"] == "worse"
    assert "better: none" in found.verdict
    assert any("tuned ls validates below ew (by 10 %)" in note for note in found.remarks)
    other = board(folder, "good", "ew")  # another baseline, the same doubt
    assert any("tuned good validates below ew" in note for note in other.remarks)


@pytest.mark.parametrize(("resplit", "told"), [(None, False), (0.3125, True)])
def test_folds_tell_a_reference_from_a_guess_less_surely(
    tmp_path: Path, resplit: float | None, told: bool
) -> None:
    """Their mean varies more than that of as many samples of their own."""
    for seed, over in enumerate((0.01, 0.03, 0.02, 0.05, -0.01, 0.02)):
        for method in ("stl", "ls"):
            run = cell(tmp_path, method, seed, dice=0.5 + over)
            result = json.loads((run.path / "result.json").read_text())
            result["metrics"]["dice"]["chance"] = 0.5
            run.write_text("result.json", json.dumps(result))
            claimed(run, resplit=resplit)
    notes = leaderboard.notes(board(tmp_path))
    assert any("the single-task dice" in n and "from a guess, 0.5" in n for n in notes) is told


def test_models_for_one_objective_may_validate_below_plain(folder: Path) -> None:
    study(folder, "ew", 0.05, score=0.6)
    found = board(folder, "stl", "ew")
    assert rows(found)["good"]["told"] == "better"
    assert not any("tuned stl" in note for note in found.remarks)


def test_a_baseline_in_doubt_leaves_its_question_open(folder: Path) -> None:
    assert open_questions("d" * 12, folder, "ew") == []
    study(folder, "ew", 0.0, score=0.6)
    assert open_questions("d" * 12, folder, "ew") == [("made_up", "good", "ls")]


@pytest.mark.parametrize(("gap", "resplit"), [(0.01, None), (0.09, 0.3125)])
def test_a_gap_that_may_be_luck_raises_no_doubt(
    folder: Path, gap: float, resplit: float | None
) -> None:
    """The larger one would raise it were folds as good as samples of their own."""
    study(folder, "ew", 0.0)
    for run in folder.glob("made_up/ew/*"):  # on average by so much better, as luck would have it
        seed = RunDirectory(run).spec().seed
        record = json.loads((run / "result.json").read_text())
        record["score"] += gap + (0.1 if seed % 2 else -0.1)
        (run / "result.json").write_text(json.dumps(record))
    for run in find_runs([folder]):
        [own] = claim.read(run)
        claim.add(run, own.model_copy(update={"resplit": resplit}))
    found = board(folder, "ls", "ew")
    assert rows(found)["good"]["told"] == "better"
    assert not any("validates below" in note for note in found.remarks)


def test_a_row_of_another_budget_is_marked(folder: Path) -> None:
    for r in range(8):
        recipe = {"epochs": 8, "batch_size": 4, "lr": 0.1}
        claimed(cell(folder, "ls", r, 0.52, recipe=recipe), label="ls x4", draw=1)
    found = board(folder, "ls", plain="ls")
    assert "ls x4 has another budget: epochs=8, batch_size=4" in found.remarks
    assert rows(found)["ls x4"]["cost_ratio"] == 4  # its steps cost the same
    assert rows(found)["ls x4"]["complete"]  # beside the others, equal cost


def test_units_of_one_collection_are_corrected(folder: Path) -> None:
    before = rows(board(folder, "ls"))["bad"]
    for run in find_runs([folder]):
        [own] = claim.read(run)
        (run.path / claim.FILE).unlink()
        claim.add(run, own.model_copy(update={"resplit": 0.25}))
    after = rows(board(folder, "ls"))["bad"]
    wider = math.sqrt((1 / 8 + 0.25) / (1 / 8))
    for name, centre in (("difference_high", "difference"), ("delta_m_low", "delta_m")):
        reach = before[name] - before[centre]
        assert after[name] - after[centre] == pytest.approx(wider * reach)


def test_a_diverged_seed_of_the_baseline_ends_no_comparison(folder: Path) -> None:
    claimed(cell(folder, "ls", 3, status="diverged", method_params={"w": 1}), draw=1)
    found = rows(board(folder, "ls"))
    assert found["ls"]["diverged"] == 1
    assert {name: row["units"] for name, row in found.items()} == dict.fromkeys(found, 8)
    assert all(row["complete"] for row in found.values())
    assert found["good"]["told"] == "better"


def test_an_undefined_number_is_no_way_out(folder: Path) -> None:
    """A row whose worst run has no score is not compared on the others alone."""
    before = rows(board(folder, "ls"))["good"]
    [file] = folder.glob("made_up/good/seed3-*/test.json")
    file.write_text(json.dumps({"metrics": {"dice": None, "error": 1.0, "extra": 7.0}}))
    found = board(folder, "ls")
    after = rows(found)["good"]
    assert (after["units"], after["complete"]) == (8, True)
    assert after["difference"] > before["difference"]
    [note] = [one for one in found.remarks if "undefined where" in one]
    assert note.endswith("good (1 of 8 repetitions)")


def test_an_undefined_number_costs_what_divergence_costs(tmp_path: Path) -> None:
    """One of a repetition's two cells is the worst, and not the other one too."""
    for method, offset in (("stl", 0.0), ("ls", 0.0), ("good", 0.05)):
        for seed in range(16):
            final = cell(tmp_path, method, seed, 0.5 + offset + 0.001 * seed)
            claimed(final, draw=0, repetition=seed // 2, seeds=2)
    [test] = tmp_path.glob("made_up/good/seed3-*/test.json")
    numbers = json.loads(test.read_text())
    test.write_text(json.dumps({"metrics": {**numbers["metrics"], "dice": None}}))
    undefined = rows(board(tmp_path, "ls"))["good"]
    diverge(test.with_name("result.json"))
    diverged = rows(board(tmp_path, "ls"))["good"]
    assert undefined["units"] == diverged["units"] == 8
    assert undefined["difference"] == pytest.approx(diverged["difference"])


def test_what_nobody_has_costs_nobody(folder: Path) -> None:
    for file in folder.glob("made_up/*/seed3-*/test.json"):
        file.write_text(json.dumps({"metrics": {"dice": None, "error": 1.0, "extra": 7.0}}))
    found = board(folder, "ls")
    assert {row["units"] for row in rows(found).values()} == {7}
    assert not any("undefined" in note for note in found.remarks)


def test_to_whom_diverged_nothing_is_equivalent(folder: Path) -> None:
    """The worst number of a board may be next to the others."""
    assert rows(board(folder, "ls"))["stl"]["told"] == "equivalent"
    for file in folder.glob("made_up/stl/seed?-*/result.json"):
        diverge(file)
    found = board(folder, "ls")
    assert rows(found)["stl"]["told"] in ("worse", "not told apart")
    assert any(note.endswith("equivalent to it: stl (8 of 8 cells)") for note in found.remarks)
    assert rows(found)["bad"]["told"] == "worse"


def test_a_baseline_that_diverges_proves_little(folder: Path) -> None:
    said = "to be better than such a row says less"
    assert not any(said in one for one in board(folder, "ls").remarks)
    for file in folder.glob("made_up/ls/seed3-*/result.json"):
        if RunDirectory(file.parent).spec().stage == "final":
            diverge(file)
    [note] = [one for one in board(folder, "ls").remarks if said in one]
    assert note.endswith("equivalent to it: ls (1 of 8 cells)")
    assert "equivalent" not in [row["told"] for row in rows(board(folder, "ls")).values()]


def test_without_a_plain_sum_a_search_is_not_checked(folder: Path) -> None:
    said = "one finished row of the plain sum, which a search of ls can miss"
    # Who names no plain row misses none.
    told = [said in "".join(board(folder, "ls", plain).remarks) for plain in ("ew", "stl", None)]
    assert told == [True, False, False]


@pytest.mark.parametrize("ruleset", ["official", "exploratory"])
def test_parameters_that_were_tuned_elsewhere_give_no_verdict(tmp_path: Path, ruleset: str) -> None:
    for method, offset in (("stl", 0.0), ("ls", 0.0), ("good", 0.1)):
        for seed in range(8):
            run = cell(tmp_path, method, seed, 0.5 + offset + seed / 100)
            if method == "good":
                Chosen(
                    ruleset=ruleset, mode="tpe", by="val", score=0.5, trial=1,
                    trials={"finished": 9, "diverged": 1}, seed=1000, search={}, cell="", study="",
                ).write(run)  # fmt: skip
    found = board(tmp_path, "ls")
    good = rows(found)["good"]
    assert (good["trials"], good["complete"]) == (10, ruleset == "official")
    if ruleset == "official":
        assert found.verdict.startswith("No verdict")
    else:
        assert good["reason"] == "its parameters were chosen by exploratory tuning"
        assert found.verdict.startswith("Against ls: ")  # of the others, all may be told
        why = "no comparison with good: its parameters were chosen by exploratory tuning"
        assert why in board(tmp_path, "good").remarks
    (run.path / "chosen.json").write_text('{"ruleset": "tpe"}')
    assert any("chosen.json: ruleset: " in note for note in board(tmp_path, "ls").remarks)


def test_a_decided_row_that_shares_no_unit_with_others_unranks_nobody(tmp_path: Path) -> None:
    kept = {"stl": range(20), "ls": range(20), "bad": range(8), "late": range(8, 20)}
    for method, units in kept.items():
        study(tmp_path, method, -0.2 if method == "bad" else 0.0, 20)
        for seed in set(range(20)) - set(units):
            [final] = tmp_path.glob(f"made_up/{method}/seed{seed}-*")
            shutil.rmtree(final)
    found = rows(board(tmp_path, "ls"))
    assert found["bad"]["told"] == "worse"
    assert [name for name, row in found.items() if not row["complete"]] == ["bad"]


def test_places_of_folds_are_less_sure(tmp_path: Path) -> None:
    """Eight units of one collection say as much as 8 / (1 + 8 x 0.25), not quite three, do."""
    for method, offset in (("ls", 0.0), ("near", 0.01)):
        study(tmp_path, method, offset, noise=0.02)
    first = []
    for resplit in (0.0, 0.25):
        for run in find_runs([tmp_path]):
            [own] = claim.read(run)
            (run.path / claim.FILE).unlink()
            claim.add(run, own.model_copy(update={"resplit": resplit}))
        first.append(board(tmp_path, "ls").rows["first"].max())
    assert 0.5 < first[1] < first[0] < 1


def test_a_metric_of_0_that_decides_is_told(folder: Path) -> None:
    assert not any("exactly 0" in remark for remark in board(folder, "ls").remarks)
    for path in folder.glob("made_up/good/seed[01]-*/result.json"):
        result = json.loads(path.read_text())
        result["val"]["dice"] = 0.0
        path.write_text(json.dumps(result))
    [told] = [remark for remark in board(folder, "ls").remarks if "exactly 0" in remark]
    assert told.endswith("chosen: good (dice, 2 of its cells)")


def test_cells_in_which_the_method_did_nothing_are_told(folder: Path) -> None:
    said = {0: 0, 1: 0.0, 2: 0.4}  # the others do not say
    for path in folder.glob("made_up/good/seed[012]-*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "acts": said[result["seed"]]}))
    told = [remark for remark in board(folder, "ls").remarks if "acted in no step" in remark]
    assert told == [
        "good acted in no step of 2 of its 8 final cells: these were trained by the plain sum"
    ]


def test_strays_of_several_data_are_one_row_and_never_the_suites(tmp_path: Path) -> None:
    """Where each repetition has data of its own, so have runs beside the suite."""
    name = "ew (not of the suite)"
    for r in range(3):
        claimed(cell(tmp_path, "ls", r, data=f"d{r}"), trials=0, draw=None)
        cell(tmp_path, "ew", r, 0.1, data=f"d{r}")
    found = rows(board(tmp_path))
    assert found[name]["seeds"] == 3
    claimed(cell(tmp_path, "mine", 0, 0.7, data="d0"), trials=0, draw=None, label=name)
    found = rows(board(tmp_path))
    assert (found[name]["seeds"], found[name]["dice"]) == (1, 0.7)


def test_more_rows_than_the_suite_has_are_told(folder: Path) -> None:
    study(folder, "another", 0.0)
    [note] = [one for one in board(folder, "ls").remarks if "say that they are" in one]
    assert note == "5 rows say that they are of this suite, which has 4"


def test_two_suites_are_two_boards(folder: Path) -> None:
    for run in find_runs([folder]):
        if run.spec().method in ("stl", "ls", "good"):
            [own] = claim.read(run)
            claim.add(run, own.model_copy(update={"suite": "other", "digest": "e" * 12}))
    found = leaderboard.boards(list(find_runs([folder])), "ls")
    assert [len(one.rows) for one in found] == [4, 3]
    assert len({one.title for one in found}) == 2


def test_a_suite_that_was_changed_has_two_boards_that_name_each_other(folder: Path) -> None:
    for run in find_runs([folder]):
        [own] = claim.read(run)
        claim.add(run, own.model_copy(update={"repetitions": 20, "digest": "e" * 12}))
    first, second = leaderboard.boards(list(find_runs([folder])), "ls")
    for one, other in ((first, second), (second, first)):
        [said] = [remark for remark in one.remarks if "as it is now" in remark]
        assert said.endswith(other.title)


@pytest.mark.parametrize("name", ["method", "told", "dice_sd", "rank"])
def test_a_metric_that_shadows_a_column_is_refused(tmp_path: Path, name: str) -> None:
    run = cell(tmp_path, "ew", 0)
    file = run.path / "result.json"
    file.write_text(file.read_text().replace('"extra": {', f'"{name}": {{', 1))
    with pytest.raises(RunError, match=f"metric '{name}' is called like a column"):
        board(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "suites.json",
            '[{"suite": 3}]',
            r"suites\.json: 0\.suite: .*sweep again, which writes it$",
        ),
        ("result.json", "{", r"result\.json: "),
        ("test.json", "{", r"test\.json: does not parse"),
        ("test.json", '{"metrics": {"dice": "0.9"}}', r"test\.json: '0.9' is no number"),
        ("test.json", '{"metrics": {"dice": true}}', r"test\.json: True is no number"),
        ("spec.json", "{", r"spec\.json"),
    ],
)
def test_a_damaged_cell_is_told_and_the_rest_is_shown(
    folder: Path, name: str, text: str, said: str
) -> None:
    [run] = folder.glob("made_up/good/seed0-*")
    (run / name).write_text(text)
    found = board(folder, "ls")
    assert rows(found)["good"]["units"] == 7
    [note] = [one for one in found.remarks if one.startswith("a damaged cell is left out: ")]
    assert re.search(said, note)
    assert "\n" not in note
    assert open_questions("d" * 12, folder, "ew") == []


@pytest.mark.parametrize(
    "changed",
    [
        {"repetitions": 1001},
        {"seeds": 10**9},
        {"rows": 10**9},
        {"margin": math.inf},
        {"margin": -2.0},
        {"repetition": 8},
        {"draw": 2},
    ],
    ids=lambda changed: "".join(changed),
)
def test_a_claim_that_no_suite_can_make_is_refused(changed: dict[str, Any], folder: Path) -> None:
    run = next(find_runs([folder]))
    [own] = claim.read(run)
    with pytest.raises(ValidationError):
        Claim.model_validate(own.model_dump() | changed)
