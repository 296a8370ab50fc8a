"""auto_lambda and moml."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import functional_call

from mtbench import Balancer, Step
from mtbench.errors import UsageError
from mtbench_baselines.auto_lambda import AutoLambda
from mtbench_baselines.moml import MOML

K, RATE = 3, 0.3


class Net(nn.Module):
    """Three objectives, whose heads move in the virtual step too."""

    def __init__(self, unlabelled: int = -1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
            self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(K)).double()
        self.unlabelled = unlabelled

    def forward(self, seed: int) -> list[Tensor]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).double()
        z = self.encoder(x)
        found = [(head(z)[:, 0] - (k + 1) * x.sin().sum(1)) for k, head in enumerate(self.heads)]
        return [0.1 * 4**k * f.square().mean() for k, f in enumerate(found)]

    def step(self, seed: int) -> Step:
        batches = itertools.count(seed + 100)
        losses = self(seed)
        if self.unlabelled >= 0:
            losses[self.unlabelled] = None
        return Step(
            losses, shared=self.encoder.parameters(), validation=lambda: self(next(batches))
        )

    def train(self, method: Balancer, seed: int) -> Tensor:  # type: ignore[override]
        self.zero_grad()
        return method.backward(self.step(seed))


def ahead(net: Net, seed: int, weigh: Any, state: Tensor) -> Tensor:
    """Return each validation loss's gradient in the state, by autograd through the step."""
    a = state.clone().requires_grad_()
    named = dict(net.named_parameters())
    total = weigh(a) @ torch.stack(net(seed))
    grads = torch.autograd.grad(total, list(named.values()), create_graph=True)
    moved = {n: p - RATE * g for (n, p), g in zip(named.items(), grads, strict=True)}
    losses = functional_call(net, moved, (seed + 100,))
    return torch.stack([torch.autograd.grad(v, a, retain_graph=True)[0] for v in losses])


class Adam:
    """Torch's, on a method's state."""

    def __init__(self, state: Tensor, lr: float) -> None:
        self.state = state.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.state], lr=lr)

    def step(self, grad: Tensor) -> Tensor:
        self.state.grad = grad
        self.optimizer.step()
        return self.state.detach()


def descend(net: Net) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad


@pytest.mark.parametrize("primary", [None, (1,), (0, 2)])
def test_auto_lambda_descends_the_primary_losses_seen_ahead(
    primary: tuple[int, ...] | None,
) -> None:
    net, method = Net(), AutoLambda(K, start=0.4, rate=RATE, lr=0.05, primary=primary)
    twin = Adam(torch.full((K,), 0.4).double(), 0.05)
    for seed in range(4):
        rows = ahead(net, seed, lambda a: a, twin.state.detach())
        wanted = twin.step(rows[list(primary or range(K))].sum(0))
        found = net.train(method, seed)
        torch.testing.assert_close(found, wanted)
        grads = torch.autograd.grad(wanted @ torch.stack(net(seed)), list(net.parameters()))
        for p, grad in zip(net.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, grad)
        descend(net)


def shortest(rows: Tensor) -> Tensor:
    """Return the shortest convex combination, by a general solver."""
    G = (rows @ rows.T).numpy()
    sums = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = minimize(
        lambda w: w @ G @ w, np.full(len(G), 1 / len(G)), jac=lambda w: 2 * G @ w,
        bounds=[(0, 1)] * len(G), constraints=sums, tol=1e-16, options={"maxiter": 500},
    )  # fmt: skip
    return torch.from_numpy(found.x) @ rows


@pytest.mark.parametrize("normalise", ["l2", "none"])
def test_moml_descends_what_lowers_all_validation_losses(normalise: Any) -> None:
    net, method = Net(), MOML(K, rate=RATE, lr=0.05, normalise=normalise)
    twin = Adam(torch.zeros(K).double(), 0.05)
    for seed in range(4):
        rows = ahead(net, seed, lambda a: a.softmax(0), twin.state.detach())
        unit = rows / rows.norm(dim=1, keepdim=True) if normalise == "l2" else rows
        along = shortest(unit) * (RATE if normalise == "l2" else 1)  # of which Adam sees little
        wanted = twin.step(along).softmax(0)
        found = net.train(method, seed)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        assert found.sum().item() == pytest.approx(1)
        descend(net)


@pytest.mark.parametrize("make", [AutoLambda, MOML])
def test_parameters_are_where_they_were(make: Any) -> None:
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    net.train(make(K, rate=0.5), 0)
    assert all(map(torch.equal, before, net.parameters()))


@pytest.mark.parametrize("make", [AutoLambda, MOML])
def test_an_objective_without_a_label_keeps_its_state(make: Any) -> None:
    net, method = Net(unlabelled=1), make(K, rate=0.3, lr=0.05)
    before = method.state.clone()
    net.train(method, 0)
    assert (method.state != before).tolist() == [True, False, True]
    assert all(p.grad is None for p in net.heads[1].parameters())


def test_moml_goes_on_by_its_momentum_where_two_oppose() -> None:
    """Their shortest combination is 0, or what rounding made of it: the same step of Adam."""
    x = torch.ones(2, requires_grad=True)
    found = []
    for tilt in (0.0, 1e-9):
        method = MOML(2, lr=0.1)
        for validation in (
            [x[0], 2 * x[0]],
            [x[0] - x[1], (x[1] - x[0]) * (1 + tilt) + tilt * x[0]],
        ):
            method.backward(
                [x[0] + x[1] * 0.5, 2 * x[0]], shared=[x], validation=lambda v=validation: v
            )
        found.append(method.state)
    assert found[0].abs().min() > 0.1  # a second step was made
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_moml_has_nothing_to_compare_where_one_objective_alone_has_a_label() -> None:
    x = torch.ones(1, requires_grad=True)
    method = MOML(2, lr=0.1)
    method.backward([x[0], None], shared=[x], validation=lambda: [x[0], 2 * x[0]])
    assert method.state.tolist() == [0, 0]


@pytest.mark.parametrize("make", [AutoLambda, MOML])
def test_what_is_not_finite_ahead_leaves_no_trace(make: Any) -> None:
    net = Net()
    step = Step(net(0), shared=net.encoder.parameters(), validation=lambda: [v / 0 for v in net(1)])
    method = make(K)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.backward(step)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoLambda(2, start=0.0), "start must be finite and above 0, found 0.0"),
        (lambda: AutoLambda(2, rate=0.0), "auto_lambda: rate must be finite and above 0"),
        (lambda: AutoLambda(2, primary=(2,)), "numbers from 0 to 1, at least one, found"),
        (lambda: MOML(2, share=1.0), "moml: share must be at least 0 and below 1"),
        (lambda: MOML(2, normalise="loss"), "normalise must be one of l2, none"),  # type: ignore[arg-type]
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_part_of_the_samples_is_held_out_on_request() -> None:
    assert AutoLambda(2).holds_out == 0
    assert MOML(2, share=0.25).holds_out == 0.25
