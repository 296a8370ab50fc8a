"""The small regression that methods are tried on."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.engine import Engine
from mtbench.balancing.jacobian import vector
from mtbench.balancing.model import MultitaskModel
from mtbench.balancing.step import Step

Change = Callable[[int, Tensor], Tensor]


HELD_OUT = 500
"""What is added to a batch's number for the validation batch beside it."""


class Make(Protocol):
    """How a method is constructed."""

    def __call__(self, num_objectives: int, seed: int = 0, **parameters: Any) -> Balancer:
        """Return a new balancer."""
        ...


class Problem:
    """A small regression with K objectives: model, batches, losses, one step of training.

    Args:
        balancer: the method.
        dtype: of the model.
        change: maps (k, loss) to the loss that is used; the identity by default.
        order: in which the method meets the objectives; 0, ..., K - 1 by default.
    """

    def __init__(
        self,
        balancer: Balancer,
        dtype: torch.dtype = torch.float32,
        change: Change = lambda _, loss: loss,
        order: Sequence[int] | None = None,
    ) -> None:
        self.K, self.balancer = balancer.num_objectives, balancer
        self.dtype, self.change = dtype, change
        self.order = range(self.K) if order is None else order
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)  # the CPU's, which is all that is drawn from
            encoder = nn.Sequential(nn.Linear(3, 6), nn.Tanh())
            heads = [
                nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(self.K)
            ]
        model = MultitaskModel.single_feature(encoder, heads).to(dtype)
        self.model = balancer.wrap(model)
        self.engine = Engine(batched=False)

    def residuals(self, features: tuple[Tensor, ...], batch: int) -> list[Tensor]:
        """Return what the K losses of a batch square, in the order of `order`."""
        generator = torch.Generator().manual_seed(1000 + batch)
        targets = torch.randn(5, self.K, generator=generator).to(self.dtype)
        outputs = self.model.decode(
            features, lambda seen, k: self.balancer.view(seen, self.order.index(k))
        )
        return [outputs[k][:, 0] - targets[:, k] for k in self.order]

    def step(self, batch: int = 0, with_features: bool = True) -> Step:
        """Send a batch through the model."""
        generator = torch.Generator().manual_seed(batch)
        inputs = torch.randn(5, 3, generator=generator).to(self.dtype)
        features = self.model.encode(inputs)
        residuals = self.residuals(features, batch)
        squares = zip(self.order, residuals, strict=True)
        losses = [self.change(k, residual.square().mean()) for k, residual in squares]
        again = partial(self.step, batch, with_features)
        held_out = partial(self.step, batch + HELD_OUT, with_features)
        return Step(
            losses,
            features=features if with_features else (),
            shared=self.model.encoder.named_parameters(),
            again=again,
            validation=held_out,
            residuals=residuals,
            engine=self.engine,  # as in a trainer, the next step's Jacobian takes this one's place
        )

    def backward(self, batch: int = 0, with_features: bool = True) -> list[Tensor | None]:
        """Apply the method to one batch; return copies of all ``.grad``s."""
        self.balancer.backward(self.step(batch, with_features))
        return self.grads()

    def grads(self) -> list[Tensor | None]:
        """Return copies of all ``.grad``s."""
        return [None if p.grad is None else p.grad.clone() for p in self.parameters()]

    def parameters(self) -> list[nn.Parameter]:
        """Return the model's parameters and the balancer's."""
        return [*self.model.parameters(), *self.balancer.parameters()]

    def encoder_grad(self) -> Tensor:
        """Return the encoder's gradient as one vector."""
        return flat(self.model.encoder)

    def zero_grad(self) -> None:
        """Set every ``.grad`` to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, steps: int) -> None:
        """Train for some steps, with all hooks, two steps an epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        for batch in range(steps):
            optimizer.zero_grad()
            self.balancer.backward(self.step(batch))
            optimizer.step()
            self.balancer.after_step(partial(self.step, batch))
            if batch % 2:
                self.balancer.after_epoch()
        self.zero_grad()


def flat(module: nn.Module) -> Tensor:
    """Return a module's gradient as one vector, zeros where there is none."""
    own = list(module.parameters())
    return vector([p.grad for p in own], own)
