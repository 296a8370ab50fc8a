"""Two and four ranks make the update that one process makes, for every method.

The ranks are started once: `_work` trains every case data-parallel, and rank 0 alone trains it
again and writes how far the two are apart.
"""

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F

from mtbench import Engine, Metric, MultitaskModel, Split, Splits, Step, Task
from mtbench.balancing.distributed import ALONE, Group, Ranks, refuse_wrapped
from mtbench.errors import RunError, StepError, UsageError
from mtbench.plugins.method import Method
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import Reader, RunDirectory, Spec
from mtbench.training.machine.processes import launch
from mtbench.training.task import Batch, Meter, Progress, Recipe
from mtbench.training.trainer.loop import Loop
from mtbench.training.trainer.observer import Silent
from mtbench.training.trainer.trainer import Trainer
from tests.conftest import TINY
from tests.methods import METHODS
from tests.opened import OpenTrainer
from tests.processes import PROCESSES, Command

RECIPE = Recipe(epochs=2, batch_size=7, lr=1e-2, select="last")
CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in METHODS},
    "mgda, features": {"method": "mgda", "params": {"space": "features"}},
    "gradnorm, features": {"method": "gradnorm", "params": {"space": "features"}},
    "ntkmtl, features": {"method": "ntkmtl", "params": {"space": "features", "splits": 3}},
    "rlar, absolute": {"method": "rlar", "params": {"mode": "absolute", "weight": 5.0}},
    "norm_matched+ew": {},
    "samo+uw": {},
    "mgda, in parts": {"method": "mgda", "parts": 3},
    "cagrad, batched": {"method": "cagrad", "batched": True},
    **{
        f"{name}, last batch of one": {"method": name, "recipe": {**vars(RECIPE), "batch_size": 11}}
        for name in ("uw", "mgda")
    },
    "upgrad, measured": {"method": "upgrad", "batched": None},
    **{
        f"{name}, samples coupled": {"method": name, "coupled": True}
        for name in ("ew", "gls", "famo", "mgda", "graddrop", "rotograd", "samo+uw")
    },
    "norm_matched+ntk_weights": {
        "squared": True,
        "params": {"ntk_weights.steps": 2, "ntk_weights.probes": 5},
    },
    "ntk_weights": {"squared": True, "params": {"steps": 2, "probes": 5}},
}
# One of each kind; what else two ranks do for every method, four do by the same code.
FEW = ["uw", "famo", "rlar", "rotograd", "mgda", "graddrop", "samo+fairgrad", "ntkmtl, features",
       "ew, samples coupled"]  # fmt: skip
TOLERANCE = 1e-6
UNSPOKEN = ["ew", "mgda", "graddrop"]
MICRO = ["ew", "uw", "mgda", "samo+ew"]
LOOPS = ["ew", "uw", "famo", "mgda", "trimmed_mean", "rlar", "imtl", "chebyshev"]
SHARD = ["ew", "uw", "gls", "stch"]
SHARD_NOT = ["mgda", "graddrop", "rlar", "chebyshev", "rotograd", "consmtl", "imtl",
             "norm_matched+ew"]  # fmt: skip


class _Numbers(Split):
    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 1, 6, 6, generator=generator).double()
        self.mask = (self.x[:, :, 1:-1, 1:-1] > 0.3).double()
        self.y = self.x.mean((1, 2, 3)) + 0.1
        self.y[2:6] = torch.nan
        self.y[9:10] = torch.nan

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        x = self.x[indices]
        if generator is not None:
            x = x + 0.1 * torch.randn(x.shape, generator=generator).double()
        return {"inputs": {"image": x}, "mask": self.mask[indices], "y": self.y[indices]}


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        fine = torch.tanh(self.first(inputs["image"]))
        return fine, torch.tanh(self.second(fine))


