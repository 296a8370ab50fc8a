"""What papers report agrees with itself and with our tasks; `mtbench reproduce` shows it."""

import math
from pathlib import Path
from typing import Any

import pytest

from mtbench.comparing.claim import Claim
from mtbench.comparing.judging import leaderboard, published
from mtbench.comparing.judging.published import PaperBoard
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.plugins.registry import find
from mtbench.training.cell.rundir import find_runs
from mtbench.training.task import Task
from tests.comparing.test_entrants import claimed
from tests.comparing.test_leaderboard import cell
from tests.refusals import refused

TASKS = list(published.shipped())

PAPER = """
version = 1

[metrics]
mae_sum = false
within = true

[[boards]]
title = "first"
source = "a paper, Table 1"
seeds = 3
recipe = { epochs = 4, batch_size = 8, lr = 2e-2 }
protocol = ["no validation split"]
columns = ["mae_sum", "within", "mean_rank", "delta_m"]

[boards.rows]
stl = [0.5, 0.25, nan, nan]
ew = [0.25, 0.5, 1.0, -75.0]
"rlw normal=false" = [0.75, 0.2, 2.0, 35.0]

[[boards]]
title = "second"
source = "another"
columns = ["delta_m"]

[boards.rows]
ew = [1.5]
"""


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    file = tmp_path / "paper.toml"
    file.write_text(PAPER)
    return file


def test_four_tasks_of_the_field_are_shipped() -> None:
    assert TASKS == ["celeba", "cityscapes", "nyuv2", "qm9"]


@pytest.mark.parametrize("task", TASKS)
def test_shipped_metrics_are_the_tasks_and_methods_ours(task: str) -> None:
    found = published.load(task)
    metrics = find("task", task).load(Task)().metrics
    for name, higher in found.metrics.items():
        assert metrics[name].higher_is_better == higher, name
        assert metrics[name].primary, name
    for label in {label for board in found.boards for label in board.rows}:
        name, *settings = label.split()
        method = Method.find(name)
        for setting in settings:
            assert setting.partition("=")[0] in method.declared[name], label


@pytest.mark.parametrize("task", TASKS)
def test_published_delta_m_follows_from_the_published_metrics(task: str) -> None:
    """Swapped columns or rows would show; what is left is the papers' rounding."""
    found = published.load(task)
    for board in found.boards:
        metrics = [column for column in board.columns if column in found.metrics]
        for label in board.rows:
            x = [board.value(label, name) for name in metrics]
            if not metrics or label == "stl" or any(map(math.isnan, x)):
                continue
            reference = [board.value("stl", name) for name in metrics]
            changes = [
                100 * (r - a if found.metrics[m] else a - r) / r
                for a, r, m in zip(x, reference, metrics, strict=True)
            ]
            assert sum(changes) / len(changes) == pytest.approx(
                board.value(label, "delta_m"), abs=0.5
            ), (board.title, label)


def test_the_page_of_the_documentation_is_what_is_shipped() -> None:
    page = Path(__file__).parents[2] / "docs" / "published.md"
    assert page.read_text(encoding="utf-8") == published.page()


def test_a_rows_settings_must_be_the_runs() -> None:
    rows = {"m": [1.0], "m a=1": [2.0], "m a=1 b=x": [3.0], "other a=2": [4.0]}
    board = PaperBoard(title="t", source="s", columns=["delta_m"], rows=rows)
    assert board.label("m", {}) == "m"
    assert board.label("m", {"a": 2}) == "m"
    assert board.label("m", {"a": 1, "b": "y"}) == "m a=1"
    assert board.label("m", {"a": 1, "b": "x"}) == "m a=1 b=x"
    assert board.label("other", {"a": 1}) is None
    assert board.label("o", {}) is None
    assert math.isnan(board.value("m", "mean_rank"))
    assert math.isnan(board.value(None, "delta_m"))


def test_markdown_has_the_reference_first_and_then_the_best(paper: Path) -> None:
    text = published.load("tiny", paper).markdown("tiny")
    first = text.split("###")[1].splitlines()
    assert first[0] == " tiny: first"
    assert first[2] == "| method | mae\\_sum ↓ | within ↑ | mean rank ↓ | Δm % ↓ |"
    assert first[4:7] == [
        "| stl | 0.5 | 0.25 | - | - |",
        "| ew | 0.25 | 0.5 | 1.00 | -75.00 |",
        "| rlw normal=false | 0.75 | 0.2 | 2.00 | 35.00 |",
    ]
    assert "- source: a paper, Table 1" in first
    assert "- means over 3 seeds" in first


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1", "version = 2", "version"),
        ("version = 1", "version 1", "is no TOML"),
        ("ew = [1.5]", "ew = [1.5, 2.0]", r"boards\.1: 'ew' has 2 values for 1 columns"),
        ("ew = [1.5]", "", "rows"),
        ('columns = ["delta_m"]', 'columns = ["dm"]', "'dm'"),
        ('title = "second"', 'name = "second"', "boards.1"),
    ],
)
def test_files_of_another_form(paper: Path, old: str, new: str, said: str) -> None:
    paper.write_text(PAPER.replace(old, new))
    with pytest.raises(UsageError, match=said):
        published.load("tiny", paper)


