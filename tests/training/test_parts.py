"""A batch in parts: the whole batch's step, in less memory."""

from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

from mtbench.errors import StepError, UsageError
from mtbench.training.cell.request import Request
from mtbench.training.task import Batch, Recipe
from mtbench.training.trainer.learner import Learner, build
from mtbench.training.trainer.parts import in_parts, refuse_mixing
from tests.methods import METHODS
from tests.soak import differences
from tests.training.test_per_objective import DOMAINS
from tests.training.test_trainer import train


def cell(task: str, method: str, plugin: Path, batch_size: int, parts: int) -> tuple[Any, ...]:
    given = {"batch_size": str(batch_size), "accumulate": str(parts)}
    if task == "tiny":
        given["missing"] = "true"
    request = Request.of(task, [method], given, [plugin])
    splits = request.task.setup(0, lambda *_: None)
    return request, splits, request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")


def learner(task: str, method: str, plugin: Path, batch_size: int, parts: int) -> Learner:
    request, splits, spec = cell(task, method, plugin, batch_size, parts)
    made = Learner(spec, request.task, *build(spec, request.task, request.choices[0].method))
    for module in made.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # parts draw other numbers than the whole
    made.model.double()
    made.batches = [splits.train.batch(torch.arange(i, i + batch_size)) for i in (0, 9)]  # type: ignore[attr-defined]
    return made


def doubled(batch: Batch) -> Batch:
    def change(x: Any) -> Any:
        if isinstance(x, tuple):
            return type(x)(map(change, x))
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    return {key: change(value) for key, value in batch.items()}


def trained(it: Learner) -> list[Tensor]:
    """Make two steps, and return all there is afterwards."""
    parameters = [*it.model.parameters(), *it.balancer.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    batches = [doubled(batch) for batch in it.batches]  # type: ignore[attr-defined]
    for batch in batches:
        numbers = count()
        optimizer.zero_grad()
        it.balancer.backward(
            it.step(batch, validation=lambda n=numbers: it.step(batches[next(n) % 2]))
        )
        optimizer.step()
        it.balancer.after_step(lambda batch=batch: it.forward(batch).losses)
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("method", METHODS)
def test_parts_make_the_whole_batchs_step(tiny: Path, method: str) -> None:
    """For every method, where parts are of different size and labels are missing in some."""
    whole, parted = (trained(learner("tiny", method, tiny, 7, parts)) for parts in (1, 3))
    for a, b in zip(whole, parted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_an_objective_with_inputs_of_its_own_has_parts_too(tiny: Path) -> None:
    for method in ("uw", "cagrad"):
        whole, parted = (
            trained(learner("own_inputs", method, DOMAINS, 8, parts)) for parts in (1, 4)
        )
        for a, b in zip(whole, parted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class Activations:
    """Counts the samples whose activations are in memory together."""

    def __init__(self) -> None:
        self.alive: WeakSet[Tensor] = WeakSet()
        self.peak = 0

    def __call__(self, module: nn.Module, _: Any, output: Tensor) -> None:
        self.alive.add(output)
        self.peak = max(self.peak, sum(map(len, self.alive)))


@pytest.mark.parametrize("method", ["uw", "cagrad", "graddrop", "rlar", "samo+fairgrad"])
@pytest.mark.parametrize("parts", [1, 4])
def test_parts_take_the_memory_of_one(tiny: Path, method: str, parts: int) -> None:
    it = learner("tiny", method, tiny, 8, parts)
    it.model.encoder.extend([nn.Linear(16, 16, dtype=torch.float64), nn.Tanh()])  # type: ignore[operator]
    it.model.encoder.get_submodule("1").register_forward_hook(seen := Activations())
    it.balancer.backward(it.step(doubled(it.batches[0])))  # type: ignore[attr-defined]
    assert seen.peak >= 8 if parts == 1 else seen.peak <= 4  # a part, before the last one goes


def test_a_cell_in_parts_goes_on_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    said = {"epochs": "2", "accumulate": "3", "method": "cagrad", "checkpoint_seconds": 0.0}
    whole, _ = train(tiny, tmp_path / "a", **said)
    train(tiny, tmp_path / "b", stop_after=8, **said)
    resumed, again = train(tiny, tmp_path / "b", **said)
    assert again.done > 0
    assert not list(differences(whole.path, resumed.path))
    assert whole.spec().recipe["accumulate"] == 3
    assert whole.path.name != train(tiny, tmp_path / "a", epochs="2", method="cagrad")[0].path.name


def test_an_old_recipe_has_the_record_that_it_had() -> None:
    assert "accumulate" not in Recipe().record()
    assert Recipe(**Recipe(accumulate=4).record()) == Recipe(accumulate=4)


@pytest.mark.parametrize(
    ("accumulate", "message"),
    [(0, "accumulate must be at least 1, found 0"), (17, "at most batch_size, 16, found 17")],
)
def test_a_number_of_parts_that_cannot_be(accumulate: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(accumulate=accumulate)


def test_what_cannot_be_parted_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"its inputs, the samples, and they hold a str: leave"):
        in_parts(lambda x: x, {"image": torch.ones(4, 2), "name": "a"}, 2)
    with pytest.raises(UsageError, match=r"hold a \(3,\)"):
        in_parts(lambda x: x, (torch.ones(4, 2), torch.ones(3)), 2)
    for made, shape in ((torch.ones(3), r"\(3,\)"), (torch.ones(()), r"\(\)")):
        with pytest.raises(UsageError, match=f"of 2 it makes a {shape}: leave accumulate at 1"):
            in_parts(lambda x, made=made: (x, made), torch.ones(4, 2), 2)
    it = learner("tiny", "ew", tiny, 8, 1)
    it.model.encoder.append(nn.BatchNorm1d(16))
    *_, spec = cell("tiny", "ew", tiny, 8, 2)
    with pytest.raises(UsageError, match=r"encoder\.3 is a BatchNorm1d, .*: leave accumulate at 1"):
        Learner(spec, it.task, it.model, it.balancer)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), r"0\.p.* is a _SpectralNorm"),
        (nn.utils.spectral_norm(nn.Linear(2, 2)), "0 has a SpectralNorm"),
        (nn.InstanceNorm1d(2, track_running_stats=True), "0 is a InstanceNorm1d"),
    ],
)
def test_what_counts_its_forward_passes_is_refused(part: nn.Module, words: str) -> None:
    refuse_mixing(nn.Sequential(nn.InstanceNorm1d(2), nn.LayerNorm(2)))
    with pytest.raises(UsageError, match=f"accumulate: {words}, which is not the same on parts"):
        refuse_mixing(nn.Sequential(part))


def test_parameters_that_moved_before_their_gradient_are_noticed(tiny: Path) -> None:
    """Autograd has saved nothing that would tell."""
    it = learner("tiny", "ew", tiny, 8, 2)
    step = it.step(doubled(it.batches[0]))  # type: ignore[attr-defined]
    with torch.no_grad():
        next(iter(it.model.parameters())).mul_(2)
    with pytest.raises(StepError, match="changed parameters between a forward pass and its back"):
        it.balancer.backward(step)
