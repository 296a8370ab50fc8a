"""Loops that fewer people have, as `test_loops` compares them: the losses are all that is said."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.balancing.test_loops import METHODS, Loop, check, data, heads_of, mlp, parameters, seen

X = data(9, 4).double()


@pytest.fixture(autouse=True)
def in_double_precision() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def on(encoder: Callable[[], Tensor], shared: Iterable[Tensor], size: int = 6) -> Loop:
    """Two linear heads on what an encoder makes of the batch."""
    heads = heads_of(size)
    return Loop(lambda: seen(heads, encoder()), list(shared), parameters(heads))


def hooked(change: Callable[[Tensor], Tensor]) -> Loop:
    """A hook on the features changes what goes back."""
    body = mlp(4, 6)

    def encoder() -> Tensor:
        z: Tensor = body(X)
        z.register_hook(change)
        return z

    return on(encoder, body.parameters())


def module_hooks() -> Loop:
    body, x = mlp(4, 6), X.clone().requires_grad_()
    body[0].register_full_backward_hook(lambda module, inward, outward: None)
    body.register_full_backward_hook(lambda module, inward, outward: inward)
    return on(lambda: body(x), body.parameters())


def functional(kind: Callable[[Tensor], Tensor]) -> Loop:
    """A module without state: its tensors are `nn.Parameter`s, or none is one."""
    body = mlp(4, 6)
    own = {name: kind(p.detach().clone()) for name, p in body.named_parameters()}
    heads = [kind(data(6, 1, seed=k)) for k in range(2)]

    def losses() -> list[Tensor]:
        z = torch.func.functional_call(body, own, (X,))
        return [(z @ head - k).square().mean() for k, head in enumerate(heads)]

    return Loop(losses, list(own.values()), [[head] for head in heads])


def gradient_penalty() -> Loop:
    body, heads = mlp(4, 6), heads_of(6)

    def losses() -> list[Tensor]:
        x = X.clone().requires_grad_()
        z = body(x)
        (slope,) = torch.autograd.grad(heads[0](z).sum(), x, create_graph=True)
        first, second = seen(heads, z)
        return [first + (slope.norm(dim=1) - 1).square().mean(), second]

    return Loop(losses, body.parameters(), parameters(heads))


def nested_checkpoints() -> Loop:
    outer, inner = mlp(4, 6), mlp(6, 6)

    def both(x: Tensor) -> Any:
        return checkpoint(inner, outer(x), use_reentrant=False)

    own = [*outer.parameters(), *inner.parameters()]
    return on(lambda: checkpoint(both, X, use_reentrant=False), own)


def modalities() -> Loop:
    """Three heads, on two encoders together and on each of them."""
    first, second = mlp(4, 6), mlp(4, 6)
    heads = [nn.Linear(12, 1), nn.Linear(6, 1), nn.Linear(6, 1)]

    def losses() -> list[Tensor]:
        a, b = first(X), second(X + 1)
        both = torch.cat([a, b], 1)
        return [(head(z) - 1).square().mean() for head, z in zip(heads, (both, a, b), strict=True)]

    return Loop(losses, [*first.parameters(), *second.parameters()], parameters(heads))


def cross_stitched() -> Loop:
    bodies, stitch, heads = [mlp(4, 6), mlp(4, 6)], nn.Parameter(torch.eye(2) + 0.1), heads_of(6)

    def losses() -> list[Tensor]:
        z = torch.stack([body(X) for body in bodies])
        return [(head((row @ z.flatten(1)).view(9, 6)) - 1).square().mean()
                for head, row in zip(heads, stitch, strict=True)]  # fmt: skip

    shared = [*(p for body in bodies for p in body.parameters()), stitch]
    return Loop(losses, shared, parameters(heads))


def experts() -> Loop:
    """Of five experts the two best see a sample."""
    gate, bodies = nn.Linear(4, 5), nn.ModuleList(nn.Linear(4, 6) for _ in range(5))

    def encoder() -> Tensor:
        best = gate(X).softmax(1).topk(2, 1)
        z = torch.zeros(9, 6)
        for k, body in enumerate(bodies):
            row, column = (best.indices == k).nonzero(as_tuple=True)
            z = z.index_add(0, row, best.values[row, column, None] * body(X[row]))
        return z

    return on(encoder, [*gate.parameters(), *bodies.parameters()])


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def between(change: Callable[[Tensor], Tensor]) -> Loop:
    """The last of three heads sees the features otherwise."""
    body, heads = mlp(4, 6), heads_of(6, 3)

    def losses() -> list[Tensor]:
        z = body(X)
        return [*seen(heads[:2], z), heads[2](change(z)).square().mean()]

    return Loop(losses, body.parameters(), parameters(heads))


def on_another_head(change: Callable[[Tensor], Tensor]) -> Loop:
    """A head that reads what another head says."""
    body, first, second = mlp(4, 6), nn.Linear(6, 2), nn.Linear(8, 1)

    def losses() -> list[Tensor]:
        z = body(X)
        said = first(z)
        return [said.square().mean(), (second(torch.cat([z, change(said)], 1)) - 1).square().mean()]

    heads = parameters([first, second])
    if change(X) is X:
        return Loop(losses, [*body.parameters(), *heads[0]], [[], heads[1]])
    return Loop(losses, body.parameters(), heads)


def one_head() -> Loop:
    body, head, own = mlp(4, 6), nn.Linear(6, 3), nn.Linear(6, 1)

    def losses() -> list[Tensor]:
        z = body(X)
        first, *others = head(z).unbind(1)
        return [first.square().mean(), torch.stack(others).exp().mean(), own(z).abs().mean()]

    return Loop(losses, [*body.parameters(), *head.parameters()], [[], [], own.parameters()])


def one_loss_is_the_sum() -> Loop:
    body, heads = mlp(4, 6), heads_of(6)

    def losses() -> list[Tensor]:
        first, second = seen(heads, body(X))
        return [first, second, first + second]

    return Loop(losses, [*body.parameters(), *heads.parameters()], [[], [], []])


def in_place() -> Loop:
    body = nn.Linear(4, 6)

    def encoder() -> Tensor:
        z = torch.zeros(9, 6)
        z[:, :3] = body(X)[:, :3].relu_()
        z[:, 3:] = body(X)[:, 3:].exp()
        return z.add_(z.detach()).mul_(2.0)

    return on(encoder, body.parameters())


def truncated_in_time() -> Loop:
    cell = nn.GRUCell(4, 6)

    def encoder() -> Tensor:
        state = torch.zeros(9, 6)
        for step in range(4):
            state = cell(X + step, state.detach() if step == 2 else state)
        return state

    return on(encoder, cell.parameters())


def packed() -> Loop:
    body, x = nn.LSTM(4, 6, batch_first=True, bidirectional=True), data(3, 5, 4)

    def encoder() -> Tensor:
        rows = nn.utils.rnn.pack_padded_sequence(x, [5, 3, 2], batch_first=True)
        found, _ = nn.utils.rnn.pad_packed_sequence(body(rows)[0], batch_first=True)
        return found.mean(1)

    return on(encoder, body.parameters(), 12)


def fourier() -> Loop:
    body, weight = nn.Linear(4, 4), nn.Parameter(torch.complex(data(3), data(3, seed=1)))
    return on(
        lambda: torch.fft.irfft(torch.fft.rfft(body(X), dim=1) * weight, n=4, dim=1).tanh(),
        [*body.parameters(), weight],
        4,
    )


def graph_convolution() -> Loop:
    ring = torch.stack([torch.arange(9), torch.arange(9).roll(1)])
    edges, body = (
        torch.sparse_coo_tensor(ring, torch.ones(9), check_invariants=True),
        nn.Linear(4, 6),
    )
    return on(lambda: torch.sparse.mm(edges, body(X)).tanh(), body.parameters())


def prompt() -> Loop:
    body, own = mlp(8, 6).requires_grad_(False), nn.Parameter(data(4))
    return on(lambda: body(torch.cat([X, own.expand(9, 4)], 1)), [own])


def split_parameter() -> Loop:
    body, weight = mlp(4, 6), nn.Parameter(data(6, 2))

    def losses() -> list[Tensor]:
        z = body(X)
        return [(z @ column - k).square().mean() for k, column in enumerate(weight.unbind(1))]

    return Loop(losses, [*body.parameters(), weight], [[], []])


def heads_that_meet() -> Loop:
    """A penalty of one loss on the weights of both heads."""
    body, heads = mlp(4, 6), heads_of(6)

    def losses() -> list[Tensor]:
        first, second = seen(heads, body(X))
        return [first + (heads[0].weight @ heads[1].weight.T).square().sum(), second]

    return Loop(
        losses,
        [*body.parameters(), heads[1].weight],
        [heads[0].parameters(), [heads[1].bias]],
    )


def contrastive() -> Loop:
    body, head = mlp(4, 6), nn.Linear(6, 1)

    def losses() -> list[Tensor]:
        a, b = body(X), body(X + 0.1)
        return [F.cross_entropy(a @ b.T, torch.arange(9)), (head(a) - 1).square().mean()]

    return Loop(losses, body.parameters(), [[], head.parameters()])


def on_the_host() -> Loop:
    body = mlp(4, 6)

    def encoder() -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return body(X)  # type: ignore[no-any-return]

    return on(encoder, body.parameters())


def compiled_losses(whole: bool) -> Loop:
    """Heads and losses are one node, and the encoder another one or a part of it."""
    body, heads = mlp(4, 6), heads_of(6)
    nn.init.zeros_(heads[1].weight)
    if whole:
        both = torch.compile(lambda x: seen(heads, body(x)), backend="aot_eager", fullgraph=True)
        return Loop(lambda: both(X), body.parameters(), parameters(heads))
    last = torch.compile(lambda z: seen(heads, z), backend="aot_eager")
    return Loop(lambda: last(body(X)), body.parameters(), parameters(heads))


def compiled_apart() -> Loop:
    """Two objectives on an encoder and a third on its own, all in one node."""
    body, heads, alone = mlp(4, 6), heads_of(6), nn.Linear(4, 1)
    both = torch.compile(
        lambda x: [*seen(heads, body(x)), (alone(x) - 2).square().mean()], backend="aot_eager"
    )
    return Loop(lambda: both(X), body.parameters(), parameters([*heads, alone]))


def together(put: Callable[[nn.ModuleList, Tensor], Sequence[Tensor]]) -> Loop:
    """Three heads whose outputs or losses are put into one tensor, where their ways meet."""
    body, heads = mlp(4, 6), heads_of(6, 3)
    return Loop(lambda: put(heads, body(X)), body.parameters(), parameters(heads))


def columns(heads: nn.ModuleList, z: Tensor) -> list[Tensor]:
    """Of an output that is filled head by head."""
    output = torch.empty(9, 3)
    for k, head in enumerate(heads):
        output[:, k] = head(z)[:, 0]
    return [(output[:, k] - k).square().mean() for k in range(3)]


def masked(heads: nn.ModuleList, z: Tensor) -> list[Tensor]:
    """Of an output to which each head gives the samples of its own, and one head apart."""
    mine = torch.arange(9)[:, None] % 2 == 0
    output = torch.where(mine, heads[0](z), heads[1](z))
    return [output[mine].exp().mean(), (output[~mine] - 1).abs().mean(), heads[2](z).abs().mean()]


def weighted_by_hand() -> Loop:
    """Losses as one tensor, times weights that are learnt."""
    body, heads, s = mlp(4, 6), heads_of(6), nn.Parameter(data(2))
    return Loop(
        lambda: torch.stack(seen(heads, body(X))) * torch.exp(-s) + s,
        [*body.parameters(), s],
        parameters(heads),
    )


def compiled_into_one() -> Loop:
    body, heads = mlp(4, 6), heads_of(6)
    both = torch.compile(lambda x: torch.stack(seen(heads, body(x))), backend="aot_eager")
    return Loop(lambda: both(X), body.parameters(), parameters(heads))


def best_and_halves() -> Loop:
    body, heads = mlp(4, 8), heads_of(4)

    def losses() -> list[Tensor]:
        z = body(X)
        (left, right), best = z.split(4, 1), z.topk(4, 1).values
        return [(heads[0](left) + best).square().mean(), (heads[1](best) - right).abs().mean()]

    return Loop(losses, body.parameters(), parameters(heads))


def changed_losses() -> Loop:
    """In place; one has a hook, and one is there twice."""
    body, heads = mlp(4, 6), heads_of(6)

    def losses() -> list[Tensor]:
        first, second = seen(heads, body(X))
        first.mul_(3.0).register_hook(lambda g: 2 * g)
        return [first, second.add_(first.detach()).exp_(), first]

    shared = [*body.parameters(), *heads[0].parameters()]
    return Loop(losses, shared, [[], heads[1].parameters(), []])


def inner_step() -> Loop:
    body, heads = mlp(4, 6), heads_of(6)

    def encoder() -> Tensor:
        own = dict(body.named_parameters())
        loss = torch.func.functional_call(body, own, (X,)).square().mean()
        slopes = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        moved = {k: p - 0.1 * g for (k, p), g in zip(own.items(), slopes, strict=True)}
        return torch.func.functional_call(body, moved, (X,))

    return Loop(lambda: seen(heads, encoder()), body.parameters(), parameters(heads))


LOOPS: dict[str, Callable[[], Loop]] = {
    "stacked losses": lambda: together(lambda heads, z: torch.stack(seen(heads, z))),
    "unbound losses": lambda: together(lambda heads, z: torch.stack(seen(heads, z)).unbind()),
    "one output": lambda: together(
        lambda heads, z: (torch.cat([h(z) for h in heads], 1) - 1).square().mean(0)
    ),
    "columns": lambda: together(columns), "masked": lambda: together(masked),
    "weighted by hand": weighted_by_hand, "compiled into one": compiled_into_one,
    "best and halves": best_and_halves, "changed losses": changed_losses, "inner step": inner_step,
    "hook on z": lambda: hooked(lambda g: 2 * g), "module hooks": module_hooks,
    "functional": lambda: functional(nn.Parameter),
    "functional, tensors": lambda: functional(lambda p: p.requires_grad_()),
    "gradient penalty": gradient_penalty,
    "nested checkpoints": nested_checkpoints, "modalities": modalities,
    "cross stitch": cross_stitched, "experts": experts,
    "gradient reversal": lambda: between(Reversed.apply),
    "stop gradient": lambda: between(Tensor.detach),
    "straight through": lambda: between(lambda z: z + (z.round() - z).detach()),
    "head on a head": lambda: on_another_head(lambda said: said),
    "head on a detached head": lambda: on_another_head(Tensor.detach),
    "one head": one_head, "one loss is the sum": one_loss_is_the_sum, "in place": in_place,
    "truncated in time": truncated_in_time, "packed": packed, "fourier": fourier,
    "graph convolution": graph_convolution, "prompt": prompt, "split parameter": split_parameter,
    "heads that meet": heads_that_meet, "contrastive": contrastive, "on the host": on_the_host,
    "compiled losses": partial(compiled_losses, False),
    "compiled whole": partial(compiled_losses, True), "compiled apart": compiled_apart,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of dynamo
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_enough(loop: str, name: str) -> None:
    with torch._functorch.config.patch(donated_buffer=False):
        check(LOOPS[loop](), name)


@pytest.mark.parametrize("name", METHODS[1:])
def test_a_hook_sees_each_objectives_gradient(name: str) -> None:
    """As K calls of `autograd.grad` would let it; what descends a scalar lets it see the sum's."""
    check(hooked(lambda g: g.clamp(-0.01, 0.01)), name)
