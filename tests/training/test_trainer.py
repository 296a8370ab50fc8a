import json
import logging
import math
import shutil
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtbench.balancing.distributed import Ranks
from mtbench.errors import RunError, StepError, UsageError
from mtbench.plugins.code import core_digest
from mtbench.training.cell.request import Request, initial_weights, reload
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.data import TensorSplit, labelled_loss
from mtbench.training.task import Batch, Metric
from mtbench.training.trained.model import load_trained
from mtbench.training.trainer.evaluation import evaluate
from mtbench.training.trainer.learner import Learner, build
from mtbench.training.trainer.loop import Loop
from mtbench.training.trainer.record import CHECKPOINT_VERSION, Progress, Recorder
from mtbench.training.trainer.trainer import Trainer
from mtbench.version import __version__
from tests.methods import METHODS
from tests.processes import Command
from tests.soak import differences

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    ),
]


class Remembering:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.done = -1
        self.losses: list[dict[str, float]] = []

    def started(self, spec: Any, epochs: int, steps: int, done: int) -> None:
        self.done = done

    def stepped(self, epoch: int, losses: dict[str, float]) -> None:
        self.losses.append(losses)

    def evaluated(self, record: dict[str, Any]) -> None: ...

    def finished(self, result: dict[str, Any]) -> None: ...


def train(
    tiny: Path, out: Path, method: str = "ew", seed: int = 0, stop_after: int | None = None,
    precision: str = "fp32", device: str = "cpu", checkpoint_seconds: float = 30.0, **given: str,
) -> tuple[RunDirectory, Remembering]:  # fmt: skip
    """Run a cell of the tiny task, or break off after some steps."""
    request = Request.of("tiny", [method], given, [tiny])
    splits = request.task.setup(seed, lambda *_: None)
    spec = request.spec(request.choices[0], splits.fingerprint, seed, precision, device)
    run = RunDirectory.at(out, spec)
    observer = Remembering()
    trainer = Trainer(
        spec, request.task, splits, request.choices[0].method, run, observer, 1,
        checkpoint_seconds=checkpoint_seconds,
    )  # fmt: skip
    if stop_after is not None:

        def stepped(epoch: int, losses: dict[str, float]) -> None:
            observer.losses.append(losses)
            if len(observer.losses) == stop_after:
                raise KeyboardInterrupt

        observer.stepped = stepped  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    else:
        trainer.run()
    return run, observer


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    state = run.load("checkpoint.pt")
    assert state is not None
    return {f"{part}.{k}": v for part in ("model", "balancer") for k, v in state[part].items()}


def same(a: RunDirectory, b: RunDirectory) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_cell_learns_and_leaves_its_record(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path, epochs="30")
    result = run.result()
    assert result is not None
    assert result.status == "finished"
    history = [json.loads(line) for line in (run.path / "epochs.jsonl").read_text().splitlines()]
    assert len(history) == 30
    assert history[-1]["val_loss"]["sum"] < 0.3 * history[0]["val_loss"]["sum"]
    best = max(range(30), key=lambda i: history[i]["score"])
    assert result.best_epoch == best
    assert result.val == history[best]["val"]
    assert set(run.open_test()) == {"mae_sum", "within", "mae_difference"}
    assert result.cost.seconds_per_step > 0
    header, *rows = (run.path / "steps.csv").read_text().splitlines()
    assert header == "step,epoch,lr,grad_norm,loss_sum,loss_difference,weight_sum,weight_difference"
    assert len(rows) == 30 * 6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_resuming_after_a_break_ends_bit_identical(
    tiny: Path, tmp_path: Path, method: str, device: str
) -> None:
    given: Any = {"epochs": "2", "batch_size": "16", "missing": "true"}  # three steps an epoch
    cell = partial(train, tiny, method=method, device=device, **given)
    whole, _ = cell(tmp_path / "whole")
    cell(tmp_path / "broken", stop_after=5, checkpoint_seconds=0.0)
    again, observer = cell(tmp_path / "broken")
    assert observer.done == 4  # the step that was broken off is lost, no other
    assert not list(differences(whole.path, again.path))


