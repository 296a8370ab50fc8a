"""What the recipe's optimizer does in a step, against textbook updates."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtbench import MultitaskModel
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.training.cell.rundir import Spec
from mtbench.training.task import Recipe, Task
from mtbench.training.trainer.learner import Learner
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


def moved(recipe: Recipe, steps: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters before and after steps along a gradient of ones."""
    it = learner()
    descent = Descent(recipe, it, steps)
    before = {name: p.detach().clone() for name, p in it.model.named_parameters()}
    for index in range(steps):
        descent.set_rate(index)
        for parameter in it.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        descent.step()
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