class _Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 1, 1), nn.Conv2d(4, 1, 1)

    def forward(self, features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        coarse = F.interpolate(self.coarse(features[1]), scale_factor=2)
        return {"logits": self.fine(features[0]) + coarse}


class _Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        output: Tensor = self.body(features[-1].mean((2, 3)))[:, 0]
        return output


class _Meter(Meter):
    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        self.outputs.append(outputs[1])

    def compute(self) -> dict[str, float]:
        return {"mean": float(torch.cat(self.outputs).mean())}


class _Uneven(Task):
    """Batches of 7 and 5; one objective lacks labels, so that a rank may have none.

    Args:
        coupled: add a loss that is no mean over samples.
    """

    objectives = ("mask", "size", "sign")
    metrics = {"mean": Metric("mask", primary=True)}  # noqa: RUF012
    recipe = RECIPE

    def __init__(self, *, coupled: bool = False) -> None:
        self.coupled = coupled

    def setup(self, seed: int, progress: Progress) -> Splits:
        return Splits(_Numbers(12, 0), _Numbers(15, 1), _Numbers(8, 2), fingerprint="numbers")

    def model(self) -> MultitaskModel:
        return MultitaskModel(_Encoder(), [_Dense(), _Pooled(), _Pooled()]).double()

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        logits, size, sign = outputs[0]["logits"], outputs[1], outputs[2]
        mask = F.binary_cross_entropy_with_logits(logits, batch["mask"])
        if self.coupled:
            overlap = 2 * (logits.sigmoid() * batch["mask"]).sum()
            mask = mask + 1 - overlap / (logits.sigmoid().sum() + batch["mask"].sum())
        known = ~batch["y"].isnan()
        sizes = (size - batch["y"])[known].square()
        return [
            mask,
            sizes.mean() if known.any() else size.sum() * 0,
            3
            * F.binary_cross_entropy_with_logits(sign, (batch["mask"].mean((1, 2, 3)) > 0.4) * 1.0),
        ]

    def meter(self) -> Meter:
        return _Meter()


class _Squared(_Uneven):
    """The same, with mean squares for losses."""

    def residuals(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        return [
            outputs[0]["logits"] - batch["mask"],
            (outputs[1] - batch["y"]).nan_to_num(nan=0.0),
            outputs[2] - 1,
        ]

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        return [r.square().mean() for r in self.residuals(outputs, batch)]


def _trainer(case: dict[str, Any], out: Path, ranks: Ranks) -> OpenTrainer:
    name = case["method"]
    method = Method.find(name)
    task = _Squared() if "squared" in case else _Uneven(coupled=case.get("coupled", False))
    splits = task.setup(0, lambda *_: None)
    spec = Spec(
        task="uneven", task_params={}, method=name, method_params=case.get("params", {}),
        data=splits.fingerprint, recipe=case.get("recipe", vars(task.recipe)), seed=3,
    )  # fmt: skip
    path = out / name
    path.mkdir(parents=True, exist_ok=True)
    run = Reader(path) if ranks.rank else RunDirectory(path)
    engine = Engine(batched=case.get("batched", False), parts=case.get("parts", 1))
    return OpenTrainer(spec, task, splits, method, run, Silent(), 1, engine=engine, ranks=ranks)


def _state(trainer: OpenTrainer) -> dict[str, list[Tensor]]:
    learner, record = trainer.loop.learner, trainer.loop.record
    return {
        "model": [v.detach().double() for v in learner.model.state_dict().values()],
        "balancer": [
            v.double() for v in learner.balancer.state_dict().values() if isinstance(v, Tensor)
        ],
        "losses": [torch.tensor([r[4:] for r in record.rows]).double().nan_to_num()],
        "validation": [
            torch.tensor(list(r["val_loss"].values()) + list(r["val"].values())).double()
            for r in record.at.history
        ],
    }


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference, relative to the tensor's norm (at least 1e-3)."""
    return max(
        (
            (a - b).abs().max().item() / max(b.norm().item(), 1e-3)
            for a, b in zip(ours, theirs, strict=True)
            if b.numel()
        ),
        default=0.0,
    )


def _compare(case: dict[str, Any], ranks: Ranks, out: Path) -> dict[str, Any]:
    together = _trainer(case, out / "together", ranks)
    result = together.run()
    if ranks.rank:
        return {}
    alone = _trainer(case, out / "alone", ALONE)
    alone.run()
    ours, theirs = _state(together), _state(alone)
    return {
        "apart": {part: _apart(ours[part], theirs[part]) for part in ours},
        "processes": result["environment"]["processes"],
    }


def _own_loop(ranks: Ranks, method: str) -> float:
    """Return how far ``.grad`` is from one process's, accumulated over two batches."""
    grads = []
    for here in (ranks, ALONE):
        task = _Uneven()
        torch.manual_seed(1)
        model, balancer = task.model(), Method.find(method)(2, 0)
        for first in (0, 7):
            batch = _Numbers(14, 5).batch(torch.arange(first, first + 7))
            inputs, sizes = here.share(batch["inputs"])
            begin = sum(sizes[: here.rank])
            mine = slice(begin, begin + sizes[here.rank]) if sizes else slice(None)
            z = model.encode(inputs)
            _, size, sign = model.decode(z)
            y = batch["y"][mine]
            known = ~y.isnan()
            count = here.total(known.sum())
            losses = [
                here.total((size - y)[known].square().sum()) / count,
                here.total((sign - 1).square().sum()) / 7,
            ]
            balancer.backward(Step(losses, features=z, ranks=here))
        parameters = [*model.parameters(), *balancer.parameters()]
        grads.append([p.grad for p in parameters if p.grad is not None])
    return _apart(*grads)


def _micro_batches(ranks: Ranks, group: Any, method: str) -> float:
    """Return how far two steps of micro-batches are from one process's of whole batches.

    The model is wrapped, and has a parameter that nothing reads: what is summed already must not
    set off a reduction of torch's, which waits for that one.
    """
    ends = []
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.arange(8.0)
    for here in (ranks, ALONE):
        torch.manual_seed(0)
        model = nn.ModuleDict({"body": nn.Linear(3, 4)} | {k: nn.Linear(4, 1) for k in "abc"})
        model["unread"] = nn.Linear(1, 1)
        model.forward = lambda x, m=model: [m[k](m["body"](x).tanh())[:, 0] for k in "abc"]  # type: ignore[method-assign]
        forward: nn.Module = model
        if here is ranks:
            forward = nn.parallel.DistributedDataParallel(
                model, process_group=group, gradient_as_bucket_view=True
            )

        def losses(at: slice, forward: nn.Module = forward, here: Ranks = here) -> list[Tensor]:
            *outputs, last = forward(x[at])
            # Of value 0, with a gradient where this process has one of the last two samples.
            sums = [((last - last.detach()) * (y[at] > 5)).sum()]
            sums += [(found - y[at] + k).square().sum() / 8 for k, found in enumerate(outputs)]
            return [here.total(found) for found in sums]

        balancer = Method.find(method)(3, 0)
        optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.01)
        size = 4 if here is ranks else 8
        mine = slice(size * here.rank, size * (here.rank + 1))
        for _ in range(2):
            optimizer.zero_grad()
            said: Any = {"ranks": here, "again": partial(losses, mine)}
            if here is ranks:
                balancer.accumulate(losses(slice(mine.start, mine.start + 1)), ranks=here)
                balancer.backward(losses(slice(mine.start + 1, mine.stop)), **said)
            else:
                balancer.backward(losses(mine), **said)
            optimizer.step()
        ends.append([p.detach() for p in (*model.parameters(), *balancer.parameters())])
    return _apart(*ends)


def _unspoken(method: str, samples: Tensor) -> str:
    """Return what is said where nobody says who shares the batch.

    Heads begin with zeros: losses are the same whatever the samples.
    """
    body, heads = nn.Linear(3, 4, bias=False), [nn.Linear(4, 1), nn.Linear(4, 1)]
    nn.init.ones_(body.weight)
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    z = body(samples)
    losses = [(head(z) - 1).square().mean() for head in heads]
    try:
        Method.find(method)(2).backward(losses)
    except ValueError as error:
        return str(error)
    return ""


def _wrapped(method: str, group: Any) -> str:
    """Return why a wrapped model is refused where each process is said to train by itself."""
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2), process_group=group)
    losses = list(model(torch.ones(4, 3)).square().mean(0).unbind())
    try:
        Method.find(method)(2).backward(losses, ranks=ALONE)
    except ValueError as error:
        return str(error)
    return ""