def test_when_the_host_looks_changes_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = []
    for seconds in (0.0, 1e-3, math.inf):
        monkeypatch.setattr("mtbench.training.trainer.loop.LOOK_SECONDS", seconds)
        cells.append(train(tiny, tmp_path / str(seconds), "uw"))
    (first, told), *others = cells
    assert len(told.losses) == 4 * 6
    for other, heard in others:
        assert not list(differences(first.path, other.path))
        assert heard.losses == told.losses


def test_when_an_epochs_end_is_written_changes_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [], RunDirectory.save
    monkeypatch.setattr(
        RunDirectory, "save", lambda run, name, state: (saved.append(name), save(run, name, state))
    )
    cells = []
    for seconds, times in ((0.0, 4), (math.inf, 1)):
        monkeypatch.setattr("mtbench.training.trainer.trainer.EPOCH_SECONDS", seconds)
        saved.clear()
        cells.append(train(tiny, tmp_path / str(seconds), "uw")[0].path)
        assert saved.count("checkpoint.pt") == times
    assert not list(differences(*cells))


class _Pair(Ranks):
    """Two ranks, one of which has nothing to say."""

    size = 2


def test_ranks_look_after_the_same_steps_whatever_their_clocks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request.of("tiny", ["ew"], {"epochs": "1", "batch_size": "2"}, [tiny])
    splits, choice = request.task.setup(0, lambda *_: None), request.choices[0]
    spec = request.spec(choice, splits.fingerprint, 0, "fp32", "cpu")
    for seconds in (0.0, math.inf):
        monkeypatch.setattr("mtbench.training.trainer.loop.LOOK_SECONDS", seconds)
        observer, run = Remembering(), RunDirectory.at(tmp_path / str(seconds), spec)
        trainer = Trainer(
            spec, request.task, splits, choice.method, run, observer, 1, ranks=_Pair(),
            checkpoint_seconds=seconds,
        )  # fmt: skip
        looked, saved = [], []
        loop = trainer.prepare()

        def stepped(*_: object, at: Progress = loop.record.at, to: list[int] = looked) -> None:
            to.append(at.position)

        def checkpoint(
            loop: Loop = loop, to: list[int] = saved, write: Any = loop.record.checkpoint
        ) -> None:
            to.append(loop.record.at.position)
            assert not loop.numbers.pending
            write()

        observer.stepped = stepped  # type: ignore[method-assign, assignment]
        loop.record.checkpoint = checkpoint  # type: ignore[method-assign]
        monkeypatch.setattr(trainer, "prepare", lambda loop=loop: loop)
        trainer.run()
        assert looked == [1] + 10 * [11] + 10 * [21] + 3 * [24]
        assert saved == ([1, 11, 21, 0] if seconds == 0 else [0])


def test_resuming_after_sigkill_mid_epoch_ends_bit_identical(tiny: Path, tmp_path: Path) -> None:
    whole, _ = train(tiny, tmp_path / "whole", "rlar", epochs="6")
    words = [
        "run", "--plugin", tiny, "--task", "tiny", "--method", "rlar", "--epochs", 6,
        "--threads", 1, "--sleep", 0.1, "--out", tmp_path / "killed",
    ]  # fmt: skip
    process = Command(*words)
    deadline = time.monotonic() + 120
    saved: list[Path] = []  # the log is written before
    while not saved and time.monotonic() < deadline:
        time.sleep(0.01)
        saved = list((tmp_path / "killed").rglob("checkpoint.pt"))
    time.sleep(0.12)  # into the middle of an epoch: one takes 0.6 s
    process.kill()
    process.communicate()
    killed = saved[0].parent
    assert not (killed / "result.json").exists()
    assert 0 < len((killed / "epochs.jsonl").read_text().splitlines()) < 6
    resumed, seen = train(tiny, tmp_path / "killed", "rlar", epochs="6", sleep="0.1")
    assert resumed.path == killed
    assert seen.done > 0
    assert same(whole, resumed)
    assert whole.open_test() == resumed.open_test()
    assert whole.open_test()


