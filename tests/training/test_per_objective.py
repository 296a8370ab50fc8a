"""Tasks of which every objective has samples of its own, from splits of unequal length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtbench import Engine, PerObjective
from mtbench.balancing.distributed import Ranks
from mtbench.errors import UsageError
from mtbench.testing import TaskContract
from mtbench.training.cell.fit import UnfitError
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.trained.model import load_trained
from mtbench.training.trainer.batches import Batches
from mtbench.training.trainer.evaluation import evaluate
from mtbench.training.trainer.learner import Learner, build
from mtbench.training.trainer.trainer import Trainer
from tests.soak import differences
from tests.training.own_inputs import SIZES, Domains
from tests.training.test_bilevel import BILEVEL
from tests.training.test_trainer import Remembering

DOMAINS = Path(__file__).with_name("own_inputs.py")


class TestContract(TaskContract):
    @pytest.fixture
    def make(self) -> Any:
        return Domains


def cell(method: str, **given: str) -> tuple[Request, Any, Any]:
    request = Request.of("own_inputs", [method], given, [DOMAINS, BILEVEL])
    splits = request.task.setup(0, lambda *_: None)
    return request, splits, request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")


def learner(method: str = "ew") -> tuple[Learner, Any]:
    request, splits, spec = cell(method)
    found = request.choices[0].method
    return Learner(spec, request.task, *build(spec, request.task, found)), splits


def train(out: Path, method: str, stop: int = -1) -> RunDirectory:
    request, splits, spec = cell(method)
    run, observer, seen = RunDirectory.at(out, spec), Remembering(), iter(range(1, 100))

    def stepped(*_: object) -> None:
        if next(seen) == stop:
            raise KeyboardInterrupt

    observer.stepped = stepped  # type: ignore[method-assign]
    trainer = Trainer(
        spec, request.task, splits, request.choices[0].method, run, observer, 1,
        diagnose=True, checkpoint_seconds=0.0,
    )  # fmt: skip
    if stop > 0:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    else:
        trainer.run()
    return run


def test_an_epoch_is_a_pass_over_the_longest_and_the_others_begin_again() -> None:
    _, splits = learner()
    batches = Batches(splits.train, 8, 0, "cpu")
    assert batches.steps == 3
    for k, size in enumerate(SIZES.values()):
        own = torch.cat([batches.at(0, i)["inputs"][k] for i in range(batches.steps)])
        assert len(own) == 20
        rows, counts = torch.unique(own, dim=0, return_counts=True)
        assert len(rows) == size
        assert counts.max() - counts.min() <= 1


def test_every_sample_is_judged_once() -> None:
    """However the split is cut into batches, an objective's mean is over its own samples."""
    it, splits = learner()
    losses, metrics = evaluate(it, splits.val, 3)
    for k, (name, size) in enumerate(SIZES.items()):
        own = splits.val.by_objective[name].batch(torch.arange(size))
        error = it.predict(PerObjective((own["inputs"], own["inputs"])))[k][:, 0] - own[name]
        assert losses[name] == pytest.approx(error.square().mean().item(), rel=1e-5)
        assert metrics[name] == pytest.approx(error.abs().mean().item(), rel=1e-5)


class _Rows(nn.Module):
    """Counts the rows that come back through an encoder."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.forth, self.back = body, 0, 0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.forth += len(x)
        (feature,) = self.body(x)
        feature.register_hook(self._count)
        return (feature,)

    def _count(self, gradient: Tensor) -> None:
        self.back += len(gradient)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("method", ["ew", "mgda", "config"])
def test_k_passes_forth_and_k_back(method: str, batched: bool) -> None:
    """And what a method sees are the gradients of each loss on its own samples."""
    it, splits = learner(method)
    it.engine = Engine(batched=batched)
    it.model.encoder = rows = _Rows(it.model.encoder)
    batch = splits.train.batch(torch.tensor([0, 1, 2, 9]))
    step = it.step(batch)
    it.balancer.backward(step)
    assert (rows.forth, rows.back) == (8, 8)
    it.model.encoder = rows.body
    jacobian = it.step(batch).jacobian()
    for k, inputs in enumerate(batch["inputs"]):
        alone = it.task.losses(it.model(inputs), batch)[k]
        found = torch.autograd.grad(alone, list(it.model.encoder.parameters()))
        assert torch.allclose(jacobian[k], torch.cat([g.flatten() for g in found]), atol=1e-6)


@pytest.mark.parametrize("method", ["ew", "uw", "pcgrad", "famo", "graddrop", "samo+uw", "stl"])
def test_methods_train_and_resume_bit_identical(tmp_path: Path, method: str) -> None:
    whole = train(tmp_path / "whole", method)
    result = whole.result()
    assert result is not None
    assert result.status == "finished"
    train(tmp_path / "broken", method, stop=5)
    assert not list(differences(whole.path, train(tmp_path / "broken", method).path))


def test_the_trained_model_is_read_back(tmp_path: Path) -> None:
    run = train(tmp_path, "ew")
    request, splits, _ = cell("ew")
    found = load_trained(run, request.task, request.choices[0].method)
    _, metrics = evaluate(found, splits.test, 4)
    assert metrics == pytest.approx(run.open_test())


@pytest.mark.parametrize(
    ("method", "said"),
    [("rlar", "looks at features that all heads share"), ("bilevel", "holds out training samples")],
)
def test_what_has_no_meaning_here_is_told_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, said: str
) -> None:
    """And in the first step, where the task does not say that it has a batch per objective."""
    with pytest.raises(UnfitError, match=f"^{method} {said}"):
        cell(method)
    monkeypatch.setattr("mtbench.training.cell.request.refuse_unfit", lambda *_: None)
    with pytest.raises(UnfitError, match=f"^this method {said}"):
        train(tmp_path, method)


def test_one_process_trains_them() -> None:
    it, splits = learner()
    batch = splits.train.batch(torch.arange(4))

    class Two(Ranks):
        size = 2

    with pytest.raises(UsageError, match="is trained by one process"):
        it.forward(batch, Two())
