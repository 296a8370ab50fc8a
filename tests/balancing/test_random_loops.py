"""Loops drawn at random, each against K plain `autograd.grad` calls."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtbench import Engine
from mtbench.balancing import layers
from tests.balancing.test_loops import Loop, check, data, mlp

NAMES = ("ew", "mgda", "cagrad", "upgrad", "config")

Forward = Callable[[], list[Tensor]]


def told_apart(losses: Forward, parameters: Sequence[Tensor]) -> Loop:
    """Who is who by K calls of `autograd.grad`: what has a gradient that is not zero."""
    found = losses()
    reached: list[set[int]] = [set() for _ in parameters]
    for k, loss in enumerate(found):
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for own, grad in zip(reached, grads, strict=True):
                own |= {k} if grad is not None and grad.any() else set()
    pairs = list(zip(parameters, reached, strict=True))
    heads = [[p for p, own in pairs if own == {k}] for k in range(len(found))]
    return Loop(losses, [p for p, own in pairs if len(own) > 1], heads, 1e-7)


def halves(x: Tensor) -> list[Tensor]:
    left, right = x.chunk(2, 1)
    return [torch.cat([left, left], 1), torch.cat([right.cos(), right], 1)]


def extremes(x: Tensor) -> list[Tensor]:
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    return [low.expand_as(x), high * x]


def in_place(x: Tensor, y: Tensor) -> Tensor:
    z = x * 1.5
    z[:, 1:3].mul_(y[:, :2])
    return z


KINDS: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor], list[Tensor]]] = {
    "layer": lambda layer, s, x, y: [torch.tanh(layer(x))],
    "layer twice": lambda layer, s, x, y: [layer(torch.sin(layer(x)))],
    "checkpoint": lambda layer, s, x, y: [checkpoint(layer, x, use_reentrant=False)],
    "sum": lambda layer, s, x, y: [x + y],
    "product": lambda layer, s, x, y: [x * y.sin()],
    "stop": lambda layer, s, x, y: [x + y.detach()],
    "scale": lambda layer, s, x, y: [s * x],
    "halves": lambda layer, s, x, y: halves(x),
    "extremes": lambda layer, s, x, y: extremes(x),
    "in place": lambda layer, s, x, y: [in_place(x, y)],
}
"""What a step of a drawn network may do with two tensors, a layer and a scalar parameter."""


def network(seed: int) -> tuple[Forward, list[Tensor]]:
    """Modules that are wired at random, read once, often or never, and heads at any depth."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    K, shared = draw.randint(2, 5), [nn.Linear(4, 4) for _ in range(draw.randint(3, 8))]
    scale, heads = nn.Parameter(torch.tensor(0.7)), [nn.Linear(4, 1) for _ in range(K)]
    steps = [
        (draw.choice([*KINDS, "layer", "layer"]), draw.choice(shared), draw.random(), draw.random())
        for _ in range(draw.randint(3, 12))
    ]
    ends, x = [0.4 + 0.6 * draw.random() for _ in range(K)], data(5, 4, seed=seed)

    def losses() -> list[Tensor]:
        seen = [x]
        for kind, layer, a, b in steps:
            seen += KINDS[kind](layer, scale, seen[int(a * len(seen))], seen[int(b * len(seen))])
        read = [seen[int(end * len(seen))] for end in ends]
        return [
            (h(z) - k).square().mean() for k, (h, z) in enumerate(zip(heads, read, strict=True))
        ]

    return losses, [scale, *(p for module in (*shared, *heads) for p in module.parameters())]


def put_together(seed: int) -> tuple[Forward, list[Tensor]]:
    """Heads whose outputs lie in one tensor, from which losses are taken."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    K, x = draw.randint(2, 4), data(8, 4, seed=seed)
    body, apart = mlp(4, 5), nn.Linear(5, 1)
    heads = [nn.Sequential(*([mlp(5, 5)] * draw.randint(0, 1)), nn.Linear(5, 1)) for _ in range(K)]

    def filled(parts: Sequence[Tensor]) -> Tensor:
        found = torch.empty(8, K)
        for k, part in enumerate(parts):
            found[:, k] = part[:, 0]
        return found

    def chosen(parts: Sequence[Tensor]) -> Tensor:
        found = parts[0].expand(8, K)
        for k, part in enumerate(parts):
            found = torch.where(torch.arange(K) == k, part, found)
        return found

    put = draw.choice([lambda parts: torch.cat(parts, 1), filled, chosen])
    then = draw.choice([torch.exp, torch.sigmoid, lambda y: (y - 1).abs(), lambda y: 2 * y])
    take: Callable[[Tensor], list[Tensor]] = draw.choice([
        lambda y: [y[:, k].square().mean() for k in range(K)],
        lambda y: [y[:, torch.arange(K) == k].square().mean() for k in range(K)],
        lambda y: list(y.square().mean(0)),
        lambda y: list(torch.einsum("bk,bk->k", y, y)),
        lambda y: [column.square().sum() for column in y.split(1, 1)],
    ])  # fmt: skip

    def losses() -> list[Tensor]:
        z = body(x)
        return [*take(then(put([head(z) for head in heads]))), apart(z).square().mean()]

    return losses, [p for module in (body, *heads, apart) for p in module.parameters()]


@given(st.integers(0, 10**6), st.sampled_from([network, put_together]), st.sampled_from(NAMES))
@settings(max_examples=30, deadline=None)
def test_losses_are_enough(
    seed: int, kind: Callable[[int], tuple[Forward, list[Tensor]]], name: str
) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        loop = told_apart(*kind(seed))
        assume(loop.shared)
        for batched in (False, True):
            check(loop, name, engine=Engine(batched=batched))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "_FEWEST", 0)
            patch.setattr(layers.Layer, "pays", lambda self, objectives: True)
            check(loop, name)
    finally:
        torch.set_default_dtype(torch.float32)