def test_methods_are_paired_at_a_seed(tiny: Path, tmp_path: Path) -> None:
    _, one = train(tiny, tmp_path, "ew")
    _, two = train(tiny, tmp_path, "pcgrad")
    _, other = train(tiny, tmp_path, "ew", seed=1)
    assert one.losses[0] == two.losses[0]  # same weights, same batch, same dropout
    assert one.losses[-1] != two.losses[-1]
    assert one.losses[0] != other.losses[0]


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_callers_generators_and_settings_are_left_alone(
    tiny: Path, tmp_path: Path, mode: int
) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_deterministic_debug_mode(mode)
    try:
        train(tiny, tmp_path)
        assert torch.get_deterministic_debug_mode() == mode
    finally:
        torch.set_deterministic_debug_mode(0)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_divergence_is_recorded(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path, explode="true")
    result = run.result()
    assert result is not None
    assert result.status == "diverged"
    assert "non-finite loss (nan" in result.reason
    assert run.open_test() == {}


# The contract asks every method the same of single steps: here is one of each kind.
@pytest.mark.parametrize("method", ["ew", "uw", "gradnorm", "pcgrad", "mgda", "rlar", "stl"])
def test_missing_labels_train_the_other_objective(tiny: Path, tmp_path: Path, method: str) -> None:
    run, observer = train(tiny, tmp_path, method, missing="true", batch_size="4", epochs="6")
    assert any(losses["difference"] == 0 for losses in observer.losses)
    history = [json.loads(line) for line in (run.path / "epochs.jsonl").read_text().splitlines()]
    for objective in ("sum", "difference"):
        assert history[-1]["val_loss"][objective] < 0.7 * history[0]["val_loss"][objective]


@pytest.mark.parametrize("size", [2, 8])
def test_a_splits_loss_is_that_of_its_labels(size: int) -> None:
    y = torch.tensor([2.0, 2.0, *[torch.nan] * 6])

    class Told:
        objectives = ("y",)
        metrics: ClassVar[dict[str, Metric]] = {}
        meter = staticmethod(lambda: SimpleNamespace(update=lambda *_: None, compute=dict))

    def forward(batch: Batch, _: object) -> Any:
        loss = labelled_loss(F.mse_loss, torch.zeros(len(batch["y"])), batch["y"])
        return SimpleNamespace(losses=[loss], outputs=[])

    learner: Any = SimpleNamespace(device="cpu", model=nn.Linear(1, 1), task=Told, forward=forward)
    losses, _ = evaluate(learner, TensorSplit(torch.zeros(8, 1), y=y), size)
    assert losses == {"y": 4.0}


def test_single_task_models_do_not_touch_each_other(tiny: Path, tmp_path: Path) -> None:
    """Without the second objective's labels, the first one's curve must stay what it was."""
    both, _ = train(tiny, tmp_path, "stl")
    half, _ = train(tiny, tmp_path, "stl", missing="true")
    first, second = weights(both), weights(half)
    own = [k for k in first if "encoders.0" in k or "heads.0" in k]
    other = [k for k in first if "encoders.1" in k]
    assert own
    assert all(torch.equal(first[k], second[k]) for k in own)
    assert not any(torch.equal(first[k], second[k]) for k in other)


def test_a_balancers_parameters_do_not_decay(tiny: Path, tmp_path: Path) -> None:
    request = Request.of("tiny", ["uw"], {"weight_decay": "0.5"}, [tiny])
    splits = request.task.setup(0, lambda *_: None)
    choice = request.choices[0]
    spec = request.spec(choice, splits.fingerprint, 0, "fp32", "cpu")
    trainer = Trainer(
        spec, request.task, splits, choice.method, RunDirectory(tmp_path), Remembering(), 1
    )
    groups = trainer.prepare().descent.state_dict()["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


@pytest.mark.parametrize("method", ["ew", "cagrad", "stl"])
def test_a_frozen_encoder_leaves_the_heads_to_train(tiny: Path, method: str) -> None:
    request = Request.of("tiny", [method], {}, [tiny])
    splits = request.task.setup(0, lambda *_: None)
    spec = request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")
    model, balancer = build(spec, request.task, request.choices[0].method)
    model.encoder.requires_grad_(False)
    step = Learner(spec, request.task, model, balancer).step(splits.train.batch(torch.arange(4)))
    balancer.backward(step)
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.heads.parameters())


