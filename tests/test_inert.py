"""Foreign text in every format of a leaderboard: shown, and nothing else."""

import csv
import io
import math
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtbench import inert
from mtbench.comparing.judging import leaderboard
from mtbench.comparing.tuning.storage import reason
from mtbench.inert import without_password
from mtbench.training.cell.rundir import find_runs
from tests.comparing.test_leaderboard import cell

EVIL = "=cmd|' /C calc'!A0 \x1b]0;owned\x07\x1b[2J \\input{/etc/x} [x](ftp://y) <img src=z>\u202e"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        cell(tmp_path, "stl", seed)
        for mode in (EVIL, "plain"):
            cell(tmp_path, EVIL.replace("/", "|"), seed, method_params={"mode": mode})
    return tmp_path


def test_no_format_obeys_a_label(mtbench: Callable[..., tuple[int, str, str]], runs: Path) -> None:
    found = leaderboard.boards(list(find_runs([runs])))
    _, table, _ = mtbench("leaderboard", runs)
    texts = {
        "table": table, "csv": leaderboard.to_csv(found), "raw": leaderboard.to_raw(found),
        "markdown": "".join(map(leaderboard.to_markdown, found)),
        "latex": leaderboard.to_latex(found),
    }  # fmt: skip
    for text in texts.values():
        assert not re.search("[\x1b\x07\u202e]", text)
    for name in ("csv", "raw"):
        rows = list(csv.reader(io.StringIO(texts[name])))
        labels = [value for row in rows for value in row if "cmd" in value]
        assert labels
        assert all(value[0] in "'{" for value in labels)  # {: parameters, as JSON
    assert not re.search(r"(?<!\\)<", texts["markdown"])
    assert "](ftp" not in texts["markdown"]
    assert "\\input" not in texts["latex"]


@given(st.text(max_size=30))
def test_what_is_made_inert_stays_so(text: str) -> None:
    assert inert.plain(inert.plain(text)) == inert.plain(text)
    shown = inert.spreadsheet(text)
    assert not re.match(r"\s*[=+\-@]", shown) or math.isfinite(float(shown.replace(",", ".")))
    assert "\n" not in inert.markdown(text)


@given(st.text("aÀÿðþÐÞ÷×-`'?!,\"", max_size=9))
def test_tex_knows_each_letter_and_joins_no_signs(text: str) -> None:
    typeset = inert.tex(text)
    assert not re.search("--|''|``|,,|[?!]`", typeset)
    assert inert.tex("–-") == "--{}-"
    for character in set(typeset) - set(map(chr, range(128))):
        assert unicodedata.normalize("NFD", character)[0].isascii()  # an accent on a letter


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:SECRET@db:5432/x", "postgresql:/me:SECRET@db/x",
        "mysql://me:SECRET@db/x?ssl=1", "postgresql://db/x?user=me&password=SECRET",
        "postgresql://db/x?sslpassword=SECRET&a=b", "redis://:SECRET@db", "x://a:SE@CRET@db/y",
        "me:SECRET@db", "POSTGRESQL://db/x?PassWord=SECRET",
    ],
)  # fmt: skip
def test_no_form_of_url_shows_a_password(url: str) -> None:
    assert "SECRET" not in without_password(url)
    assert "CRET" not in without_password(url)
    assert "SECRET" not in reason(ValueError(f"cannot open {url}. more"), url)


def test_a_url_without_secret_is_shown() -> None:
    for url in ("sqlite:///runs/tune.db", "journal:tune.log", "postgresql://db/x?sslmode=require"):
        assert without_password(url) == url
    said = reason(ValueError("password authentication failed for 'SECRET'"), "p://me:SECRET@db/x")
    assert said == "password authentication failed for '...'"
