"""The command line: what a user types, what comes back, and every way to get it wrong."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mtbench import cli
from mtbench.cli import display as progress
from tests.conftest import TINY
from tests.processes import Command
from tests.refusals import refused

Mtbench = Callable[..., tuple[int, str, str]]
METHODS = ("cagrad", "ew", "gradnorm", "ls", "mgda", "pcgrad", "rlar", "stl", "uw")


def words(tiny: Path, out: Path, *more: object, method: tuple[str, ...] = ("ew",)) -> list[str]:
    """Words of a run of the tiny task that takes as little as can be."""
    chosen = [word for name in method for word in ("--method", name)]
    start = ["run", "--plugin", tiny, "--task", "tiny", "--threads", 1, "--out", out]
    return [*map(str, start), *chosen, *map(str, more)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fresh(*line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    start = "import sys; sys.argv[0] = 'mtbench'; from mtbench.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", start, *line],
        capture_output=True, text=True, timeout=120, env=os.environ | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The out folder of two methods and two seeds; nobody may change it."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        line = words(TINY, out, "--epochs", 2, "--seeds", 2, method=("stl", "ew"))
        patch.setattr(sys, "argv", ["mtbench", *line])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    assert leaving.value.code == 0
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The finished runs, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def interrupt(patch: pytest.MonkeyPatch, after: int) -> None:
    """Press Ctrl-C after some steps."""
    steps = iter(range(after))

    def stepped(*_: object) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt

    patch.setattr(progress.Display, "stepped", stepped)


# What a user does


def test_a_run_ends_with_a_table_a_report_and_curves(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    tmp_path /= "runs [red] :fire:"  # no markup: paths are said as they are
    line = words(tiny, tmp_path, "--epochs", 2, "--seeds", 2, method=("ew", "pcgrad"))
    code, out, err = mtbench(*line)
    assert (code, err) == (0, "")
    for seed in (0, 1):
        for method in ("ew", "pcgrad"):
            assert f"{method} seed {seed}  epoch 2/2" in out
    assert "\x1b" not in out  # plain lines when this is no terminal
    assert "\r" not in out
    table = [row for row in out.splitlines() if row.startswith("│")]
    assert [row.split()[1] for row in table] == ["ew", "pcgrad"] or len(table) == 2
    assert all(row.split("│")[2].strip() == "2" for row in table)  # seeds
    report = (tmp_path / "tiny" / "report.md").read_text()
    assert r"| method | seeds | mae\_sum ↓ | within ↑ |" in report
    assert "![curves.png](curves.png)" in report
    with Image.open(tmp_path / "tiny" / "curves.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    for shown in ("report.md", "curves.png"):
        assert str(tmp_path / "tiny" / shown) in out
    runs = sorted(tmp_path.rglob("result.json"))
    assert len(runs) == 4
    assert all(str(run.parent) in out for run in runs)


def test_what_is_finished_is_not_run_again_unless_told_to(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    line = words(tiny, tmp_path, "--epochs", 1)
    assert mtbench(*line)[0] == 0
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("seed0-*/[!.]*")}
    code, out, _ = mtbench(*line)
    assert code == 0
    assert "ew seed 0: already finished, not run" in out
    assert "epoch 1/1" not in out
    assert "rank" in out  # the table is shown all the same
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in before}
    [result], [test] = tmp_path.rglob("result.json"), tmp_path.rglob("test.json")
    first, metrics = json.loads(result.read_text()), test.read_text()
    code, out, _ = mtbench(*line, "--no-resume")
    assert code == 0
    assert "epoch 1/1" in out
    again = json.loads(result.read_text())
    assert test.read_text() == metrics
    assert again["cost"] != first["cost"]  # by the clock: it was trained anew


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    line = words(tiny, tmp_path, "--epochs", 3)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=9)  # of 6 an epoch
        code, out, err = mtbench(*line)
    assert code == 130
    assert err.count("\n") == 1
    assert "goes on from the last checkpoint" in err
    assert "Traceback" not in out + err
    assert not list(tmp_path.rglob("result.json"))
    code, out, _ = mtbench(*line, "--threads", 2)
    assert code == 0
    assert "ew seed 0: resumed at step 6 of 18, with 1 CPU threads as before\n" in out
    assert "epoch 1/3" not in out
    assert "epoch 3/3" in out


def test_a_cell_that_has_ended_keeps_no_checkpoint(
    mtbench: Mtbench, tiny: Path, copied: Path
) -> None:
    assert not list(copied.rglob("checkpoint.pt"))
    before = tree(copied)
    next(copied.rglob("result.json")).with_name("checkpoint.pt").touch()  # of an earlier mtbench
    code, out, _ = mtbench(*words(tiny, copied, "--epochs", 2, "--seeds", 2, method=("stl", "ew")))
    assert code == 0
    assert "already finished, not run" in out
    assert set(tree(copied)) == set(before)


def test_parameters_land_in_the_spec(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    line = words(
        tiny, tmp_path, "--epochs", 1, "--seed", 7, "--precision", "bf16", "--set", "cagrad.c=0.3",
        "--set", "schedule=constant", "--lr", "5e-3", "--activation=relu",
        "--tiny.missing", "yes", method=("ew", "cagrad"),
    )  # fmt: skip
    code, _, err = mtbench(*line)
    assert (code, err) == (0, "")
    specs = {
        s["method"]: s for f in tmp_path.rglob("spec.json") if (s := json.loads(f.read_text()))
    }
    assert specs["cagrad"]["method_params"]["c"] == 0.3
    assert specs["ew"]["method_params"] == {}
    for spec in specs.values():
        assert spec["recipe"]["lr"] == 5e-3
        assert spec["recipe"]["schedule"] == "constant"
        assert spec["recipe"]["epochs"] == 1
        assert spec["recipe"]["batch_size"] == 8  # the task's default, written out
        assert spec["task_params"]["activation"] == "relu"
        assert spec["task_params"]["missing"] is True
        assert (spec["seed"], spec["precision"], spec["device"]) == (7, "bf16", "cpu")


def test_a_diverged_cell_is_told_and_shown(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    code, out, err = mtbench(*words(tiny, tmp_path, "--explode", "true"))
    assert (code, err) == (0, "")
    assert "ew seed 0: diverged: non-finite loss" in out
    assert "0 (+1 diverged)" in out
    assert (tmp_path / "tiny" / "report.md").exists()


def test_methods_and_tasks_are_listed(mtbench: Mtbench, tiny: Path) -> None:
    code, out, _ = mtbench("list", "methods")
    assert code == 0
    assert set(METHODS) <= set(out.split())
    tasks = mtbench("list", "tasks")[1].split()
    assert "thyroid" in tasks
    assert mtbench("list", "tasks", "--plugin", tiny)[1].split() == sorted([*tasks, "tiny"])
    assert "quick  does the machinery work" in mtbench("list", "suites")[1]


def test_methods_as_a_table(mtbench: Mtbench) -> None:
    code, out, _ = mtbench("list", "methods", "--markdown")
    assert code == 0
    assert "| `cagrad` |" in out
    assert "`c=0.5` [0.1, 0.9]" in out
    refused(mtbench("list", "tasks", "--markdown"), "--markdown is for methods")


BROKEN = '''
from mtbench import Scalarizer

class Broken(Scalarizer):
    """Goes uphill."""
    paper = "none"
    def objective(self, step):
        return -step.total(), None
'''


def test_check_gives_a_verdict(mtbench: Mtbench, tmp_path: Path) -> None:
    code, out, err = mtbench("check", "mgda")
    assert (code, err) == (0, "")
    assert "mgda keeps the contract" in out
    assert "FAIL" not in out
    assert "Equal seeds give equal training, bit for bit." in out
    assert mtbench("check", "damped+mgda")[0] == 0
    (tmp_path / "broken.py").write_text(BROKEN)
    code, out, err = mtbench("check", "broken", "--plugin", tmp_path / "broken.py")
    assert (code, err) == (1, "")
    assert "broken breaks 2 of" in out
    assert out.count("FAIL") == 2
    assert "With K = 1 the encoder's gradient is a positive multiple" in out
    refused(mtbench("check", "cagard"), "no method or task 'cagard': did you mean 'cagrad'?")
    refused(mtbench("check", "method", "cagard"), "unknown method 'cagard': did you mean 'cagrad'?")
    refused(mtbench("check", "damped"), "damped+METHOD")


BROKEN_TASK = """
from tiny_base import Tiny

