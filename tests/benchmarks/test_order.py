"""The order of methods: what cells lack, and what is no row of the comparison."""

import importlib
import math
from pathlib import Path

import pytest

from tests.comparing.test_entrants import claimed
from tests.comparing.test_leaderboard import cell

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    order = importlib.import_module("order")


def test_seeds_that_some_row_lacks_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "HALVES", 2)
    said = {"draw": None, "trials": 0, "rows": 4}
    for k, method in enumerate(("stl", "ew", "ls", "uw")):
        for seed in range(4):
            lost = method == "uw" and seed == 1
            dice = math.nan if method == "ls" and seed == 2 else 0.5 + k / 10 + k * seed / 100
            status = "diverged" if lost else "finished"
            claimed(cell(tmp_path, method, seed, dice, status=status), **said)
    cell(tmp_path, "si", 9)  # not of the suite
    order.main(tmp_path)
    told = capsys.readouterr().out
    assert ": 2 units\n  uw -34.5, ls -23.0, ew -11.5\n" in told
    assert "halves: 1.00" in told
