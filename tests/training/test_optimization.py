"""What the recipe's optimizer does in a step, against textbook updates."""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtbench import MultitaskModel
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.training.cell.fit import UnfitError
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import Spec
from mtbench.training.task import Recipe, Task
from mtbench.training.trainer.learner import Learner
from mtbench.training.trainer.nonfinite import check
from mtbench.training.trainer.optimization import Descent
from tests.training.test_trainer import differences, train


def learner(encoder: nn.Module | None = None, method: str = "ew") -> Learner:
    torch.manual_seed(0)
    body = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)) if encoder is None else encoder
    )
    model = MultitaskModel.single_feature(body, [nn.Linear(4, 1), nn.Linear(4, 1)])
    spec = Spec(
        task="t", task_params={}, method=method, method_params={}, data="", recipe={}, seed=0
    )
    task: Any = Task
    return Learner(spec, task, model, Method.find(method)(2))


def unasked(weights: Tensor) -> float:
    raise AssertionError("a line is searched")


def moved(recipe: Recipe, steps: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters before and after steps along a gradient of ones."""
    it = learner()
    descent = Descent(recipe, it, steps)
    before = {name: p.detach().clone() for name, p in it.model.named_parameters()}
    for index in range(steps):
        descent.set_rate(index)
        for parameter in it.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        descent.step(None, unasked)
        descent.zero_grad()
    return before, {name: p.detach() for name, p in it.model.named_parameters()}


def recipe(**given: Any) -> Recipe:
    return Recipe(**{"lr": 0.1, "weight_decay": 0.0, "schedule": "constant", **given})


def test_sgd_has_momentum() -> None:
    """Two steps along g: lr g, then lr (0.9 g + g)."""
    before, after = moved(recipe(optimizer="sgd"))
    for name in before:
        assert torch.allclose(before[name] - after[name], torch.full_like(before[name], 0.29))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_adams_forget_the_length(optimizer: str) -> None:
    before, after = moved(recipe(optimizer=optimizer))
    for name in before:
        assert torch.allclose(before[name] - after[name], torch.full_like(before[name], 0.2))


def test_adam_adds_the_decay_to_the_gradient_and_adamw_shrinks_the_weights() -> None:
    given = {"weight_decay": 0.5}
    before, after = moved(recipe(optimizer="adam", **given), steps=1)
    for name in before:  # the first step is lr times the sign of 1 + 0.5 p
        assert torch.allclose(before[name] - after[name], torch.full_like(before[name], 0.1))
    before, after = moved(recipe(**given), steps=1)
    for name in before:
        assert torch.allclose(after[name], before[name] * (1 - 0.1 * 0.5) - 0.1, atol=1e-6)


def test_muon_turns_the_encoders_matrices_alone() -> None:
    """Its update has singular values near 1, times 0.2 sqrt(max(rows, columns))."""
    before, after = moved(recipe(optimizer="muon"), steps=1)
    for name in before:
        change = before[name] - after[name]
        if name.startswith("encoder") and change.ndim == 2:
            largest = torch.linalg.matrix_norm(change, ord=2).item()
            assert 0.6 < largest / (0.1 * 0.2 * math.sqrt(max(change.shape))) < 1.3
        else:
            assert torch.allclose(change, torch.full_like(change, 0.1))


def test_muon_wants_a_matrix() -> None:
    it = learner(nn.Conv1d(3, 4, 1))
    with pytest.raises(UsageError, match="optimizer=muon moves the weight matrices"):
        Descent(recipe(optimizer="muon"), it, 1)


def line(**given: Any) -> Recipe:
    return recipe(**{"optimizer": "lbfgs", "lr": 1.0, "epochs": 4, **given})


def valley(it: Learner) -> Callable[[Tensor], float]:
    """Return w_0 |p - 1|^2 / 2 and w_1 sum_i i p_i^2 / 2, summed, of a model's parameters p."""
    parameters = list(it.model.parameters())
    steep = torch.arange(1.0, 1 + sum(p.numel() for p in parameters))

    def evaluate(weights: Tensor) -> float:
        it.model.zero_grad()
        p = nn.utils.parameters_to_vector(parameters)
        value = (weights[0] * (p - 1).square() + weights[1] * steep * p.square()).sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    return evaluate


def lowered(*weights: list[float]) -> Tensor:
    """Return a model's parameters after a step with each of these weights."""
    it = learner()
    descent = Descent(line(), it, 4)
    for some in weights:
        valley(it)(torch.tensor(some))
        descent.step(torch.tensor(some), valley(it))
    return nn.utils.parameters_to_vector(it.model.parameters()).detach()


def test_lbfgs_finds_the_weighted_sums_minimum() -> None:
    found = lowered(*[[3.0, 0.5]] * 4)
    steep = torch.arange(1.0, 1 + len(found))
    torch.testing.assert_close(found, 3 / (3 + 0.5 * steep), atol=1e-4, rtol=0)


@pytest.mark.parametrize("second", [[3.0, 0.5], [1.0, 0.5]])
def test_lbfgs_remembers_the_sum_it_knows_and_no_other(second: list[float]) -> None:
    first, ends = [3.0, 0.5], {}
    for remembers in (True, False):
        it = learner()
        optimizer = torch.optim.LBFGS(it.model.parameters(), line_search_fn="strong_wolfe")
        for some in (first, second):
            weights = torch.tensor(some)
            optimizer.step(lambda w=weights, it=it: valley(it)(w))  # type: ignore[no-untyped-call]
            if not remembers:
                optimizer.state.clear()
        ends[remembers] = nn.utils.parameters_to_vector(it.model.parameters()).detach()
    assert not torch.equal(ends[True], ends[False])
    assert torch.equal(lowered(first, second), ends[first == second])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        *((name, "descends no weighted sum of the losses") for name in (
            "rlar", "cyclic+mgda", "norm_matched+samo+ew", "graddrop", "grouped+mgda", "metabalance"
        )),
        ("uw", "has parameters of its own to move"),
        ("last_layer+gradnorm", ""),
    ],
)  # fmt: skip
def test_what_lbfgs_cannot_lower_is_told_before_data_is_loaded(
    tiny: Path, method: str, said: str
) -> None:
    given = {"optimizer": "lbfgs", "schedule": "constant", "weight_decay": "0"}
    if not said:
        Request.of("tiny", [method], given, [tiny])
        return
    for some in (given, {"optimizer": "lbfgs"}):  # before what the recipe lacks
        with pytest.raises(UnfitError, match=re.escape(f"{method} {said}")) as error:
            Request.of("tiny", ["ew", method], some, [tiny])
        assert "\n" not in str(error.value)


