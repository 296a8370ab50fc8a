"""The conformance suite of balancing methods.

Subclass it and name the method; the class's name begins with ``Test`` so that pytest collects it::

    class TestMine(BalancerContract):
        @pytest.fixture
        def make(self):
            return Mine
"""

import copy
import io
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.engine import Engine
from mtbench.balancing.model import MultitaskModel
from mtbench.balancing.step import Step

Change = Callable[[int, Tensor], Tensor]


class Make(Protocol):
    """How a method is constructed."""

    def __call__(self, num_objectives: int, seed: int = 0, **parameters: Any) -> Balancer:
        """Return a new balancer."""
        ...


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 6)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (torch.tanh(self.body(inputs)),)


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        output: Tensor = self.body(features[0])
        return output


class _Problem:
    """A small regression with K objectives: model, batches, losses, one step of training.

    Args:
        balancer: the method.
        change: maps (k, loss) to the loss that is used; the identity by default.
    """

    def __init__(self, balancer: Balancer, dtype: torch.dtype, change: Change) -> None:
        self.K, self.balancer = balancer.num_objectives, balancer
        self.dtype, self.change = dtype, change
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = MultitaskModel(_Encoder(), [_Head() for _ in range(self.K)])
        self.model = balancer.wrap(model.to(dtype))
        self.engine = Engine(batched=False)

    def losses(self, features: tuple[Tensor, ...], batch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1000 + batch)
        targets = torch.randn(5, self.K, generator=generator).to(self.dtype)
        outputs = self.model.decode(features, self.balancer.view)
        return [
            self.change(k, (output[:, 0] - targets[:, k]).square().mean())
            for k, output in enumerate(outputs)
        ]

    def step(self, batch: int = 0, with_features: bool = True) -> Step:
        generator = torch.Generator().manual_seed(batch)
        inputs = torch.randn(5, 3, generator=generator).to(self.dtype)
        features = self.model.encode(inputs)
        losses = self.losses(features, batch)
        again = partial(self.step, batch, with_features)
        # As in a trainer, the next step's Jacobian takes the place of this one's.
        if with_features:
            return Step(losses, features=features, again=again, engine=self.engine)
        shared = self.model.encoder.parameters()
        return Step(losses, shared=shared, again=again, engine=self.engine)

    def _losses_again(self, batch: int) -> Sequence[Tensor]:
        return self.step(batch).losses

    def backward(self, batch: int = 0, with_features: bool = True) -> list[Tensor | None]:
        """Apply the method to one batch; return copies of all ``.grad``s."""
        self.balancer.backward(self.step(batch, with_features))
        return self.grads()

    def grads(self) -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in self.parameters()]

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.balancer.parameters()]

    def encoder_grad(self) -> Tensor:
        return _flat(self.model.encoder)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, steps: int) -> None:
        """Train for some steps, with all hooks, two steps an epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        for batch in range(steps):
            optimizer.zero_grad()
            self.balancer.backward(self.step(batch))
            optimizer.step()
            self.balancer.after_step(partial(self._losses_again, batch))
            if batch % 2:
                self.balancer.after_epoch()
        self.zero_grad()


def _flat(module: nn.Module) -> Tensor:
    """Return a module's gradient as one vector, zeros where there is none."""
    return torch.cat(
        [
            torch.zeros(p.numel(), dtype=p.dtype) if p.grad is None else p.grad.flatten()
            for p in module.parameters()
        ]
    )


def _problem(
    balancer: Balancer,
    dtype: torch.dtype = torch.float32,
    change: Change = lambda _, loss: loss,
) -> _Problem:
    return _Problem(balancer, dtype, change)


def _assert_finite(grads: Sequence[Tensor | None]) -> None:
    for grad in grads:
        assert grad is None or grad.isfinite().all()


def _same(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> bool:
    return all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(a, b, strict=True)
    )


SCALES: dict[str, Change] = {
    "all zero": lambda _, loss: loss * 0,
    "first zero": lambda k, loss: loss * (k != 0),
    "last 1e12": lambda k, loss: loss * 10.0 ** (12 * (k == 1)),
    "last 1e-12": lambda k, loss: loss * 10.0 ** (-12 * (k == 1)),
    "all 1e12": lambda _, loss: loss * 1e12,
    "all 1e-12": lambda _, loss: loss * 1e-12,
}