class Worse(Tiny):
    metrics = Tiny.metrics | {"within": Tiny.metrics["mae_sum"]}
    def losses(self, outputs, batch):
        return super().losses(outputs, batch)[:1] * 2
"""


def test_check_of_a_task_gives_a_verdict(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["tiny"], ["task", "tiny"], ["task", "tiny", "--missing", "yes"]):
        code, out, err = mtbench("check", *words, "--plugin", tiny)
        assert (code, err) == (0, "")
        assert "tiny keeps the contract" in out
        assert "FAIL" not in out
        assert "Metrics of a split do not depend on how it is cut into batches." in out
        assert "override the fixture `unlabelled` ('sum')" in out
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tiny_base.py").write_text(tiny.read_text())
    (tmp_path / "worse.py").write_text(BROKEN_TASK)
    code, out, err = mtbench("check", "worse", "--plugin", tmp_path / "worse.py")
    assert (code, err) == (1, "")
    assert out.count("FAIL") == 3
    assert "worse breaks 3 of" in out
    assert "no metric with primary=True judges ['difference']" in out
    assert "the loss of 'difference' has a gradient in another objective's head" in out


RAISES = """
from tiny_base import Tiny

class Raises(Tiny):
    def setup(self, seed, progress):
        return 1 / 0
"""


def test_a_task_that_cannot_be_checked(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tiny_base.py").write_text(tiny.read_text())
    (tmp_path / "raises.py").write_text(RAISES)
    with_tiny = ("--plugin", tiny)
    refused(mtbench("check"), "Missing argument")
    refused(mtbench("check", "task", "tyni", *with_tiny), "unknown task 'tyni'")
    refused(mtbench("check", "tiny", "mgda", *with_tiny), "say what to check", "'tiny mgda'")
    refused(mtbench("check", "tiny", "--mising", "yes", *with_tiny), "did you mean 'missing'?")
    refused(mtbench("check", "tiny", "--sleep", *with_tiny), "tiny.sleep", "value is missing")
    refused(mtbench("check", "mgda", "--missing", "yes"), "--missing", "only a task")
    refused(mtbench("check", "thyroid", "--source", "ddti"), "needs --data PATH")
    refused(
        mtbench("check", "raises", "--plugin", tmp_path / "raises.py"),
        str(tmp_path / "raises.py"), "setup raises ZeroDivisionError: division by zero",
    )  # fmt: skip


def test_info_tells_parameters_search_space_and_paper(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    from mtbench import Balancer
    from mtbench.plugins import params
    from mtbench.plugins.registry import find
    from mtbench.plugins.search import search_space

    rlar = find("method", "rlar").load(Balancer)
    code, out, err = mtbench("info", "rlar")
    assert (code, err) == (0, "")
    assert f"paper: {rlar.paper}" in " ".join(out.split())
    assert f"cost of a step: {rlar.passes}" in " ".join(out.split())
    rows = {row.split("│")[1].strip(): row for row in out.splitlines() if row.startswith("│")}
    assert set(rows) == set(params.declared(rlar))
    searched = search_space(rlar)
    assert searched
    assert set(searched) <= set(rows)
    for name, space in searched.items():
        assert space in rows[name]
    assert "needs in a loop: the latent representation: balancer.backward(losses, latent=z)" in out
    assert "heads that see it by balancer.view((z,), k); " in mtbench("info", "rotograd")[1]
    assert "needs in a loop" not in mtbench("info", "cagrad")[1]
    assert "needs in a loop" not in mtbench("info", "unit")[1]  # what it asks of its base
    (plugin := tmp_path / "mine.py").write_text(
        "from mtbench_baselines.dwa import DynamicWeightAverage\n\n\n"
        "class Mine(DynamicWeightAverage):\n    'Another DWA.'\n"
    )
    out = mtbench("info", "mine", "--plugin", plugin)[1]  # what it inherits
    assert "needs in a loop: balancer.after_epoch() after each epoch" in out
    assert re.search(r"│ spread +│ drawn +│ +│ \[0, 1\] +│", mtbench("info", "ls")[1])
    code, out, _ = mtbench("info", "tiny", "--plugin", tiny)
    assert "objectives: sum, difference" in out
    assert "'tanh' or 'relu'" in out


def test_info_of_the_thyroid_task(mtbench: Mtbench) -> None:
    code, out, _ = mtbench("info", "thyroid")
    assert code == 0
    assert "objectives: segmentation, risk" in out
    for name in ("source", "target", "image_size", "guide"):
        assert f"│ {name} " in out
    assert "'phantom' or 'ddti'" in out
    assert "search space" not in out  # a task has none
    assert re.search(r"│ --report +│ .* │ html +│", out)
    assert not re.search(r"│ (None|True|False) +│", out)  # as they are given


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_page(mtbench: Mtbench, name: str) -> None:
    code, out, err = mtbench("info", name)
    assert (code, err) == (0, "")
    assert out.startswith(f"{name}  ")
    assert "paper: " in out


def test_the_version(mtbench: Mtbench) -> None:
    from mtbench import __version__

    assert mtbench("--version") == (0, f"mtbench {__version__}\n", "")


PLAIN = """
import typer
main = typer.Typer(pretty_exceptions_enable=False)
@main.command("list")
def list_(kind: str) -> None: typer.echo("rlar")
@main.command()
def other() -> None: ...
"""


@pytest.mark.parametrize("line", [["--help"], ["list", "methods"]])
def test_the_door_imports_what_a_typer_program_does_and_itself(line: list[str]) -> None:
    ours, plain = (_packages_of(start, line) for start in ("from mtbench.cli import main\n", PLAIN))
    assert ours - plain == {"mtbench"}


def _packages_of(start: str, line: list[str]) -> set[str]:
    """Return the packages, but Python's own, that a program has imported when it ends."""
    ending = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{ending}{start}\nmain()", *line],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout
    packages = {name.partition(".")[0] for name in json.loads(done.stderr)}
    return packages - sys.stdlib_module_names


