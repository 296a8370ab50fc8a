"""Physics-informed networks: solutions, derivatives, gradients, errors."""

import itertools
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mtbench import Step
from mtbench.errors import UsageError
from mtbench.testing import TaskContract
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.task import Splits
from mtbench.training.trainer.trainer import Trainer
from mtbench_tasks import pinn
from mtbench_tasks.pinn import (
    BOUNDARY,
    EQUATIONS,
    INSIDE,
    START,
    Burgers,
    Errors,
    Field,
    Helmholtz,
    KleinGordon,
    Pinn,
    Poisson,
    Stokes,
    drawn,
    exact,
)  # fmt: skip
from tests.soak import differences
from tests.training.test_trainer import Remembering

SMALL = partial(Pinn, samples=64, width=20, depth=2)


def setup(task: Pinn, seed: int = 0) -> Splits:
    return task.setup(seed, lambda *_: None)


class TestPinnContract(TaskContract):
    @pytest.fixture
    def make(self) -> partial[Pinn]:
        return SMALL


# --- solutions -----------------------------------------------------------------------------------


def points(equation: type, kind: int, count: int = 200) -> Tensor:
    return drawn(equation(), count, torch.Generator().manual_seed(0))[:, kind]


def test_sources_by_hand() -> None:
    x, y = points(Poisson, INSIDE).unbind(1)
    pi = math.pi
    for equation, source in (
        (Poisson, -2 * pi**2 * (pi * x).sin() * (pi * y).sin()),
        (Helmholtz, (1 - 17 * pi**2) * (pi * x).sin() * (4 * pi * y).sin()),
    ):
        found = equation().residual(exact(equation(), torch.stack([x, y], 1)))
        assert torch.allclose(found[:, 0], source), equation

    x, t = points(KleinGordon, INSIDE).unbind(1)
    u = x * (5 * pi * t).cos() + x**3 * t**3
    source = -25 * pi**2 * x * (5 * pi * t).cos() + 6 * x**3 * t - 6 * x * t**3 + u**3
    found = KleinGordon().residual(exact(KleinGordon(), torch.stack([x, t], 1)))
    assert torch.allclose(found[:, 0], source)

    x, y = points(Stokes, INSIDE).unbind(1)
    jets = exact(Stokes(), torch.stack([x, y], 1))
    sx, cx, sy, cy = (pi * x).sin(), (pi * x).cos(), (pi * y).sin(), (pi * y).cos()
    source = torch.stack([pi * cx * sy + 2 * pi**2 * sx * cy, pi * sx * cy - 2 * pi**2 * cx * sy])
    assert torch.allclose(Stokes().residual(jets), source.T)
    assert Stokes().asked("divergence", jets).abs().max() < 1e-12


def test_cole_and_hopfs_integrals_solve_burgers() -> None:
    inside, edge, start = (points(Burgers, kind) for kind in (INSIDE, BOUNDARY, START))
    jets = exact(Burgers(), inside[inside[:, 1] > 1e-3])
    assert Burgers().residual(jets).abs().max() < 1e-6 * jets[:, 1].abs().max()
    assert Burgers().solution(edge).abs().max() < 1e-12
    assert torch.allclose(Burgers().solution(start)[:, 0], -(math.pi * start[:, 0]).sin())
    # The steepest slope there ever is, by Basdevant et al. (1986).
    steepest = exact(Burgers(), torch.tensor([[0.0, 1.6037 / math.pi]], dtype=torch.float64))
    assert steepest[0, 1, 0].item() == pytest.approx(-152.00516, abs=1e-5)


def test_points_lie_where_they_should() -> None:
    for equation in EQUATIONS.values():
        of = equation()
        found = drawn(of, 400, torch.Generator().manual_seed(1))
        low, high = torch.tensor(of.low), torch.tensor(of.high)
        assert (found >= low).all()
        assert (found <= high).all()
        sides = torch.cat([found[:, BOUNDARY] == low, found[:, BOUNDARY] == high], 1)
        assert (sides.sum(1) == 1).all()
        shares = sides.double().mean(0)
        used = [True, not of.timed, True, not of.timed]
        assert ((shares > 0.15) == torch.tensor(used)).all(), equation
        assert (found[:, START, 1] == of.low[1]).all()