class BalancerContract:
    """What every balancing method keeps to; one fixture, `make`, names the method."""

    @pytest.fixture
    def make(self) -> Make:
        """Return what constructs the method; to be overridden."""
        raise NotImplementedError("BalancerContract: override the fixture `make`")

    @pytest.mark.parametrize("K", [1, 2, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_every_parameter_gets_a_finite_gradient(
        self, make: Make, K: int, dtype: torch.dtype
    ) -> None:
        """Encoder and every head get gradients of the model's dtype."""
        problem = _problem(make(K), dtype)
        problem.balancer.backward(problem.step())
        for parameter in problem.model.parameters():
            assert parameter.grad is not None
            assert parameter.grad.dtype == dtype
            assert parameter.grad.isfinite().all()
        for module in (problem.model.encoder, *problem.model.heads):
            assert _flat(module).any()

    def test_declares_paper_and_cost(self, make: Make) -> None:
        """`paper` and `passes` say where the method is from, and what a step costs."""
        method = make(2)
        assert method.paper
        assert method.passes

    def test_returned_weights(self, make: Make) -> None:
        """`backward` returns None, or K finite numbers off the graph."""
        problem = _problem(make(3))
        weights = problem.balancer.backward(problem.step())
        if weights is not None:
            assert weights.shape == (3,)
            assert weights.isfinite().all()
            assert not weights.requires_grad

    def test_one_objective_is_plain_descent(self, make: Make) -> None:
        """With K = 1 the encoder's gradient is a positive multiple of the loss's own."""
        problem = _problem(make(1), torch.float64)
        if problem.balancer.needs_again:
            pytest.skip("its gradients are those of other parameters")
        problem.balancer.backward(problem.step())
        found = problem.encoder_grad()
        problem.zero_grad()
        torch.autograd.backward([problem.step().losses[0]])
        assert torch.cosine_similarity(found, problem.encoder_grad(), dim=0) > 1 - 1e-9

    @pytest.mark.parametrize("scale", SCALES)
    def test_extreme_gradients(self, make: Make, scale: str) -> None:
        """Zero, huge and tiny gradients never give NaN nor an exception, also in later steps."""
        problem = _problem(make(2), change=SCALES[scale])
        for batch in range(3):
            _assert_finite(problem.backward(batch))
            problem.zero_grad()
            problem.balancer.after_epoch()
        for value in problem.balancer.state_dict().values():
            assert torch.as_tensor(value).isfinite().all()

    def test_equal_objectives(self, make: Make) -> None:
        """Linearly dependent gradients never give NaN nor an exception."""
        balancer = make(3)
        weight = nn.Parameter(torch.tensor([[0.3, -0.4]]))
        features = torch.tensor([[1.0], [-2.0]]) @ weight
        loss = (features.view_as(features) - 1).square().mean()
        losses = [loss, loss * 1, loss * 2]

        def again() -> Step:
            return Step(losses, features=features, shared=[weight])

        balancer.backward(Step(losses, features=features, shared=[weight], again=again))
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert weight.grad.any()

    @pytest.mark.parametrize("missing", [0, 1])
    def test_missing_label_trains_the_other(self, make: Make, missing: int) -> None:
        """Where one objective has no label (its loss is ``sum() * 0``) the other still trains."""
        problem = _problem(make(2), change=lambda k, loss: loss * (k != missing))
        for batch in range(3):
            problem.zero_grad()
            _assert_finite(problem.backward(batch))
            other = problem.model.heads[1 - missing]
            assert _flat(other).any()
            assert problem.encoder_grad().any()
            assert not _flat(problem.model.heads[missing]).any()

    def test_state_dict_reproduces_the_next_step(self, make: Make) -> None:
        """A fresh object with the state after some steps goes on bit for bit, generator too."""
        problem = _problem(make(3))
        problem.train(5)
        file = io.BytesIO()
        torch.save(problem.balancer.state_dict(), file)
        file.seek(0)
        resumed = copy.copy(problem)
        resumed.balancer = make(3, seed=17)
        resumed.balancer.load_state_dict(torch.load(file, weights_only=True))
        # The model is one and the same: only the balancer's memory could make a difference.
        for batch in (5, 6):
            problem.zero_grad()
            expected = problem.backward(batch)
            resumed.zero_grad()
            assert _same(resumed.backward(batch), expected)
            for balancer in (problem.balancer, resumed.balancer):
                balancer.after_epoch()

    def test_deterministic_at_a_seed(self, make: Make) -> None:
        """Equal seeds give equal training, bit for bit."""
        ends = []
        for _ in range(2):
            problem = _problem(make(3, seed=3))
            problem.train(4)
            ends.append([p.detach() for p in problem.parameters()])
        assert _same(*ends)

    def test_global_generators_are_left_alone(self, make: Make) -> None:
        """All randomness comes from `Balancer.generator`."""
        problem = _problem(make(3))
        states = []
        for _ in range(2):
            states.append((torch.get_rng_state(), random.getstate(), str(np.random.get_state())))  # noqa: NPY002
            problem.train(3)
        for before, after in pairwise(states):
            assert torch.equal(before[0], after[0])
            assert before[1:] == after[1:]

    def test_without_features(self, make: Make) -> None:
        """Losses and parameters suffice, or the method says clearly that it needs features."""
        problem = _problem(make(2))
        if problem.balancer.needs_features:
            with pytest.raises(ValueError, match="features"):
                problem.backward(with_features=False)
            return
        _assert_finite(problem.backward(with_features=False))
        assert problem.encoder_grad().any()

    def test_gradients_accumulate(self, make: Make) -> None:
        """Two backwards without zeroing in between give the sum of the two gradients."""
        apart, together = _problem(make(2), torch.float64), _problem(make(2), torch.float64)
        sums = [torch.zeros_like(p) for p in apart.parameters()]
        for batch in range(2):
            for total, grad in zip(sums, apart.backward(batch), strict=True):
                if grad is not None:
                    total += grad
            apart.zero_grad()
            together.balancer.backward(together.step(batch))
        for total, grad in zip(sums, together.grads(), strict=True):
            if grad is not None:
                torch.testing.assert_close(grad, total)

    def test_ends_near_the_pareto_set(self, make: Make) -> None:
        r"""On two convex quadratics x ends on their front, unless declared otherwise.

        They are :math:`1 + (x-u_i)^\top A_i (x-u_i)`, and the front is
        :math:`x(w) = (\sum_i w_i A_i)^{-1} \sum_i w_i A_i u_i`.
        """
        balancer = make(2)
        if not balancer.finds_front:
            pytest.skip("declared by finds_front = False")
        A = torch.tensor([[[1.0, 0.2], [0.2, 0.3]], [[0.5, -0.2], [-0.2, 1.0]]])
        u = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
        x = nn.Parameter(torch.tensor([[-0.5, 2.5]]))
        optimizer = torch.optim.SGD([x, *balancer.parameters()], lr=0.05)

        def losses(features: Tensor) -> list[Tensor]:
            seen = [balancer.view((features,), k)[0] - u[k] for k in range(2)]
            return [1 + (offset @ A[k] * offset).sum() for k, offset in enumerate(seen)]

        def step() -> Step:
            features = x * 1.0
            return Step(losses(features), features=features, shared=[x], again=step)

        for _ in range(800):
            optimizer.zero_grad()
            balancer.backward(step())
            optimizer.step()
            balancer.after_step(lambda: losses(x * 1.0))
        w = torch.linspace(0, 1, 1001)[:, None, None]
        mixed = w * A[0] + (1 - w) * A[1]
        pulls = w[:, 0] * (A[0] @ u[0]) + (1 - w[:, 0]) * (A[1] @ u[1])
        front = torch.linalg.solve(mixed, pulls)
        assert (front - x.detach()).norm(dim=1).min() < 0.05

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_cuda(self, make: Make) -> None:
        """The method runs where the model is."""
        balancer = make(2).to("cuda")
        encoder = nn.Linear(3, 4, device="cuda")
        for _ in range(2):
            features = encoder(torch.ones(5, 3, device="cuda"))
            balancer.backward(
                Step([features.square().mean(), features.exp().mean()], features=features)
            )
        assert encoder.weight.grad is not None
        assert encoder.weight.grad.isfinite().all()