def test_reproduce_puts_a_run_beside_the_paper(
    tiny: Path, paper: Path, tmp_path: Path, mtbench: Any
) -> None:
    out = tmp_path / "runs"
    words = ("reproduce", "tiny", "--plugin", tiny, "--published", paper, "--threads", 1)
    words = (*words, "--out", out, "--epochs", 1, "--seeds", 2, "--method", "ew")
    code, said, err = mtbench(*words, "--method", "ew")
    assert code == 0, err
    assert said.count("ew beside the paper's: first") == 1
    assert len([*out.glob("tiny/*/*/result.json")]) == 4  # stl and ew at two seeds
    written = (out / "tiny" / "reproduce.md").read_text()
    [board] = leaderboard.boards([*find_runs([out])])
    rows = board.rows.set_index("method")
    cells = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")
        for line in written.split("###")[1].splitlines()
        if line.startswith("| ")
    }
    assert cells["mae\\_sum ↓"][1] == "0.5"
    assert cells["mae\\_sum ↓"][3] == "0.25"
    assert float(cells["mae\\_sum ↓"][2].split(" ±")[0]) == pytest.approx(
        rows.loc["stl", "mae_sum"], rel=1e-3
    )
    ours = float(rows.loc["ew", "mae_sum"])  # type: ignore[arg-type]
    assert float(cells["mae\\_sum ↓"][5]) == pytest.approx(ours - 0.25, rel=1e-3)
    delta = float(rows.loc["ew", "delta_m"])  # type: ignore[arg-type]
    assert cells["Δm % ↓"][4].startswith(f"{delta:.2f} [")
    assert float(cells["Δm % ↓"][5]) == pytest.approx(delta + 75, abs=0.01)
    for line in (
        "- epochs: paper 4, here 1",
        "- lr: paper 0.02, here 0.01",
        "- seeds: paper 3, here 2",
        "- seeds: paper unknown, here 2",
        "- paper: no validation split",
        "- source: another",
    ):
        assert line in written.splitlines()
        assert line in said
    assert "batch_size: paper" not in written  # as in the paper
    code, said, _ = mtbench(*words)
    assert code == 0
    assert "already finished" in said
    for number, run in enumerate(find_runs([out])):
        suite = Claim(
            suite="two", digest=f"{number:012}", task="tiny", label="ew", repetition=0, draw=None,
            sampler="", places={}, trials=0, repetitions=2, seeds=1, rows=1, margin=2.0, against=[],
        )  # fmt: skip
        (run.path / "suites.json").write_text(f"[{suite.model_dump_json()}]")
    refused(mtbench(*words), "its cells make 4 tables, as those of suites do")


