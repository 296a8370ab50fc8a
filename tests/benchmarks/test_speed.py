"""The speed benchmark: what it measures and writes. Never how fast anything is."""

import csv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from mtbench import Engine, Method
from mtbench.cli import bench
from mtbench.training.machine import numerics
from mtbench_speed import peers
from mtbench_speed.contestants import floor, ours, plain
from mtbench_speed.models import KINDS, Problem
from tests.refusals import refused

Mtbench = Callable[..., tuple[int, str, str]]
SMALL = ("--width", 4, "--batch", 2, "--objectives", 2, "--rounds", 2, "--columns", 50)


def measured(mtbench: Mtbench, out: Path, *words: object) -> tuple[list[dict[str, Any]], str]:
    """Run with small sizes; return the CSV's rows, empty cells left out, and what was printed."""
    code, text, err = mtbench("bench", "speed", *SMALL, "--out", out, *words)
    assert (code, err) == (0, ""), err
    with out.open() as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)], text


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave other libraries out: what they run is timed on one model below."""
    monkeypatch.setattr(peers, "PEERS", {})


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("model", sorted(KINDS))
def test_a_step_is_timed_beside_plain_and_floor(
    mtbench: Mtbench, tmp_path: Path, model: str
) -> None:
    line = ["--what", "step", "--model", model, "-m", "mgda", "-m", "famo", "-m", "damped+mgda"]
    rows, text = measured(mtbench, tmp_path / "a.csv", *line)
    found = {(row["by"], row.get("method", "")) for row in rows}
    assert {("plain", ""), ("floor", ""), *(("mtbench", name) for name in line[5::2])} <= found
    for row in rows:
        assert row["what"] == "step"
        assert (row["model"], row["objectives"], row["threads"]) == (model, "2", "1")
        for number in ("parameters", "seconds", "over_plain", "over_floor"):
            assert float(row[number]) > 0
        assert row["torch"] == torch.__version__
    assert all(row["over_plain"] == "1.0" for row in rows if row["by"] == "plain")
    assert all(row["over_floor"] == "1.0" for row in rows if row["by"] == "floor")
    assert f"step: {model}" in text
    assert "damped+mgda" in text


@pytest.mark.usefixtures("_alone")
def test_a_step_in_bf16(mtbench: Mtbench, tmp_path: Path) -> None:
    line = ["--what", "step", "--model", "vit_b", "-m", "mgda", "-m", "graddrop"]
    rows, text = measured(mtbench, tmp_path / "a.csv", *line, "--precision", "bf16")
    ours = {row["method"] for row in rows if row["by"] == "mtbench"}
    assert ours == {"mgda", "graddrop"}
    assert {row["precision"] for row in rows} == {"bf16"}
    assert "precision bf16" in text


def test_a_device_may_have_a_number(mtbench: Mtbench, tmp_path: Path) -> None:
    line = ["--what", "aggregation", "-m", "ew", "--device", "cpu:0"]
    _, text = measured(mtbench, tmp_path / "a.csv", *line)
    assert f"device {numerics.hardware(torch.device('cpu'))}" in text


def test_solvers_and_aggregations_are_timed(mtbench: Mtbench, tmp_path: Path) -> None:
    line = ["--what", "solver", "--what", "aggregation", "-m", "mgda", "-m", "graddrop", "-m", "ew"]
    rows, text = measured(mtbench, tmp_path / "a.csv", *line, "--markdown")
    found = {(row["what"], row["method"]) for row in rows if row["by"] == "mtbench"}
    assert found == {
        ("solver, drifting", "mgda"),
        ("solver, fresh", "mgda"),
        ("aggregation", "mgda"),
        ("aggregation", "graddrop"),
    }
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert all(float(row["over_floor"]) > 0 for row in rows if row["what"] == "aggregation")
    assert "### aggregation: d = 50, K = 2" in text
    assert "| mgda |" in text


def test_other_libraries_run_the_same_step(mtbench: Mtbench, tmp_path: Path) -> None:
    pytest.importorskip("torchjd")
    line = ["--what", "step", "--model", "mlp", "-m", "mgda", "-m", "uw"]
    rows, _ = measured(mtbench, tmp_path / "a.csv", *line)
    found = {(row["by"], row.get("method")) for row in rows}
    assert {("torchjd", "uw"), ("torchjd", "mgda"), ("torchjd, loop", "mgda")} <= found
    assert ("torchjd, Gramian", "mgda") in found
    [own] = [row for row in rows if (row["by"], row.get("method")) == ("mtbench", "mgda")]
    assert float(own["over_peer"]) > 0


def test_peak_memory_is_measured_in_processes_of_their_own(
    mtbench: Mtbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_others = "torchjd, loop"  # one is as good as several
    monkeypatch.setattr(peers, "PEERS", {of_others: peers.PEERS[of_others]})
    line = ["--what", "memory", "--model", "mlp", "--width", 1024, "-m", "dibs_mtl"]
    rows, text = measured(mtbench, tmp_path / "a.csv", *line, "-m", "graddrop")
    mib = {(row["by"], row.get("method", "")): float(row["mib"]) for row in rows}
    assert {("floor", ""), ("mtbench, 4 parts", "dibs_mtl")} <= set(mib)
    gradient = float(rows[0]["parameters"]) * 4 / 2**20
    assert mib["plain", ""] >= 0.9 * gradient
    assert mib["mtbench", "graddrop"] >= 2.9 * gradient  # the Jacobian and the direction
    assert ((of_others, "graddrop") in mib) == (find_spec("torchjd") is not None)
    # No Jacobian: of 1,024 x 1,024 weights the gradients of 2 samples at the output are kept.
    assert mib["mtbench", "dibs_mtl"] < mib["plain", ""] + gradient
    assert "dibs_mtl (mtbench, 4 parts)" in text


def test_everybody_computes_what_it_should() -> None:
    problem = Problem.of("mlp", 3, "cpu", 6, 5)
    engine = Engine()
    assert problem.parameters == 3 * (6 * 6 + 6)
    seen: dict[str, list[torch.Tensor]] = {}

    def kept(name: str, zero: Callable[[], object]) -> None:
        def zero_grad() -> None:
            grads = [p.grad for p in problem.model.parameters()]
            seen[name] = [torch.zeros(()) if g is None else g.clone() for g in grads]
            zero()

        problem.model.zero_grad = zero_grad  # type: ignore[method-assign, assignment]

    zero = problem.model.zero_grad
    for name, run in {
        "plain": plain(problem),
        "ew": ours(problem, Method.find("ew"), engine),
    }.items():
        kept(name, zero)
        run(1)
    for a, b in zip(seen["plain"], seen["ew"], strict=True):
        torch.testing.assert_close(a, b)
    problem.model.zero_grad = zero  # type: ignore[method-assign]
    floor(problem)(1)
    assert all(p.grad is None for p in problem.model.parameters())


def test_bad_words_are_refused(mtbench: Mtbench, tmp_path: Path) -> None:
    line = ["bench", "speed"]
    refused(mtbench("bench", "sped"), "'sped'", "did you mean 'speed'?")
    refused(mtbench(*line, "--what", "steps"), "--what", "'steps'")
    refused(mtbench(*line, "--model", "mpl"), "--model", "'mpl'")
    refused(mtbench(*line, "--method", "mgdx"), "'mgdx'", "did you mean 'mgda'?")
    refused(mtbench(*line, "--method", "ew+mgda"), "ew wraps no other method")
    refused(mtbench(*line, "--device", "tpu"), "tpu")
    for option in ("objectives", "rounds", "threads", "width", "batch", "columns"):
        refused(mtbench(*line, f"--{option}", 0), f"--{option} must be at least 1, found 0")
    refused(mtbench(*line, "--out", tmp_path / "no" / "a.csv"), "--out", "a folder that exists")
    refused(mtbench(*line, "--no-such-option"), "--no-such-option")


def test_a_benchmark_whose_package_is_missing_is_told(
    mtbench: Mtbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_packages", lambda: {"other": "mtbench_no_such_package"})
    refused(mtbench("bench", "other"), "'other'", "mtbench_no_such_package", "does not import")


def test_benchmarks_are_listed(mtbench: Mtbench) -> None:
    code, out, err = mtbench("bench", "--help")
    assert (code, err) == (0, "")
    assert "speed" in out
    assert "beside the plain sum" in out
