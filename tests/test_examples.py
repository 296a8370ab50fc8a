"""The examples run, and learn."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_loop(capsys):
    source = EXAMPLES / "own_loop.py"
    assert len(source.read_text().splitlines()) < 40
    with torch.random.fork_rng():
        runpy.run_path(str(source), run_name="__main__")
    numbers = re.findall(r"epoch \d+: grade (\S+), size (\S+)\n", capsys.readouterr().out)
    (grade_first, size_first), (grade_last, size_last) = (
        map(float, numbers[0]),
        map(float, numbers[-1]),
    )
    assert len(numbers) == 20
    assert grade_last < 0.7 * grade_first
    assert size_last < 0.5 * size_first


@pytest.mark.parametrize(("name", "accuracy"), [("wrap_dataset", 0.9), ("huggingface", 0.8)])
def test_tasks_of_others_run_and_keep_the_contract(mtbench, monkeypatch, tmp_path, name, accuracy):
    if name == "huggingface":
        pytest.importorskip("datasets", reason="needs the extra huggingface")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
    plugin = EXAMPLES / f"{name}.py"
    code, out, err = mtbench("check", "task", name, "--plugin", plugin)
    assert (code, err) == (0, ""), out
    words = ("--method", "ew", "--threads", 1, "--out", tmp_path / "runs")
    code, out, err = mtbench("run", "--plugin", plugin, "--task", name, *words)
    assert (code, err) == (0, "")
    [test] = (tmp_path / "runs").rglob("test.json")
    metrics = json.loads(test.read_text())["metrics"]
    assert metrics["accuracy"] > accuracy
    assert metrics["mse"] < 0.2
