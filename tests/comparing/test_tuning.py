"""Draws, studies and what is chosen, without the command line."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console
from sqlalchemy.engine import make_url

from mtbench.cli.tuning import report
from mtbench.comparing.tuning import figures as tuning_figures
from mtbench.comparing.tuning.draws import Draw, Search, draw
from mtbench.comparing.tuning.mode import Mode
from mtbench.comparing.tuning.outcome import Outcome
from mtbench.comparing.tuning.study import Tuning
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.training.cell.config import Config
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import RunDirectory, find_runs
from mtbench.training.task import Recipe
from mtbench.training.trainer.observer import Silent

SEARCH = Search((1e-4, 1e-2), (1e-5, 1e-3))


class Cutting(Silent):
    """An observer that may be told to cut a trial off."""

    def __init__(self, cut_after: int | None = None) -> None:
        self.left, self.done = cut_after, []

    def started(self, spec, epochs, steps, done):
        self.done.append(done)

    def evaluated(self, record):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


@pytest.fixture
def make(tiny: Path, tmp_path: Path):
    def tuning(method="dwa", mode=None, out=tmp_path, search=SEARCH, given=None, **own) -> Tuning:
        request = Request.of("tiny", [method], given or {}, [tiny])
        splits = request.task.setup(7, lambda *_: None)
        fields = {"seed": 7, "precision": "fp32", "device": "cpu", "threads": 1}
        fields |= {"storage": f"journal:{tmp_path / 'study'}"} | own  # quicker than SQLite
        return Tuning(request, splits, search, mode or Mode(), out=out, **fields)

    return tuning


def test_more_than_can_be_drawn_is_refused() -> None:
    assert len(draw(Method.find("ls"), 250, SEARCH, 2, 5)) == 2
    with pytest.raises(UsageError, match=r"at most 256 numbers can be drawn for a trial, and weig"):
        draw(Method.find("ls"), 260, SEARCH, 2, 5)


@pytest.mark.parametrize("name", ["rlar", "ls", "ew", "aligned_mtl", "damped+mgda"])
def test_draws_are_fixed_and_a_longer_list_begins_with_the_shorter(name: str) -> None:
    method = Method.find(name)
    long = draw(method, 3, SEARCH, 30, 5)
    assert draw(method, 3, SEARCH, 4, 5) == long[:4]
    assert draw(method, 3, SEARCH, 4, 6) != long[:4]
    assert long[0] == Draw()  # the defaults
    assert draw(method, 3, SEARCH, 0, 5) == []
    for one in long[1:]:
        method(3, 0, **method.resolve(one.params))
        assert 1e-4 <= one.recipe["lr"] <= 1e-2
        assert 1e-5 <= one.recipe["weight_decay"] <= 1e-3


def test_all_methods_have_the_same_points() -> None:
    recipes = [[d.recipe for d in draw(Method.find(m), 2, SEARCH, 9, 3)] for m in ("ew", "rlar")]
    assert recipes[0] == recipes[1]
    no_decay = draw(Method.find("ew"), 2, replace(SEARCH, weight_decay=None), 9, 3)
    assert [d.recipe for d in no_decay[1:]] == [{"lr": r["lr"]} for r in recipes[0][1:]]
    one, other = (draw(Method.find(m), 2, SEARCH, 9, 3) for m in ("ls", "chebyshev"))
    for a, b in zip(one, other, strict=True):  # the weighted sum asks for one number more
        assert list(a.places.values())[: len(b.places)] == list(b.places.values())


def test_points_are_spread_more_evenly_than_random_ones() -> None:
    """A scrambled Sobol sequence has one of 2^k points in each 2^-k of every range."""
    for seed in (0, 1):
        found = draw(Method.find("cagrad"), 2, SEARCH, 17, seed)[1:]
        for name in ("recipe.lr", "recipe.weight_decay", "c"):
            assert sorted(int(16 * d.places[name]) for d in found) == list(range(16))
    logs = [math.log10(d.recipe["lr"]) for d in draw(Method.find("ew"), 2, SEARCH, 1025, 0)[1:]]
    assert sum(logs) / len(logs) == pytest.approx(-3, abs=1e-2)


class Odd:
    """Asks for everything that a trial offers."""

    name = "odd"

    def suggest(self, trial, num_objectives):
        return {
            "int": trial.suggest_int("int", 2, 5), "even": trial.suggest_int("even", 0, 8, step=2),
            "log": trial.suggest_int("log", 1, 100, log=True),
            "step": trial.suggest_float("step", 0.0, 1.0, step=0.25),
            "kind": trial.suggest_categorical("kind", ["a", "b", "c"]),
            "again": trial.suggest_int("int", 2, 5),
        }  # fmt: skip

    def resolve(self, given):
        return given


def test_every_kind_of_parameter() -> None:
    found = [d.params for d in draw(Odd(), 2, Search(None, None), 257, 0)[1:]]  # type: ignore[arg-type]
    values = {key: [p[key] for p in found] for key in found[0]}
    assert set(values["int"]) == {2, 3, 4, 5}
    assert set(values["even"]) == {0, 2, 4, 6, 8}
    assert set(values["step"]) == {0, 0.25, 0.5, 0.75, 1}
    assert min(values["log"]) == 1
    assert 90 < max(values["log"]) <= 100
    assert sum(v < 10 for v in values["log"]) == pytest.approx(128, abs=4)
    assert {values["kind"].count(k) for k in "abc"} <= {85, 86}
    assert values["again"] == values["int"]


def test_default_search_is_around_the_recipe() -> None:
    found = Search.around(Recipe(lr=1e-2, weight_decay=1e-4))
    assert found == Search((1e-2 / 3, 3e-2), (1e-4 / 3, 1e-4 * 3))
    assert Search.around(Recipe(weight_decay=0.0)).weight_decay is None


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_bad_ranges(bounds: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="range of lr must be 0 < low < high"):
        Search(bounds, None)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ({"sampler": "tep"}, "sampler must be one of tpe"),
        ({"sampler": "tpe", "pruner": "x"}, "pruner must be one of none"),
        ({"pruner": "median"}, "need a sampler"),
        ({"sampler": "tpe", "pruner": "median", "multi": True}, "single-objective"),
        ({"sampler": "cmaes", "multi": True}, "one objective only"),
    ],
)
def test_bad_modes(mode: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Mode(**mode)


def test_mode_names() -> None:
    assert Mode().name == "official"
    assert Mode("tpe", "median").name == "tpe-median"
    assert Mode("nsgaii", multi=True).name == "nsgaii-multi"


def test_official_trials_are_the_draws_and_sealed(make, tmp_path: Path) -> None:
    with make() as study:
        study.run(3, Cutting())
        outcomes = study.outcomes()
        drawn = study.draws(3)
    assert sorted(o.number for o in outcomes) == [0, 1, 2]
    assert [o.score for o in outcomes] == sorted((o.score for o in outcomes), reverse=True)
    for outcome in outcomes:
        wanted = drawn[outcome.number]
        assert outcome.asked == wanted.asked
        assert outcome.recipe == wanted.recipe
        default = {"temperature": 2.0}
        assert outcome.method_params["temperature"] == (wanted.params or default)["temperature"]
    runs = list(find_runs([tmp_path]))
    assert {run.spec().stage for run in runs} == {"trial"}
    assert {run.spec().seed for run in runs} == {7}
    assert not list(tmp_path.rglob("test.*"))


@pytest.mark.parametrize("name", ["runs", "study?1", "of 100%25"])
def test_a_study_lies_in_its_folder_whatever_that_is_called(make, name: str) -> None:
    pytest.importorskip("sqlalchemy", "2.1", reason="earlier ones have no sign for ? in a path")
    study = make(out=Path(name), storage=None)
    assert make_url(study.storage).database == f"{name}/tune.db"


def test_a_study_grows_and_its_first_trials_stay(make) -> None:
    with make() as study:
        study.run(2, Cutting())
        before = study.outcomes()
    with make() as study:
        study.run(4, Cutting())
        after = {outcome.number: outcome for outcome in study.outcomes()}
    assert sorted(after) == [0, 1, 2, 3]
    assert all(after[outcome.number] == outcome for outcome in before)
    with make() as study:
        watcher = Cutting()
        study.run(4, watcher)
        assert watcher.done == []


@pytest.mark.parametrize("mode", [Mode(), Mode("tpe", "median"), Mode("tpe", multi=True)])
@pytest.mark.parametrize("storage", ["sqlite:///{}/tune.db", "{}/tune.log"])
def test_a_trial_that_was_cut_off_is_taken_up(make, mode: Mode, storage, tmp_path: Path) -> None:
    own = {"mode": mode, "storage": storage.format(tmp_path)}
    with make(**own) as study, pytest.raises(KeyboardInterrupt):
        study.run(3, Cutting(cut_after=5))  # in the second epoch of the second trial
    with make(**own) as study:
        assert len(study.study.get_trials(states=(optuna.trial.TrialState.RUNNING,))) == 1
        watcher = Cutting()
        study.run(3, watcher)
        outcomes = study.outcomes()
        assert study.elsewhere == 0
    assert watcher.done == [12, 0]  # two of four epochs of six steps were there
    assert len(outcomes) == 3
    assert len({outcome.cell for outcome in outcomes}) == 3
    assert len(list(find_runs([tmp_path]))) == 3


def test_an_epoch_that_is_repeated_is_reported_once(make, tmp_path: Path) -> None:
    """Killed after the record was written and before the checkpoint."""
    with make() as study, pytest.raises(KeyboardInterrupt):
        study.run(2, Cutting(cut_after=5))
    [unfinished] = [run for run in find_runs([tmp_path]) if run.result() is None]
    assert unfinished.history()
    (unfinished.path / "checkpoint.pt").unlink()
    with make() as study:
        study.run(2, watcher := Cutting())
        assert len(study.outcomes()) == 2
    assert watcher.done == [0]


def test_two_folders_share_a_storage(make, tmp_path: Path) -> None:
    own = {"storage": f"sqlite:///{tmp_path / 'shared.db'}"}
    with make(out=tmp_path / "a", **own) as one, pytest.raises(KeyboardInterrupt):
        one.run(4, Cutting(cut_after=1))
    with make(out=tmp_path / "b", **own) as other:
        other.run(4, Cutting())
        assert other.elsewhere == 1  # left alone
        assert sorted(o.number for o in other.outcomes()) == [1, 2, 3]
    with make(out=tmp_path / "a", **own) as one:
        one.run(4, Cutting())
        assert sorted(o.number for o in one.outcomes()) == [0, 1, 2, 3]


def test_two_processes_share_a_folder(make, tmp_path: Path) -> None:
    """What stands for the second process is a second file descriptor of the lock."""
    with make() as one, make() as other:
        first = other.queue.next(3, other.draws(3))
        assert first is not None
        run = RunDirectory.at(tmp_path, other.cell(first, other.draws(3)))
        first.set_user_attr("cell", run.path.relative_to(tmp_path).as_posix())
        with run.claim():  # alive
            one.run(3, Cutting())
            assert one.elsewhere == 1
            assert sorted(o.number for o in one.outcomes()) == [1, 2]
        one.run(3, Cutting())  # dead
        assert one.elsewhere == 0
        assert sorted(o.number for o in one.outcomes()) == [0, 1, 2]
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            other.study._storage.set_trial_user_attr(first._trial_id, "late", 1)
    assert len(list(find_runs([tmp_path]))) == 3


@pytest.mark.parametrize("mode", [Mode(), Mode("random")])
def test_folders_that_queue_at_once_run_nothing_twice(make, mode: Mode, tmp_path: Path) -> None:
    """Both have queued their next trial before either takes one."""
    own = {"storage": f"sqlite:///{tmp_path / 'shared.db'}", "mode": mode}
    with make(out=tmp_path / "a", **own) as one, make(out=tmp_path / "b", **own) as other:
        draws = one.draws(2)
        for number, study in ((0, one), (0, other)):
            attrs = {"owner": study.queue.owner} | ({"draw": number} if mode.official else {})
            study.study.enqueue_trial(
                draws[number].asked if mode.official else {}, user_attrs=attrs
            )
        second = other.study.get_trials()[1]
        assert other.queue.counts(optuna.trial.Trial(other.study, second._trial_id), 1) is False
        one.run(2, Cutting())
        other.run(2, Cutting())
        assert len(one.outcomes()) == len(other.outcomes()) == 2
        assert len({outcome.cell for outcome in one.outcomes()}) == 2
    assert len(list(find_runs([tmp_path]))) == 2


def test_a_trial_that_is_ended_by_hand_is_tried_again(make, tmp_path: Path) -> None:
    class Meddler(Silent):
        def evaluated(self, record):
            super().evaluated(record)
            if record["epoch"] == 1 and not hasattr(self, "done_it"):
                self.done_it = True
                [running] = study.study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
                study.study.tell(running.number, state=optuna.trial.TrialState.FAIL)

    with make() as study:
        study.run(2, Meddler())
        assert sorted(o.number for o in study.outcomes()) == [0, 1]
    assert len(list(find_runs([tmp_path]))) == 2


def test_who_ends_while_the_only_trial_runs_elsewhere_says_so(make) -> None:
    with make() as other, make() as study:
        with other.alone():
            other.queue.next(1, other.draws(1))
        report(console := Console(file=io.StringIO()), study)
    assert "1 trial is under way in other processes" in console.file.getvalue()
    assert not (study.folder / "best.toml").exists()


def test_another_space_seed_or_recipe_is_another_study(make) -> None:
    names = {
        make().name, make(search=Search((1e-4, 1e-1), None)).name, make(seed=8).name,
        make(given={"epochs": "2"}).name, make(method="ls").name, make(mode=Mode("tpe")).name,
        make(precision="bf16").name,
    }  # fmt: skip
    assert len(names) == 7
    assert make().name == make().name


def test_nothing_to_search(make) -> None:
    with pytest.raises(UsageError, match="ew: there is nothing to search"):
        make(method="ew", search=Search(None, None))


class Hopeless(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.last_step >= 1


def test_a_pruned_cell_is_not_finished(make, tmp_path: Path) -> None:
    with make(mode=Mode("random", "median")) as study:
        study.study.pruner = Hopeless()
        study.run(2, Cutting())
        outcomes = study.outcomes()
        assert [outcome.status for outcome in outcomes] == ["pruned", "pruned"]
        assert study.best(outcomes) is None
    for run in find_runs([tmp_path]):
        assert run.result() is None
        assert len(run.history()) == 2


def test_diverged_trials_are_the_worst_and_count(make) -> None:
    for mode in (Mode(), Mode("tpe"), Mode("tpe", multi=True)):
        with make(mode=mode, given={"explode": "true"}) as study:
            study.run(2, Cutting())
            outcomes = study.outcomes()
            assert [o.status for o in outcomes] == ["diverged", "diverged"]
            assert study.best(outcomes) is None
            assert {o.score for o in outcomes} == {-math.inf}


@pytest.mark.parametrize("explode", ["false", "true"])
def test_a_trial_that_has_ended_keeps_no_checkpoint(make, tmp_path: Path, explode: str) -> None:
    with make(given={"explode": explode}) as study:
        study.run(2, Cutting())
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_samplers_do_not_repeat_themselves_when_resumed(make) -> None:
    mode = Mode("random")
    for count in (1, 2, 3):
        with make(mode=mode) as study:
            study.run(count, Cutting())
    assert len({outcome.recipe["lr"] for outcome in study.outcomes()}) == 3


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii", "gp"])
def test_every_sampler_runs(make, sampler: str) -> None:
    given = {"epochs": "1"}
    for mode in (Mode(sampler, "hyperband"), Mode(sampler, multi=True)):
        with make(mode=mode, given=given) as study:
            study.run(3, Cutting())
            assert len(study.outcomes()) == 3


@pytest.mark.parametrize("method", ["ls", "damped+mgda"])
def test_best_is_what_ran(make, method: str, tmp_path: Path, tiny: Path) -> None:
    with make(method=method) as study:
        study.run(3, Cutting())
        outcomes = study.outcomes()
    best = study.best(outcomes)
    assert best is not None
    assert best.chosen is not None
    assert best.chosen.ruleset == "official"
    assert best.chosen.trials == {"finished": 3}
    assert best.chosen.score == max(outcome.score for outcome in outcomes)
    best.write(tmp_path / "best.toml")
    read = Config.read(tmp_path / "best.toml")
    request = Request.of("tiny", [method], read.overrides("tiny", [method]), [tiny])
    spec = request.spec(
        request.choices[0], study.splits.fingerprint, 7, "fp32", "cpu", stage="trial"
    )
    assert (tmp_path / best.chosen.cell).name == f"seed7-{spec.hash}"
    assert read.overrides("other", ["ew"]).keys() == {
        f"recipe.{key}" for key in vars(request.recipe)
    }


def outcome(number: int, score: float, **asked) -> Outcome:
    status = "finished" if score > -math.inf else "diverged"
    val = {"a": score, "b": -score} if status == "finished" else {}
    return Outcome(number, status, score, asked, val, {}, {}, "")


def test_figures_of_few_and_odd_trials(tmp_path: Path) -> None:
    lost = [outcome(0, -math.inf, x=1.0)]
    file = tmp_path / "a.png"
    directions = {"a": True, "b": True}
    assert tuning_figures.history(lost, "t", file) is None
    assert tuning_figures.slices(lost, "t", file) is None
    study = optuna.create_study(directions=["maximize", "maximize"])
    assert tuning_figures.pareto(study, lost, directions, "t", file) is None
    assert tuning_figures.slices([outcome(0, 0.3)], "t", file) is None  # the defaults alone
    mixed = [
        outcome(3, 0.6),
        outcome(1, 0.5, x=1.0, kind="u"),
        outcome(2, 0.1, x=100.0, kind="v"),
        *lost,
    ]
    for made in (
        tuning_figures.history(mixed, "t", tmp_path / "h.png"),
        tuning_figures.slices(mixed, "t", tmp_path / "s.png"),
        tuning_figures.pareto(
            study, mixed, {"a": True, "b": True, "c": False}, "t", tmp_path / "none.png"
        ),
    ):
        assert made is None or made.stat().st_size > 1000


def test_the_front_is_what_no_trial_dominates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[tuple[float, float]]] = {}
    scatter = tuning_figures._scatter

    def noted(axes: Any, shown: list[Outcome], a: str, b: str, *look: Any) -> None:
        drawn[look[-1]] = [(o.val[a], o.val[b]) for o in shown]
        scatter(axes, shown, a, b, *look)

    monkeypatch.setattr(tuning_figures, "_scatter", noted)
    study = optuna.create_study(directions=["maximize", "minimize"])
    found = []
    for number, (a, b) in enumerate([(1.0, 1.0), (2.0, 3.0), (2.0, 2.0), (0.0, 1.0), (0.0, 0.5)]):
        study.add_trial(optuna.trial.create_trial(values=[a, b]))
        found.append(Outcome(number, "finished", a - b, {}, {"a": a, "b": b}, {}, {}, ""))
    worst = {"values": [-math.inf, math.inf]}
    study.add_trial(optuna.trial.create_trial(**worst))
    found.append(Outcome(5, "diverged", -math.inf, {}, {}, {}, {}, ""))
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED))
    file = tmp_path / "p.png"
    assert tuning_figures.pareto(study, found, {"a": True, "b": False}, "t", file) == file
    assert drawn["Pareto front"] == [(0.0, 0.5), (1.0, 1.0), (2.0, 2.0)]
    assert len(drawn["dominated"]) == 5


def test_importances_need_trials(make) -> None:
    study = optuna.create_study(direction="maximize")
    assert tuning_figures.importances(study, []) == (
        "no importances: they take 10 finished trials, here are 0"
    )
    equal = [outcome(i, 0.5, x=float(i)) for i in range(12)]
    assert tuning_figures.importances(study, equal) == "no importances: all scores are equal"


def test_importances_find_what_makes_the_score_high() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    found = []
    for i in range(60):
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        score = -abs(x - 0.2)
        trial.set_user_attr("score", score)
        study.tell(trial, score)
        found.append(outcome(i, score, x=x, y=y))
    shares = tuning_figures.importances(study, found)
    assert isinstance(shares, dict)
    assert shares["x"] > 0.8
