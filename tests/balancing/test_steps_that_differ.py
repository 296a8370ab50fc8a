"""One balancer, step after step, whose models and graphs change: what it remembers stays true."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn

import mtbench
from tests.balancing.test_loops import Loop, check, data, heads_of, mlp, parameters, seen

X = data(9, 4).double()
Compiler = Callable[..., Callable[..., list[Tensor]]]


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    with torch._functorch.config.patch(donated_buffer=False):
        yield
    torch.set_default_dtype(torch.float32)


def eager(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    return function


def compiled(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    found: Callable[..., list[Tensor]] = torch.compile(function, backend="aot_eager")
    return found


def other_modules(compiler: Compiler) -> Iterator[Loop]:
    """New ones lie where those that are gone lay."""
    gc.freeze()  # a second for each collection: all that torch has imported
    try:
        for _ in range(6):
            body, heads = mlp(4, 6), heads_of(6)
            both = compiler(lambda x, body=body, heads=heads: seen(heads, body(x)))
            yield Loop(lambda both=both: both(X), body.parameters(), parameters(heads))  # type: ignore[misc]
            del body, heads, both
            gc.collect()
    finally:
        gc.unfreeze()


def another_way(compiler: Compiler) -> Iterator[Loop]:
    """From the fourth step on the second objective reads a layer that was the first one's."""
    body, heads, layer = mlp(4, 6), heads_of(6), nn.Linear(6, 6)

    def losses(x: Tensor, late: bool) -> list[Tensor]:
        z = body(x)
        y = layer(z)
        return [seen([heads[0]], y)[0], (heads[1](y if late else z) - 1).square().mean()]

    both, own = compiler(losses), parameters([layer, *heads])
    for step in range(6):
        late = step > 3
        shared = [*body.parameters(), *(own[0] if late else [])]
        first = own[1] if late else [*own[0], *own[1]]
        yield Loop(lambda late=late: both(X, late), shared, [first, own[2]])  # type: ignore[misc]


def another_order(compiler: Compiler) -> Iterator[Loop]:
    body, heads = mlp(4, 6), heads_of(6)
    both, own = compiler(lambda x: seen(heads, body(x))), parameters(heads)
    for step in range(6):
        turn = 1 - 2 * (step % 2)
        yield Loop(lambda turn=turn: both(X)[::turn], body.parameters(), own[::turn])  # type: ignore[misc]


def more_layers(compiler: Compiler) -> Iterator[Loop]:
    layers, heads = nn.Sequential(mlp(4, 6)), heads_of(6)
    for _ in range(3):
        both = compiler(lambda x: seen(heads, layers(x)))
        yield Loop(lambda both=both: both(X), layers.parameters(), parameters(heads))  # type: ignore[misc]
        layers.append(mlp(6, 6))


def frozen_ones(compiler: Compiler) -> Iterator[Loop]:
    body, heads = mlp(4, 6, 6), heads_of(6)
    both = compiler(lambda x: seen(heads, body(x)))
    for frozen in ((), (0,), (2,), (0, 2), ()):
        for at, layer in enumerate(body):
            layer.requires_grad_(at not in frozen)
        live = [p for p in body.parameters() if p.requires_grad]
        if live:
            yield Loop(lambda: both(X), live, parameters(heads))


STORIES = (other_modules, another_way, another_order, more_layers, frozen_ones)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of dynamo
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize(
    ("name", "compiler"),
    # What is compiled goes by the Jacobian whatever the method; eager layers do not for mgda.
    [("mgda", eager), ("config", eager), ("config", compiled)],
)
def test_steps_that_differ(
    story: Callable[[Compiler], Iterator[Loop]], name: str, compiler: Compiler
) -> None:
    torch.compiler.reset()
    balancer = mtbench.balancer(name, num_objectives=2)
    for loop in story(compiler):
        check(loop, name, balancer)


@pytest.mark.parametrize("name", ["mgda", "cagrad", "config"])
@pytest.mark.parametrize("live", [0, 1])
def test_a_mask_that_is_empty_at_first(name: str, live: int) -> None:
    """Outputs lie in one tensor; an objective alone has all in common with itself."""
    body, heads = mlp(4, 6), heads_of(6)
    balancer, own = mtbench.balancer(name, num_objectives=2), parameters(heads)

    def losses(mine: Tensor) -> list[Tensor]:
        z = body(X)
        output = torch.where(mine, heads[0](z), heads[1](z))
        return [output[mine].exp().mean(), (output[~mine] - 1).abs().mean()]

    empty, mixed = torch.full((9, 1), live == 0), torch.arange(9)[:, None] % 2 == 0
    alone = [own[0], []] if live == 0 else [[], own[1]]
    for mine, shared, of in (
        (empty, [*body.parameters(), *own[live]], [[], []]),
        (mixed, body.parameters(), own),
        (empty, body.parameters(), alone),
    ):
        check(Loop(lambda mine=mine: losses(mine), shared, of), name, balancer)  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of dynamo
@pytest.mark.parametrize("name", ["mgda", "config"])
def test_a_gate_in_what_is_compiled_that_opens_later(name: str) -> None:
    """It is noticed before there have been twice as many steps."""
    torch.compiler.reset()
    body, layer, heads = mlp(4, 6), mlp(6, 6), heads_of(6)

    def losses(x: Tensor, gate: Tensor) -> list[Tensor]:
        z = body(x)
        y = layer(z)
        return [*seen(heads[:1], y), *seen(heads[1:], torch.where(gate > 0, y, z))]

    both, own = compiled(losses), parameters([layer, *heads])
    balancer = mtbench.balancer(name, num_objectives=2)
    for _ in range(3):
        closed = Loop(
            lambda: both(X, torch.zeros(9, 1)), body.parameters(), [[*own[0], *own[1]], own[2]]
        )
        check(closed, name, balancer)
    balancer.backward(both(X, torch.ones(9, 1)))
    for _ in range(5):
        opened = Loop(
            lambda: both(X, torch.ones(9, 1)), [*body.parameters(), *own[0]], [own[1], own[2]]
        )
        check(opened, name, balancer)
