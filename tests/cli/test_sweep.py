"""``mtbench plan``, ``sweep`` and ``status``: what is typed, what is killed, and what is left."""

import io
import json
import os
import platform
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtbench.cli import status
from mtbench.cli.status import Watch
from mtbench.comparing.planning.grid import Grid, Order
from mtbench.comparing.planning.suite import load
from mtbench.comparing.planning.survey import State
from mtbench.training.cell.rundir import RunDirectory, find_runs
from tests.comparing.test_leaderboard import cell
from tests.processes import Command
from tests.refusals import refused

SUITE = """
version = 1
name = "mine"
title = "a [small] comparison"
methods = [{methods}]

[budget]
trials = {trials}
seeds = 2

[[tasks]]
name = "tiny"
set = {{sleep = {sleep}}}
recipe = {{epochs = 2}}
"""
BROKEN = '''
from mtbench.balancing.balancer import Scalarizer
class Broken(Scalarizer):
    """Fails."""
    paper = "none"
    def objective(self, step):
        {what}
'''

Mtbench = Callable[..., tuple[int, str, str]]


def suite(folder: Path, *methods: str, trials: int = 2, sleep: float = 0.0) -> Path:
    file = folder / "mine.toml"
    names = ", ".join(f'"{method}"' for method in methods)
    file.write_text(SUITE.format(methods=names, trials=trials, sleep=sleep))
    return file


def ended(process: Command) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode is not None
    return process.returncode, out, err


def outcome(out: Path) -> dict[str, Any]:
    """Return what a sweep found: all but times, memory and environment."""
    found: dict[str, Any] = {}
    for file in out.rglob("spec.json"):
        result = json.loads((file.parent / "result.json").read_text())
        for clock in ("cost", "environment", "times"):
            del result[clock]
        test = file.with_name("test.json")
        found[str(file.parent.relative_to(out))] = (
            json.dumps(result),
            test.read_bytes() if test.exists() else b"",
            (file.parent / "suites.json").read_bytes(),
        )
    return found


