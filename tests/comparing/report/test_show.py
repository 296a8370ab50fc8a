"""``mtbench leaderboard``: what its options write."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from mtbench.cli import tables
from mtbench.cli.tables import print_boards
from mtbench.comparing.judging.leaderboard import Board, boards
from mtbench.comparing.judging.report import figures
from mtbench.training.cell.rundir import find_runs
from tests.comparing.report.made_up import write
from tests.comparing.test_leaderboard import DIVERGED
from tests.refusals import refused

Mtbench = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    write(out, ["uw", "ls", "stl", "ew"], seeds=8, epochs=2, trials=2)
    return out


def test_a_page_beside_the_table(mtbench: Mtbench, runs: Path, tmp_path: Path) -> None:
    code, out, err = mtbench("leaderboard", runs, "--html", tmp_path / "a" / "site")
    assert (code, err.split()) == (0, ["page:", str(tmp_path / "a" / "site" / "index.html")])
    assert "− ls ↓" in out
    page = (tmp_path / "a" / "site" / "index.html").read_text()
    assert "− ls ↓" in page
    (tmp_path / "file").touch()
    code, _, err = mtbench("leaderboard", runs, "--html", tmp_path / "file")
    assert code == 2
    assert "cannot be written" in err


def test_the_baseline_is_a_choice(mtbench: Mtbench, runs: Path) -> None:
    _, text, _ = mtbench("leaderboard", runs, "--baseline", "uw", "--plain", "uw")
    assert "− uw ↓" in text
    for option in ("--baseline", "--plain"):
        line = mtbench("leaderboard", runs, option, "uww")
        refused(line, f"{option}: no row is called 'uww'; did you mean 'uw'?")


def test_two_tables_in_one_file_are_refused(mtbench: Mtbench, runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"
    refused(mtbench("leaderboard", runs, "-f", "csv", "--to", file, "--raw", file), "are one file")
    assert not file.exists()


def test_csv_has_the_cost_when_asked(mtbench: Mtbench, runs: Path) -> None:
    tables = []
    for options in ([], ["--cost"]):
        _, text, _ = mtbench("leaderboard", runs, "-f", "csv", *options)
        tables.append({row["method"]: row for row in csv.DictReader(io.StringIO(text))})
    plain, full = tables
    assert {"delta_m_low", "told", "mean_rank", "trials"} <= set(plain["uw"])
    more = set(full["uw"]) - set(plain["uw"])
    assert more == {
        "seconds_per_step",
        "cost_ratio",
        "peak_mib",
        "passes",
        "train_hours",
        "tuning_hours",
    }
    assert float(full["ew"]["cost_ratio"]) == 1
    assert float(full["ew"]["tuning_hours"]) == pytest.approx(2 / 60)
    code, _, err = mtbench("leaderboard", runs, "-f", "json", "--cost")
    assert code == 2
    assert "csv" in err


def test_latex(mtbench: Mtbench, runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "board.tex"
    assert mtbench("leaderboard", runs, "-f", "latex", "--to", file) == (0, "", "")
    assert r"\bottomrule" in file.read_text()


def test_boards_together(mtbench: Mtbench, tmp_path: Path) -> None:
    write(tmp_path, ["uw", "ls", "stl"], seeds=4, epochs=2, tasks=2)
    _, text, _ = mtbench("leaderboard", tmp_path, "-f", "markdown")
    assert "### All boards" in text


def test_a_narrow_terminal_says_what_it_leaves_out(
    mtbench: Mtbench, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    _, text, _ = mtbench("leaderboard", runs)
    assert "too wide for this terminal: peak MiB" in text
    assert max(map(len, text.splitlines())) <= 90
    assert "-" in text
    monkeypatch.setenv("COLUMNS", "250")
    _, wide, _ = mtbench("leaderboard", runs)
    assert "too wide" not in wide
    numbers = set(re.findall(r"\d+\.\d+", wide))
    for width in ("8", "20", "40", "60"):
        monkeypatch.setenv("COLUMNS", width)
        _, text, _ = mtbench("leaderboard", runs)
        rows = "".join(line for line in text.splitlines() if line.startswith("│"))
        assert "…" not in rows
        assert set(re.findall(r"\d+\.\d+", rows)) <= numbers
        assert "s/step" in text  # among what is left out


def test_heads_that_begin_alike_are_not_cut() -> None:
    heads = ["method", "accuracy_left ↑", "accuracy_right ↑"]
    shown = pd.DataFrame(
        [["of a rather long name", "0.374 ± 0.104", "0.459 ± 0.093"]], columns=heads
    )
    console = Console(width=40, file=io.StringIO(), record=True)
    console.print(tables._table("narrow", shown, 39))
    assert "…" not in console.export_text().partition("┡")[0]


def test_no_word_is_cut_where_there_is_room_for_each(runs: Path) -> None:
    [board] = boards(list(find_runs([runs])), "ls", "ew")
    board.rows["told"] = "equivalent"
    for width in range(66, 132):
        console = Console(width=width, file=io.StringIO(), record=True)
        print_boards(console, [board])
        text = console.export_text()
        assert "…" not in text, width
        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("titles", "shown"),
    [
        (["toy scaling=equal start=none epochs=9"], ["toy epochs=9"]),
        (["toy scaling=unequal start=none epochs=9"], ["toy scaling=unequal epochs=9"]),
        (
            [f"toy scaling={how} start=none epochs=9" for how in ("equal", "unequal")],
            ["toy scaling=equal epochs=9", "toy scaling=unequal epochs=9"],
        ),
        (["elsewhere scaling=equal epochs=9"], ["elsewhere scaling=equal epochs=9"]),
    ],
    ids=["all by default", "one is not", "what sets them apart", "an unknown task"],
)
def test_a_title_leaves_out_what_a_task_has_by_default(
    titles: list[str], shown: list[str], runs: Path
) -> None:
    [board] = boards(list(find_runs([runs])), "ls", "ew")
    console = Console(width=120, file=io.StringIO(), record=True)
    print_boards(console, [replace(board, title=title, suite=None) for title in titles])
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert [line for line in lines if "epochs=9" in line] == shown


@pytest.mark.parametrize("count", [11, 40])
def test_many_metrics_on_a_terminal_are_the_worst_three(count: int) -> None:
    metrics = {f"mae_{i:02d}": False for i in range(count)}
    rows = [
        {
            "method": name, "seeds": 6, "diverged": 0, "complete": True, "reason": "", "told": "",
            "difference": math.nan, "delta_m": float(k),
            "delta_m_low": k - 100.25, "delta_m_high": k + 100.25, "mean_rank": k + 1.0,
            "cost_ratio": 1.0 + k, "seconds_per_step": 0.01, "peak_mib": 800.0, "first": 0.5,
            "trials": 10, **{m: 500.0 + k * i for i, m in enumerate(metrics)},
            **{f"{m}_sd": 10.0 for m in metrics},
        }
        for k, name in enumerate(("stl", "nash_mtl"))
    ]  # fmt: skip
    board = Board("t", metrics, pd.DataFrame(rows), [], reference="stl")
    console = Console(width=80, record=True, file=io.StringIO())
    print_boards(console, [board])
    text = console.export_text()
    heads = " ".join(text.split("\n")[2:5])
    assert all(word in heads for word in ("method", "Δm", "rank", "cost", "worst"))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for i in (count - 1, count - 2, count - 3):
        assert f"mae_{i:02d}" in text
    assert f"mae_{count - 4:02d}" not in text


def test_chosen_columns(mtbench: Mtbench, runs: Path) -> None:
    code, text, _ = mtbench("leaderboard", runs, "-f", "markdown", "--columns", "Δm,rank")
    assert code == 0
    assert "| method | Δm % ↓ | rank ↓ |" in text
    code, text, _ = mtbench("leaderboard", runs, "--columns", "rank")
    assert "dice" not in text.splitlines()[2]
    _, _, err = mtbench("leaderboard", runs, "--columns", "versions")
    assert "`verdict` is there" not in err
    code, _, err = mtbench("leaderboard", runs, "--columns", "rang")
    assert code == 2
    assert "unknown column 'rang': there are method, seeds, trials, dice ↑, auroc ↑, Δm" in err
    assert "| − ls ↓ |" in mtbench("leaderboard", runs, "-f", "markdown", "--columns", "- ls")[1]
    code, _, err = mtbench("leaderboard", runs, "--columns", "- famo")
    assert (code, "`− ROW` is there where a row of that name has finished" in err) == (2, True)
    code, _, err = mtbench("leaderboard", runs, "-f", "csv", "--columns", "rank")
    assert (code, "--columns is for tables" in err) == (2, True)


def test_every_number_as_one_tidy_csv(mtbench: Mtbench, runs: Path, tmp_path: Path) -> None:
    code, _, err = mtbench("leaderboard", runs, "--raw", tmp_path / "raw.csv")
    assert (code, err) == (0, "")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "raw.csv").read_text())))
    assert len(lines) == 4 * 8 * 2 * 3  # rows, seeds, splits, metrics
    assert {line["split"] for line in lines} == {"validation", "test"}
    [one] = [
        line for line in lines
        if (line["row"], line["seed"], line["split"], line["metric"]) == ("uw", "3", "test", "dice")
    ]  # fmt: skip
    assert 0.7 < float(one["value"]) < 0.9
    assert all(line["repetition"] == line["seed"] for line in lines)  # as they were claimed


def test_a_cell_that_diverged_is_in_the_csv_without_a_value(
    mtbench: Mtbench, tmp_path: Path
) -> None:
    write(tmp_path / "runs", ["stl", "ew"], seeds=2)
    [lost] = (tmp_path / "runs").glob("*/ew/seed1-*")
    result = json.loads((lost / "result.json").read_text())
    result |= DIVERGED | {"diverged_at": {"epoch": 0, "step": 0}}
    (lost / "result.json").write_text(json.dumps(result))
    mtbench("leaderboard", tmp_path / "runs", "--raw", tmp_path / "raw.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "raw.csv").read_text())))
    found = [line for line in lines if (line["row"], line["repetition"]) == ("ew", "1")]
    assert {line["metric"] for line in found} == {"dice", "auroc"}
    assert {(line["status"], line["value"]) for line in found} == {("diverged", "")}


def test_figures_are_files_and_the_same_each_time(
    mtbench: Mtbench, runs: Path, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        code, _, err = mtbench("leaderboard", runs, "--figures", tmp_path / folder)
        assert code == 0, err
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == sorted(
        f"0-made_up0-{chart}.{form}"
        for chart in (
            "budget",
            "cost",
            "delta_m",
            "diagnostics",
            "difference",
            "front",
            "places",
            "training",
        )
        for form in ("pdf", "svg")
    )
    for name in names:
        if name.endswith("pdf"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_many_metrics_on_a_terminal(
    mtbench: Mtbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ["uw", "stl"], seeds=2, epochs=1)
    for file in tmp_path.rglob("*.json"):
        record = json.loads(file.read_text())
        if file.name == "result.json":
            one = record["metrics"]["dice"]
            record["metrics"] = {f"mae{i}": one | {"higher_is_better": False} for i in range(11)}
        elif file.name == "test.json":
            value = 1.0 if file.parent.parent.name == "stl" else 1.1
            record["metrics"] = {f"mae{i}": value + i / 100 for i in range(11)}
        file.write_text(json.dumps(record))
    monkeypatch.setenv("COLUMNS", "120")
    _, text, _ = mtbench("leaderboard", tmp_path)
    assert "mae0 +10.0, mae1 +9.9, mae2 +9.8" in text
    assert "all metrics but those that are worst" in text


def test_a_single_epoch_is_a_point() -> None:
    told = {"ew": {"loss (validation)": {"x": [1], "mean": [0.5]}}}
    figure = figures._curves(told, ["ew"], diagnostics=False)
    assert figure is not None
    [axes] = figure.axes
    assert axes.lines[0].get_marker() == "o"
    assert [tick for tick in axes.get_xticks() if 0.9 < tick < 1.1] == [1]