def _not_shared(ranks: Ranks) -> dict[str, str]:
    """Return what is said where ranks hand over other losses, or begin otherwise."""
    found = {}
    for case in ("nothing", "a loss", "a label", "later", "parameters", "a seed"):
        mine = float(ranks.rank)
        body = nn.Linear(3, 4)
        nn.init.constant_(body.weight, 1 + mine if case == "parameters" else 1)
        nn.init.zeros_(body.bias)
        balancer = Method.find("cagrad")(2, ranks.rank if case == "a seed" else 0)
        losses: list[Tensor | None] = [
            ranks.total(body(torch.ones(2, 3) + mine).square().mean()) for _ in range(2)
        ]
        if case == "parameters":  # they differ, and losses need not
            losses = [losses[0] * 0 + 1, losses[1] * 0 + 1]
        if case == "later":
            again = [ranks.total(body(torch.ones(2, 3) + mine).square().mean()) for _ in range(2)]
            balancer.backward(again, ranks=ranks)
        if case == "a loss":
            losses[1] = body(torch.ones(2, 3) + mine).square().mean()
        if case in ("a label", "later") and ranks.rank:
            losses[0] = None
        try:
            balancer.backward(losses, ranks=ranks)
            found[case] = ""
        except ValueError as error:
            found[case] = str(error)
    return found