UNKNOWN = """
import sys
from mtbench.cli import main
for line in sys.argv[1:]:
    sys.argv = ["mtbench", *line.split()]
    try:
        main()
    except SystemExit as leaving:
        assert leaving.code == 2
assert "torch" not in sys.modules
"""


def test_what_names_show_to_be_wrong_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    config, suite, other = (tmp_path / f"{name}.toml" for name in ("config", "suite", "other"))
    config.write_text('version = 1\ntask = "digits"\nmethod = "every+cagard"\n')
    head = 'version = 1\nname = "mine"\ntitle = "t"\nbudget = {trials = 0, seeds = 1}\n'
    suite.write_text(f'{head}methods = ["ew", "all", "cagard"]\ntasks = [{{name = "digits"}}]\n')
    other.write_text(f'{head}methods = ["ew"]\ntasks = [{{name = "digit"}}]\n')
    told = {
        "run -m cagard": "unknown method 'cagard': did you mean 'cagrad'?",
        "run -m samo+cagard": "unknown method 'cagard'",
        "run -m every+": "method 'every+': a method is missing beside +",
        "run -m +mgda": "method '+mgda': a wrapper is missing beside +",
        "run -m ew -t digit": "unknown task 'digit': did you mean 'digits'?",
        "run --metod ew": "--config FILE; found --metod ew: did you mean '--method'?",
        "run -m ew stray": "unexpected argument 'stray'",
        "tune -m ew -t digit": "unknown task 'digit'",
        "reproduce qm9 -m nashmtl": "unknown method 'nashmtl'",
        "info cagard": "no method or task 'cagard': did you mean 'cagrad'?",
        "check cagard": "no method or task 'cagard'",
        "plan quik": "unknown suite 'quik': did you mean 'quick'?",
        "sweep quik": "unknown suite 'quik'",
        "status . quik": "unknown suite 'quik'",
        f"run --config {config}": f"{config}: unknown method 'cagard': did you mean 'cagrad'?",
        **{f"{command} {suite}": "suite mine: methods.2: unknown method 'cagard'"
           for command in ("plan", "sweep", "status .")},
        f"plan {other}": "suite mine: tasks.0: unknown task 'digit': did you mean 'digits'?",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", UNKNOWN, *told], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(told)
    for line, said in zip(lines, told.values(), strict=True):
        assert said in line


@pytest.mark.parametrize("command", ["run", "tune"])
def test_which_task_is_trained_is_said_where_none_is_named(mtbench: Mtbench, command: str) -> None:
    code, out, _ = mtbench(command, "--method", "ew", "--set", "nobody_has_this=1")
    assert code == 2
    assert out == "task thyroid, as none is named (--task NAME; `mtbench list tasks`)\n"
    assert "as none is named" not in mtbench(command, "-m", "ew", "-t", "digits", "--zzz", "1")[1]


def test_help_without_a_word_and_completion() -> None:
    done = fresh()
    assert "Usage: mtbench" in done.stdout
    assert done.stderr == ""
    done = fresh(_MTBENCH_COMPLETE="source_bash")
    assert done.returncode == 0
    assert "complete -o default -F _mtbench_completion mtbench" in done.stdout


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("mtbench run --method nash", "nash_mtl"),
        ("mtbench run -m samo+nash", "samo+nash_mtl"),
        ("mtbench tune --task gradnorm_t", "gradnorm_toy"),
        ("mtbench info gradnorm_t", "gradnorm_toy"),
        ("mtbench sweep qui", "quick"),
    ],
)
def test_names_are_completed(line: str, found: str) -> None:
    at = str(len(line.split()) - 1)
    done = fresh(_MTBENCH_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=at)
    assert done.stdout.split() == [found]


def test_on_a_terminal_progress_is_live() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160, color_system=None)
    display = progress.Display(console, ["dice"])

    class Spec:
        method, seed = "rlar", 3

    with display:
        display.prepare("radiomics", 1, 4)
        display.started(Spec(), 2, 5, 0)  # type: ignore[arg-type]
        for _ in range(4):
            display.stepped(0, {"risk": 0.25})
        display.bars.refresh()
    shown = stream.getvalue()
    assert "radiomics" in shown
    assert "1/4" in shown
    assert "rlar seed 3" in shown
    assert "4/10" in shown
    assert "epoch 1/2" in shown
    assert "risk 0.250" in shown


def test_a_log_says_what_is_left_to_prepare() -> None:
    stream = io.StringIO()
    with progress.Display(Console(file=stream), []) as display:
        for done in (3, 4):
            display.prepare("some in the cache", done, 4)
        display.prepare("all in the cache", 4, 4)
    assert stream.getvalue() == "some in the cache: 1 to do\n"


# Leaderboard


def test_the_leaderboard_in_every_format(mtbench: Mtbench, finished: Path, tmp_path: Path) -> None:
    code, out, err = mtbench("leaderboard", finished)
    assert (code, err) == (0, "")
    assert "stl" in out
    assert "Δm % ↓" in out

    _, text, _ = mtbench("leaderboard", finished, "--format", "csv")
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(text))}
    assert set(rows) == {"ew", "stl"}
    _, text, _ = mtbench("leaderboard", finished, "--format", "json")
    [board] = json.loads(text)
    assert board["primary"] == {"mae_sum": False, "within": True}
    assert board["pending"] == []
    for row in board["rows"]:
        results = [
            json.loads(f.read_text())
            for f in (finished / "tiny" / row["method"]).glob("*/test.json")
        ]
        assert len(results) == row["seeds"] == 2
        mean = sum(r["metrics"]["mae_sum"] for r in results) / 2
        assert row["mae_sum"] == pytest.approx(mean)
        assert float(rows[row["method"]]["mae_sum"]) == pytest.approx(mean)
        assert row["complete"] is True
        assert row["peak_mib"] > 0
    deltas = {row["method"]: row["delta_m"] for row in board["rows"]}
    assert deltas["stl"] == 0
    assert deltas["ew"] != 0

    for form in ("csv", "json", "markdown"):
        _, text, _ = mtbench("leaderboard", finished, "-f", form)
        file = tmp_path / f"board.{form}"
        assert mtbench("leaderboard", finished, "-f", form, "--to", file) == (0, "", "")
        assert file.read_text() == text
    head, rule, *body = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in (head, rule, *body)} == {head.count("|")}
    assert len(body) == 2