def test_lbfgs_wants_weights_and_one_batch() -> None:
    it = learner()
    with pytest.raises(UsageError, match="and this method has no weights"):
        Descent(line(), it, 4).step(None, unasked)
    with pytest.raises(UsageError, match="found 3 batches of 16: raise batch_size"):
        Descent(line(), it, 12)


@pytest.mark.parametrize("share", [1e-4, 0.1])
def test_a_method_that_does_more_than_it_says_by_weights_is_found_out(share: float) -> None:
    """By the gradient that it has written; what rounding leaves is not taken for that."""
    it, weights = learner(), torch.tensor([3.0, 0.5])
    evaluate = valley(it)
    evaluate(weights)
    first = next(it.model.encoder.parameters())
    assert first.grad is not None
    first.grad[0, 0] += share * nn.utils.get_total_norm([first.grad])
    descent = Descent(line(), it, 4)
    with (
        pytest.raises(UsageError, match="writes another gradient")
        if share > 0.01
        else nullcontext()
    ):
        descent.step(weights, evaluate)


def test_gradients_that_cancel_leave_rounding() -> None:
    """Two of 1e4 are 1 together, of which each one's rounding is a part."""
    it = learner()
    parameters = list(it.model.parameters())

    def evaluate(weights: Tensor) -> float:
        it.model.zero_grad()
        p = nn.utils.parameters_to_vector(parameters)
        value = 1e4 * (weights[0] - weights[1]) * p.sum() + weights.sum() * p.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    weights = torch.tensor([1.0, 1.0])
    evaluate(weights)
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad += 1.0
    Descent(line(), it, 4).step(weights, evaluate)
    assert max(p.abs().max() for p in parameters) < 1e-3


def test_a_trial_point_without_a_value_is_rejected() -> None:
    """A step too long comes back, and the minimum, which lies before the pit, is found."""
    it, weights = learner(), torch.tensor([3.0, 0.5])
    parameters, plain, fell = list(it.model.parameters()), valley(it), []

    def evaluate(weights: Tensor) -> float:
        value = plain(weights)
        if nn.utils.parameters_to_vector(parameters).min() < -0.01:
            fell.append(value)
            check("pit", [math.nan], 0, 0)
        return value

    for parameter in parameters:
        nn.init.constant_(parameter, 3.0)
    descent = Descent(line(), it, 4)
    for _ in range(4):
        evaluate(weights)
        descent.step(weights, evaluate)
    assert fell
    found = nn.utils.parameters_to_vector(parameters).detach()
    steep = torch.arange(1.0, 1 + len(found))
    torch.testing.assert_close(found, 3 / (3 + 0.5 * steep), atol=1e-4, rtol=0)