def _own_residuals(ranks: Ranks) -> str:
    """Return what is said of residuals of this rank's samples alone."""
    x = torch.ones(2, requires_grad=True)
    mine = (x * (torch.arange(6.0).reshape(3, 2) + ranks.rank)).sum(1)
    for r in (ranks.gather(mine), mine):
        loss = ranks.total(mine.square().sum()) / 6
        step = Step([loss, loss * 1], residuals=[r, r], shared=[x], ranks=ranks)
        try:
            Method.find("ntk_weights")(2).backward(step)
        except ValueError as error:
            assert r is mine
            return str(error)
    return ""


def _undisturbed(ranks: Ranks, out: Path) -> None:
    """Train the cell that another test kills a rank of."""
    request = Request.of("tiny", ["nash_mtl"], {"sleep": "0.05"}, [TINY])
    splits = request.task.setup(0, lambda *_: None)
    (choice,) = request.choices
    spec = request.spec(choice, splits.fingerprint, 0, "fp32", "cpu")
    with ranks.in_turn():
        run = RunDirectory.at(out, spec)
    run = Reader(run.path) if ranks.rank else run
    engine = Engine(batched=False)
    Trainer(
        spec, request.task, splits, choice.method, run, Silent(), 1, engine=engine, ranks=ranks
    ).run()


class _Drifting(Loop):
    def step(self, batch: Batch) -> None:
        super().step(batch)
        with torch.no_grad():
            next(self.learner.model.parameters()).add_(1e-6 * self.ranks.rank)


