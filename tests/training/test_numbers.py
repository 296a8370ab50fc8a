"""Numbers at which training breaks: every method ends with a record and keeps finite state."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mtbench import Engine, Metric, MultitaskModel, Split, Splits, Task
from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.training.cell.rundir import RunDirectory, Spec
from mtbench.training.task import Batch, Meter, Progress, Recipe
from mtbench.training.trained.model import load_trained
from mtbench.training.trainer.loop import Loop
from mtbench.training.trainer.observer import Silent
from mtbench_baselines.ew import EqualWeights
from tests.methods import METHODS
from tests.opened import OpenTrainer
from tests.soak import same

FEW = ["ew", "uw", "gradnorm", "moco", "rlar", "norm_matched+imtl", "stl"]
Odd = Literal["", "mixed", "flat"]
Poison = Literal["", "loss", "gradient", "bf16"]


class _Rows(Split):
    def __init__(self, seed: int, count: int, objectives: int, poisoned: int = -1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 3, generator=generator)
        self.y = self.x @ torch.randn(3, objectives, generator=generator)
        self.poisoned = torch.arange(count) == poisoned

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        poisoned = bool(self.poisoned[indices].any())
        return {"inputs": self.x[indices], "y": self.y[indices], "poisoned": poisoned}


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.body(x),)


class _Head(nn.Linear):
    def forward(self, features: tuple[Tensor, ...]) -> Tensor:  # type: ignore[override]
        return super().forward(features[0])


class _Meter(Meter):
    def __init__(self) -> None:
        self.errors: list[Tensor] = []

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        found = [(o[:, 0] - batch["y"][:, k]).abs() for k, o in enumerate(outputs)]
        self.errors.append(torch.stack(found, 1))

    def compute(self) -> dict[str, float]:
        return {"mae": torch.cat(self.errors).mean().item()}


class _Regressions(Task):
    """Regressions, some odd, with a batch that gives a loss or gradient that is no number."""

    metrics = {"mae": Metric("0", higher_is_better=False, primary=True)}  # noqa: RUF012

    def __init__(self, K: int = 3, odd: Odd = "", poison: Poison = "", poisoned: int = 5) -> None:
        self.objectives = tuple(map(str, range(K)))
        self.odd, self.poison, self.poisoned = odd, poison, poisoned
        self.dtypes: list[torch.dtype] = []

    def setup(self, seed: int, progress: Progress) -> Splits:
        K = len(self.objectives)
        train = _Rows(0, 24, K, poisoned=self.poisoned)
        return Splits(train, _Rows(1, 8, K), _Rows(2, 8, K), fingerprint="numbers")

    def model(self) -> MultitaskModel:
        return MultitaskModel(_Encoder(), [_Head(4, 1) for _ in self.objectives])

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        losses = [(o[:, 0] - batch["y"][:, k]).square().mean() for k, o in enumerate(outputs)]
        nothing = outputs[0].float().sum() * 0
        self.dtypes.append(outputs[0].dtype)
        if self.odd == "mixed":  # a constant, nothing, and two that are 1e18 apart
            losses[:4] = nothing + 2, nothing, losses[2] * 1e9, losses[3] * 1e-9
        elif self.odd == "flat":
            losses = [o.sum() * 0 + 1 for o in outputs]
        if batch["poisoned"]:
            low = outputs[0].dtype == torch.bfloat16
            if self.poison == "loss" or (self.poison == "bf16" and low):
                losses[0] = losses[0] / 0
            elif self.poison == "gradient":
                losses[0] = losses[0] + nothing.sqrt()  # 0, with the gradient 0 * inf
        return losses

    def meter(self) -> Meter:
        return _Meter()


def trainer(
    out: Path, method: str, task: _Regressions, precision: str = "fp32", **recipe: Any,
) -> Any:  # fmt: skip
    found = Method.find(method)
    asked = Recipe(**{"epochs": 2, "batch_size": 4, "lr": 1e-2, "schedule": "constant"} | recipe)
    spec = Spec(
        task="regressions", task_params={}, method=found.name, method_params=found.resolve({}),
        data="numbers", recipe=vars(asked), seed=0, precision=precision,
    )  # fmt: skip
    run, splits = RunDirectory.at(out, spec), task.setup(0, lambda *_: None)
    return OpenTrainer(spec, task, splits, found, run, Silent(), 1, None, Engine(batched=False))


def kept(trained: Any) -> list[dict[str, Any]]:
    return list(trained.loop.learner.state().values())


def finite(state: Any) -> bool:
    return all(
        bool(value.isfinite().all())
        for part in state
        for value in part.values()
        if isinstance(value, Tensor)
    )


STOPS = pytest.mark.parametrize(
    ("method", "poison"), [(name, poison) for name in FEW for poison in ("gradient", "loss")]
)
"""What stops a run is seen by the trainer, whatever the method."""

SKIPS = pytest.mark.parametrize(
    ("method", "poison"), [*((name, "gradient") for name in METHODS), *((n, "loss") for n in FEW)]
)
"""What a method keeps of infinite losses is tested for each in tests/balancing/test_backward.py."""


@pytest.mark.parametrize("odd", ["mixed", "flat"])
@pytest.mark.parametrize("method", METHODS)
def test_odd_objectives(tmp_path: Path, method: str, odd: Odd) -> None:
    trained = trainer(tmp_path, method, _Regressions(5, odd), batch_size=8)
    assert trained.run()["status"] == "finished"
    assert finite(kept(trained))


# More than the 24 shared parameters; of one, each method's conformance suite makes a step.
@pytest.mark.parametrize(
    ("method", "K"), [*((name, 25) for name in METHODS), *((n, 1) for n in FEW)]
)
def test_any_number_of_objectives(tmp_path: Path, method: str, K: int) -> None:
    trained = trainer(tmp_path, method, _Regressions(K), epochs=1, batch_size=12)
    assert trained.run()["status"] == "finished"
    assert finite(kept(trained))


@STOPS
def test_numbers_that_are_not_finite_stop_a_run(
    tmp_path: Path, method: str, poison: Poison
) -> None:
    result = trainer(tmp_path, method, _Regressions(poison=poison)).run()
    assert result["status"] == "diverged"
    assert f"non-finite {poison}" in result["reason"]
    assert result["nonfinite"] == []


class _Late(_Regressions):
    """All is well in the first epoch."""

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        poisoned = batch["poisoned"] and len(self.dtypes) > 6  # forward passes of an epoch
        return super().losses(outputs, {**batch, "poisoned": poisoned})


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("method", ["ew", "moco"])
def test_the_step_to_blame_is_found_whenever_the_host_looks(
    tmp_path: Path, method: str, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for seconds, pause in ((0.0, 0.0), (math.inf, 0.0), (math.inf, math.inf)):
        monkeypatch.setattr("mtbench.training.trainer.loop.LOOK_SECONDS", seconds)
        monkeypatch.setattr("mtbench.training.trainer.trainer.EPOCH_SECONDS", pause)
        task = _Late(poison=poison, poisoned=3)
        trained = trainer(tmp_path / f"{seconds} {pause}", method, task, epochs=3)
        result = trained.run()
        at = [trained.loop.batches.at(1, position)["poisoned"] for position in range(6)].index(True)
        assert at < 5  # there are steps after it, whose numbers are no better
        assert f"non-finite {poison}" in result["reason"]
        assert result["reason"].endswith(f"in epoch 1, step {at}")
        assert not finite(kept(trained)) or seconds == 0
        run, files = trained.run_directory, sorted(trained.run_directory.path.iterdir())
        best, checkpoint = run.load("best.pt"), run.load("checkpoint.pt")
        assert finite([best["model"]])
        assert (checkpoint is None) == (pause > 0)
        if checkpoint is not None:
            assert finite([checkpoint["model"], checkpoint["balancer"]])
            assert (checkpoint["progress"]["epoch"], checkpoint["progress"]["position"]) == (1, 0)
        del result["cost"], result["times"]
        texts = [file.read_text() for file in files if file.suffix in (".csv", ".jsonl")]
        assert len(texts) == 2
        found.append([texts, result, best])
    assert all(same(found[0], other) for other in found[1:])


def _strict(step: Step) -> None:
    if not step.observed.isfinite().all():
        raise ValueError("these are no numbers")


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_method_may_raise_where_numbers_are_not_finite(
    tmp_path: Path, poison: Poison, nonfinite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtbench.training.trainer.loop.LOOK_SECONDS", math.inf)
    monkeypatch.setattr("mtbench.training.trainer.nonfinite.MOST_SKIPPED", 0.5)
    objective = EqualWeights.objective
    monkeypatch.setattr(
        EqualWeights, "objective", lambda self, step: (_strict(step), objective(self, step))[1]
    )
    trained = trainer(tmp_path, "ew", _Regressions(poison=poison), nonfinite=nonfinite)
    result = trained.run()
    assert result["status"] == ("diverged" if nonfinite == "stop" else "finished")
    told = result.get("reason") or result["nonfinite"][0]["reason"]
    assert f"non-finite {poison}" in told


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_what_a_method_raises_on_numbers_goes_on(
    tmp_path: Path, nonfinite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def objective(*_: object) -> None:
        raise ValueError("I cannot")

    monkeypatch.setattr(EqualWeights, "objective", objective)
    trained = trainer(tmp_path, "ew", _Regressions(), nonfinite=nonfinite)
    with pytest.raises(ValueError, match="I cannot"):
        trained.run()


class _Watched(Loop):
    """Checks that a step that is skipped changes nothing."""

    def step(self, batch: Batch) -> None:
        before = copy.deepcopy([self.learner.state(), self.descent.state_dict()])
        super().step(batch)
        after = [self.learner.state(), self.descent.state_dict()]
        assert same(before, after) == batch["poisoned"]


@SKIPS
def test_a_step_that_is_skipped_leaves_no_trace(
    tmp_path: Path, method: str, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtbench.training.trainer.nonfinite.MOST_SKIPPED", 0.5)
    monkeypatch.setattr("mtbench.training.trainer.trainer.Loop", _Watched)
    task = _Regressions(poison=poison)
    given: Any = {"batch_size": 8, "nonfinite": "skip", "weight_decay": 0.1}
    trained = trainer(tmp_path, method, task, **given)
    result = trained.run()
    assert result["status"] == "finished"
    assert [(at["epoch"], at["answer"]) for at in result["nonfinite"]] == [
        (0, "skipped"),
        (1, "skipped"),
    ]
    assert all(f"non-finite {poison}" in at["reason"] for at in result["nonfinite"])
    assert finite(kept(trained))
    for record in trained.run_directory.history():  # means over the steps that were made
        assert all(map(math.isfinite, record["train_loss"].values()))
        assert not any(map(math.isnan, record.get("update", {}).values()))


def test_what_is_looked_at_in_a_skipped_step_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtbench.training.trainer.nonfinite.MOST_SKIPPED", 0.5)
    task = _Regressions(poison="gradient", poisoned=15)
    trained = trainer(tmp_path, "mgda", task, nonfinite="skip")
    events = trained.run()["nonfinite"]
    assert [event["step"] == 0 for event in events] == [True, False]
    first, second = trained.run_directory.history()
    assert not {"update", "weights", "shared gradients"} & set(first)
    assert {"update", "weights", "shared gradients"} <= set(second)


def test_too_many_skipped_steps_are_a_divergence(tmp_path: Path) -> None:
    """Of 12 steps 1 % is none, but one is always allowed."""
    trained = trainer(tmp_path, "ew", _Regressions(poison="loss"), nonfinite="skip")
    result = trained.run()
    assert result["status"] == "diverged"
    assert "in epoch 1" in result["reason"]
    assert result["reason"].endswith("after 1 skipped of 12")
    assert len(result["nonfinite"]) == 1


class _Stopped(Exception):  # noqa: N818 - stands in for a kill
    pass


def broken_off(out: Path, method: str, task: _Regressions, stop: int, **given: Any) -> None:
    trained = trainer(out, method, task, **given)
    trained.checkpoint_seconds = 0.0
    seen = 0

    def stepped(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == stop:
            raise _Stopped

    trained.observer.stepped = stepped
    with pytest.raises(_Stopped):
        trained.run()


@pytest.mark.parametrize("stop", [1, 4, 8, 10, 12])
def test_resuming_around_a_skipped_step(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtbench.training.trainer.nonfinite.MOST_SKIPPED", 0.5)
    one = trainer(tmp_path / "one", "moco", _Regressions(poison="loss"), nonfinite="skip")
    one.run()
    broken_off(tmp_path / "two", "moco", _Regressions(poison="loss"), stop, nonfinite="skip")
    two = trainer(tmp_path / "two", "moco", _Regressions(poison="loss"), nonfinite="skip")
    two.run()
    assert same(kept(one), kept(two))
    results = [json.loads((x.run_directory.path / "result.json").read_text()) for x in (one, two)]
    assert results[0]["nonfinite"] == results[1]["nonfinite"]
    assert one.run_directory.history() == two.run_directory.history()


@pytest.mark.parametrize("method", FEW)
def test_the_precision_is_lowered_to_fp32_once(tmp_path: Path, method: str) -> None:
    given: dict[str, Any] = {"precision": "bf16", "nonfinite": "fp32"}
    task = _Regressions(poison="bf16")
    one = trainer(tmp_path / "one", method, task, **given)
    result = one.run()
    assert result["status"] == "finished"
    [event] = result["nonfinite"]
    assert event["answer"] == "fp32"
    assert {*task.dtypes} == {torch.bfloat16, torch.float32}
    at = task.dtypes.index(torch.float32)
    assert all(dtype == torch.float32 for dtype in task.dtypes[at:])
    assert finite(kept(one))
    found = load_trained(one.run_directory, task, one.method)
    assert found.precision == "fp32"
    assert found.predict(torch.ones(2, 3))[0].dtype == torch.float32

    broken_off(tmp_path / "two", method, _Regressions(poison="bf16"), 10, **given)
    two = trainer(tmp_path / "two", method, _Regressions(poison="bf16"), **given)
    assert two.run()["nonfinite"] == [event]
    assert same(kept(one), kept(two))


def test_what_fp32_does_not_mend_is_a_divergence(tmp_path: Path) -> None:
    task = _Regressions(poison="loss")
    result = trainer(tmp_path, "ew", task, precision="bf16", nonfinite="fp32").run()
    assert result["status"] == "diverged"
    assert len(result["nonfinite"]) == 1


def test_fp32_cannot_be_lowered(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nonfinite=fp32 lowers bf16 to fp32"):
        trainer(tmp_path, "ew", _Regressions(), nonfinite="fp32")