def test_at_the_solution_nothing_is_asked() -> None:
    for name in EQUATIONS:
        task = Pinn(equation=name, samples=32)  # type: ignore[arg-type]
        batch = setup(task).train.batch(torch.arange(32))
        places = batch["inputs"].double()
        jets = exact(task.equation, places.flatten(0, 1)).unflatten(0, places.shape[:2])
        outputs = [head((jets.float(),)) for head in task.model().heads]
        for loss, objective in zip(task.losses(outputs, batch), task.objectives, strict=True):
            assert loss < 1e-6 * batch[objective].square().mean() + 1e-6, (name, objective)


# --- derivatives ---------------------------------------------------------------------------------


@settings(max_examples=10)
@given(seed=st.integers(0, 100), components=st.integers(1, 3), depth=st.integers(1, 3))
def test_jets_are_autograds_derivatives(seed: int, components: int, depth: int) -> None:
    torch.manual_seed(seed)
    field = Field(components, 7, depth).double()
    for layer in field.layers:
        torch.nn.init.normal_(layer.bias)
    places = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (jets,) = field(places[:, None])
    expected = torch.empty_like(jets[:, 0])
    for c in range(components):
        plain = places
        for i, layer in enumerate(field.layers):
            plain = layer(plain.tanh() if i else plain)
        u = plain[:, c]
        (first,) = torch.autograd.grad(u.sum(), places, create_graph=True)
        second = [
            torch.autograd.grad(first[:, i].sum(), places, retain_graph=True)[0][:, i]
            for i in range(2)
        ]
        expected[:, :, c] = torch.stack([u, *first.unbind(1), *second], 1)
    assert torch.allclose(jets[:, 0], expected)


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_steps_gradients_are_those_of_plain_backwards(name: str) -> None:
    task = Pinn(equation=name, samples=16, width=10, depth=2)  # type: ignore[arg-type]
    batch = setup(task).train.batch(torch.arange(16))
    torch.manual_seed(0)
    model = task.model()
    features = model.encode(batch["inputs"])
    losses = task.losses(model.decode(features), batch)
    shared = list(model.encoder.parameters())
    expected = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True,
                                                                materialize_grads=True)])
            for loss in losses
        ]
    )  # fmt: skip
    step = Step(losses, features=features, shared=shared)
    assert torch.allclose(step.gramian("shared"), (expected @ expected.T).double(), rtol=1e-4)
    assert torch.allclose(step.jacobian(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EQUATIONS)
def test_losses_are_the_mean_squares_of_the_residuals(name: str) -> None:
    task = Pinn(equation=name, samples=16, width=10, depth=2)  # type: ignore[arg-type]
    batch = setup(task).train.batch(torch.arange(16))
    outputs = task.model()(batch["inputs"])
    residuals = task.residuals(outputs, batch)
    squares = torch.stack([residual.square().mean() for residual in residuals])
    assert torch.allclose(squares, torch.stack(task.losses(outputs, batch)))
    Step(task.losses(outputs, batch), residuals=residuals).refuse_residuals()


# --- errors --------------------------------------------------------------------------------------


def test_errors_by_hand() -> None:
    task = Pinn(equation="stokes", samples=4)
    test = setup(task).test
    batch = test.batch(torch.arange(len(test)))
    meter = task.meter()
    nothing = torch.zeros(len(test), 2, 5, 3)
    meter.update([head((nothing,)) for head in task.model().heads], batch)
    found = meter.compute()
    assert found["l2"] == pytest.approx(1)
    assert found["rms_divergence"] == 0
    for name in ("momentum", "boundary"):
        assert found[f"rms_{name}"] == pytest.approx(batch[name].square().mean().sqrt().item())

    wrong = batch["u"].clone()
    wrong[:, 2] += 3 * batch["size"][:, 2]  # the pressure, one component of three
    jets = torch.zeros(len(test), 2, 5, 3)
    jets[:, INSIDE, 0] = wrong.float()
    meter = task.meter()
    meter.update([head((jets,)) for head in task.model().heads], batch)
    assert meter.compute()["l2"] == pytest.approx(math.sqrt(3))
    assert all(math.isnan(value) for value in Errors(task.equation).compute().values())


def test_a_seed_draws_the_training_points_alone() -> None:
    first, other = setup(SMALL(), 0), setup(SMALL(), 1)
    rows = torch.arange(64)
    assert not torch.equal(first.train.batch(rows)["inputs"], other.train.batch(rows)["inputs"])
    for part in ("val", "test"):
        a, b = (getattr(splits, part).batch(rows)["inputs"] for splits in (first, other))
        assert torch.equal(a, b)
    assert not torch.equal(first.val.batch(rows)["inputs"], first.test.batch(rows)["inputs"])


@pytest.mark.parametrize("name", ["stokes", "burgers"])
def test_the_solution_is_drawn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinn, "GRID", 21)  # Burgers' solution is an integral at each point
    task = Pinn(equation=name, samples=4, width=4, depth=1)  # type: ignore[arg-type]
    model = task.model()

    @torch.no_grad()
    def predictor(inputs: Tensor) -> list[Any]:
        return model(inputs)

    (file,) = task.figures(predictor, setup(task), tmp_path)
    with Image.open(file) as picture:
        assert picture.size[1] > 300 * len(task.equation.components)


