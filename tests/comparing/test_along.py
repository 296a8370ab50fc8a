"""One-parameter curves: which rows make one, and what their points are."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest
from scipy import stats

from mtbench.comparing.judging import leaderboard, report
from mtbench.comparing.judging.leaderboard import Board
from mtbench.comparing.judging.leaderboard.along import along
from mtbench.comparing.judging.report.figures import draw
from mtbench.training.cell.rundir import find_runs
from tests.comparing.test_entrants import board, claimed
from tests.comparing.test_leaderboard import cell

DICES = {0.01: 0.50, 1.0: 0.55, 100.0: 0.45}


@pytest.fixture
def found(tmp_path: Path) -> Board:
    """Of a suite: three doses, of which other parameters were tuned; and rows that are no dose."""
    for seed in range(8):
        for method in ("stl", "ls"):
            claimed(cell(tmp_path, method, seed, 0.5 + seed / 1000), draw=None, trials=0)
        for dose, dice in DICES.items():
            tuned = {"dose": dose, "other": seed % 3}
            run = cell(tmp_path, "rlar", seed, dice + seed / 1000, method_params=tuned)
            claimed(run, label=f"rlar {dose}", fixed={"dose": dose}, draw=None, trials=0)
        for mode in ("a", "b", "c"):  # not a number
            run = cell(tmp_path, "cagrad", seed, method_params={"mode": mode})
            claimed(run, label=f"cagrad {mode}", fixed={"mode": mode}, draw=None, trials=0)
        for c in (1, 2):  # too few
            run = cell(tmp_path, "famo", seed, method_params={"c": c})
            claimed(run, label=f"famo {c}", fixed={"c": c}, draw=None, trials=0)
    return board(tmp_path, "ls", "ls")


def test_doses_in_their_order_and_by_hand(found: Board) -> None:
    [one] = along(found)
    assert (one.method, one.parameter, one.values) == ("rlar", "dose", [0.01, 1.0, 100.0])
    assert one.rows == ["rlar 0.01", "rlar 1.0", "rlar 100.0"]
    assert one.logarithmic
    titles = [panel.title for panel in one.panels]
    assert titles == ["Δm % ↓", "dice ↑", "error ↓"]
    delta, dice, _ = one.panels
    rows = found.rows.set_index("method")
    assert delta.points[:, 0].tolist() == [rows.at[name, "delta_m"] for name in one.rows]
    assert delta.baseline == rows.at["ls", "delta_m"]
    mean, low, high = dice.points[1]
    values = [0.55 + seed / 1000 for seed in range(8)]
    expected = stats.t.interval(0.95, 7, sum(values) / 8, stats.sem(values))
    assert mean == pytest.approx(sum(values) / 8)
    assert (low, high) == pytest.approx(expected)


def test_cells_of_one_repetition_are_one_unit(tmp_path: Path) -> None:
    for seed in range(16):
        said = {"draw": None, "repetition": seed // 2, "seeds": 2}
        claimed(cell(tmp_path, "ls", seed, 0.5 + seed // 2 / 1000), **said)
        for dose in DICES:
            run = cell(tmp_path, "rlar", seed, 0.5 + seed // 2 / 1000, method_params={"dose": dose})
            claimed(run, label=f"rlar {dose}", fixed={"dose": dose}, **said)
    [one] = along(board(tmp_path, "ls", "ls"))
    mean, low, high = one.panels[0].points[0]
    values = [0.5 + seed // 2 / 1000 for seed in range(16)]
    reach = stats.t.isf(0.025, 7) * statistics.stdev(values) / math.sqrt(8)
    assert (low, high) == pytest.approx((mean - reach, mean + reach))


def test_without_a_suite_all_parameters_are_fixed(tmp_path: Path) -> None:
    for seed in range(2):
        for c in (1, 2, 3):
            cell(tmp_path, "cagrad", seed, 0.5 + c / 10, method_params={"c": c, "rescale": True})
            cell(tmp_path, "uw", seed, method_params={"a": c, "b": -c})  # two differ
            cell(tmp_path, "famo", seed, method_params={"a": c}, init=str(c) * 64)  # also two
    [one] = along(board(tmp_path))
    assert (one.method, one.parameter, one.values) == ("cagrad", "c", [1.0, 2.0, 3.0])
    assert not one.logarithmic
    assert [panel.title for panel in one.panels] == ["dice ↑", "error ↓"]
    assert all(math.isnan(panel.baseline) for panel in one.panels)


def test_one_at_a_time_and_a_grid_make_a_curve_for_each_parameter(tmp_path: Path) -> None:
    for seed in range(2):
        for a, b in ((1, 2), (2, 2), (3, 2), (2, 1), (2, 3)):
            cell(tmp_path, "uw", seed, method_params={"a": a, "b": b, "mode": "x"})
        for a in (1, 2):
            for b in (1, 2, 3):
                cell(tmp_path, "cagrad", seed, method_params={"a": a, "b": b})
    found = along(board(tmp_path))
    curves = sorted((one.method, one.parameter, one.values) for one in found)
    assert curves == [("cagrad", "b", [1, 2, 3])] * 2 + [
        ("uw", "a", [1, 2, 3]), ("uw", "b", [1, 2, 3])
    ]  # fmt: skip
    on_both = set.intersection(*(set(one.rows) for one in found if one.method == "uw"))
    assert len(on_both) == 1


def test_curves_are_on_the_page_and_among_the_figures(found: Board, tmp_path: Path) -> None:
    text = report.render([found])
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    [one] = json.loads(data)[0]["along"]
    assert one["values"] == [0.01, 1.0, 100.0]
    assert len(one["panels"][0]["points"]) == 3
    names = [file.name for file in draw([found], tmp_path / "figures")]
    assert {"0-made_up-1-rlar-dose.pdf", "0-made_up-1-rlar-dose.svg"} <= set(names)


@pytest.mark.filterwarnings("ignore:Glyph")  # that the font lacks
@pytest.mark.parametrize("dose_name", ["dose", "dose" * 40, "dose" + "\U00020000" * 120])
def test_curves_along_one_parameter_have_a_file_each(dose_name: str, tmp_path: Path) -> None:
    for seed in range(2):
        for where in ("here", "there"):
            for dose in DICES:
                own = {dose_name: dose} | ({} if where == "here" else {"where": where})
                run = cell(tmp_path / "runs", "rlar", seed, 0.5 + dose / 1000, method_params=own)
                said = {"draw": None, "trials": 0, "seeds": 2, "repetitions": 1, "repetition": 0}
                claimed(run, label=f"rlar {where} {dose}", fixed=own, **said)
    names = [file.name for file in draw([board(tmp_path / "runs")], tmp_path / "figures")]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("0-made_up-2-rlar-dose") for name in names) == 2  # PDF and SVG


@pytest.mark.parametrize("name", ["../../evil", "a/b", "x" * 300, "..", "a\0b"])
def test_figures_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    """Names of tasks come from records, which may be anybody's."""
    out = tmp_path / "runs"
    for seed in (0, 1):
        run = cell(out, "ew", seed)
        spec = json.loads((run.path / "spec.json").read_text())
        (run.path / "spec.json").write_text(json.dumps(spec | {"task": name}))
        cell(out, "stl", seed)
    boards = leaderboard.boards(list(find_runs([out])), "ew", "ew")
    folder = tmp_path / "some" / "where" / "figures"
    written = draw(boards, folder)
    assert all(file.parent == folder and file.is_file() for file in written)
    assert [file for file in tmp_path.rglob("*.pdf") if file.parent != folder] == []