class Depth(nn.Module):
    """Drops all of a layer, of a sample."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1) < 0.8)


class Attending(nn.MultiheadAttention):
    def __init__(self) -> None:
        super().__init__(16, 2, 0.3)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1)


@pytest.mark.parametrize(
    ("layer", "augmented", "said"),
    [
        (nn.Identity(), False, ""),
        (nn.Dropout(0.0), False, ""),
        (nn.LayerNorm(16), False, ""),
        (nn.Identity(), True, "of the training samples found first "),
        (nn.Dropout(0.1), False, "of the training samples found first "),
        (Functional(), False, "of the training samples found first "),
        (Depth(), False, "of the training samples found first "),
        (Attending(), False, "of the training samples found first "),
        (nn.BatchNorm1d(16), False, r"a look changes the model's encoder.3.running_mean: take"),
        (nn.BatchNorm1d(16, track_running_stats=False), False, ""),
    ],
    ids=str,
)
def test_lbfgs_wants_the_same_losses_whenever_it_looks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: Any, augmented: bool,
    said: str,
) -> None:  # fmt: skip
    """Whatever it is that draws, in the model or in the split."""
    given = {"optimizer": "lbfgs", "schedule": "constant", "weight_decay": "0", "lr": "1"}
    given |= {"batch_size": "48", "epochs": "2"}
    task = type(Request.of("tiny", ["ew"], given, [tiny]).task)
    plain = task.model

    def model(self: Any) -> MultitaskModel:
        found = plain(self)
        body = list(found.encoder)[:2]
        found.encoder = type(found.encoder)(*body, nn.Identity(), layer)
        return found

    monkeypatch.setattr(task, "model", model)
    if not augmented:
        split = type(task().setup(0, lambda *_: None).train)
        batch = split.batch
        monkeypatch.setattr(split, "batch", lambda self, indices, _=None: batch(self, indices))
    if not said:
        run, _ = train(tiny, tmp_path, **given)
        assert run.result().status == "finished"
        return
    with pytest.raises(UsageError, match=f"wants the same losses whenever it looks, and {said}"):
        train(tiny, tmp_path, **given)


def test_lbfgs_refuses_what_would_be_passed_over() -> None:
    wanted = (
        "wants encoder_lr=1, weight_decay=0, schedule='constant', clip=None, nonfinite='stop', "
        "found encoder_lr=0.5, "
    )
    with pytest.raises(UsageError, match=wanted):
        Recipe(optimizer="lbfgs", encoder_lr=0.5, clip=1.0, nonfinite="skip")


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_the_encoders_rate_is_its_own(optimizer: str) -> None:
    before, half = moved(recipe(optimizer=optimizer, encoder_lr=0.5))
    _, full = moved(recipe(optimizer=optimizer))
    for name in before:
        share = 0.5 if name.startswith("encoder") else 1.0
        assert torch.allclose(
            before[name] - half[name], share * (before[name] - full[name]), atol=1e-6
        )


@pytest.mark.parametrize(
    "given", [{"optimizer": "sgd"}, {"optimizer": "muon"}, {"encoder_lr": "0.5"}]
)
def test_resuming_under_any_optimizer_ends_bit_identical(
    tiny: Path, tmp_path: Path, given: dict[str, str]
) -> None:
    whole, _ = train(tiny, tmp_path / "whole", "uw", epochs="2", **given)
    train(
        tiny, tmp_path / "broken", "uw", epochs="2", stop_after=9, checkpoint_seconds=0.0, **given
    )
    again, observer = train(tiny, tmp_path / "broken", "uw", epochs="2", **given)
    assert observer.done == 8
    assert not list(differences(whole.path, again.path))


def test_defaults_that_came_later_are_not_in_a_spec() -> None:
    first = {
        "epochs",
        "batch_size",
        "lr",
        "weight_decay",
        "schedule",
        "select",
        "clip",
        "nonfinite",
    }
    assert set(Recipe().record()) == first
    assert set(Recipe(optimizer="sgd").record()) == first | {"optimizer"}
    assert Recipe(**Recipe(encoder_lr=0.1).record()) == Recipe(encoder_lr=0.1)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="encoder_lr must be positive, found 0"):
        Recipe(encoder_lr=0.0)