def children(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                found += [int(folder.name)] if int(parent) == pid else []
    return found


def workers(process: Command) -> list[int]:
    """Return the ids of a sweep's workers, which are children of its fork server."""
    return [worker for child in children(process.pid) for worker in children(child)]


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 180
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_sweep_ends_where_all_is_decided(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    """Equal rows are equivalent at the first look; the plan said how likely that is."""
    same = '{name = "ew", label = "twin"}'
    file, out = suite(tmp_path, "stl", "ew"), tmp_path / "out"
    text = file.read_text().replace('"ew"]', f'"ew", {same}]').replace("trials = 2", "trials = 0")
    text = text.replace("seeds = 2", "seeds = 1\nrepetitions = 20").replace(
        "epochs = 2", "epochs = 1"
    )
    file.write_text(text)
    refused(mtbench("sweep", file, "--plugin", tiny, "--until", "decided"), "needs `against`")
    assert (
        f"run it: mtbench sweep {file} --plugin {tiny} --out runs\n"
        in mtbench("plan", file, "--plugin", tiny)[1]
    )
    file.write_text(text.replace("version = 1", 'version = 1\nagainst = ["ew"]\nmargin = 1000.0'))
    more = ("--plugin", tiny, "--jobs", 2)
    code, said, err = mtbench("sweep", file, *more, "--out", out, "--until", "decided")
    assert (code, err) == (0, "")
    assert "after 6 repetitions: all is decided" in said
    assert len(list(find_runs([out]))) == 3 * 6 - 6  # twins are one cell
    code, said, err = mtbench("plan", file, *more, "--pilot", out)
    assert (code, err) == (0, "")
    assert re.search(r"told with probability 0.8, as one of 2 comparisons at 5 %: .* 0\.\d\d", said)
    assert re.search(r"paired standard deviation \d+\.\d\d points of delta-m, by the pilot", said)
    assert "--until decided" in said
    assert "  - nothing is measured here: what that is" in mtbench("plan", file, *more)[1]
    stated = '\nmeasured = {deviation = 3.0, seconds = 9.0, origin = "a [small] one"}\n'
    file.write_text(file.read_text() + stated)
    code, said, err = mtbench("plan", file, *more)
    assert (code, err) == (0, "")
    assert "3.00 points of delta-m, as the suite states, and 9 s a cell: a [small] one" in said
    assert "a difference of 5 % is told equivalent or worse with probability 1.00" in said


def test_a_sweep_from_plan_to_leaderboard(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    file, out = suite(tmp_path, "stl", "ew"), tmp_path / "my out"
    code, said, err = mtbench("plan", file, "--plugin", tiny, "--jobs", 2)
    assert (code, err) == (0, "")
    assert "tasks 1 x methods 2 x repetitions 1 x (trials 2 + seeds 2) = 8" in said
    assert "no verdict will be given: tuning happens once" in said
    assert f"run it: mtbench sweep {file} --plugin {tiny} --jobs 2 --out runs\n" in said
    assert not out.exists()
    code, said, err = mtbench("sweep", file, "--plugin", tiny, "--jobs", 2, "--out", out)
    assert (code, err) == (0, "")
    assert "8 cells: 8 finished, 0 diverged, 0 failed" in said
    assert f"compare: mtbench leaderboard '{out}' --html '{out}/site'" in said
    lines = [line for line in said.splitlines() if line.startswith("[")]
    assert len(lines) == 8
    assert lines[-1].startswith("[8/8 ")
    assert "\x1b" not in said
    code, said, err = mtbench("status", out, file, "--plugin", tiny)
    assert (code, err) == (0, "")
    assert said.count("trials 2/2  seeds 2/2") == 2
    assert "8 of 8 cells are closed" in said
    code, said, err = mtbench("status", out)
    assert (code, err) == (0, "")
    rows = [row.replace("│", " ").split() for row in said.splitlines() if row.startswith("│")]
    assert rows == [["tiny", m, stage, "2"] for m in ("ew", "stl") for stage in ("final", "trial")]
    code, said, err = mtbench("sweep", file, "--plugin", tiny, "--jobs", 1, "--out", out)
    assert code == 0
    assert "8 of 8 cells are closed already" in said
    assert mtbench("leaderboard", out)[0] == 0


DRAWN = """

    def figures(self, predictor, splits, folder):
        found = [folder / "predictions.png"]
        found[0].write_bytes(b"of test samples")
        return found
"""


def test_figures_of_a_sweep_are_sealed_as_test_numbers_are(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    (drawing := tmp_path / "tiny.py").write_text(tiny.read_text() + DRAWN)
    file, out = suite(tmp_path, "stl", "ew"), tmp_path / "out"
    common = ("--plugin", drawing, "--out", out)
    assert mtbench("sweep", file, "--jobs", 1, *common)[0] == 0
    assert not list(out.rglob("test.opened"))
    assert {p.parent.name for p in out.rglob("predictions.png")} == {".sealed"}
    assert mtbench("sweep", file, "--jobs", 1, *common)[0] == 0  # nothing is drawn again
    assert mtbench("merge", tmp_path / "merged", out)[0] == 0
    assert len(list((tmp_path / "merged").rglob(".sealed/predictions.png"))) == 2
    assert mtbench("leaderboard", out)[0] == 0
    opened = {p.parent for p in out.rglob("predictions.png")}
    assert len(opened) == 2
    assert opened <= {p.parent for p in out.rglob("test.opened")}
    assert not list(out.rglob(".sealed"))


def test_a_plan_tells_what_does_not_run(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN.format(what="raise ZeroDivisionError"))
    file = suite(tmp_path, "ew", "broken")
    code, said, err = mtbench("plan", file, "--plugin", tiny, "--plugin", plugin)
    assert (code, err) == (0, "")
    rows = {row.split()[1]: row for row in said.splitlines() if row.startswith("│")}
    assert "does not run" in rows["broken"]
    assert re.search(r"1\.00", rows["ew"])


def test_rows_that_a_task_cannot_have_are_told_before_anything_runs(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    file = suite(tmp_path, "ew", "ntk_weights", trials=0)
    other = '[[tasks]]\nname = "gradnorm_toy"\nset = {samples = 50}\nrecipe = {epochs = 1}\n'
    file.write_text(file.read_text() + other)
    told = "left out on tiny sleep=0.0 epochs=2: ntk_weights looks at what the losses square, "
    code, said, err = mtbench("plan", file, "--plugin", tiny)
    assert (code, err) == (0, "")
    assert f"- {told}" in said
    assert "cells: (tasks 2 x methods 2 - 1 left out) x repetitions 1 x" in said
    out = tmp_path / "out"
    code, said, err = mtbench("sweep", file, "--plugin", tiny, "--jobs", 1, "--out", out)
    assert (code, err) == (0, "")
    assert said.startswith(told)
    assert "6 cells: 6 finished, 0 diverged, 0 failed" in said
    said = mtbench("status", out, file, "--plugin", tiny)[1]
    assert re.search(r"ntk_weights +│ left out +│ seeds 2/2", said)


def test_a_terminal_shows_the_grid(tiny: Path, tmp_path: Path) -> None:
    grid = Grid(Order(load(str(suite(tmp_path, "ew", "ls"))), None, (tiny,)))
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    states = dict.fromkeys(grid.cells, State("finished", "score 1", 1.0, 30.0))
    states[grid.cells[1]] = State("running")
    states[grid.cells[2]] = State("diverged", "why")
    states[grid.cells[-2]] = State("failed", "why")
    states[grid.cells[-1]] = State("open")
    with Watch(console, grid, 1) as watch:
        watch(states)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert "6 of 8 cells are closed, 1 running, 1 diverged, 1 failed; about 60 s left" in text
    assert "a [small] comparison" in text
    assert re.search(r"ew +│ trials 1/2  seeds 2/2  1 running  1 failed", text)
    assert re.search(r"ls +│ trials 2/2  seeds 1/2  1 diverged", text)


def test_a_narrow_grid_cuts_no_name(tiny: Path, tmp_path: Path) -> None:
    grid = Grid(Order(load(str(suite(tmp_path, "aligned_mtl", "imtl_g"))), None, (tiny,)))
    console = Console(file=io.StringIO(), width=20)
    console.print(status._grid(grid, dict.fromkeys(grid.cells, State("open"))))
    assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_being_trained_is_not_counted_as_open(
    mtbench: Mtbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cell(tmp_path, "ew", 0, status="unfinished")
    cell(tmp_path, "ew", 1, status="unfinished")
    monkeypatch.setattr(
        RunDirectory, "holder", lambda self: "process 7" if self.path == run.path else None
    )
    _, said, _ = mtbench("status", tmp_path)
    assert re.search(r"running ┃ open ┃", said)
    assert re.search(r"│ 1 +│ 1 +│\n", said)


def test_two_sweeps_on_one_folder_run_each_cell_once(tiny: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "counted.py"  # a method that leaves a line for each time it is trained
    plugin.write_text(BROKEN.format(what=f"""
        if not hasattr(self, "told"):
            self.told = True
            with open({str(tmp_path / "counts")!r}, "a") as stream:
                print("begun", file=stream)
        return step.total(), None"""))  # fmt: skip
    file, out = suite(tmp_path, "counted", trials=4), tmp_path / "out"
    line = ("sweep", file, "--plugin", tiny, "--plugin", plugin, "--jobs", 2, "--out", out)
    for process in [Command(*line), Command(*line)]:
        code, said, err = ended(process)
        assert (code, err) == (0, ""), said
        assert "6 cells: 6 finished, 0 diverged, 0 failed" in said
    assert (tmp_path / "counts").read_text().count("begun") == 6


def test_cells_of_other_code_are_told_before_anything_is_started(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(BROKEN.format(what="return step.total(), None"))
    file, out = suite(tmp_path, "mine", "ew", trials=0), tmp_path / "out"
    line = ("sweep", file, "--plugin", tiny, "--plugin", plugin, "--jobs", 1, "--out", out)
    assert mtbench(*line)[0] == 0
    plugin.write_text(plugin.read_text() + "# changed")
    told = "2 of 4 cells were made with another mine than is here"
    refused(mtbench(*line), f"--out {out}: {told}: say --other-code keep to")
    plugins = ("--plugin", tiny, "--plugin", plugin)
    assert told in mtbench("status", out, file, *plugins)[1]
    code, said, err = mtbench(*line, "--other-code", "keep")
    assert (code, err) == (0, "")
    assert f"{told}: kept\n4 of 4 cells are closed already" in said
    code, said, err = mtbench(*line, "--other-code", "anew")
    assert (code, err) == (0, "")
    assert f"{told}: trained anew\n2 of 4 cells are closed already" in said
    assert len(list(find_runs([out]))) == 6
    assert mtbench(*line)[0] == 0
    for result in out.glob("tiny/mine/*/result.json"):  # begun, and then the code changes
        result.rename(result.with_name("checkpoint.pt"))
    plugin.write_text(plugin.read_text() + " again")
    told = "2 of 4 cells were begun with other code than is here"
    refused(mtbench(*line), f"--out {out}: {told}: say --other-code keep to")
    assert told in mtbench("status", out, file, *plugins)[1]


@pytest.mark.parametrize(
    "what", ["raise ZeroDivisionError('x')", "import os; os.kill(os.getpid(), 9)"]
)
def test_a_method_that_crashes_fails_alone(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, what: str
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN.format(what=what))
    file, out = suite(tmp_path, "broken", "ew", trials=0), tmp_path / "out"
    line = ("sweep", file, "--plugin", tiny, "--plugin", plugin, "--jobs", 2, "--out", out)
    code, said, err = mtbench(*line)
    assert (code, err) == (1, "")
    assert "4 cells: 2 finished, 0 diverged, 2 failed" in said
    reason = "ZeroDivisionError: x (broken.py, line 7)"
    if "kill" in what:
        reason = "the worker was killed by SIGKILL"
    told = [text for text in said.splitlines() if text.startswith("failed: ")]
    assert len(told) == 2
    assert all(reason in text and "delete" in text for text in told)
    records = [json.loads(file.read_text()) for file in out.rglob("failed.json")]
    assert [record["crashes"] for record in records] == [2, 2]


def without_figures(tiny: Path, folder: Path) -> tuple[Path, Path]:
    """Return a task whose figures fail, and the file that mends it."""
    mended = folder / "mended"
    fails = f"""
    def figures(self, predictor, splits, folder):
        if not Path({str(mended)!r}).exists():
            raise ZeroDivisionError("no picture")
        (folder / "a.png").write_bytes(b"")

    def setup(self,"""
    plugin = folder / "tiny.py"
    plugin.write_text(tiny.read_text().replace("\n    def setup(self,", fails, 1))
    return plugin, mended


def test_figures_that_fail_are_reported_and_drawn_again(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    """The cell is finished all the same."""
    plugin, mended = without_figures(tiny, tmp_path)
    file, out = suite(tmp_path, "ew", trials=0), tmp_path / "out"
    line = ("sweep", file, "--plugin", plugin, "--jobs", 1, "--out", out)
    code, said, err = mtbench(*line)
    assert (code, err) == (0, "")
    assert "2 cells: 2 finished, 0 diverged, 0 failed" in said
    [told] = [text for text in said.splitlines() if text.startswith("without figures: ")]
    assert "seed 0: ZeroDivisionError: no picture (tiny.py, line " in told
    mended.touch()
    code, said, err = mtbench(*line)
    assert (code, err) == (0, "")
    assert "without figures" not in said
    assert len(list(out.rglob("a.png"))) == 1


def test_a_killed_worker_is_replaced(tiny: Path, tmp_path: Path) -> None:
    file, out = suite(tmp_path, "ew", trials=0, sleep=0.3), tmp_path / "out"
    process = Command("sweep", file, "--plugin", tiny, "--jobs", 1, "--out", out)
    wait_for(lambda: list(out.rglob("checkpoint.pt")))
    os.kill(workers(process)[0], signal.SIGKILL)
    code, said, err = ended(process)
    assert (code, err) == (0, "")
    assert "2 cells: 2 finished" in said
    assert len(list(out.rglob("crash.json"))) == 1
    assert not list(out.rglob("failed.json"))


def test_two_runs_of_one_cell(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    """One wins and the other says so; when the winner is killed, the cell is free."""
    line = ("run", "--plugin", tiny, "-t", "tiny", "-m", "ew", "--threads", 1, "--sleep", 20)
    line = (*line, "--out", tmp_path)
    both = [Command(*line), Command(*line)]
    wait_for(lambda: any(process.poll() is not None for process in both))
    [loser] = [process for process in both if process.poll() is not None]
    [winner] = [process for process in both if process is not loser]
    code, _, err = ended(loser)
    [run] = find_runs([tmp_path])
    holder = f"process {winner.pid} on {platform.node()}"
    assert code == 2
    assert err == f"error: {run.path}: {holder} works on it; wait for that, or end it\n"
    refused(mtbench(*line, "--no-resume"), holder)
    assert run.holder() == holder
    winner.kill()
    winner.communicate()
    assert run.holder() is None
    with run.claim():
        pass


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_told_to(tiny: Path, tmp_path: Path, sign: signal.Signals) -> None:
    file, out = suite(tmp_path, "ew", trials=0, sleep=0.3), tmp_path / "out"
    process = Command("sweep", file, "--plugin", tiny, "--jobs", 2, "--out", out)
    wait_for(lambda: list(out.rglob("spec.json")))
    crew = workers(process)
    if sign is signal.SIGINT:  # what a terminal does
        os.killpg(process.pid, sign)
    else:
        os.kill(process.pid, sign)
    code, _, err = ended(process)
    assert not list(out.rglob("result.json"))  # no cell was waited for
    assert code == 130
    assert err.startswith("stopped; ")
    assert err.endswith("the same command goes on from the last checkpoint\n")
    assert all(map(gone, crew))
    assert not list(out.rglob("crash.json"))


def test_ctrl_c_is_heard_while_workers_start(tiny: Path, tmp_path: Path) -> None:
    """Their server imports for seconds before the first one is there."""
    file, out = suite(tmp_path, "ew", trials=0, sleep=0.3), tmp_path / "out"
    line = ("sweep", file, "--plugin", tiny, "--jobs", 2, "--out", out)
    process = Command(*line, forks=False)
    wait_for(lambda: children(process.pid))
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130
    assert err.startswith("stopped; ")
    assert "Traceback" not in (out / ".sweep" / "workers.log").read_text() + err


def test_workers_end_with_a_sweep_that_is_killed(tiny: Path, tmp_path: Path) -> None:
    file, out = suite(tmp_path, "ew", trials=0, sleep=0.3), tmp_path / "out"
    process = Command("sweep", file, "--plugin", tiny, "--jobs", 1, "--out", out)
    wait_for(lambda: list(out.rglob("spec.json")))
    crew = workers(process)
    process.kill()
    ended(process)
    wait_for(lambda: all(map(gone, crew)))


def test_killed_at_random_moments_it_ends_the_same(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    """Three times here, 6 s in all, of 7 s that its workers sleep; MTBENCH_KILLS says how often."""
    file = suite(tmp_path, "ew", "famo", sleep=0.15)
    line = ("sweep", file, "--plugin", tiny, "--jobs", 2, "--out")
    code, _, err = mtbench(*line, tmp_path / "calm")
    assert (code, err) == (0, "")
    out = tmp_path / "disturbed"
    moments = random.Random(0)
    for _ in range(int(os.environ.get("MTBENCH_KILLS", "3"))):
        process = Command(*line, out)
        # Of many kills, the last come after all is done.
        wait_for(lambda p=process: len(workers(p)) == 2 or p.poll() is not None)
        time.sleep(moments.uniform(0.2, 2))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        ended(process)
    code, said, err = mtbench(*line, out)
    assert (code, err) == (0, ""), said
    assert not list(out.rglob("failed.json"))
    assert outcome(out) == outcome(tmp_path / "calm")


@pytest.mark.parametrize("command", ["plan", "sweep"])
def test_a_suite_that_is_none_is_refused(mtbench: Mtbench, tmp_path: Path, command: str) -> None:
    refused(mtbench(command, "quik"), "unknown suite 'quik': did you mean 'quick'?")
    file = tmp_path / "bad.toml"
    file.write_text("version = ")
    refused(mtbench(command, file), str(file), "is no TOML")
    refused(mtbench(command, "ddti"), "suite ddti: task thyroid needs data: say --data FOLDER")
    refused(mtbench(command, "ddti", "--data", tmp_path / "no"), "does not exist")
    refused(mtbench(command, "quick", "--jobs", 0), "--jobs must be at least 1, found 0")


def test_what_cannot_be_is_refused(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    file = suite(tmp_path, "ew", trials=0)
    wall = tmp_path / "wall"
    wall.touch()
    line = ("sweep", file, "--plugin", tiny, "--out")
    refused(mtbench(*line, wall / "out"), f"--out {wall / 'out'}: cannot be written")
    out = tmp_path / "o"
    refused(mtbench("sweep", "ddti", "--data", tmp_path, "--out", out), "is no DDTI folder")
    refused(mtbench("status", tmp_path / "none"), "no such folder")
    refused(mtbench("status", tmp_path, "quik"), "unknown suite 'quik'")
    assert not (out / "thyroid").exists()
