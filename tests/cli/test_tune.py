"""`mtbench tune` and `run --config`, end to end."""

import dataclasses
import os
import re
import signal
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from mtbench.plugins.registry import entries
from mtbench.training.cell.config import Chosen, Config
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import find_runs
from tests.conftest import TINY
from tests.processes import Command
from tests.refusals import refused

Mtbench = Callable[..., tuple[int, str, str]]

COMMON = ("--task", "tiny", "--device", "cpu", "--threads", 1)


def words(tiny: Path, out: Path, *more: object, method: str = "dwa") -> list[object]:
    return ["tune", "--plugin", tiny, *COMMON, "--method", method, "--out", out, *more]


def only(out: Path, pattern: str) -> Path:
    [found] = out.rglob(pattern)
    return found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The out folder of eleven official trials; nobody may change it."""
    out = tmp_path_factory.mktemp("tuned")
    done = Command(*words(TINY, out, "--trials", 11, "--epochs", 2))
    output, error = done.communicate(timeout=120)
    assert done.returncode == 0, error
    assert error == ""
    (out / "output").write_text(output)
    return out


def test_official_tuning(tuned: Path) -> None:
    text = (tuned / "output").read_text()
    assert "search: lr 0.00333333 to 0.03, log-uniform" in text
    assert "search: weight_decay 3.33333e-05 to 0.0003, log-uniform" in text
    scores = [float(x) for x in re.findall(r"│ +\d+ │ +(-?\d\.\d{4}) │", text)]
    assert len(scores) == 11
    assert scores == sorted(scores, reverse=True)
    assert "exploratory" not in text
    for name in ("history", "slices", "importances"):
        assert only(tuned, f"{name}.png").read_bytes().startswith(b"\x89PNG")
    best = tomllib.loads(only(tuned, "best.toml").read_text())
    assert best["task"] == "tiny"
    assert best["method"] == "dwa"
    assert best["recipe"]["epochs"] == 2
    assert best["chosen"]["ruleset"] == "official"
    assert best["chosen"]["by"] == "log-primary"
    assert best["chosen"]["trials"] == {"finished": 11}
    assert round(best["chosen"]["score"], 4) == scores[0]
    assert (tuned / best["chosen"]["cell"] / "result.json").exists()
    assert not list(tuned.rglob("test.*"))


def test_the_storage_is_plain_optuna(tuned: Path) -> None:
    storage = f"sqlite:///{tuned / 'tune.db'}"
    [name] = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert name.startswith("tiny/dwa/official-")
    for trial in study.trials:
        assert (tuned / trial.user_attrs["cell"] / "spec.json").exists()
        assert trial.value == trial.user_attrs["score"]
        assert set(trial.user_attrs["val"]) == {"mae_sum", "within"}
        assert list(trial.intermediate_values) == [0, 1]


def test_where_data_lies_is_read_again_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = {"data": Path("here.csv")}
    Config(task="any", method="ew", task_params=params).write(tmp_path / "best.toml")
    read = Config.read(tmp_path / "best.toml").task_params
    assert read == {"data": str(tmp_path / "here.csv")}


@pytest.mark.parametrize("task", sorted(set(entries("task")) - {"multitarget"}))  # needs data
def test_what_tune_writes_of_any_task_is_read_again(task: str, tmp_path: Path) -> None:
    made = Request.of(task, ["cagrad"], {"recipe.lr": "0.003", "cagrad.c": "0.3"})
    [choice] = made.choices
    written = Config(
        task=task, method="cagrad", task_params=made.task_params, method_params=choice.params,
        recipe=dataclasses.asdict(made.recipe),
    )  # fmt: skip
    written.write(tmp_path / "best.toml")
    read = Config.read(tmp_path / "best.toml").overrides(task, ["cagrad"])
    again = Request.of(task, ["cagrad"], read)
    assert (again.task_params, again.recipe) == (made.task_params, made.recipe)
    assert again.choices[0].params == choice.params


def test_best_runs(tuned: Path, mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    file = only(tuned, "best.toml")
    best = tomllib.loads(file.read_text())
    line = ["run", "--config", file, "--plugin", tiny, "--device", "cpu", "--threads", 1]
    code, _, err = mtbench(*line, "--out", tmp_path / "plain")
    assert code == 0, err
    [run] = find_runs([tmp_path / "plain"])
    spec = run.spec()
    assert spec.stage == "final"
    assert spec.seed == 0
    assert spec.recipe["lr"] == best["recipe"]["lr"]
    assert spec.method_params["temperature"] == best["method_params"]["temperature"]
    assert run.open_test()
    chosen = Chosen.read(run)
    assert chosen is not None
    assert (chosen.ruleset, chosen.trials) == ("official", {"finished": 11})

    more = ["--method", "dwa", "--method", "ew", "--epochs", 1, "--lr", 0.5, "--temperature", 3]
    code, text, err = mtbench(*line, "--out", tmp_path / "more", *more)
    assert code == 0, err
    assert re.search(
        r"best.toml: weight_decay=[\d.e-]+ was found for dwa, and is taken for ew too", text
    )
    assert "lr=0.5" not in text  # the user's own
    known = {
        run.spec().method: Chosen.read(run) is not None for run in find_runs([tmp_path / "more"])
    }
    assert known == {"dwa": True, "ew": False}
    specs = {run.spec().method: run.spec() for run in find_runs([tmp_path / "more"])}
    assert set(specs) == {"dwa", "ew"}
    assert specs["dwa"].method_params["temperature"] == 3
    for spec in specs.values():
        assert spec.recipe["epochs"] == 1
        assert spec.recipe["lr"] == 0.5
        assert spec.recipe["weight_decay"] == best["recipe"]["weight_decay"]


def test_final_seeds_are_fresh(tuned: Path, mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    line = ["run", "--config", only(tuned, "best.toml"), "--plugin", tiny, "--out", tmp_path]
    refused(mtbench(*line, "--seed", 999, "--seeds", 2), "best.toml", "seed 1000", "give another")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task = 3", ["best.toml: task: ", "found 3"]),
        ("method = 'ew'", ["task: Field required"]),
        ("task", ["best.toml: is no TOML: "]),
        ("task='tiny'\nmethod='ew'\nspeed=2", ["speed: ", "found 2"]),
        ("task='tiny'\nmethod='ew'\nversion=2", ["version: ", "found 2"]),
        ("task='tiny'\nmethod='ewe'", ["best.toml: unknown method 'ewe'"]),
        ("task='tiny'\nmethod='dwa'\n[method_params]\nx=1", ["best.toml: ", "x"]),
        ("task='tiny'\nmethod='ew'\n[recipe]\nlr='fast'", ["recipe.lr must be float", "'fast'"]),
        ("task='tiny'\nmethod='ew'\n[recipe]\nlr=-1", ["lr must be positive, found -1"]),
        ("task='tiny'\nmethod='ew'\n[recipe]\nlr={a=1}", ["recipe.lr must be float"]),
        ("task='tiny'\nmethod='ew'\nprecision='fp8'", ["precision: ", "found 'fp8'"]),
    ],
)
def test_bad_configs(
    text: str, said: list[str], mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    file = tmp_path / "best.toml"
    file.write_text(text)
    refused(mtbench("run", "--config", file, "--plugin", tiny, "--out", tmp_path / "o"), *said)
    assert not (tmp_path / "o").exists()


def test_no_config_and_no_method(mtbench: Mtbench, tmp_path: Path) -> None:
    refused(mtbench("run", "--config", tmp_path / "none.toml"), "none.toml", "cannot be read")
    refused(mtbench("run"), "--method NAME, or --config FILE")


def test_exploratory_with_several_objectives(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    code, text, err = mtbench(*words(tiny, tmp_path, "--multi", "--trials", 4, "--epochs", 1))
    assert code == 0, err
    assert "exploratory: an official comparison does not rank" in text
    assert "no importances: they take 10 finished trials, here are 4" in text
    assert only(tmp_path, "pareto.png").exists()
    best = tomllib.loads(only(tmp_path, "best.toml").read_text())
    assert best["chosen"]["ruleset"] == "exploratory"
    assert best["chosen"]["mode"] == "tpe-multi"


def test_pruning(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    line = words(tiny, tmp_path, "--pruner", "median", "--trials", 12, "--storage", storage)
    code, text, err = mtbench(*line)
    assert code == 0, err
    assert not (tmp_path / "tune.db").exists()
    trials = tomllib.loads(only(tmp_path, "best.toml").read_text())["chosen"]["trials"]
    assert sum(trials.values()) == 12
    assert trials["pruned"] == text.count("pruned │") >= 1
    results = [run.result() for run in find_runs([tmp_path])]
    assert results.count(None) == trials["pruned"]


IDLE = """
from mtbench import Scalarizer