def test_a_method_that_writes_no_gradient_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtbench_baselines.ew.EqualWeights.balance", lambda *_: None)
    with pytest.raises(StepError, match=r"the method wrote no `\.grad`"):
        train(tiny, tmp_path)
    unlabelled = tmp_path / "unlabelled" / "tiny.py"
    unlabelled.parent.mkdir()
    text = tiny.read_text()
    assert "if known.any() else" in text
    unlabelled.write_text(text.replace("error.mean() if known.any() else ", ""))
    train(unlabelled, tmp_path)  # of losses that are all 0 there is none to write


def test_bf16_autocast_trains(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path, "rlar", precision="bf16", epochs="20")
    assert run.open_test()["mae_sum"] < 1.0


def test_the_trained_model_is_read_back(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path, "stl", epochs="20")
    request = Request.of("tiny", ["stl"], {}, [tiny])
    predict = load_trained(run, request.task, request.choices[0].method).predict
    splits = request.task.setup(0, lambda *_: None)
    batch = splits.test.batch(torch.arange(48))
    meter = request.task.meter()
    meter.update(predict(batch["inputs"]), batch)
    assert meter.compute() == pytest.approx(run.open_test(), abs=1e-6)


def test_a_corrupt_checkpoint_is_explained(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path, stop_after=9)
    (run.path / "checkpoint.pt").write_bytes(b"broken")
    with pytest.raises(RunError, match=r"checkpoint\.pt: corrupt.* delete the folder"):
        train(tiny, tmp_path)


def test_a_checkpoint_of_something_else_is_explained(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path, stop_after=9)
    own = {"cell": run.spec().hash, "code": core_digest(), "precision": "fp32"}
    run.save("checkpoint.pt", own | {"version": CHECKPOINT_VERSION})
    with pytest.raises(RunError, match=r"checkpoint\.pt: is not of this model \(KeyError\)"):
        train(tiny, tmp_path)
    run.save("best.pt", own | {"model": {"x": torch.zeros(1)}, "balancer": {}})
    request = Request.of("tiny", ["ew"], {}, [tiny])
    with pytest.raises(RunError, match=r"best\.pt: is not of this model \(RuntimeError\)"):
        load_trained(run, request.task, request.choices[0].method)


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt"])
def test_a_checkpoint_of_another_cell_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    run, _ = train(tiny, tmp_path, stop_after=9)
    other, _ = train(tiny, tmp_path, seed=1, stop_after=9)
    shutil.copy(other.path / name, run.path / name)
    wanted = rf"{name}: is of another cell \({other.spec().hash}, wanted {run.spec().hash}\)"
    request = Request.of("tiny", ["ew"], {}, [tiny])
    read = {
        "checkpoint.pt": lambda: train(tiny, tmp_path),
        "best.pt": lambda: load_trained(run, request.task, request.choices[0].method),
    }
    with pytest.raises(RunError, match=wanted):
        read[name]()


def test_a_checkpoint_of_other_code_is_not_gone_on_with(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny, tmp_path, stop_after=9)
    monkeypatch.setattr("mtbench.training.trainer.record.core_digest", lambda: "another")
    with pytest.raises(
        RunError, match="begun with other code of mtbench: begin it again with --no-re"
    ):
        train(tiny, tmp_path)


