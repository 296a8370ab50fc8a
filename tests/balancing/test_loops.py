"""The loops that people have: `balancer.backward(losses)` against K plain `autograd.grad` calls.

Each case is a model that makes its losses, with the parameters that several losses reach (`shared`)
and those that one alone does, found by hand. Nothing but the losses is handed over.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import mtbench

METHODS = ("ew", "mgda", "cagrad", "config")
"""A scalarizer, weightings of and off the simplex, an aggregator."""


class Loop(NamedTuple):
    """A loop's forward pass, and who is who in its model.

    Attributes:
        losses: makes one forward pass.
        shared: what several losses reach.
        heads: per objective, what it alone reaches.
        tolerance: of the gradients, relative to their length.
    """

    losses: Callable[[], Sequence[Tensor | None]]
    shared: Iterable[Tensor]
    heads: Sequence[Iterable[Tensor]]
    tolerance: float = 1e-8


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads_of(size: int, K: int = 2, out: int = 1) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(size, out) for _ in range(K))


def parameters(modules: Iterable[nn.Module]) -> list[list[Tensor]]:
    return [list(module.parameters()) for module in modules]


def seen(heads: Iterable[nn.Module], z: Tensor) -> list[Tensor]:
    return [(head(z).float() - k).square().mean() for k, head in enumerate(heads)]


def encoded(encoder: nn.Module, x: Tensor, size: int, K: int = 2, **options: Any) -> Loop:
    """An encoder, and linear heads on what it returns."""
    heads = heads_of(size, K)

    def losses() -> list[Tensor]:
        return seen(heads, encoder(x).flatten(1))

    return Loop(losses, encoder.parameters(), parameters(heads), **options)


def mlp(*sizes: int) -> nn.Sequential:
    layers = [(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(module for pair in layers for module in pair))


def rows(losses: Sequence[Tensor | None], shared: Sequence[Tensor]) -> list[list[Tensor]]:
    """K calls of `autograd.grad`."""
    found = []
    for loss in losses:
        grads: Sequence[Tensor | None] = [None] * len(shared)
        if loss is not None and loss.requires_grad and shared:
            grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        found.append(
            [torch.zeros_like(p) if g is None else g for p, g in zip(shared, grads, strict=True)]
        )
    return found


def real(values: Iterable[Tensor]) -> Tensor:
    """Gradients as one real vector in float64."""
    dense = (v.to_dense() if v.layout != torch.strided else v for v in values)
    return torch.cat(
        [(torch.view_as_real(v) if v.is_complex() else v).double().flatten() for v in dense]
    )


def check(loop: Loop, name: str, balancer: mtbench.Balancer | None = None, **said: Any) -> None:
    """Compare all ``.grad``s with what the method makes of the rows.

    A balancer may have made other steps before.
    """
    shared, heads = list(loop.shared), [list(head) for head in loop.heads]
    torch.manual_seed(3)
    losses = loop.losses()
    J = torch.stack([real(row) for row in rows(losses, shared)])
    values = torch.stack([J.new_zeros(()) if x is None else x.detach().to(J) for x in losses])
    expected = mtbench.combine(name, J, values.nan_to_num(nan=0.0))
    own = [rows([loss], head)[0] for loss, head in zip(losses, heads, strict=True)]
    del losses
    for p in (*shared, *(p for head in heads for p in head)):
        p.grad = None
    torch.manual_seed(3)
    balancer = balancer or mtbench.balancer(name, num_objectives=len(heads))
    balancer.backward(loop.losses(), **said)
    close(shared, expected, loop.tolerance * J.norm())
    for head, grads in zip(heads, own, strict=True):
        if head:
            close(head, real(grads), loop.tolerance * (J.norm() + real(grads).norm()))


def close(parameters: Sequence[Tensor], expected: Tensor, tolerance: Any) -> None:
    for p in parameters:
        assert p.grad is None or (p.grad.dtype == p.dtype and p.grad.shape == p.shape)
    found = real(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
    assert (found - expected).norm() <= tolerance


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain() -> Loop:
    return encoded(mlp(4, 8, 6), data(9, 4), 6)


def three() -> Loop:
    return encoded(mlp(4, 8, 6), data(9, 4), 6, K=3)


def one() -> Loop:
    loop = encoded(mlp(4, 8, 6), data(9, 4), 6, K=1)
    return Loop(loop.losses, [*loop.shared, *loop.heads[0]], [[]])


def deep() -> Loop:
    """Heads at two depths: one cut edge leads to another."""
    first, second, heads = mlp(4, 6), mlp(6, 6), heads_of(6)

    def losses() -> list[Tensor]:
        h = first(data(9, 4))
        return [heads[0](second(h)).square().mean(), (heads[1](h) - 1).square().mean()]

    return Loop(
        losses,
        first.parameters(),
        [[*second.parameters(), *heads[0].parameters()], heads[1].parameters()],
    )


def three_depths() -> Loop:
    """Three heads, each a layer deeper, all layers but the last one shared."""
    layers, heads = [mlp(5, 5) for _ in range(3)], heads_of(5, 3)

    def losses() -> list[Tensor]:
        h, found = data(9, 5), []
        for k, (layer, head) in enumerate(zip(layers, heads, strict=True)):
            h = layer(h)
            found.append((head(h) - k).square().mean())
        return found

    shared = [p for layer in layers[:2] for p in layer.parameters()]
    last = [*layers[2].parameters(), *heads[2].parameters()]
    return Loop(losses, shared, [heads[0].parameters(), heads[1].parameters(), last])


def convolutions(layout: torch.memory_format = torch.contiguous_format) -> Loop:
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.AdaptiveAvgPool2d(2)
    )
    body = body.to(memory_format=layout)
    return encoded(body, data(3, 3, 8, 8).contiguous(memory_format=layout), 16)


class Residual(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1)
        self.a, self.b = norm(3), norm(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(x + self.b(self.second(torch.relu(self.a(self.first(x))))))
        return y


def resnet(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> Loop:
    return encoded(
        nn.Sequential(Residual(norm), Residual(norm), nn.AvgPool2d(4)), data(4, 3, 8, 8), 12
    )


def unet() -> Loop:
    """Two scales; a head on both, one on the deep one, one on the skip connection."""
    down, deeper = nn.Conv2d(1, 3, 3, 1, 1), nn.Conv2d(3, 4, 3, 2, 1)
    heads = nn.ModuleList([nn.Linear(3 * 36 + 36, 1), nn.Linear(36, 1), nn.Linear(3 * 36, 1)])

    def losses() -> list[Tensor]:
        skip = torch.relu(down(data(2, 1, 6, 6)))
        z = torch.tanh(deeper(skip))
        inputs = (torch.cat([skip.flatten(1), z.flatten(1)], 1), z.flatten(1), skip.flatten(1))
        return [
            (h(x) - k).square().mean() for k, (h, x) in enumerate(zip(heads, inputs, strict=True))
        ]

    return Loop(losses, [*down.parameters(), *deeper.parameters()], parameters(heads))


class Blocks(nn.Module):
    """Attention blocks on tokens, as vision, text and speech have them."""

    def __init__(self, dropout: float = 0.0, causal: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.position = nn.Parameter(data(5, 8) / 9)
        self.mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x + self.position, mask=self.mask)
        return y


def vit(dropout: float = 0.0) -> Loop:
    return encoded(
        nn.Sequential(nn.Linear(6, 8), Blocks(dropout), nn.LayerNorm(8)), data(3, 5, 6), 40
    )


def bert() -> Loop:
    """One head on all tokens, one on what a pooler makes of the first, which is its own."""
    words, body, pooler = nn.Embedding(11, 8), Blocks(), nn.Linear(8, 8)
    tokens, label = nn.Linear(8, 11), nn.Linear(8, 2)
    ids = torch.arange(15).view(3, 5) % 11

    def losses() -> list[Tensor]:
        z = body(words(ids))
        pooled = torch.tanh(pooler(z[:, 0]))
        return [
            F.cross_entropy(tokens(z).flatten(0, 1), ids.flatten()),
            F.cross_entropy(label(pooled), ids[:, 0] % 2),
        ]

    shared = [*words.parameters(), *body.parameters()]
    return Loop(losses, shared, [tokens.parameters(), [*pooler.parameters(), *label.parameters()]])


def tied_gpt() -> Loop:
    """The word embedding is the language head's weight; a value head beside it."""
    words, body, value = nn.Embedding(11, 8), Blocks(causal=True), nn.Linear(8, 1)
    ids = torch.arange(15).view(3, 5) % 11

    def losses() -> list[Tensor]:
        z = body(words(ids))
        logits = F.linear(z, words.weight)
        return [F.cross_entropy(logits.flatten(0, 1), ids.flatten()), value(z).square().mean()]

    return Loop(losses, [*words.parameters(), *body.parameters()], [[], value.parameters()])


