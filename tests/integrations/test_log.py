"""``mtbench log``, read back by MLflow's client and TensorBoard's own reader."""

import json
import math
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

with warnings.catch_warnings():  # not ours
    warnings.simplefilter("ignore")
    mlflow = pytest.importorskip("mlflow")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

from mtbench import cli
from mtbench.integrations import tensorboard as to_tensorboard
from mtbench.integrations.mlflow import Log
from mtbench.integrations.record import Record
from mtbench.plugins import extras
from mtbench.training.cell.rundir import find_runs
from tests.conftest import TINY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished cells, as mtbench's own command makes them."""
    out = tmp_path_factory.mktemp("runs")
    words = ["run", "--plugin", TINY, "--task", "tiny", "-m", "ew", "-m", "samo+uw", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mtbench", *map(str, words)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    return out


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """MLflow's tables, which take it ten seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "ml.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def of(runs, method):
    (found,) = (run for run in find_runs([runs]) if run.spec().method == method)
    return found


def sealed(run):
    """Make the cell one that nobody has compared yet."""
    (run.path / "test.opened").unlink()
    return run


def unfinished(run, epochs):
    """Make the cell one that is being trained."""
    lines = (run.path / "epochs.jsonl").read_text().splitlines(keepends=True)
    (run.path / "epochs.jsonl").write_text("".join(lines[:epochs]))
    for name in ("result.json", "test.json", "test.opened"):
        (run.path / name).unlink()


@pytest.fixture
def client(database, tmp_path):
    shutil.copy(database, tmp_path / "ml.db")
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/ml.db")


def logged(client, run):
    experiment = client.get_experiment_by_name("mtbench/tiny")
    same = f"tags.`mtbench.hash` = '{run.spec().hash}'"
    (found,) = client.search_runs([experiment.experiment_id], same)
    return found


def series(client, found, name):
    return [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]


def test_mlflow_has_the_spec_every_epoch_and_the_result(mtbench, runs, client, tmp_path):
    code, out, err = mtbench("log", runs, "--mlflow", client.tracking_uri)
    assert (code, out) == (0, f"{client.tracking_uri}: 2 cells logged, 0 there already\n"), err
    run = of(runs, "samo+uw")
    found, spec = logged(client, run), run.spec()
    params = found.data.params
    assert params["task.activation"] == "tanh"
    assert params["method.samo.rho"] == str(spec.method_params["samo.rho"])
    assert params["recipe.lr"] == "0.01"
    assert (params["seed"], params["device"]) == ("0", "cpu")
    tags = {name: found.data.tags[f"mtbench.{name}"] for name in ("method", "seed", "stage")}
    assert tags == {"method": "samo+uw", "seed": "0", "stage": "final"}
    history = run.history()
    for group, name in (("val", "mae_sum"), ("train_loss", "sum"), ("update", "cosine")):
        expected = [(record["epoch"], record[group][name]) for record in history]
        assert series(client, found, f"{group}/{name}") == expected
    result = run.result()
    assert found.data.metrics["selected/within"] == result.val["within"]
    assert found.data.metrics["cost/parameters"] == result.cost.parameters
    assert found.data.metrics["test/within"] == run.open_test()["within"]
    assert found.info.status == "FINISHED"
    assert found.info.end_time >= found.info.start_time > 1.7e12


def test_mlflow_takes_metrics_of_any_name(mtbench, runs, client):
    """Such as the thyroid's ``auroc[TR1]``; a second time nothing is added."""
    run = of(runs, "ew")
    for name in ("epochs.jsonl", "result.json", "test.json"):
        file = run.path / name
        file.write_text(file.read_text().replace('"within"', '"auroc[TR1]"'))
    shutil.rmtree(of(runs, "samo+uw").path)
    code, _, err = mtbench("log", runs, "--mlflow", client.tracking_uri)
    assert (code, err) == (0, "")
    found = logged(client, run)
    assert found.data.metrics["test/auroc_TR1"] == run.open_test()["auroc[TR1]"]
    assert len(series(client, found, "val/auroc_TR1")) == 4
    _, again, _ = mtbench("log", runs, "--mlflow", client.tracking_uri)
    assert "0 cells logged, 1 there already" in again


def test_mlflow_again_adds_nothing(mtbench, runs, client):
    mtbench("log", runs, "--mlflow", client.tracking_uri)
    before = [logged(client, run).to_dictionary() for run in find_runs([runs])]
    code, out, _ = mtbench("log", runs, "--mlflow", client.tracking_uri)
    assert (code, out) == (0, f"{client.tracking_uri}: 0 cells logged, 2 there already\n")
    assert [logged(client, run).to_dictionary() for run in find_runs([runs])] == before
    assert len(series(client, logged(client, of(runs, "ew")), "val/within")) == 4


def test_mlflow_goes_on_with_an_unfinished_cell(mtbench, trained, runs, client):
    run = of(runs, "ew")
    unfinished(run, 2)
    mtbench("log", runs, "--mlflow", client.tracking_uri)
    found = logged(client, run)
    assert found.info.status == "RUNNING"
    assert [step for step, _ in series(client, found, "score")] == [0, 1]
    assert not any(name.startswith(("selected", "cost", "test")) for name in found.data.metrics)
    shutil.copytree(of(trained, "ew").path, run.path, dirs_exist_ok=True)
    _, out, _ = mtbench("log", runs, "--mlflow", client.tracking_uri)
    assert out.endswith("1 cells logged, 1 there already\n")
    found = logged(client, run)
    assert found.info.status == "FINISHED"
    assert [step for step, _ in series(client, found, "score")] == [0, 1, 2, 3]


def test_a_seal_is_not_broken(mtbench, runs, client, tmp_path):
    run = sealed(of(runs, "ew"))
    to = ["--mlflow", client.tracking_uri, "--tensorboard", tmp_path / "tb"]
    mtbench("log", runs, *to)
    assert not (run.path / "test.opened").exists()
    assert not any(name.startswith("test") for name in logged(client, run).data.metrics)
    assert not any(name.startswith("test") for name in read(tmp_path / "tb", run)["scalars"])
    assert mtbench("leaderboard", runs)[0] == 0
    _, out, _ = mtbench("log", runs, *to)
    assert out.count("1 cells logged, 1 there already\n") == 2
    assert logged(client, run).data.metrics["test/within"] == run.open_test()["within"]
    assert "test/within" in read(tmp_path / "tb", run)["scalars"]


def test_a_diverged_cell(mtbench, tiny, client, tmp_path):
    mtbench("run", "--plugin", tiny, "--task", "tiny", "-m", "ew", "--set", "explode=true",
            "--out", tmp_path / "runs")  # fmt: skip
    assert mtbench("log", tmp_path / "runs", "--mlflow", client.tracking_uri)[0] == 0
    found = logged(client, of(tmp_path / "runs", "ew"))
    assert found.info.status == "FAILED"
    assert found.data.tags["mtbench.status"] == "diverged"
    assert "non-finite loss" in found.data.tags["mtbench.reason"]


def read(folder, run, end=""):
    """Return what TensorBoard reads of a cell: its tags, and its scalars by name."""
    spec = run.spec()
    place = folder / spec.task / spec.method / f"seed{spec.seed}-{spec.hash}{end}"
    found = events.EventAccumulator(str(place)).Reload()
    scalars = {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }
    return {"scalars": scalars, "hparams": found.SummaryMetadata}


def test_tensorboard_has_every_epoch_and_again_adds_nothing(mtbench, runs, tmp_path):
    run, folder = of(runs, "ew"), tmp_path / "tb"
    unfinished(of(runs, "samo+uw"), 1)
    for count in (2, 0):
        code, out, err = mtbench("log", runs, "--tensorboard", folder)
        assert (code, out) == (0, f"{folder}: {count} cells logged, {2 - count} there already\n"), (
            err
        )
        scalars = read(folder, run)["scalars"]
        for group, name in (("val", "mae_sum"), ("train_loss", "sum"), ("update", "length")):
            expected = [(record["epoch"], record[group][name]) for record in run.history()]
            assert [step for step, _ in scalars[f"{group}/{name}"]] == [s for s, _ in expected]
            for (_, value), (_, wanted) in zip(scalars[f"{group}/{name}"], expected, strict=True):
                assert math.isclose(value, wanted, rel_tol=1e-6)
        assert len(scalars["selected/within"]) == 1
        partial = read(folder, of(runs, "samo+uw"))["scalars"]
        assert [step for step, _ in partial["score"]] == [0]


def test_tensorboard_has_the_spec(mtbench, runs, tmp_path):
    from tensorboard.plugins.hparams import metadata

    mtbench("log", runs, "--tensorboard", tmp_path)
    spec = of(runs, "ew").spec()
    place = tmp_path / spec.task / spec.method / f"seed{spec.seed}-{spec.hash}"
    found = events.EventAccumulator(str(place)).Reload()
    content = found.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    params = metadata.parse_session_start_info_plugin_data(content).hparams
    assert params["recipe.lr"].number_value == 0.01
    assert params["task.activation"].string_value == "tanh"
    assert params["method"].string_value == "ew"


def again(record, count, times=1.5):
    """Return what is known of a cell that is trained anew, in the epoch `count`."""
    epochs = [{name: times * value for name, value in epoch.items()} for epoch in record.epochs]
    return replace(record, status="unfinished", epochs=epochs[:count], once={}, ended=None)


@pytest.mark.parametrize("count", [2, 4])
def test_mlflow_begins_a_new_run_of_a_cell_that_is_trained_anew(count, runs, client):
    old = Record.of(of(runs, "ew"))
    new = again(old, 4)
    new = replace(new, once=old.once, status="finished", ended=old.ended)
    log = Log(client.tracking_uri)
    told = [log.write(r) for r in (old, again(old, count), again(old, count), new, new, old)]
    assert told == [True, True, False, True, False, False]
    experiment = client.get_experiment_by_name("mtbench/tiny")
    found = client.search_runs([experiment.experiment_id])
    scores = {tuple(series(client, each, "score")) for each in found}
    assert len(found) == 2
    assert scores == {
        tuple((step, epoch["score"]) for step, epoch in enumerate(record.epochs))
        for record in (old, new)
    }
    assert {each.info.status for each in found} == {"FINISHED"}


def test_mlflow_begins_a_new_run_where_only_the_cost_is_another(runs, client):
    """The same numbers trained again: the old run keeps its cost."""
    old = Record.of(of(runs, "ew"))
    new = replace(old, once={name: 2 * value for name, value in old.once.items()})
    log = Log(client.tracking_uri)
    assert [log.write(r) for r in (old, new, new, old)] == [True, True, False, False]


@pytest.mark.parametrize("count", [2, 4])
def test_tensorboard_begins_a_new_folder_of_a_cell_that_is_trained_anew(count, runs, tmp_path):
    run = of(runs, "ew")
    old = Record.of(run)
    old.epochs[1].update({"large": 1e39, "small": 1e-50})  # float32 knows neither
    new = replace(again(old, 4), once=old.once, status="finished", ended=old.ended)
    log = to_tensorboard.Log(tmp_path)
    told = [log.write(r) for r in (old, again(old, count), again(old, count), new, new, old)]
    assert told == [True, True, False, True, False, False]
    for record, end in ((old, ""), (new, "-2")):
        scores = read(tmp_path, run, end)["scalars"]["score"]
        assert [step for step, _ in scores] == [0, 1, 2, 3]
        wanted = [epoch["score"] for epoch in record.epochs]
        assert [value for _, value in scores] == pytest.approx(wanted)
    assert not list(tmp_path.rglob("*-3"))


def test_undefined_metrics_are_left_out(runs):
    run = of(runs, "ew")
    lines = [json.loads(line) for line in (run.path / "epochs.jsonl").read_text().splitlines()]
    lines[1]["val"]["within"] = math.nan
    (run.path / "epochs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    epochs = Record.of(run).epochs
    assert ["val/within" in epoch for epoch in epochs] == [True, False, True, True]


def test_more_numbers_than_a_request_holds(runs, client):
    record = Record.of(of(runs, "ew"))
    record.epochs[:] = [{f"m/{k}": float(k) for k in range(700)} for _ in range(3)]
    record.params.update({f"task.p{k}": k for k in range(250)})
    log = Log(client.tracking_uri)
    assert (log.write(record), log.write(record)) == (True, False)
    found = logged(client, of(runs, "ew"))
    assert len(series(client, found, "m/699")) == 3
    assert found.data.params["task.p249"] == "249"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "say where to: --mlflow URI, --tensorboard FOLDER"),
        (["--mlflow", "foo://bar"], "--mlflow foo://bar: "),
        (["--tensorboard", "{file}"], "--tensorboard {file}/tiny/ew"),
    ],
)
def test_bad_places_are_refused(words, complaint, mtbench, runs, tmp_path):
    file = tmp_path / "file"
    file.touch()
    code, out, err = mtbench("log", runs, *(word.format(file=file) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert complaint.format(file=file) in err


@pytest.mark.parametrize("uri", ["mysql://me:SECRET@host/db", "foo://me:SECRET@host/db"])
def test_a_refusal_shows_no_password(uri, mtbench, runs):
    """Of a database whose driver is not installed, and of one that nobody knows."""
    code, out, err = mtbench("log", runs, "--mlflow", uri)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: --mlflow {uri.replace('me:SECRET', '...')}: ")
    assert "SECRET" not in err
    assert ("its driver is not installed (No module named" in err) == uri.startswith("mysql")


def test_what_was_logged_is_told_without_the_password(mtbench, runs, monkeypatch):
    to_any = SimpleNamespace(write=lambda record: True)
    monkeypatch.setattr("mtbench.integrations.mlflow.Log", lambda uri: to_any)
    _, out, _ = mtbench("log", runs, "--mlflow", "http://me:SECRET@host")
    assert out == "http://...@host: 2 cells logged, 0 there already\n"


def test_a_cell_s_place_is_its_spec_s(runs, tmp_path):
    """Wherever its folder lies now: two that were moved do not meet in one place."""
    for method in ("ew", "samo+uw"):
        run = of(runs, method)
        moved = run.path.rename(tmp_path / method)
        (found,) = find_runs([moved])
        assert Record.of(found).place == Path(run.path.relative_to(runs))


@pytest.mark.parametrize("task", ["..", "/etc", "a/../.."])
def test_a_spec_that_leads_out_of_the_folder_is_refused(task, mtbench, runs, tmp_path):
    file = of(runs, "ew").path / "spec.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task": task}))
    code, _, err = mtbench("log", runs, "--tensorboard", tmp_path / "tb")
    assert code == 2
    assert f"task and method must be plain names, found '{task}/ew/seed0-" in err


def test_a_corrupt_cell_is_refused(mtbench, runs, tmp_path):
    (of(runs, "ew").path / "result.json").write_text("{")
    code, _, err = mtbench("log", runs, "--tensorboard", tmp_path / "tb")
    assert code == 2
    assert "does not parse" in err


@pytest.mark.parametrize("library", ["mlflow", "tensorboard"])
def test_without_the_library(library, mtbench, runs, monkeypatch):
    monkeypatch.setattr(extras, "_is_installed", lambda name: not name.startswith(library))
    code, _, err = mtbench("log", runs, f"--{library}", "x")
    assert code == 2
    assert f"pip install 'mtbench-toolkit[{library}]'" in err