def test_what_is_tested_is_computed_as_it_was_selected(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the precision of the selected epoch, also where a later one was lowered to fp32."""
    tested = []

    def lowered(record: Recorder, *args: Any, **kept: Any) -> dict[str, Any]:
        record.at.best_score = math.inf if record.at.history else -math.inf
        ended = Recorder.end_epoch(record, *args, **kept)
        record._learner.precision = "fp32"
        return ended

    monkeypatch.setattr(
        "mtbench.training.trainer.trainer.Recorder", type("", (Recorder,), {"end_epoch": lowered})
    )
    monkeypatch.setattr(Trainer, "_test", lambda _, learner: tested.append(learner.precision))
    run, _ = train(tiny, tmp_path, precision="bf16", epochs="2")
    result = run.result()
    assert result is not None
    assert result.best_epoch == 0
    assert tested == ["bf16"]


def test_a_changed_method_is_a_new_cell(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    for digest in ("a", "b"):
        monkeypatch.setattr("mtbench.plugins.registry.module_digest", lambda *_, d=digest: d)
        request = Request.of("tiny", ["ew"], {}, [tiny])
        splits = request.task.setup(0, lambda *_: None)
        spec = request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")
        assert spec.plugins["ew"] == digest
        hashes.append(spec.hash)
    assert hashes[0] != hashes[1]


def test_models_of_an_older_package_are_read_and_those_of_a_changed_file_are_not(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as without pytest
    run, _ = train(tiny, tmp_path, epochs="1")
    spec = run.spec()
    for plugins, said in ((spec.plugins, False), (spec.plugins | {"ew": "another"}, True)):
        _, method = reload(spec.model_copy(update={"plugins": plugins}), run.path, [tiny])
        assert method.name == "ew"
        line = f"warning: {run.path}: was made with other code of 'ew' than is installed; "
        err = capsys.readouterr().err
        assert err.startswith(line) if said else not err
        assert err.count("\n") == said
    with pytest.raises(UsageError, match="another version of 'tiny'"):
        reload(spec.model_copy(update={"plugins": {"tiny": "another"}}), run.path, [tiny])


def test_a_result_says_what_made_it_and_when(tiny: Path, tmp_path: Path) -> None:
    before = time.time()
    run, _ = train(tiny, tmp_path, stop_after=9)
    run, _ = train(tiny, tmp_path)
    result = run.result()
    assert result is not None
    assert result.plugins == {"tiny": "tiny.py", "ew": f"mtbench-toolkit {__version__}"}
    assert len(result.environment["code"]) == 64
    assert before < result.times["started"] < result.times["ended"] < time.time()


def test_a_changed_spec_is_refused(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path)
    file = run.path / "spec.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 7'))
    with pytest.raises(RunError, match=r"is of another cell"):
        train(tiny, tmp_path)
    file.write_text("{}")
    with pytest.raises(RunError, match=r"not a spec of version 1"):
        train(tiny, tmp_path)


def test_specs_are_canonical(tiny: Path) -> None:
    def spec(**given: str) -> Any:
        request = Request.of("tiny", ["cagrad"], given, [tiny])
        splits = request.task.setup(0, lambda *_: None)
        return request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")

    assert spec().hash == spec(c="0.5").hash == spec(data="/somewhere").hash
    assert spec().hash != spec(c="0.4").hash
    assert spec().hash != spec(lr="0.1").hash
    assert spec().plugins.keys() == {"tiny", "cagrad"}


def test_training_starts_from_another_runs_weights(tiny: Path, tmp_path: Path) -> None:
    first, fresh = train(tiny, tmp_path, epochs="30")
    request = Request.of("tiny", ["stl"], {}, [tiny])
    start = initial_weights(first.path, request.task)
    digest, given = start.digest, start.tensors
    splits = request.task.setup(0, lambda *_: None)
    spec = request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu", digest)
    assert spec.hash != request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu").hash
    observer = Remembering()
    run = RunDirectory.at(tmp_path, spec)
    Trainer(spec, request.task, splits, request.choices[0].method, run, observer, 1, given).run()
    assert observer.losses[0]["sum"] < 0.5 * fresh.losses[0]["sum"]


def test_a_run_without_weights_gives_none(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path)
    (run.path / "best.pt").unlink()
    with pytest.raises(RunError, match="has no trained weights"):
        initial_weights(run.path, Request.of("tiny", ["ew"], {}, [tiny]).task)


def test_the_updates_length_is_recorded(tiny: Path, tmp_path: Path) -> None:
    """Relative to the plain sum: 1 for ew, weights / 1 for ls, shorter for mgda."""
    found = {}
    for method, given in (("ew", {}), ("ls", {"weights": "3,3"}), ("mgda", {})):
        run, _ = train(tiny, tmp_path, method, epochs="2", **given)
        lines = (run.path / "epochs.jsonl").read_text().splitlines()
        found[method] = [json.loads(line)["update"] for line in lines]
    for update in found["ew"]:
        assert update == {"length": pytest.approx(1), "cosine": pytest.approx(1)}
    for update in found["ls"]:
        assert update == {"length": pytest.approx(3), "cosine": pytest.approx(1)}
    for update in found["mgda"]:
        assert 0 < update["length"] < 0.51
        assert 0 < update["cosine"] < 1


def test_what_a_method_tells_is_recorded_and_that_it_never_acted(
    tiny: Path, tmp_path: Path
) -> None:
    run, _ = train(tiny, tmp_path / "acts", "rlar")
    shares = [record["notes"]["acts"] for record in run.history()]
    assert all(0 < share <= 1 for share in shares)
    assert run.result().acts == pytest.approx(sum(shares) / len(shares))
    idle, _ = train(tiny, tmp_path / "idle", "rlar", margin="0.999999")
    assert idle.result().acts == 0
    plain, _ = train(tiny, tmp_path / "plain")
    assert plain.result().acts is None
    assert "notes" not in plain.history()[0]


def test_a_trial_never_sees_the_test_split(tiny: Path, tmp_path: Path) -> None:
    request = Request.of("tiny", ["ew"], {"epochs": "2"}, [tiny])
    splits = request.task.setup(0, lambda *_: None)
    choice = request.choices[0]
    final = request.spec(choice, splits.fingerprint, 0, "fp32", "cpu")
    spec = final.model_copy(update={"stage": "trial"})
    assert spec.hash != final.hash

    class Forbidden(type(splits.test)):  # type: ignore[misc]
        def batch(self, *_: Any) -> Any:
            raise AssertionError("the test split was read")

    splits.test.__class__ = Forbidden
    run = RunDirectory.at(tmp_path, spec)
    result = Trainer(spec, request.task, splits, choice.method, run, Remembering(), 1).run()
    assert result["status"] == "finished"
    assert set(result["val"]) == {"mae_sum", "within", "mae_difference"}
    assert not (run.path / "test.json").exists()
    assert run.open_test() == {}


def test_a_sealed_test_says_when_it_was_opened(tiny: Path, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path, epochs="2")
    assert not (run.path / "test.opened").exists()
    result = json.loads((run.path / "result.json").read_text())
    del result["metrics"], result["val"]
    assert "mae_sum" not in json.dumps(result)
    run.open_test()
    first = (run.path / "test.opened").stat().st_mtime_ns
    run.open_test()
    assert (run.path / "test.opened").stat().st_mtime_ns == first
    (run.path / "test.json").write_text("{")
    with pytest.raises(RunError, match=r"test\.json: does not parse"):
        run.open_test()


def test_gradients_are_compared_on_request_or_where_that_is_free(
    tiny: Path, tmp_path: Path
) -> None:
    found = {}
    for method, diagnose in (("ew", False), ("ew", True), ("mgda", False)):
        request = Request.of("tiny", [method], {"epochs": "2"}, [tiny])
        splits = request.task.setup(0, lambda *_: None)
        choice = request.choices[0]
        spec = request.spec(choice, splits.fingerprint, 0, "fp32", "cpu")
        run = RunDirectory.at(tmp_path / str(diagnose), spec)
        trainer = Trainer(
            spec, request.task, splits, choice.method, run, Remembering(), 1, diagnose=diagnose
        )
        trainer.run()
        found[method, diagnose] = run.history()[1], weights(run)
    assert not any(key.endswith("gradients") for key in found["ew", False][0])
    assert found["ew", False][0]["weights"] == {"sum": 1.0, "difference": 1.0}
    assert set(found["mgda", False][0]) >= {"update", "weights", "shared gradients"}
    diagnosed, plain = found["ew", True], found["ew", False]
    for space in ("shared", "features"):
        values = diagnosed[0][f"{space} gradients"]
        assert -1 <= values["least cosine"] == values["cosine"] <= 1  # one pair
        assert 0 < values["magnitude similarity"] <= 1
    assert all(torch.equal(diagnosed[1][k], plain[1][k]) for k in plain[1])  # looking is free


def test_a_task_whose_losses_are_no_mean_squares_says_so(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the task's losses are no mean squares: choose another"):
        train(tiny, tmp_path, "ntk_weights")