def t5() -> Loop:
    """Encoder and decoder read the same words; heads on the one and on the other."""
    words, encoder, head = nn.Embedding(11, 8), Blocks(), nn.Linear(8, 2)
    decoder = nn.TransformerDecoderLayer(8, 2, 12, 0.0, batch_first=True)
    ids = torch.arange(15).view(3, 5) % 11

    def losses() -> list[Tensor]:
        memory = encoder(words(ids))
        out = decoder(words(ids.flip(1)), memory)
        return [
            F.cross_entropy(F.linear(out, words.weight).flatten(0, 1), ids.flatten()),
            head(memory).square().mean(),
        ]

    return Loop(
        losses,
        [*words.parameters(), *encoder.parameters()],
        [decoder.parameters(), head.parameters()],
    )


class LowRank(nn.Module):
    """A frozen layer and what is learnt beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a, self.b = (
            nn.Parameter(data(2, layer.in_features)),
            nn.Parameter(data(layer.out_features, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + x @ self.a.T @ self.b.T
        return y


def lora(reentrant: bool | None = None) -> Loop:
    body, heads = (
        nn.Sequential(LowRank(nn.Linear(4, 6)), nn.Tanh(), LowRank(nn.Linear(6, 6))),
        heads_of(6),
    )

    def losses() -> list[Tensor]:
        z = (
            body(data(9, 4))
            if reentrant is None
            else checkpoint(body, data(9, 4).requires_grad_(), use_reentrant=reentrant)
        )
        return seen(heads, z)

    return Loop(losses, [p for p in body.parameters() if p.requires_grad], parameters(heads))


def recurrent(kind: type[nn.LSTM] | type[nn.GRU]) -> Loop:
    """One head on the whole output, one on the last state: two outputs of one node."""
    body, heads = kind(4, 6, batch_first=True), heads_of(6)

    def losses() -> list[Tensor]:
        output, state = body(data(3, 5, 4))
        last = state[0] if isinstance(state, tuple) else state
        return [heads[0](output).square().mean(), (heads[1](last[-1]) - 1).square().mean()]

    return Loop(losses, body.parameters(), parameters(heads))


def chunks() -> Loop:
    """A variational encoder: the losses read different outputs of one node."""
    body, decoder, head = mlp(4, 8, 6), nn.Linear(3, 4), nn.Linear(3, 1)
    x = data(9, 4)

    def losses() -> list[Tensor]:
        mean, log_variance = body(x).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * data(9, 3, seed=1)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
        return [(decoder(z) - x).square().mean(), divergence, (head(mean) - 1).square().mean()]

    return Loop(losses, body.parameters(), [decoder.parameters(), [], head.parameters()])


def unbound() -> Loop:
    body, heads = mlp(4, 8), heads_of(4)

    def losses() -> list[Tensor]:
        a, b = body(data(9, 4)).view(9, 2, 4).unbind(1)
        return [heads[0](a).square().mean(), (heads[1](b) - 1).square().mean()]

    return Loop(losses, body.parameters(), parameters(heads))


def extremes() -> Loop:
    body = mlp(4, 8)

    def losses() -> list[Tensor]:
        low, high = torch.aminmax(body(data(9, 4)), dim=1)
        return [low.square().mean(), (high - 1).square().mean()]

    return Loop(losses, body.parameters(), [[], []])


def normed(how: Callable[[nn.Module], nn.Module]) -> Loop:
    """A weight that is computed; in evaluation, so that no pass moves what it is computed with."""
    body = nn.Sequential(how(nn.Linear(4, 6)), nn.Tanh(), how(nn.Linear(6, 6))).eval()
    return encoded(body, data(9, 4), 6)


def dropped() -> Loop:
    return encoded(
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 6)), data(9, 4), 6
    )


def checkpointed() -> Loop:
    body, heads = mlp(4, 8, 6), heads_of(6)
    return Loop(
        lambda: seen(heads, checkpoint(body, data(9, 4), use_reentrant=False)),
        body.parameters(),
        parameters(heads),
    )


def compiled(what: str) -> Loop:
    body, heads = mlp(4, 8, 6), heads_of(6)
    encoder = torch.compile(body, backend="aot_eager") if what == "encoder" else body
    own = [torch.compile(h, backend="aot_eager") if what == "heads" else h for h in heads]
    return Loop(lambda: seen(own, encoder(data(9, 4))), body.parameters(), parameters(heads))


def bf16(where: str) -> Loop:
    """All in bfloat16, or under autocast."""
    dtype = torch.bfloat16 if where == "model" else torch.float32
    body, heads = mlp(4, 8, 6).to(dtype), heads_of(6).to(dtype)

    def losses() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16) if where == "autocast" else nullcontext():
            return seen(heads, body(data(9, 4).to(dtype)))

    return Loop(losses, body.parameters(), parameters(heads), 3e-2)


def two_dtypes() -> Loop:
    """Norms in float32 within a model in bfloat16."""
    first, norm, last = (
        nn.Linear(4, 8).bfloat16(),
        nn.LayerNorm(8).float(),
        nn.Linear(8, 6).bfloat16(),
    )
    heads = heads_of(6).bfloat16()

    def losses() -> list[Tensor]:
        h = norm(first(data(9, 4).bfloat16()).float()).bfloat16()
        return seen(heads, torch.tanh(last(h)))

    shared = [p for module in (first, norm, last) for p in module.parameters()]
    return Loop(losses, shared, parameters(heads), 3e-2)


def complex_parameters() -> Loop:
    """Behind an odd number of real ones."""
    shift, heads = nn.Parameter(data(3, 1)), heads_of(6)
    weight = nn.Parameter(torch.complex(data(4, 6), data(4, 6, seed=1)))

    def losses() -> list[Tensor]:
        return seen(heads, ((data(9, 4) + shift.sum() + 0j) @ weight).abs())

    return Loop(losses, [shift, weight], parameters(heads))


def sparse_embedding() -> Loop:
    words, body, heads = nn.Embedding(11, 6, sparse=True), mlp(6, 6), heads_of(6)
    ids = torch.arange(9) % 7
    return Loop(
        lambda: seen(heads, body(words(ids))),
        [*words.parameters(), *body.parameters()],
        parameters(heads),
    )


def pinn() -> Loop:
    """A boundary loss, and a residual of second derivatives in coordinates that require grad."""
    net = mlp(2, 8, 8, 1)
    points = data(9, 2).requires_grad_()

    def losses() -> list[Tensor]:
        u = net(points)
        (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        bends = [
            torch.autograd.grad(slope[:, i].sum(), points, create_graph=True)[0][:, i]
            for i in range(2)
        ]
        return [
            (bends[0] + bends[1]).square().mean(),
            (net(data(5, 2)) - 1).square().mean(),
            u.square().mean(),
        ]

    # Its last bias moves no derivative, but two losses read it.
    return Loop(losses, net.parameters(), [[], [], []])


def per_sample() -> Loop:
    """Losses of single samples, of which each is an objective."""
    net = mlp(4, 8, 1)
    return Loop(
        lambda: list((net(data(5, 4))[:, 0] - 1).square().unbind()), net.parameters(), [[]] * 5
    )


def loaders() -> Loop:
    """Each objective has batches, and a forward pass, of its own."""
    body, heads = mlp(4, 8, 6), heads_of(6, 4)

    def losses() -> list[Tensor]:
        return [(h(body(data(3 + k, 4, seed=k))) - k).square().mean() for k, h in enumerate(heads)]

    return Loop(losses, body.parameters(), parameters(heads))


def penalty() -> Loop:
    """One loss reads the encoder's parameters themselves."""
    body, heads = mlp(4, 8, 6), heads_of(6)

    def losses() -> list[Tensor]:
        first, second = seen(heads, body(data(9, 4)))
        return [first + 0.1 * sum(p.square().sum() for p in body.parameters()), second]

    return Loop(losses, body.parameters(), parameters(heads))


