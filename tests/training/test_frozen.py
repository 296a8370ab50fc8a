"""The weights of a run as constants."""

from pathlib import Path

import pytest

from mtbench.errors import RunError, UsageError
from mtbench.plugins.method import Method
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.trained.frozen import frozen_weights
from tests.conftest import Mtbench
from tests.training.test_trainer import train

UW = Method.find("uw")


def weighed(tiny: Path, out: Path, rows: str) -> RunDirectory:
    run, _ = train(tiny, out, "uw", epochs="1")
    (run.path / "steps.csv").write_text("step,loss_sum,weight_sum,weight_difference\n" + rows)
    return run


def test_the_mean_and_the_last(tiny: Path, tmp_path: Path) -> None:
    run = weighed(tiny, tmp_path, "0,9,1.0,3.0\n1,9,2.0,0.0\n2,9,6.0,1.5\n")
    assert frozen_weights(run, "mean", "tiny", UW) == [3.0, 1.5]
    assert frozen_weights(run, "final", "tiny", UW) == [6.0, 1.5]


def test_what_cannot_be_taken_is_explained(tiny: Path, tmp_path: Path) -> None:
    run = weighed(tiny, tmp_path, "0,9,nan,nan\n")
    with pytest.raises(UsageError, match="uw has no weights on record"):
        frozen_weights(run, "mean", "tiny", UW)
    with pytest.raises(UsageError, match="is of task tiny, wanted digits"):
        frozen_weights(run, "mean", "digits", UW)
    for broken in ("", "0,9,x,1\n", "0,9\n"):
        run = weighed(tiny, tmp_path, broken)
        with pytest.raises(RunError, match=r"steps\.csv: "):
            frozen_weights(run, "mean", "tiny", UW)
    with pytest.raises(RunError, match="no run directory"):
        frozen_weights(RunDirectory(tmp_path / "none"), "mean", "tiny", UW)


def test_a_run_that_did_not_finish_gives_none(tiny: Path, tmp_path: Path) -> None:
    stopped, _ = train(tiny, tmp_path, "uw", stop_after=9)
    with pytest.raises(RunError, match="is unfinished; give a run that finished"):
        frozen_weights(stopped, "final", "tiny", UW)
    diverged, _ = train(tiny, tmp_path, "uw", explode="true")
    with pytest.raises(RunError, match="is diverged; give a run that finished"):
        frozen_weights(diverged, "final", "tiny", UW)


@pytest.mark.parametrize("method", ["ls", "chebyshev"])
def test_who_has_weights_runs_with_those_of_a_run(
    tiny: Path, tmp_path: Path, mtbench: Mtbench, method: str
) -> None:
    run = weighed(tiny, tmp_path, "0,9,0.1,3.0\n")
    words = ("run", "--plugin", tiny, "--task", "tiny", "--epochs", 1, "--out", tmp_path / "ls")
    given = ("-m", method, "--weights-from", run.path, "--weights-of", "final")
    assert mtbench(*words, *given)[0] == 0
    [spec] = (tmp_path / "ls").rglob("spec.json")
    assert RunDirectory(spec.parent).spec().method_params["weights"] == [0.1, 3.0]
    code, _, error = mtbench(*words, *given, "--set", f"{method}.weights=1,1")
    assert code != 0
    assert "given twice" in error
    code, _, error = mtbench(*words, "-m", "ew", "--weights-from", run.path)
    assert code != 0
    assert "such as --method ls" in error
    code, _, error = mtbench(*words, "-m", "ls", "--weights-of", "final")
    assert code != 0
    assert "add --weights-from RUN" in error


@pytest.mark.parametrize("method", ["rlar", "cyclic+config", "norm_matched+samo+mgda"])
def test_weights_that_do_not_say_all_are_refused(
    tiny: Path, tmp_path: Path, mtbench: Mtbench, method: str
) -> None:
    run, _ = train(tiny, tmp_path, method, epochs="1")
    words = ("run", "--plugin", tiny, "--task", "tiny", "--epochs", 1, "-m", "ls")
    code, _, error = mtbench(*words, "--weights-from", run.path)
    assert code != 0
    [line] = error.strip().splitlines()
    assert f"{method} descends no weighted sum of the losses" in line