def _drift(ranks: Ranks, out: Path) -> str:
    trainer = _trainer({"method": "ew"}, out, ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtbench.training.trainer.trainer.Loop", _Drifting)
        with pytest.raises(RunError) as caught:
            trainer.run()
    return str(caught.value)


def _refusals(ranks: Ranks) -> list[str]:
    found = []
    for tree in ({"image": torch.zeros(4, 2), "graph": "a graph"}, torch.zeros(ranks.size - 1, 2)):
        with pytest.raises(UsageError) as caught:
            ranks.share(tree)
        found.append(str(caught.value))
    return found


def _sharded(ranks: Ranks, method: str) -> float | str:
    """Return how far `fully_shard`'s gradients are from one process's, or why they are not."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    grads = []
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8.0)
    for here in (ranks, ALONE):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))
        heads = [nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2)]
        mine = slice(None)
        if here is ranks:
            mine = slice(2 * ranks.rank, 2 * ranks.rank + 2)
            for module in (encoder[0], encoder, *heads):
                sharded = fully_shard(module)
                assert isinstance(sharded, FSDPModule)
                sharded.set_gradient_divide_factor(1.0)
                sharded.set_force_sum_reduction_for_comms(True)
        z = encoder(x[mine])
        losses = [here.total((h(z)[:, 0] - y[mine] + k).square().sum() / 8)
                  for k, h in enumerate(heads)]  # fmt: skip
        step = Step(
            losses,
            features=z,
            shared=encoder.parameters(),
            ranks=ALONE,  # fully_shard sums
        )
        balancer = Method.find(method)(2, 0)
        try:
            balancer.backward(step)
        except ValueError as error:
            return str(error)
        parameters = [p for m in (encoder, *heads) for p in m.parameters()]
        found = [p.grad for p in (*parameters, *balancer.parameters()) if p.grad is not None]
        grads.append([g.full_tensor() if isinstance(g, DTensor) else g for g in found])
        assert len(found) >= len(parameters)
    return _apart(*grads)


def _work(rank: int, out: Path) -> None:
    """Do all that the tests ask about, as one of four ranks, in pairs where two are enough."""
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{out / 'store'}", timedelta(minutes=5), rank=rank, world_size=4
    )
    four = Group()
    groups = [distributed.new_group(pair) for pair in ([0, 1], [2, 3])]
    pair = four.rank // 2
    two = Group(groups[pair])
    found: dict[str, Any] = {}
    for name in list(CASES)[pair::2]:
        found[name] = _compare({"method": name, **CASES[name]}, two, out / "2" / name)
    for name in FEW:
        found[f"{name}, 4 ranks"] = _compare(
            {"method": name, **CASES[name]}, four, out / "4" / name
        )
    for name in LOOPS:
        found[f"{name}, own loop"] = _own_loop(two, name)
    if pair == 0:
        _undisturbed(two, out / "whole")
    found["drift"] = _drift(two, out / "drift" / str(pair))
    found["refusals"] = _refusals(two)
    found["own residuals"] = _own_residuals(two)
    found["not shared"] = _not_shared(two)
    for name in MICRO:
        found[f"{name}, micro-batches"] = _micro_batches(two, groups[pair], name)
    for name in UNSPOKEN:
        alike, own = torch.ones(2, 3), torch.ones(2, 3) + four.rank
        found[f"{name}, unspoken"] = [_unspoken(name, x) for x in (alike, own)]
    found["wrapped"] = [_wrapped("ew", groups[pair]), _wrapped("mgda", groups[pair])]
    for name in (*SHARD, *SHARD_NOT):
        found[f"{name}, sharded"] = _sharded(four, name)
    if two.rank == 0:
        (out / f"found{pair}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What four ranks wrote."""
    out = tmp_path_factory.mktemp("ranks")
    start_processes(_work, (out,), nprocs=4, start_method=PROCESSES.get_start_method())
    return {"out": out} | {
        k: v for i in (1, 0) for k, v in json.loads((out / f"found{i}.json").read_text()).items()
    }


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_make_the_step_of_one(found: dict[str, Any], name: str):
    assert found[name]["processes"] == 2
    assert max(found[name]["apart"].values()) < TOLERANCE


@pytest.mark.parametrize("name", FEW)
def test_four_ranks_make_the_step_of_one(found: dict[str, Any], name: str):
    assert found[f"{name}, 4 ranks"]["processes"] == 4
    assert max(found[f"{name}, 4 ranks"]["apart"].values()) < TOLERANCE


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_of_your_own_accumulates_global_gradients(found: dict[str, Any], name: str):
    assert found[f"{name}, own loop"] < TOLERANCE


@pytest.mark.parametrize("name", MICRO)
def test_micro_batches_of_a_model_that_is_wrapped(found: dict[str, Any], name: str):
    assert found[f"{name}, micro-batches"] < TOLERANCE


def test_ranks_that_do_not_share_a_step_are_refused_together(found: dict[str, Any]):
    said = found["not shared"]
    assert said["nothing"] == ""
    assert "cagrad: losses[1] differs between the processes" in said["a loss"]
    for case in ("a label", "later"):
        assert "losses[0] differs between the processes" in said[case]
        assert "None on all or none" in said[case]
    assert "cagrad: parameters differ between" in said["parameters"]
    assert "cagrad: the balancer's state differs between" in said["a seed"]


@pytest.mark.parametrize("name", UNSPOKEN)
def test_processes_on_different_samples_have_to_be_spoken_of(found: dict[str, Any], name: str):
    alike, own = found[f"{name}, unspoken"]
    assert not alike
    assert "losses or gradients differ between the processes" in own


def test_a_wrapped_model_is_averaged_as_one_scalar_alone(found: dict[str, Any]):
    scalar, apart = found["wrapped"]
    assert not scalar
    assert "DistributedDataParallel averages what Tensor.backward gives" in apart


class Averaged(nn.parallel.DistributedDataParallel):
    """As people derive it."""


class Derived(Averaged):
    """As they derive that."""


@pytest.mark.parametrize("kind", [nn.parallel.DistributedDataParallel, Averaged, Derived])
def test_a_wrapped_model_is_found_however_it_is_derived(kind: type[nn.Module]):
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model, other = nn.Linear(3, 2), nn.Linear(3, 2)
        wrapped = kind(model)
        refuse_wrapped(other.parameters())
        with pytest.raises(StepError, match="DistributedDataParallel averages"):
            refuse_wrapped(wrapped.parameters())
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("name", SHARD)
def test_what_descends_a_scalar_works_on_sharded_parameters(found: dict[str, Any], name: str):
    assert found[f"{name}, sharded"] < 1e-6  # float32


@pytest.mark.parametrize("name", SHARD_NOT)
def test_what_takes_gradients_apart_refuses_sharded_parameters(found: dict[str, Any], name: str):
    assert found[f"{name}, sharded"].startswith("a parameter is sharded (fully_shard)")


def test_ranks_that_drift_apart_are_caught(found: dict[str, Any]):
    assert "the processes hold different weights" in found["drift"]


def test_equal_tensors_agree_whatever_they_hold(monkeypatch: pytest.MonkeyPatch):
    nan, inf = torch.nan, torch.inf
    tensors = [[1.0, 2.0], [nan, nan], [-inf, inf], [inf, inf], [-inf, -inf], [0.0, 0.0]]
    ranks, sent = Group.__new__(Group), list[Tensor]()  # a rank that is told what another has sent
    for other, theirs in enumerate(tensors):
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "maximum", lambda value: sent.append(value) or value)
            ranks.agreed([torch.tensor(theirs)])
        monkeypatch.setattr(ranks, "maximum", lambda value: torch.maximum(value, sent[-1]))
        for own, ours in enumerate(tensors):
            same = own == other or {own, other} == {1, 2}  # judged by sums, and both are NaN
            assert ranks.agreed([torch.tensor(ours)]) == same, (ours, theirs)