def tied_heads() -> Loop:
    """Heads that share a parameter of their own: it is shared."""
    body, head, scales = (
        mlp(4, 6),
        nn.Linear(6, 1),
        [nn.Parameter(torch.tensor(v)) for v in (1.0, 2.0)],
    )

    def losses() -> list[Tensor]:
        z = body(data(9, 4))
        return [(s * head(z) - 1).square().mean() for s in scales]

    return Loop(losses, [*body.parameters(), *head.parameters()], [[s] for s in scales])


def derived() -> Loop:
    """One loss is another one's function; one reads nothing that is shared."""
    body, alone = mlp(4, 6, 1), nn.Linear(4, 1)

    def losses() -> list[Tensor]:
        first = body(data(9, 4)).square().mean()
        return [first, 1 / (1 + first), alone(data(9, 4)).square().mean()]

    return Loop(losses, body.parameters(), [[], [], alone.parameters()])


def absent(how: str) -> Loop:
    """No label for one of three objectives, as torch says it."""
    body, heads = mlp(4, 6), heads_of(6, 3)

    def losses() -> list[Tensor | None]:
        found: list[Tensor | None] = [*seen(heads, body(data(9, 4)))]
        output = heads[1](body(data(9, 4)))
        none = torch.zeros(9, dtype=torch.bool)
        ways = {
            "none": None,
            "constant": torch.zeros(()),
            "zero": output.sum() * 0,
            "empty mean": output[none].mean(),
            "ignored": F.cross_entropy(output.expand(9, 2), torch.full((9,), -100)),
        }
        found[1] = ways[how]
        return found

    return Loop(losses, body.parameters(), parameters(heads))


