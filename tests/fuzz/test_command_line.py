"""Words on the command line: an exit code that is documented, one line, never a traceback."""

import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.fuzzing import budget, in_time

Mtbench = Callable[..., tuple[int, str, str]]

WORDS = st.one_of(
    st.sampled_from(
        ["", " ", "-1", "0", "nan", "inf", "-inf", "1e999", "9" * 400, "x" * 5000, "é\u202e", "\t",
         "a=b", "=", "--", "-", "..", "/", "/dev/zero", "/dev/null", "none", "[/red]", "{}", "%s"]
    ),
    st.text(alphabet=string.printable + "é\u202e\u2028🦉", max_size=8).filter(lambda s: "\0" not in s),  # noqa: E501
)  # fmt: skip

# All refuse a word before anything is trained or written; {} is the word.
LINES = (
    "run --task toy --method {}",
    "run --task {} --method ew --seed -1",
    "run --task toy --method ew --seeds {} --epochs -1",
    "run --task toy --method ew --seed -1 --device {}",
    "run --task toy --method cagrad --epochs 0 --set c={}",
    "run --task toy --method ew --epochs 0 --set {}",
    "run --task toy --method ew --epochs 0 {}",
    "run --task toy --method ew --epochs 0 --lr {}",
    "run --task toy --method ew --seed -1 --precision {} --threads {}",
    "run --task toy --method ew --seed -1 --jacobian {}",
    "run --config {}",
    "run --task multitarget --method ew --targets y --data {}",
    "run --task toy --method ew --plugin {}",
    "leaderboard {}",
    "leaderboard {} --format {}",
    "info {}",
    "list {}",
    "status {}",
    "status . {}",
    "plan {}",
    "sweep {} --jobs -1",
    "export {} --method ew --to {}",
    "import {} --out out",
    "merge out {}",
    "log {} --tensorboard out",
    "package {} --to {}",
    "predict {} {}",
    "data inspect {} --task multitarget --data {}",
    "data verify {} --task digits",
    "data template --task {} --to /",
    "data preview {} --to {}",
    "check method {}",
    "check task {}",
    "new method {}!",
    "{}",
    "bench {}",
)


@pytest.mark.parametrize("line", LINES)
def test_any_word(
    line: str, mtbench: Mtbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    @budget(2)
    @given(WORDS)
    def check(word: str) -> None:
        with in_time():
            code, out, err = mtbench(*(part.replace("{}", word) for part in line.split()))
        assert code in (0, 2)
        assert "Traceback" not in out + err
        if code == 2 and not out:
            assert err.startswith("error: ")
            assert err.count("\n") == 1
        assert not list(tmp_path.rglob("result.json"))

    check()


BROKEN = {
    "empty.py": "",
    "syntax.py": "def",
    "exits.py": "raise SystemExit(7)",
    "raises.py": "1 / 0",
    "two.py": "import mtbench\nclass A(mtbench.Task): ...\nclass B(mtbench.Task): ...",
    "nul.py": "\0",
    "deep.py": "(" * 5000,
    "surrogate.py": "x = '\\ud800'; raise ValueError(x)",
}


@pytest.mark.parametrize("name", [*BROKEN, "folder.py", "pipe.py", "loop.py"])
def test_a_broken_plugin(name: str, mtbench: Mtbench, tmp_path: Path) -> None:
    file = tmp_path / name
    if name in BROKEN:
        file.write_text(BROKEN[name])
    elif name == "folder.py":
        file.mkdir()
    elif name == "pipe.py":
        os.mkfifo(file)
    else:
        file.symlink_to(file)
    with in_time():
        stem = name.removesuffix(".py")
        code, _, err = mtbench("run", "--plugin", file, "--task", stem, "--method", "ew")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
