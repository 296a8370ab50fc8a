"""Tables for a paper: what they say, that they are inert, and that they fit."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from mtbench.comparing.judging import leaderboard
from mtbench.comparing.judging.leaderboard import Board, Width
from mtbench.comparing.judging.leaderboard.latex import GAP, POINTS, text_width
from mtbench.training.cell.rundir import find_runs
from tests.comparing.test_entrants import claimed
from tests.comparing.test_leaderboard import cell, diverge, paired

HOSTILE = "\\input{x} $a_b^c$ 50% {~#&} [é ðÞ ÷ λ 中] a--b---c ''d'' \x1b[2J"
WIDTHS = get_args(Width)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Board]:
    """Two boards: equal rows, a better and a worse one, a name that means harm, one not ranked."""
    out = tmp_path_factory.mktemp("runs")
    paired(out, {"stl": 0, "ls": 0.1, "better": 0.2, "worse": -0.1, "same": 0.1}, 8)
    for seed in range(8):
        cell(out, "rlar", seed, dice=0.55, error=0.95, method_params={"mode": HOSTILE})
        cell(out, "rlar", seed, dice=0.55, error=0.95, method_params={"mode": "b-2" * 27})
        for method in ("stl", "ls"):
            cell(out, method, seed, dice=0.5, error=1.0, data="e", task="other_task")
    cell(out, "late", 0, dice=0.99, error=0.01)
    return leaderboard.boards(list(find_runs([out])), "ls", "ls")


def tables(text: str) -> list[str]:
    return re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.S)


def bare(cell: str) -> str:
    """Return what a cell shows, about: a sign for each symbol."""
    shown = re.sub(r"\$(-|\\\w+)\$", "−", cell.removeprefix(r"\raggedright "))
    return re.sub(r"\\(textbf|underline|allowbreak)|[{}\\]", "", shown)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_row_has_as_many_columns_as_the_table_says(found: list[Board], width: Width) -> None:
    text = leaderboard.to_latex(found, None, width)
    assert len(tables(text)) >= 3
    for table in tables(text):
        [columns] = re.findall(r"\\begin\{tabular\}\{(?:l|p\{\d+pt\})(r+)\}", table)
        body = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(columns)}
        assert [table.count(rf"\{rule}rule") for rule in ("top", "bottom")] == [1, 1]


def test_a_caption_tells_of_rows_that_stopped_early(found: list[Board]) -> None:
    rows = found[0].rows.copy()
    rows.loc[rows["method"] == "better", "units"] = 6
    assert "6 to 8 seeds; " in leaderboard.to_latex([replace(found[0], rows=rows)])


def test_best_second_stars_and_caption(found: list[Board]) -> None:
    text = leaderboard.to_latex(found[:1])
    parts: dict[str, list[str]] = {}  # a row's in each table
    for line in text.splitlines():
        name, _, rest = line.removeprefix(r"\raggedright ").partition(" & ")
        parts.setdefault(name, []).append(rest)
    lines = {name: " ".join(rests) for name, rests in parts.items()}
    assert lines["better"].count(r"\textbf{") == 4  # two metrics, delta-m and rank
    assert r"\underline{" not in lines["better"]
    assert lines["ls"].count(r"\underline{") == lines["same"].count(r"\underline{") == 4
    assert re.search(r"\$-\$\d+\.\d\d \[[^]]*\]\* ", lines["better"])
    assert "$\\approx$" in lines["same"]
    assert "bf" not in lines["stl"] + lines["late"]  # the reference, and what is not ranked
    caption, *others = re.findall(r"\\caption\{(.*)\}", text)
    assert all("continued" in other for other in others)
    for part in (
        "8 seeds",
        "no trials each",
        "2 epochs of batches of 4",
        "within 2 \\%",
        "differs from ls",
    ):
        assert part in caption
    body = text[text.index(r"\midrule") :].splitlines()
    assert body[1].startswith(r"\raggedright stl &")
    assert body[2] == r"\midrule"


def test_a_caption_names_rows_of_another_budget_and_what_diverged(tmp_path: Path) -> None:
    """It had the best row's budget for all of them."""
    for method, epochs, dice in (
        ("stl", 2, 0.5),
        ("ls", 2, 0.5),
        ("ew", 2, 0.5),
        ("long", 20, 0.8),
    ):
        recipe = {"epochs": epochs, "batch_size": 4}
        for seed in range(16):
            run = cell(tmp_path, method, seed, dice + seed / 1000, recipe=recipe)
            claimed(run, repetition=seed // 2, seeds=2)
        if method != "stl":
            trial = cell(tmp_path, method, 1000, stage="trial", recipe=recipe)
            claimed(trial, repetition=0, seeds=2)
    for file in tmp_path.glob("made_up/ew/seed[01]-*/result.json"):
        diverge(file)
    [found] = leaderboard.boards(list(find_runs([tmp_path])), "ls", "ew")
    [caption, *_] = re.findall(r"\\caption\{(.*)\}", leaderboard.to_latex([found], width="column"))
    for part in (
        "deviation over runs, 8 repetitions of 2 runs; 2 trials each, 2 epochs of batches of 4. ",
        "Without trials: stl. ",
        "Of another budget: long (20 epochs of batches of 4). ",
        "Runs that diverged, the worst in $\\Delta$m and left out of metrics: ew (2). ",
    ):
        assert part in caption


def test_one_of_a_thing_is_no_plural(tmp_path: Path) -> None:
    cell(tmp_path, "ew", 0, recipe={"epochs": 1, "batch_size": 4, "lr": 0.1})
    text = leaderboard.to_latex(leaderboard.boards(list(find_runs([tmp_path]))))
    assert "1 seed; no trials each, 1 epoch of batches of 4." in text


def test_tasks_stand_side_by_side(found: list[Board]) -> None:
    first = tables(leaderboard.to_latex(found))[0]
    assert r"method & made\_up & other\_task \\" in first
    assert re.search(r"better & \\textbf\{\$-\$\d+\.\d\d\*\} & -- ", first)
    assert "late" not in first


def test_a_hyphen_in_a_name_is_no_minus(found: list[Board]) -> None:
    text = leaderboard.to_latex(found[:1])
    assert "b-2b" in text.replace(r"\allowbreak{}", "")
    assert "b$-$2" not in text


def test_chosen_columns(found: list[Board]) -> None:
    text = leaderboard.to_latex(found[:1], ["verdict"])
    assert [re.findall(r"method & .*", t) for t in tables(text)] == [[r"method & verdict \\"]]


def test_no_table_is_wider_than_it_may_be(found: list[Board]) -> None:
    """By the widths of characters; `test_it_compiles` asks TeX itself, where there is one."""
    for width in WIDTHS:
        for table in tables(leaderboard.to_latex(found, None, width)):
            lines = [line.split(" & ") for line in table.splitlines() if line.endswith(r"\\")]
            plain = [[bare(c.removesuffix(r" \\")) for c in line] for line in lines]
            widths = [max(map(text_width, column)) for column in zip(*plain, strict=True)]
            named = re.search(r"\{p\{(\d+)pt\}", table)
            widths[0] = float(named[1]) if named else widths[0]
            assert sum(widths) + GAP * len(widths) <= POINTS[width]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX here")
@pytest.mark.parametrize(("width", "document"), [("column", "twocolumn"), ("page", "onecolumn")])
def test_it_compiles(found: list[Board], tmp_path: Path, width: Width, document: str) -> None:
    points = POINTS[width]
    found = [*found, replace(found[0], title=f"made_up k={'x' * 80}")]
    (tmp_path / "t.tex").write_text(
        rf"\documentclass[{document}]{{article}}\usepackage{{booktabs}}"
        rf"\begin{{document}}\setlength{{\columnwidth}}{{{points}pt}}\hsize={points}pt "
        rf"\setlength{{\textwidth}}{{{points}pt}}"
        + leaderboard.to_latex(found, None, width)
        .replace(r"\begin{tabular}", r"\sbox0{\begin{tabular}")
        .replace(
            r"\end{tabular}",
            rf"\end{{tabular}}}}\ifdim\wd0>{points}pt\errmessage{{TABLE}}\fi\usebox0",
        )
        + r"\end{document}"
    )
    made = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-2000:]
    assert "TABLE" not in made.stdout