def test_what_cannot_be_shared_is_refused(found: dict[str, Any]):
    graph, few = found["refusals"]
    assert "its inputs hold a str" in graph
    assert "2 processes share a batch by its samples, at least one each" in few


def test_residuals_are_those_of_the_whole_batch(found: dict[str, Any]):
    assert "residuals[0] must be the whole batch's" in found["own residuals"]


def test_one_process_is_left_alone():
    x = torch.ones(3, requires_grad=True)
    assert ALONE.total(x) is x
    assert ALONE.gather(x) is x
    assert ALONE.share(x) == (x, [])
    assert ALONE.sums([x, None])[0] is x


def _run(out: Path, *words: str) -> Command:
    return Command(
        "run", "--plugin", TINY, "--task", "tiny", "-m", "nash_mtl", "--set", "sleep=0.4",
        "--threads", 1, "--jacobian", "loop", "--out", out, *words,
    )  # fmt: skip


def _process_of_rank(rank: int, parent: int) -> int:
    for folder in Path("/proc").iterdir():
        with suppress(OSError, StopIteration):
            status = (folder / "status").read_text()
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"PPid:\t{parent}\n" in status and f"RANK={rank}".encode() in environment:
                return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def _weights(out: Path) -> dict[str, Tensor]:
    (folder,) = out.glob("tiny/nash_mtl/*")
    state = RunDirectory(folder).load("best.pt")
    assert state is not None
    return {**state["model"], **state["balancer"]}


def test_a_killed_rank_ends_the_job_and_it_goes_on_bit_for_bit(
    found: dict[str, Any], tmp_path: Path, mtbench: Any, tiny: Path
):
    disturbed = _run(killed := tmp_path / "killed", "--nproc", "2")
    for _ in range(600):
        if list(killed.glob("tiny/nash_mtl/*/checkpoint.pt")):
            break
        time.sleep(0.1)
    os.kill(_process_of_rank(1, disturbed.pid), signal.SIGKILL)
    _, told = disturbed.communicate(timeout=60)
    assert disturbed.returncode == 2
    assert told.splitlines() == [
        "error: process 1 of 2 was killed by SIGKILL; the same command goes on from the last "
        "checkpoint"
    ]
    words = ("-m", "nash_mtl", "--set", "sleep=0.4", "--out", killed)
    code, _, told = mtbench("run", "--plugin", tiny, "--task", "tiny", *words)
    assert code == 2
    assert "was begun by 2 processes and goes on with as many, found 1" in told
    shown, _ = _run(killed, "--nproc", "2").communicate(timeout=120)
    assert "resumed at step" in shown
    assert shown.count("report:") == 1
    expected, again = _weights(found["out"] / "whole"), _weights(killed)
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    (result,) = killed.glob("tiny/nash_mtl/*/result.json")
    assert json.loads(result.read_text())["environment"]["processes"] == 2


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_who_started_them_is_a_stop(
    monkeypatch: pytest.MonkeyPatch, sign: signal.Signals
):
    def started(*_: object) -> Any:
        def stopped(*_: object) -> None:
            raise SignalException("stopped", sign)

        return stopped

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", started)
    with pytest.raises(KeyboardInterrupt):
        launch(2, [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--nproc", "0"), "--nproc must be at least 1, found 0"),
        (("--nproc", "2", "--set", "nonsense=1"), "nonsense"),
    ],
)
def test_what_is_wrong_is_told_once(
    tmp_path: Path, mtbench: Any, tiny: Path, words: Sequence[str], told: str
):
    code, _, errors = mtbench(
        "run", "--plugin", tiny, "--task", "tiny", "-m", "ew", "--out", tmp_path, *words
    )
    assert code == 2
    assert errors.count("error:") == 1
    assert told in errors