def test_what_a_terminals_encoding_lacks_is_a_question_mark(
    mtbench: Mtbench, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    code, _, err = mtbench("leaderboard", finished)
    assert (code, err) == (0, "")
    sys.stdout.flush()
    assert "?m % ?" in written.getvalue().decode("latin-1")


def test_a_run_counts_once_however_often_it_is_named(mtbench: Mtbench, finished: Path) -> None:
    _, once, _ = mtbench("leaderboard", finished, "-f", "json")
    _, twice, _ = mtbench("leaderboard", finished, finished / "tiny" / "ew", "-f", "json")
    assert json.loads(once) == json.loads(twice)


def test_the_leaderboard_refuses(mtbench: Mtbench, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(mtbench("leaderboard", tmp_path / "empty"), "no runs found", "mtbench run")
    refused(mtbench("log", tmp_path / "empty", "--tensorboard", tmp_path / "tb"), "no runs found")
    refused(mtbench("leaderboard", tmp_path / "absent"), str(tmp_path / "absent"), "no such folder")
    refused(mtbench("leaderboard", copied, "--format", "html"), "html", "markdown")
    refused(mtbench("leaderboard", copied, "--to", tmp_path / "x.md"), "--format")
    refused(mtbench("leaderboard", copied, "--columns", " , "), "--columns names no column, found")
    again = ("--to", tmp_path / "x.md", "--raw", tmp_path / "empty" / ".." / "x.md")
    refused(mtbench("leaderboard", copied, "-f", "markdown", *again), "--to and --raw are one file")
    refused(
        mtbench("leaderboard", copied, "-f", "csv", "--to", tmp_path / "no" / "x.csv"),
        "cannot be written",
    )


def test_the_leaderboard_tells_what_is_damaged_and_shows_the_rest(
    mtbench: Mtbench, copied: Path
) -> None:
    def said(file: Path) -> str:
        code, out, _ = mtbench("leaderboard", copied)
        assert code == 0
        words = "".join(out.split())
        assert f"adamagedcellisleftout:{file}" in words
        return words

    broken = next(copied.rglob("result.json"))
    for text in ('{"status": "fini', "[]", "{}", '{"status": "finished", "metrics": {}}'):
        broken.write_text(text)
        assert "deleteit" in said(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    assert "deleteit" in said(broken)
    broken.unlink()
    code, out, _ = mtbench("leaderboard", copied)  # as advised
    assert code == 0
    assert "unfinished, not in the table" in out
    (broken.parent / "spec.json").write_text("{")
    said(broken.parent / "spec.json")


# A new method, a new task


def passes(test: Path, *options: str) -> None:
    """Run pytest on a file."""
    line = ("-q", *options, "-p", "no:cacheprovider", test)
    done = Command(*line, program=pytest.main)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, out + err
    assert " passed" in out


def test_a_new_method_runs_and_passes_its_test(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    code, out, err = mtbench("new", "method", "my_method", "--folder", tmp_path / "new")
    assert (code, err) == (0, "")
    plugin, test = tmp_path / "new" / "my_method.py", tmp_path / "new" / "test_my_method.py"
    assert f"written: {plugin}" in out
    assert f"mtbench run --plugin {plugin} --task TASK --method my_method --method ew" in out
    assert "class MyMethod(" in plugin.read_text()
    line = words(tiny, tmp_path / "out", "--epochs", 1, "--plugin", plugin, method=("my_method",))
    assert mtbench(*line)[0] == 0
    [spec] = [json.loads(f.read_text()) for f in (tmp_path / "out").rglob("spec.json")]
    assert set(spec["plugins"]) == {"tiny", "my_method"}
    passes(test)
    refused(
        mtbench("new", "method", "my_method", "--folder", tmp_path / "new"),
        str(plugin), "exists already",
    )  # fmt: skip


def test_a_new_task_runs_and_passes_its_test(mtbench: Mtbench, tmp_path: Path) -> None:
    code, out, err = mtbench("new", "task", "my_task", "--folder", tmp_path / "new")
    assert (code, err) == (0, "")
    plugin, test = tmp_path / "new" / "my_task.py", tmp_path / "new" / "test_my_task.py"
    assert f"written: {test}" in out
    assert f"mtbench run --plugin {plugin} --task my_task --method ew" in out
    assert "class MyTask(Task)" in plugin.read_text()
    code, out, err = mtbench(
        "run", "--plugin", plugin, "--task", "my_task", "--method", "ew", "--method", "stl",
        "--threads", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    for found in (tmp_path / "out").rglob("test.json"):
        metrics = json.loads(found.read_text())["metrics"]
        assert metrics["accuracy"] > 0.9
        assert metrics["mse"] < 0.1
    passes(test, "-W", "error")
    refused(
        mtbench("new", "task", "my_task", "--folder", tmp_path / "new"),
        str(plugin), "exists already",
    )  # fmt: skip
    refused(mtbench("new", "task", "toy", "--folder", tmp_path), "task 'toy' exists already")
    refused(mtbench("new", "task", "my task", "--folder", tmp_path), "is no task name")


def test_new_packages_install_and_are_found(mtbench: Mtbench, tmp_path: Path) -> None:
    packages, told = [], []
    for kind in ("method", "task"):
        line = ("new", kind, f"my_{kind}", "--package", "--folder", tmp_path)
        code, out, err = mtbench(*line)
        assert code == 0, err
        packages.append(tmp_path / f"mtbench-my-{kind}")
        told.append((packages[-1] / "tests" / f"test_my_{kind}.py", out))
        refused(mtbench(*line), "exists already")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    site = tmp_path / "site"
    subprocess.run([*words, "--target", site, *packages], check=True, timeout=240)
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    own = ["--method", "my_method", "--task", "my_task"]
    for line, found in (
        (["list", "methods"], "my_method"),
        (["list", "tasks"], "my_task"),
        (["run", *own, "--epochs", "1", "--threads", "1"], "my_method"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mtbench", *line], capture_output=True, text=True, timeout=120,
            cwd=tmp_path, env=where, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert found in done.stdout
    for test, out in told:
        assert f"pytest {test}" in out
        compile(test.read_text(), test, "exec")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-method", "letters, digits and underscores"),
        ("größe", "Latin letters"),  # pip, and `mtbench import`, take no other
        ("_hidden", "underscore"),
        ("2fast", "digit"),
        ("ew", "exists already"),
        ("lambda", "a word of Python's"),
        ("none", "a word of Python's"),
        ("weighting", "would hide 'Weighting'"),
        ("torch", "would hide 'torch'"),
    ],
)
def test_a_new_method_with_a_bad_name(
    mtbench: Mtbench, tmp_path: Path, name: str, said: str
) -> None:
    refused(mtbench("new", "method", name, "--folder", tmp_path), repr(name), said)
    assert not list(tmp_path.iterdir())


def test_a_new_package_of_an_installed_name(mtbench: Mtbench, tmp_path: Path) -> None:
    answer = mtbench("new", "task", "baselines", "--package", "--folder", tmp_path)
    refused(answer, "a package mtbench_baselines is installed already")
    assert not list(tmp_path.iterdir())


def test_a_new_method_where_nothing_can_be_written(mtbench: Mtbench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = mtbench("new", "method", "mine", "--folder", tmp_path / "file" / "below")
    refused(answer, str(tmp_path / "file" / "below"), "cannot be written")


# Bad input: one line, exit code 2, and nothing lost


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "rlra"], ["unknown method 'rlra'", "did you mean 'rlar'?"]),
        (["--method", "zzzzzz"], ["'zzzzzz': nearest of ", "; all: `mtbench list methods`"]),
        (["--task", "tinny"], ["unknown task 'tinny'", "did you mean 'tiny'?"]),
        (["--set", "activaton=relu"], ["'activaton'", "did you mean 'activation'?"]),
        (["--set", "ew.lr=1"], ["'ew.lr'"]),
        (["--set", "pcgrad.lr=1"], ["pcgrad.lr", "nothing here is called 'pcgrad'"]),
        (["--epoch", "3"], ["'epoch'", "did you mean '--epochs'?"]),
        (["--weights-of", "last"], ["'--weights-of': 'last' is not one of 'mean', 'final'"]),
        (["--methods", "ew"], ["'methods'", "did you mean '--method'?"]),
        (["--set", "lr"], ["--set lr", "key=value"]),
        (["--set", "lr=0.1", "--lr", "0.2"], ["'lr'", "given twice"]),
        (["--lr", "0.1", "--recipe.lr", "0.2"], ["'lr'", "given twice: lr=0.1 and recipe.lr=0.2"]),
        (["--epochs", "3", "--recipe.epochs", "4"], ["'epochs'", "given twice"]),
        (["--lr"], ["recipe.lr", "its value is missing"]),
        (["stray"], ["'stray'"]),
        (["-epochs", "3"], ["-epochs: a name has two dashes: --epochs"]),
        (["-method=ew"], ["-method=ew: a name has two dashes: --method=ew"]),
        (["-alpha", "3"], ["-alpha: a name has two dashes: --alpha"]),
        (["--lr", "-inf"], ["lr must be", "-inf"]),
        (["--set", "lr=fast"], ["recipe.lr", "float", "'fast'"]),
        (["--lr", "-1"], ["lr must be positive", "-1"]),
        (["--lr", "nan"], ["lr must be finite", "nan"]),
        (["--set", "clip=nan"], ["clip"]),
        (["--set", "batch_size=2.5"], ["batch_size", "int", "'2.5'"]),
        (["--set", "batch_size=0"], ["batch_size", "at least 1"]),
        (["--set", "missing=maybe"], ["tiny.missing", "true or false", "'maybe'"]),
        (["--activation", "sigmoid"], ["'tanh' or 'relu'", "'sigmoid'"]),
        (["--epochs", "many"], ["--epochs", "integer"]),
        (["--epochs", "0"], ["epochs must be at least 1", "0"]),
        (["--seeds", "0"], ["--seeds must be at least 1", "0"]),
        (["--seeds", "-2"], ["--seeds must be at least 1", "-2"]),
        (["--seed", "-1"], ["--seed must be at least 0", "-1"]),
        (["--precision", "fp8"], ["--precision", "fp32", "'fp8'"]),
        (["--threads", "0"], ["--threads must be at least 1"]),
        (["--threads", "99999999999"], ["--threads must be at most 4096, found 99999999999"]),
        (["--device", "abacus"], ["device abacus: not available", "use cpu"]),
        (["--device", "meta"], ["device meta: not available", "use cpu"]),
        (["--plugin", "absent.py"], ["absent.py", "existing Python file"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_words_are_refused(
    mtbench: Mtbench, tiny: Path, finished: Path, more: list[str], said: list[str]
) -> None:
    before = tree(finished)
    refused(mtbench(*words(tiny, finished, *more)), *said)
    assert tree(finished) == before


def test_what_new_writes_keeps_its_name_and_can_be_copied(mtbench: Mtbench, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    code, out, _ = mtbench("new", "method", "KIND_a", "--folder", folder)
    assert code == 0
    assert "KIND_a: say in a sentence" in (folder / "KIND_a.py").read_text()
    assert ["pytest", str(folder / "test_KIND_a.py")] == shlex.split(out.splitlines()[2])[2:]
    assert str(folder / "KIND_a.py") in shlex.split(out.splitlines()[3])
    code, out, _ = mtbench("new", "method", "KIND_b", "--package", "--folder", folder)
    assert f"{folder}/mtbench-KIND-b[test]" in shlex.split(out)


@pytest.mark.parametrize("command", ["run", "tune"])
def test_data_for_a_task_that_takes_none(mtbench: Mtbench, command: str) -> None:
    answer = mtbench(command, "--task", "toy", "--method", "ls", "--data", ".")
    refused(answer, "--data: task toy takes no data; leave it out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(mtbench: Mtbench, tiny: Path, finished: Path) -> None:
    before = tree(finished)
    refused(
        mtbench(*words(tiny, finished, "--device", "cuda")), "device cuda: not available", "use cpu"
    )
    refused(mtbench(*words(tiny, finished, "--device", "cuda:7")), "device cuda:7: not available")
    assert tree(finished) == before


@pytest.mark.parametrize(
    "line",
    [["run"], ["runn"], ["info", "rlr"], ["list", "method"], ["list"], ["new", "taks", "x"]],
    ids=" ".join,
)
def test_bad_commands_are_refused(mtbench: Mtbench, line: list[str]) -> None:
    assert len(refused(mtbench(*line))) > len("error: \n")
    if line == ["info", "rlr"]:
        refused(mtbench(*line), "'rlr'", "did you mean 'rlar'?")


METHOD = "from mtbench import Weighting\n\n\n" + "\n".join(
    f"class {name}(Weighting):\n    def weights(self, gramian, losses):\n        return losses\n"
    for name in ("One", "Two")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", ["exactly one", "mtbench.Balancer", "found none"]),
        (METHOD, ["exactly one", "found One, Two"]),
        ("x = 1\ndef broken(:\n", ["line 2", "SyntaxError"]),
        ("import no_such_module\n", ["ModuleNotFoundError", "no_such_module"]),
        ("raise RuntimeError('first\\nsecond')\n", ["RuntimeError", "first"]),
    ],
    ids=["none", "two", "syntax", "import", "raises"],
)
def test_bad_plugin_files_are_refused(
    mtbench: Mtbench, tiny: Path, finished: Path, tmp_path: Path, text: str, said: list[str]
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(text)
    before = tree(finished)
    line = words(tiny, finished, "--plugin", plugin, method=("ew", "mine"))
    refused(mtbench(*line), str(plugin), *said)
    assert tree(finished) == before


FAULTY = """from mtbench import Weighting


class Mine(Weighting):
    paper = "none"

    def weights(self, gramian, losses):
        {body}
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return losses[9]", "IndexError: index 9 is out of bounds"),
        ("return gramian @ losses[:1]", "RuntimeError: "),  # which torch raises
        ("raise ValueError('one\\ntwo')", "ValueError: one; mend that"),
        ("assert 0", "AssertionError; mend that"),
        ("open('/no/such')", "/no/such: No such file or directory; mend that"),
    ],
    ids=["index", "torch", "lines", "silent", "file"],
)
def test_what_a_plugin_file_raises_is_told_with_its_line(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, body: str, said: str
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(FAULTY.format(body=body))
    line = words(tiny, tmp_path / "out", "--epochs", 1, "--plugin", plugin, method=("mine",))
    refused(mtbench(*line), f"{plugin}, line 8, in weights: {said}")


ODD_TASKS = {
    "setup": (
        'Splits(*parts, fingerprint="tiny-1", notes={"rows": 48})', "tuple(parts)",
        "odd: setup must return mtbench.Splits(", "found tuple",
    ),
    "fingerprint": ('fingerprint="tiny-1"', "fingerprint=None", "no text as its fingerprint"),
    "empty": ("48, self.missing", "48 * (i != 1), self.missing", "odd: setup's split val is empty"),
    "losses": ("return found\n", "return found[:1]\n", "return a list of 2 scalars", "a list of 1"),
    "width": (
        "MultitaskModel(encoder, [First(16, 1), First(16, 1)])",
        "MultitaskModel.single_feature(nn.Linear(5, 16), [nn.Linear(16, 1), nn.Linear(16, 1)])",
        "odd: its model or losses fail on inputs (8, 4) of torch.float32: mat1 and mat2 shapes",
    ),
    "same": ('("sum", "difference")', '("sum", "sum")', "must have names of their own"),
    "notes": ('{"rows": 48}', '{"rows": parts}', "odd: setup's notes go into result.json: Object"),
    "arguments": (
        "outputs: Sequence[Any], batch: Batch) -> list", "outputs) -> list",
        "Tiny.losses must take (self, outputs, batch), found (self, outputs)",
    ),
    "generator": (
        "generator: torch.Generator | None = None", "generator: torch.Generator | None",
        "batch must take (self, indices, generator=None), found (self, indices, generator)",
    ),
    "update": (
        "outputs: Sequence[Any], batch: Batch) -> None", "outputs) -> None",
        "TinyMeter.update must take (self, outputs, batch)",
    ),
    "inputs": ('{"inputs": x', '{"x": x', "must be a dict with 'inputs', found 'x', 'y'"),
    "batch": (
        'return {"inputs": x, "y": self.y[indices]}', "return x",
        "must be a dict with 'inputs', found Tensor",
    ),
    "model": (
        "MultitaskModel(encoder, [", "(encoder, [",
        "odd: model must return a MultitaskModel(encoder, heads), found a tuple",
    ),
    "no metric": ('"mae_sum": first, ', "", "odd: its meter's", "all metrics, found no 'mae_sum'"),
    "no number": ('"mae_sum": first', '"mae_sum": None', "odd: its meter", "numbers by name:"),
    "objective": (
        'Metric("difference", primary', 'Metric("diference", primary',
        "odd: metrics['within'] must be an mtbench.Metric of sum, difference, or of None",
    ),
    "primary": (", primary=True)", ")", "odd: none of its metrics has primary=True"),
    "metrics": ("    metrics = {", "    others = {", "metrics must be mtbench.Metric by name"),
    "objectives": ('("sum", "difference")', '"sum"', "objectives must be a tuple", "found 'sum'"),
    "dependent": (
        "self.activation =", "self.dependent = {'mising': 1}\n        self.activation =",
        "odd: its dependent names 'mising', which is no parameter of it: did you mean 'missing'?",
    ),
    "groups": (
        "    def __len__", "    def groups(self): return [0]\n\n    def __len__",
        "odd: setup's split train has 1 groups of 48 samples",
    ),
    "fit": (
        "    def model(self)", "    def fit(self, *_): return {'t': torch}\n\n    def model(self)",
        "odd: what fit returns goes into fitted.json: Object",
    ),
    "one": (
        "found = []\n", "found = [nn.BatchNorm1d(4)(batch['inputs'][:1])]\n",
        "batch norm takes no batch of one sample", "choose another --batch-size",
    ),
    "recipe": ("Recipe(epochs=4, batch_size=8, lr=1e-2)", "dict(epochs=4)", "an mtbench.Recipe("),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD_TASKS)
def test_a_task_that_is_none_is_told_what_it_must_have(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, what: str
) -> None:
    old, new, *said = ODD_TASKS[what]
    plugin, text = tmp_path / "odd.py", tiny.read_text()
    assert old in text
    plugin.write_text(text.replace(old, new))
    out = ("--threads", 1, "--epochs", 1, "--out", tmp_path / "out")
    refused(mtbench("run", "--plugin", plugin, "--task", "odd", "--method", "ew", *out), *said)


def test_what_names_one_owner_holds_beside_what_is_for_all(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    given = ("--fairgrad.alpha", 2, "--alpha", 1.5, "--epochs", 1)
    line = words(tiny, tmp_path, *given, method=("fairgrad", "gradnorm"))
    code, _, err = mtbench(*line)
    assert code == 0, err
    found = [json.loads(file.read_text()) for file in tmp_path.rglob("spec.json")]
    alphas = {spec["method"]: spec["method_params"]["alpha"] for spec in found}
    assert alphas == {"fairgrad": 2.0, "gradnorm": 1.5}


def test_what_we_raise_is_ours(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtbench.cli.running.use_device", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mtbench(*words(tiny, tmp_path / "out"))


def test_a_plugin_that_bears_a_known_name(
    mtbench: Mtbench, tiny: Path, finished: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "ew.py"
    plugin.write_text(METHOD)
    refused(mtbench(*words(tiny, finished, "--plugin", plugin)), "'ew'", str(plugin), "rename")


@pytest.mark.parametrize("below", ["below", "below/further"])
def test_an_out_folder_that_cannot_be_written(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("precious")
    out = tmp_path / "file" / below
    refused(mtbench(*words(tiny, out)), f"--out {out}", "cannot be written", "another folder")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_run_directory_of_another_spec(mtbench: Mtbench, tiny: Path, copied: Path) -> None:
    [run] = (copied / "tiny" / "ew").glob("seed0-*")
    file = run / "spec.json"
    file.write_text(file.read_text().replace('"lr": 0.01', '"lr": 0.02'))
    before = tree(copied)
    line = words(tiny, copied, "--epochs", 2)
    refused(mtbench(*line), str(run), "is of another cell", "--out")
    assert tree(copied) == before
    file.write_text("not JSON")
    before = tree(copied)
    refused(mtbench(*line), str(file), "not a spec", "remove its folder")
    assert tree(copied) == before


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_corrupt_checkpoint(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    line = words(tiny, copied := tmp_path / "out", "--epochs", 2)
    with monkeypatch.context() as patch:
        interrupt(patch, 9)
        mtbench(*line)
    [run] = (copied / "tiny" / "ew").glob("seed0-*")
    file = run / "checkpoint.pt"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "text": b"broken", "empty": b""}[damage])
    before = tree(copied)
    refused(mtbench(*line), str(file), "corrupt", "delete the folder")
    assert tree(copied) == before
    shutil.rmtree(run)
    code, out, _ = mtbench(*line)  # as advised
    assert code == 0
    assert "epoch 2/2" in out


# Bad input to predict


def picture(file: Path) -> Path:
    Image.fromarray(np.full((40, 50), 90, np.uint8)).save(file)
    return file


def test_a_task_that_cannot_predict_says_so(
    mtbench: Mtbench, tiny: Path, finished: Path, tmp_path: Path
) -> None:
    [run] = (finished / "tiny" / "ew").glob("seed0-*")
    image = picture(tmp_path / "a.png")
    out = tmp_path / "out"
    line = ["predict", run, image, "--out", out, "--plugin", tiny]
    refused(mtbench(*line), "tiny does not predict on files")
    refused(mtbench(*line, "--spacing", "0.1"), "tiny does not predict on files")
    refused(mtbench("predict", run, "--out", out, "--plugin", tiny), "Missing argument")
    refused(mtbench("predict", run, "--spacing", "1", "--plugin", tiny), "no file to predict on")
    refused(mtbench("predict", run, image), "unknown task 'tiny'")  # the plugin is needed


def test_a_task_that_cannot_predict_does_not_ask_for_its_data(
    mtbench: Mtbench, tmp_path: Path
) -> None:
    (tmp_path / "f.csv").write_text("a,b\n" + "".join(f"{i},{i}\n" for i in range(40)))
    data = ["--data", tmp_path / "f.csv"]
    line = ["run", "-m", "ew", "--task", "multitarget", "--targets", "b", "--epochs", "1"]
    assert mtbench(*line, *data, "--out", tmp_path)[0] == 0
    [run] = tmp_path.glob("multitarget/ew/seed0-*")
    refused(mtbench("predict", run, *data[1:]), "task multitarget does not predict on files")
    refused(mtbench("evaluate", run, *data), "task multitarget does not evaluate on other data")


READS = """
from pathlib import Path
from tests.tiny import Tiny


class Reads(Tiny):
    '''Reads a file of its own.'''

    def predict(self, trained, path, to):
        return {"text": Path("absent.txt").read_text()}

    def evaluate(self, trained, data, to):
        return Path("absent.txt").read_text()

    @classmethod
    def export(cls, source, data, to):
        (to / "half").touch()
        return Path("absent.txt").read_text()
"""


def test_a_file_that_a_task_cannot_read_is_not_what_cannot_be_written(
    mtbench: Mtbench, tmp_path: Path
) -> None:
    plugin, out = tmp_path / "reads.py", tmp_path / "out"
    plugin.write_text(READS)
    line = ("--task", "reads", "--plugin", plugin, "--method", "ew", "--epochs", 1, "--threads", 1)
    assert mtbench("run", *line, "--out", tmp_path / "runs")[0] == 0
    [run] = (tmp_path / "runs" / "reads" / "ew").glob("seed0-*")
    image = picture(tmp_path / "a.png")
    for words in (
        ("predict", run, image, "--out", out),
        ("evaluate", run, "--out", tmp_path / "judged"),
        ("data", "export", "a", "--task", "reads", "--to", tmp_path / "new"),
    ):
        said = refused(mtbench(*words, "--plugin", plugin), "absent.txt: No such file")
        assert "cannot be written" not in said
    assert not (tmp_path / "judged").exists()
    assert not (tmp_path / "new").exists()  # so that the same command may be repeated
    (tmp_path / "file").touch()
    for command in (("predict", run, image), ("evaluate", run)):
        answer = mtbench(*command, "--plugin", plugin, "--out", tmp_path / "file" / "below")
        refused(answer, f"--out {tmp_path / 'file' / 'below'}: cannot be written")
    words = ("data", "export", "a", "--task", "reads", "--plugin", plugin)
    answer = mtbench(*words, "--to", tmp_path / "file" / "below")
    refused(answer, f"--to {tmp_path / 'file' / 'below'}: cannot be written")


def test_predict_needs_a_finished_run(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    refused(mtbench("predict", tmp_path, image), str(tmp_path), "no run directory")
    refused(mtbench("predict", tmp_path / "absent", image), "absent: no such folder: give a fini")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=9)  # an epoch is done and best.pt is there
        mtbench(*words(tiny, tmp_path / "out", "--epochs", 3))
    [run] = (tmp_path / "out").rglob("seed0-*")
    assert (run / "best.pt").exists()
    answer = mtbench("predict", run, image, "--plugin", tiny, "--out", tmp_path / "predictions")
    refused(answer, str(run), "not finished", "mtbench run")
    assert not (tmp_path / "predictions").exists()


def test_predict_with_a_plugin_that_has_changed(
    mtbench: Mtbench, tiny: Path, finished: Path, tmp_path: Path
) -> None:
    [run] = (finished / "tiny" / "ew").glob("seed0-*")
    other = tmp_path / "tiny.py"
    other.write_text(tiny.read_text() + "# changed\n")
    answer = mtbench("predict", run, picture(tmp_path / "a.png"), "--plugin", other)
    refused(answer, str(run), "another version of 'tiny'")


# Bad data of the reference task


def ddti(folder: Path) -> Path:
    """A folder with one good case of DDTI's form."""
    folder.mkdir()
    points = [{"x": x, "y": y} for x, y in ((20, 20), (60, 20), (60, 50), (20, 50))]
    svg = json.dumps([{"points": points, "annotation": {}, "regionType": "freehand"}])
    (folder / "1.xml").write_text(
        "<case><number>1</number><tirads>4a</tirads>"
        f"<mark><image>1</image><svg>{svg}</svg></mark></case>"
    )
    noise = np.random.default_rng(0).integers(40, 200, (80, 96), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1_1.jpg")
    return folder


def absent(folder: Path) -> Path:
    return folder / "absent"


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def other_files(folder: Path) -> Path:
    empty(folder)
    (folder / "a.csv").write_text("a\n")
    picture(folder / "photo.jpg")
    return folder


def broken_image(folder: Path) -> Path:
    (ddti(folder) / "1_1.jpg").write_bytes(b"\xff\xd8\xff broken")
    return folder


def cut_image(folder: Path) -> Path:
    file = ddti(folder) / "1_1.jpg"
    file.write_bytes(file.read_bytes()[:900])
    return folder


def broken_xml(folder: Path) -> Path:
    (ddti(folder) / "1.xml").write_text("<case><tirads>4a</case>")
    return folder


def no_zip(folder: Path) -> Path:
    folder.write_text("not a zip")
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (absent, ["absent", "no such file or folder"]),
        (empty, ["no DDTI folder", "N.xml"]),
        (other_files, ["no DDTI folder", "N.xml"]),
        (broken_image, ["1_1.jpg", "no readable image"]),
        (cut_image, ["1_1.jpg", "no readable image"]),
        (broken_xml, ["1.xml", "no well-formed XML"]),
        (no_zip, ["no readable folder or zip"]),
        (ddti, ["too few"]),
    ],
)
def test_bad_ddti_folders_are_refused(
    mtbench: Mtbench, finished: Path, tmp_path: Path, make: Any, said: list[str]
) -> None:
    data = make(tmp_path / "data")
    before = tree(finished)
    line = ["run", "--method", "ew", "--source", "ddti", "--data", data, "--out", finished]
    refused(mtbench(*line), *said, *([str(data)] if make is not ddti else []))
    assert tree(finished) == before
    if make is not ddti:
        refused(mtbench("data", "inspect", "ddti", "--data", data), str(data), *said)
        preview = tmp_path / "preview.png"
        refused(mtbench("data", "preview", "ddti", "--data", data, "--to", preview), str(data))
        assert not preview.exists()


def test_other_bad_words_to_the_thyroid_task(mtbench: Mtbench, tmp_path: Path) -> None:
    line = ["run", "--method", "ew", "--out", tmp_path]
    refused(mtbench(*line, "--source", "ddti"), "--data")
    refused(mtbench(*line, "--source", "ddtj"), "thyroid.source", "'phantom' or 'ddti'", "'ddtj'")
    refused(mtbench(*line, "--cases", 3), "cases", "at least 20", "3")
    refused(mtbench(*line, "--image-size", 50), "image_size", "multiple of 32", "50")
    refused(mtbench(*line, "--width", 0), "width", "at least 1")
    refused(mtbench(*line, "--augmentation", 2), "augmentation", "between 0 and 1")
    refused(mtbench(*line, "--guide", -1), "guide")
    refused(mtbench("data", "inspect", "dtti"), "'dtti'", "did you mean 'ddti'?")
    refused(mtbench("data", "inspect", "ddti"), "--data")
    for command in ("inspect", "verify"):
        refused(mtbench("data", command, "digits"), "'digits'", "a task: say --task digits")
    refused(mtbench("data", "inspect", "ddti", "--task", "throid"), "did you mean 'thyroid'?")
    refused(mtbench("data", "preview", "ddti", "--to", tmp_path / "x.txt"), "--to", ".png")
    refused(mtbench("data", "preview", "ddti", "--to", tmp_path / "no" / "x.png"), "--to")


def test_a_parameter_that_changes_nothing_is_refused(mtbench: Mtbench, tmp_path: Path) -> None:
    (file := tmp_path / "a.csv").write_text("image,category\na.png,TR4\n")
    own = ("--source", "manifest", "--data", file, "--out", tmp_path)
    said = "thyroid.cases changes nothing, given the other parameters", "its default, 1000"
    refused(mtbench("run", "-m", "ew", *own, "--cases", 20), *said)
    (config := tmp_path / "best.toml").write_text(
        'version = 1\ntask = "thyroid"\nmethod = "ew"\n[task_params]\ncases = 20\n'
    )
    refused(mtbench("run", "--config", config, *own), *said)
    refused(mtbench("run", "--config", config, *own, "--cases", 1000), "a.png: there is no such")
    said = "thyroid.test_cases changes nothing, given the other parameters", "its default, 1000"
    refused(mtbench("run", "-m", "ew", *own, "--test-cases", 20), *said)
    away = ("--test-source", "manifest", "--test-data", file, "--target", "low-high")
    refused(mtbench("run", "-m", "ew", *away, "--out", tmp_path, "--test-cases", 20), *said)
    refused(mtbench("run", "-m", "ew", *own, "--test-cases", 1000), "a.png: there is no such")


def test_data_is_inspected(mtbench: Mtbench, tmp_path: Path) -> None:
    folder = ddti(tmp_path / "data")
    code, out, err = mtbench("data", "inspect", "ddti", "--data", folder)
    assert (code, err) == (0, "")
    counts = {
        cells[2].strip(): cells[1].strip()
        for row in out.splitlines()
        if row.startswith("│") and len(cells := row.split("│")) > 2
    }
    assert counts["cases found"] == "1"
    assert counts["views with a mask"] == "1"
    assert counts["images without a case"] == "0"


def test_counts_of_an_inspected_source_may_be_numbers(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    more = "\n    @classmethod\n    def inspect(cls, source, data):\n        "
    more += "return [(7, 'points', source)]\n"
    (tmp_path / "tiny.py").write_text(tiny.read_text() + more)
    line = ("data", "inspect", "made", "--task", "tiny", "--plugin", tmp_path / "tiny.py")
    code, out, _ = mtbench(*line)
    assert code == 0
    assert "7 │ points │ made" in out


def test_init_starts_from_another_run(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    def first_loss(out: str, *more: object) -> float:
        code, text, _ = mtbench(*words(tiny, tmp_path / out, *more))
        assert code == 0, text
        file = next((tmp_path / out).rglob("steps.csv"))
        return float(file.read_text().splitlines()[1].split(",")[4])

    fresh = first_loss("fresh", "--epochs", "30")
    trained = next((tmp_path / "fresh").rglob("best.pt")).parent
    assert first_loss("again", "--init", trained) < 0.5 * fresh
    refused(mtbench(*words(tiny, tmp_path / "no", "--init", tmp_path)), str(tmp_path))