def test_a_method_with_several_rows_is_refused(paper: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        cell(tmp_path, "stl", seed)
        run = cell(tmp_path, "ew", seed)
    claimed(run)
    [board] = leaderboard.boards([*find_runs([tmp_path])])
    with pytest.raises(UsageError, match=r"ew must have one row here, found ew, ew \(not of the"):
        published.compare(published.load("tiny", paper), board, "stl", "ew")


def test_reproduce_says_when_the_settings_are_not_the_papers(
    tiny: Path, paper: Path, tmp_path: Path, mtbench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "66")
    words = ("reproduce", "tiny", "--plugin", tiny, "--published", paper, "--threads", 1)
    words = (*words, "--out", tmp_path / "runs", "--epochs", 1, "--seeds", 1, "--method", "rlw")
    code, said, err = mtbench(*words)
    assert code == 0, err
    assert "no paper reports rlw with these settings" in said
    beside = said[said.index("rlw beside the rows of: first") :]
    assert "too wide for this terminal: within ↑; " in beside  # and no number is cut
    assert "…" not in beside
    first, second = (tmp_path / "runs" / "tiny" / "reproduce.md").read_text().split("###")[1:]
    rows = [line.strip("| ").split(" | ") for line in first.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows] == [
        ["method", "protocol"], ["stl", "theirs"], ["ew", "theirs"],
        ["rlw normal=false", "theirs"], ["stl", "ours"], ["rlw", "ours"],
    ]  # fmt: skip
    assert rows[2][2:] == ["0.25", "0.5", "1.00", "-75.00"]
    [board] = leaderboard.boards([*find_runs([tmp_path / "runs"])])
    delta = float(board.rows.set_index("method").loc["rlw", "delta_m"])  # type: ignore[arg-type]
    assert rows[-1][4:] == ["-", f"{delta:.2f}"]
    assert "- theirs: as the paper prints it, by its protocol; ours: trained here" in first
    assert "- epochs: paper 4, here 1" in first
    assert "beside the rows of: second" in second


def test_reproduce_refuses_several_seeds_whose_data_differ(
    tiny: Path, paper: Path, tmp_path: Path, mtbench: Any
) -> None:
    other = tmp_path / "tiny.py"
    other.write_text(tiny.read_text().replace('"tiny-1"', 'f"tiny-{seed}"'))
    words = ("reproduce", "tiny", "--plugin", other, "--published", paper, "--threads", 1)
    words = (*words, "--out", tmp_path / "runs", "--epochs", 1, "--method", "ew")
    refused(mtbench(*words, "--seeds", 2), "the data of tiny is another for each seed", "--seeds 1")
    assert not [*find_runs([tmp_path / "runs"])]  # before anything is trained
    assert mtbench(*words, "--seeds", 1)[0] == 0


def test_what_is_here_has_no_parameter_that_changes_nothing_and_counts_remarks(
    paper: Path, tmp_path: Path, mtbench: Any, tiny: Path
) -> None:
    plugin = tmp_path / "tiny.py"
    text = tiny.read_text().replace(
        "    objectives =", '    idle = frozenset({"sleep"})\n    objectives ='
    )
    notes = '{"rows": 48, "dropped": ["a.png is broken", "b.png too"]}'
    plugin.write_text(text.replace('{"rows": 48}', notes))
    words = ("reproduce", "tiny", "--plugin", plugin, "--published", paper, "--threads", 1)
    words = (*words, "--out", tmp_path / "runs", "--epochs", 1, "--seeds", 1, "--method", "ew")
    code, said, err = mtbench(*words)
    assert code == 0, err
    assert "- here: missing=false explode=false activation=tanh rows=48 dropped=2" in said


def test_reproduce_without_a_method_prints_the_tables(mtbench: Any) -> None:
    code, said, _ = mtbench("reproduce")
    assert code == 0
    assert said == published.page()
    code, said, _ = mtbench("reproduce", "qm9")
    assert code == 0
    assert said == published.load("qm9").markdown("qm9")


def test_foreign_text_is_inert(tiny: Path, paper: Path, tmp_path: Path, mtbench: Any) -> None:
    odd = r"\u001b[31mred | <img src=x>"
    for text in ('"first', '"a paper', '"no', '"rlw'):
        paper.write_text(paper.read_text().replace(text, f'"{odd} {text[1:]}'))
    code, shown, _ = mtbench("reproduce", "qm9", "--published", paper)
    words = ("reproduce", "tiny", "--plugin", tiny, "--published", paper, "--threads", 1)
    words = (*words, "--out", tmp_path / "runs", "--epochs", 1, "--seeds", 1, "--method", "ew")
    assert (code, mtbench(*words)[0]) == (0, 0)
    for text in (shown, (tmp_path / "runs" / "tiny" / "reproduce.md").read_text()):
        assert "\x1b" not in text
        assert r"red \| \<img src=x\>" in text
        assert "<" not in text.replace(r"\<", "")


def test_refusals(tiny: Path, paper: Path, tmp_path: Path, mtbench: Any) -> None:
    refused(mtbench("reproduce", "qm8"), "no published results", "qm9")
    refused(mtbench("reproduce", "--method", "ew"), "say which task")
    refused(mtbench("reproduce", "--published", paper), "--published needs a task")
    idle = ("--epochs", 3, "--set", "lr=4", "--seeds", 3, "--reference", "stl")
    refused(mtbench("reproduce", *idle), "--epochs --seeds --reference --set: nothing is trained")
    refused(mtbench("reproduce", "qm9", *idle, "--lr", 1), "--set --lr 1: nothing is trained")
    refused(mtbench("reproduce", "qm9", "--method", "ls", "--reference", "ew"),
            "--reference ew: is no single-task method", "say stl")  # fmt: skip
    refused(mtbench("reproduce", "qm9", "--method", "nashmtl"), "did you mean 'nash_mtl'")
    refused(mtbench("reproduce", "qm9", "--method", "ew", "--seeds", 0), "--seeds")
    refused(mtbench("reproduce", "qm9", "--method", "ew", "--epochs", 2, "--set", "epochs=3"),
            "given twice")  # fmt: skip
    refused(mtbench("reproduce", "qm9", "--published", tmp_path / "none.toml"), "cannot be read")
    paper.write_text(PAPER.replace("mae_sum", "mae_other"))
    words = ("reproduce", "tiny", "--plugin", tiny, "--published", paper, "--threads", 1)
    words = (*words, "--out", tmp_path / "runs", "--epochs", 1, "--seeds", 1, "--method", "ew")
    refused(mtbench(*words), "'mae_other' is none of this task's")
    paper.write_text(PAPER.replace("mae_sum = false", "mae_sum = true"))
    refused(mtbench(*words), "'mae_sum' has higher is better = true, this task's false; mend")
    assert not (tmp_path / "runs").exists()  # before anything is trained
