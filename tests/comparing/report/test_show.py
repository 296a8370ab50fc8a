"""``mtbench leaderboard``: what its options write."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.comparing.report.made_up import write

Mtbench = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    write(out, ["uw", "ls", "stl", "ew"], seeds=8, epochs=2, trials=2)
    return out


def test_a_page_beside_the_table(mtbench: Mtbench, runs: Path, tmp_path: Path) -> None:
    code, out, err = mtbench("leaderboard", runs, "--html", tmp_path / "a" / "site")
    assert (code, err.split()) == (0, ["page:", str(tmp_path / "a" / "site" / "index.html")])
    assert "P(beats ls)" in out
    page = (tmp_path / "a" / "site" / "index.html").read_text()
    assert "P(beats ls)" in page
    (tmp_path / "file").touch()
    code, _, err = mtbench("leaderboard", runs, "--html", tmp_path / "file")
    assert code == 2
    assert "cannot be written" in err


def test_the_baseline_is_a_choice(mtbench: Mtbench, runs: Path) -> None:
    _, text, _ = mtbench("leaderboard", runs, "--baseline", "uw", "--plain", "uw")
    assert "P(beats uw)" in text
    _, text, _ = mtbench("leaderboard", runs, "--baseline", "nobody")
    assert "no comparison with nobody" in text


def test_csv_has_the_cost_when_asked(mtbench: Mtbench, runs: Path) -> None:
    tables = []
    for options in ([], ["--cost"]):
        _, text, _ = mtbench("leaderboard", runs, "-f", "csv", *options)
        tables.append({row["method"]: row for row in csv.DictReader(io.StringIO(text))})
    plain, full = tables
    assert {"delta_m_low", "p_holm", "mean_rank", "trials"} <= set(plain["uw"])
    more = set(full["uw"]) - set(plain["uw"])
    assert more == {"seconds_per_step", "cost_ratio", "peak_mib", "passes", "tuning_hours"}
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
    _, text, _ = mtbench("leaderboard", runs)
    assert "too wide" not in text