@pytest.mark.parametrize("name", ["samples", "width", "depth"])
def test_refusals(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be at least 1, found 0"):
        Pinn(**{name: 0})


# --- L-BFGS --------------------------------------------------------------------------------------


def lbfgs(out: Path, method: str, stop: int = -1, **given: str) -> RunDirectory:
    """Train four steps, or break off after some."""
    small = {"samples": "64", "width": "10", "depth": "2", "batch_size": "64", "epochs": "4"}
    searched = {"optimizer": "lbfgs", "schedule": "constant", "lr": "1"}
    request = Request.of("pinn", [method], small | searched | given, [])
    splits = request.task.setup(0, lambda *_: None)
    spec = request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")
    run, observer, seen = RunDirectory.at(out, spec), Remembering(), itertools.count(1)

    def stepped(*_: object) -> None:
        if next(seen) == stop:
            raise KeyboardInterrupt

    observer.stepped = stepped  # type: ignore[method-assign]
    trainer = Trainer(spec, request.task, splits, request.choices[0].method, run, observer, 1)
    with pytest.raises(KeyboardInterrupt) if stop > 0 else nullcontext():
        trainer.run()
    return run


@pytest.mark.parametrize("method", ["ew", "mgda", "ntk_weights"])
def test_resuming_lbfgs_ends_bit_identical(method: str, tmp_path: Path) -> None:
    """Its memory is kept, or begun anew in each step."""
    whole = lbfgs(tmp_path / "whole", method)
    lbfgs(tmp_path / "broken", method, stop=3)
    again = lbfgs(tmp_path / "broken", method)
    assert not list(differences(whole.path, again.path))
    result = again.result()
    assert result.status == "finished"
    assert 4 < result.cost.search_passes <= 4 * 50


def test_lbfgs_is_far_ahead_of_adam_at_equal_passes(tmp_path: Path) -> None:
    searched = lbfgs(tmp_path / "lbfgs", "ew")
    passes = searched.result().cost.search_passes
    stepped = lbfgs(tmp_path / "adam", "ew", optimizer="adam", lr="1e-2", epochs=str(passes))
    lowest = [
        sum(run.result().val[f"rms_{name}"] ** 2 for name in ("residual", "boundary"))
        for run in (searched, stepped)
    ]
    assert lowest[0] < lowest[1] / 2


@pytest.mark.parametrize(("looks", "status"), [((6,), "finished"), (range(3, 99), "diverged")])
def test_a_line_search_that_meets_infinity(
    looks: Any, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial point is rejected; where a step begins, it is a recorded outcome."""
    seen, plain = itertools.count(), Pinn.losses

    def losses(self: Pinn, *given: Any) -> list[Tensor]:
        found = plain(self, *given)
        return [found[0] * (math.inf if next(seen) in looks else 1), found[1]]

    monkeypatch.setattr(Pinn, "losses", losses)
    result = lbfgs(tmp_path, "ew").result()
    assert result.status == status
    if status == "diverged":
        reason = "sum of losses or its gradient in a line search (inf, nan) in epoch 0, step 0"
        assert reason in result.reason
