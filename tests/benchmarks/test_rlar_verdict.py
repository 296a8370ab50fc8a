"""RLAR's verdict follows the rule that was stated."""

import importlib
import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mtbench.comparing.judging.leaderboard import Board

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(BENCHMARKS)
    study = importlib.import_module("rlar_study")
    verdict = runpy.run_path(str(BENCHMARKS / "rlar_verdict.py"))
spread = np.linspace(-0.01, 0.01, 20)


@pytest.mark.parametrize(
    ("category", "mask", "told"),
    [
        (0.03, 0.00, "category: better; mask: kept"),
        (0.03, -0.03, "category: better; mask: lost"),
        (0.03, -0.01, "category: better; mask: undecided"),
        (-0.03, 0.03, "category: worse; mask: kept"),
        (0.01, 0.00, "category: no difference of 0.02; mask: kept"),
        (0.02, 0.00, "category: better; mask: kept"),
    ],
)
def test_the_rule(category: float, mask: float, told: str) -> None:
    assert study.answer(category + spread, mask + spread, planned=20).told == told


def test_intervals_point_to_where_rlar_is_higher_and_folds_widen_them() -> None:
    plain, folds = (study.answer(0.03 + spread, spread, 20, resplit) for resplit in (0, 0.3))
    mean, low, high = plain.category
    assert 0 < low < mean < high
    assert mean == pytest.approx(0.03)
    # Sqrt of 1 / n + resplit, by the corrected test.
    assert folds.category[2] - mean == pytest.approx((high - mean) * np.sqrt(1 + 20 * 0.3))


def test_few_pairs_tell_nothing() -> None:
    found = study.answer([0.1] * 5, [0.1] * 5, planned=20)
    assert found.told.startswith("category: undecided")


def test_a_cell_that_is_claimed_twice_counts_once() -> None:
    """By another suite, by a row that equals this one, or by code that counted rows otherwise."""
    claims = [
        SimpleNamespace(board=board, repetition=repetition)
        for board, repetition in (("another", 7), ("this", 3), ("this", 3))
    ]
    cell = SimpleNamespace(diverged=False, test={"auroc": 0.7, "dice": 0.8}, claims=claims)
    board = SimpleNamespace(suite=SimpleNamespace(board="this"), cells={"ew": [cell]})
    assert study.tested(board, "ew") == {3: (0.7, 0.8)}


def test_nothing_is_better_than_a_row_whose_tuning_missed_the_plain_sum() -> None:
    found = study.answer(0.03 + spread, spread, 20, doubted=True)
    assert found.category_told == "in doubt"
    assert study.answer(spread - 0.03, spread, 20, doubted=True).category_told == "worse"


def board(
    rlar: Sequence[float], ew: Sequence[float], resplit: float = 0.0, suite: str = "rlar_ddti"
) -> Board:
    """Return a board of two rows with an AUROC for each repetition, and a Dice of 0.7."""
    plan = SimpleNamespace(suite=suite, board="this", planned=10, resplit=resplit)

    def cell(method: str, repetition: int, auroc: float) -> Any:
        notes = {"acts": 0.4, "alignment": 0.01}
        return SimpleNamespace(
            diverged=not np.isfinite(auroc), test={"auroc": auroc, "dice": 0.7},
            done=SimpleNamespace(**notes),
            claims=[SimpleNamespace(board="this", repetition=repetition)],
            run=SimpleNamespace(history=lambda: [{"notes": notes}] * 3),
            spec=SimpleNamespace(
                method=method, method_params={"weight": 0.1, "where": "pooled"}
            ),
        )  # fmt: skip

    cells = {
        row: [cell(row, i, value) for i, value in enumerate(values)]
        for row, values in (("rlar", rlar), ("ew", ew))
    }
    trials = {"rlar": {(0, 0): cell("rlar", 0, 0.5)}, "ew": {}}
    return Board(
        f"thyroid suite={suite}", {}, pd.DataFrame(), [], cells=cells, trials=trials, suite=plan
    )  # type: ignore[arg-type]


def told(*boards: Board) -> dict[str, str]:
    return verdict["text"](verdict["studies"](boards, ["ew", "ls"]))


NOISE = 0.06 * np.array([1, -1, 0.5, -0.5, 1.5, -1.5, 0.2, -0.2, 0.8, -0.8])


def test_what_so_few_patients_could_never_tell_is_said() -> None:
    text = told(board(0.5 + NOISE, 0.5 - NOISE, resplit=0.3125))["answer"]
    assert "`rlar` may help or harm the category" in text
    assert "never as often, by any number of repetitions on this data" in text
    assert "cannot be told from a guess" in text
    text = told(board(0.7 + NOISE / 100, [0.7] * 10))["answer"]
    assert "changes the category by less than 0.02" in text
    assert "could not be" not in text
    assert "a guess" not in text


def test_what_is_not_there_is_said() -> None:
    found = told(board([0.7, 0.8], [0.6, 0.6]))
    assert "2 of 10 repetitions are there, and nothing is answered before 6" in found["answer"]
    assert "0.8" not in found["questions"]
    assert (
        "**Not run:** BrEaST-Lesions, the phantom, other readers of the phantom." in found["answer"]
    )
    found = told(board([*NOISE[:9], np.nan], NOISE))
    assert "left out, which flatters their rows: 1 of `rlar`." in found["answer"]
    assert "| 9 of 10 |" in found["questions"]
    assert "Not run" not in told(board(NOISE, NOISE, suite="rlar_dose"))["answer"]


def test_runs_of_one_s_own_may_lie_beside() -> None:
    found = board(NOISE, NOISE)
    [cell, *_] = board(NOISE, NOISE).cells["rlar"]
    cell.claims.clear()
    found.cells["rlar (not of the suite)"] = [cell]
    assert told(found) == told(board(NOISE, NOISE))


def test_boards_of_one_suite_are_told_apart() -> None:
    found = board(NOISE, NOISE, suite="rlar_readers")
    two = [replace(found, title=f"thyroid reader_noise={noise}") for noise in (2.0, 0.0)]
    lines = told(*two)["questions"].splitlines()
    assert lines[2].startswith("| other readers of the phantom, reader noise 2.0 | rlar |")
    assert lines[3].startswith("| other readers of the phantom, reader noise 0.0 | rlar |")


def test_pages_have_the_parts_that_they_name(tmp_path: Path) -> None:
    found = verdict["studies"]([board(0.7 + NOISE, 0.7 - NOISE)], ["ew"])
    page, picture = tmp_path / "docs" / "page.md", tmp_path / "docs" / "img" / "rlar.png"
    verdict["draw"](found, picture)
    page.write_text(
        "a\n<!-- rlar_verdict: penalty -->old<!-- rlar_verdict. -->\nb\n"
        "<!-- rlar_verdict: figure --><!-- rlar_verdict. -->\n"
    )
    for _ in range(2):
        verdict["fill"](page, verdict["text"](found), picture)
    made = page.read_text()
    assert "old" not in made
    assert made.count("the 10 final cells of `rlar` have lambda 0.1 to 0.1") == 1
    assert "](img/rlar.png)" in made
    with pytest.raises(SystemExit, match="'<!-- rlar_verdict: penalty -->'"):
        verdict["fill"](page, {"answer": ""}, None)
    page.write_text("none")
    with pytest.raises(SystemExit, match="no place"):
        verdict["fill"](page, {}, None)