LOOPS: dict[str, Callable[[], Loop]] = {
    "mlp": plain, "three objectives": three, "one objective": one, "two depths": deep,
    "three depths": three_depths, "conv": convolutions,
    "channels last": lambda: convolutions(torch.channels_last), "u-net": unet,
    "resnet": resnet, "group norm": lambda: resnet(lambda n: nn.GroupNorm(1, n)),
    "vit": vit, "vit, dropout": lambda: vit(0.3), "bert": bert, "t5": t5, "tied gpt": tied_gpt,
    "lora": lora, "lora, checkpointed": lambda: lora(reentrant=False),
    "lstm": lambda: recurrent(nn.LSTM), "gru": lambda: recurrent(nn.GRU), "chunk": chunks,
    "unbind": unbound, "aminmax": extremes,
    "weight norm": lambda: normed(parametrizations.weight_norm),
    "spectral norm": lambda: normed(parametrizations.spectral_norm), "dropout": dropped,
    "checkpoint": checkpointed, "compiled encoder": lambda: compiled("encoder"),
    "compiled heads": lambda: compiled("heads"), "bf16": lambda: bf16("model"),
    "autocast": lambda: bf16("autocast"), "two dtypes": two_dtypes, "complex": complex_parameters,
    "sparse embedding": sparse_embedding, "pinn": pinn, "per sample": per_sample,
    "loaders": loaders, "penalty": penalty, "tied heads": tied_heads, "derived": derived,
    **{f"absent: {how}": (lambda how=how: absent(how))
       for how in ("none", "constant", "zero", "empty mean", "ignored")},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of dynamo
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_enough(loop: str, name: str) -> None:
    with torch._functorch.config.patch(donated_buffer=False):
        check(LOOPS[loop](), name)


@pytest.mark.parametrize("loop", ["complex", "sparse embedding"])
def test_wrappers_that_work_on_gradients_take_any_kind_of_them(loop: str) -> None:
    made = LOOPS[loop]()
    cyclic = mtbench.balancer("cyclic+mgda", num_objectives=2, **{"cyclic.beta": 0.0})
    for _ in range(2):  # each objective has its turn
        cyclic.backward(made.losses())
    check(made, "mgda", cyclic)
    samo = mtbench.balancer("samo+mgda", num_objectives=2, **{"samo.rho": 1e-12})
    check(made, "mgda", samo, again=made.losses)