class Idle(Scalarizer):
    paper = "none"

    def __init__(self, num_objectives, seed=0, *, size: float = 0.0):
        super().__init__(num_objectives, seed)

    @classmethod
    def suggest(cls, trial, num_objectives):
        return {"size": trial.suggest_float("size", 0.0, 1.0)}

    def objective(self, step):
        self.notes = {"acts": step.values.new_zeros(())}
        return step.total(), None
"""


def test_a_trial_in_which_the_method_never_acted_is_told(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "idle.py").write_text(IDLE)
    line = words(
        tiny, tmp_path, "--plugin", tmp_path / "idle.py", "--trials", 2, "--epochs", 1,
        method="idle",
    )  # fmt: skip
    code, text, err = mtbench(*line)
    assert code == 0, err
    assert "the method acted in no step: this is training by the plain sum" in text
    assert "(acted in no step)" in text


def test_all_diverge(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    line = words(tiny, tmp_path, "--trials", 2, "--explode", "yes", "--storage", tmp_path / "a.log")
    refused(mtbench(*line), "no trial has finished: all 2 diverged or were pruned")
    assert not list(tmp_path.rglob("best.toml"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", 0], ["--trials must be at least 1, found 0"]),
        (["--seed", -1], ["--seed must be at least 0"]),
        (["--sampler", "tep"], ["sampler must be one of tpe", "found tep"]),
        (["--pruner", "medium"], ["pruner must be one of none", "found medium"]),
        (["--pruner", "median", "--multi"], ["single-objective"]),
        (["--lr-range", "1"], ["--lr-range must be LOW,HIGH or none, found '1'"]),
        (["--lr-range", "a,b"], ["--lr-range must be", "'a,b'"]),
        (["--lr-range", "2,1"], ["range of lr must be 0 < low < high, found 2 1"]),
        (["--weight-decay-range", "0,1"], ["range of weight_decay"]),
        (["--temperature", 2], ["temperature is searched"]),
        (["--dwa.temperature", 2], ["dwa.temperature is searched"]),
        (["--storage", "tune"], ["--storage must be a database URL", "found 'tune'"]),
        (["--storage", "sqlite:////no/such/folder/x.db"], ["--storage sqlite", "cannot be opened"]),
        (["--storage", "nosuch://me:secret@host/x"], ["nosuch://...@host/x: cannot be opened"]),
        (["--trails", 3], ["trails", "did you mean '--trials'"]),
        (["--precision", "fp8"], ["--precision"]),
    ],
)
def test_bad_input(
    more: list[object], said: list[str], mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    answer = mtbench(*words(tiny, tmp_path), *more)
    refused(answer, *said)
    assert "secret" not in answer[2]


def test_what_is_searched_is_refused_before_data_is_loaded(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    text = tiny.read_text().replace('progress("making numbers", 1, 1)', 'raise OSError("no data")')
    (other := tmp_path / "tiny.py").write_text(text)
    refused(mtbench(*words(other, tmp_path, "--temperature", 2)), "temperature is searched")


@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_a_broken_storage(kind: str, mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken"
    file.write_text("no study is in here\n" * 100)
    refused(mtbench(*words(tiny, tmp_path, "--storage", f"{kind}{file}")), "cannot be opened")


def test_nothing_to_search(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    none = ["--lr-range", "none", "--weight-decay-range", "none"]
    refused(mtbench(*words(tiny, tmp_path, *none, method="ew")), "ew: there is nothing to search")


@pytest.mark.parametrize("of", ["", "recipe."])
def test_a_given_value_of_the_recipe_moves_its_range(
    of: str, mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    more = ["--trials", 1, "--epochs", 1, f"--{of}lr", 0.5, f"--{of}weight_decay", 0.03]
    code, text, err = mtbench(*words(tiny, tmp_path, *more, "--storage", tmp_path / "a.log"))
    assert code == 0, err
    assert "search: lr 0.166667 to 1.5, log-uniform" in text
    assert "search: weight_decay 0.01 to 0.09, log-uniform" in text
    [run] = find_runs([tmp_path])  # the first trial has the defaults
    recipe = run.spec().recipe
    assert (recipe["lr"], recipe["weight_decay"]) == (0.5, 0.03)


def in_the_second_trial(out: Path) -> bool:
    ended = {file.parent for file in out.rglob("result.json")}
    return bool(ended) and any(file.parent not in ended for file in out.rglob("checkpoint.pt"))


def test_sigkill_and_resume(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    more = ("--trials", 2, "--epochs", 2, "--sleep", 0.25)  # an epoch that is over a second
    line = words(tiny, tmp_path / "cut", *more)  # has a checkpoint at its end
    process = Command(*line)
    limit = time.monotonic() + 120
    while not in_the_second_trial(tmp_path / "cut"):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    running = (optuna.trial.TrialState.RUNNING,)
    assert len(load(tmp_path / "cut").get_trials(states=running)) == 1

    again = Command(*line)
    text, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert "resumed at step" in text
    study = load(tmp_path / "cut")
    assert study.get_trials(states=running) == []
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert len({trial.user_attrs["cell"] for trial in complete}) == len(complete) == 2
    assert len(list(find_runs([tmp_path / "cut"]))) == 2
    assert mtbench(*words(tiny, tmp_path / "whole", *more))[0] == 0
    assert (
        only(tmp_path / "whole", "best.toml").read_text()
        == only(tmp_path / "cut", "best.toml").read_text()
    )


def load(out: Path) -> optuna.Study:
    storage = f"sqlite:///{out / 'tune.db'}"
    return optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
