"""Step in the loops that people have: scalers, compilers, memory formats, optimizers, ties."""

import pytest
import torch
from torch import nn

from mtbench import Engine, Method, Step
from mtbench.errors import StepError

METHODS = ["ew", "mgda", "rlar", "uw", "gradnorm"]


def plain(loss, parameters):
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def parts(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
        heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)])
    return encoder.to(dtype), heads.to(dtype)


def losses_of(encoder, heads, batch=0):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(batch))
    z = encoder(x.to(next(heads.parameters()).dtype))
    return z, [(h(z).float() - k).square().mean() for k, h in enumerate(heads)]


@pytest.mark.parametrize("engine", [{"batched": False}, {"batched": True}, {"parts": 3}])
@pytest.mark.parametrize("name", METHODS)
def test_a_grad_scaler_changes_nothing_but_the_scale(name, engine):
    """With a scale S every .grad is S times as large, and nothing that a method sees is."""
    found = {}
    for scale in (1.0, 2.0**14):
        encoder, heads = parts()
        method = Method.find(name)(2)
        options = Engine(**engine)
        for batch in range(3):
            for p in (*encoder.parameters(), *heads.parameters(), *method.parameters()):
                p.grad = None
            z, losses = losses_of(encoder, heads, batch)
            method.backward(Step(losses, features=z, loss_scale=scale, engine=options))
        every = (*encoder.parameters(), *heads.parameters(), *method.parameters())
        found[scale] = [p.grad / scale for p in every]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:uw. its own parameters")  # which have no optimizer here
@pytest.mark.parametrize("name", METHODS)
def test_float16_with_a_grad_scaler(name):
    """Gradients that float16 cannot hold survive; an overflow skips the step."""
    encoder, heads = parts()
    method = Method.find(name)(2)
    optimizer = torch.optim.SGD([*encoder.parameters(), *heads.parameters()], lr=1e3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # overflows at first
    before = [p.detach().clone() for p in encoder.parameters()]
    skipped = 0
    for batch in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            z, losses = losses_of(encoder, heads, batch)
        losses = [loss * 1e-6 for loss in losses]
        method.backward(Step(losses, features=z, loss_scale=scaler.get_scale()))
        scale = scaler.get_scale()
        scaler.scale(torch.ones(()))  # torch makes the scale here; Step has used it already
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scale
        if not skipped:
            assert all(torch.equal(p, q) for p, q in zip(encoder.parameters(), before, strict=True))
    assert 0 < skipped < 59
    for p, q in zip(encoder.parameters(), before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, q)


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_encoder(name):
    """AOTAutograd's backward, as every torch.compile backend has it."""
    encoder, heads = parts()
    z, losses = losses_of(encoder, heads)
    every = [*encoder.parameters(), *heads.parameters()]
    Method.find(name)(2).backward(Step(losses, features=z))
    expected = [p.grad for p in every]
    for p in every:
        p.grad = None
    with torch._functorch.config.patch(donated_buffer=False):
        compiled = torch.compile(encoder, backend="aot_eager")
        z, losses = losses_of(compiled, heads)
        Method.find(name)(2).backward(Step(losses, features=z, engine=Engine()))
    for p, grad in zip(every, expected, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_a_compiled_encoder_whose_buffers_are_given_away_is_refused():
    encoder = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))
    z = torch.compile(encoder, backend="aot_eager", dynamic=True)(torch.ones(4, 3))
    step = Step([z.square().mean(), z.exp().mean()], features=z)
    with pytest.raises(StepError, match=r"donated_buffer = False before the model's first step"):
        step.jacobian()


@pytest.mark.parametrize("batched", [False, True])
def test_channels_last(batched):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x = torch.randn(2, 3, 8, 8)
    rows = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        encoder = encoder.to(memory_format=layout)
        z = encoder(x.to(memory_format=layout))
        losses = [z.square().mean(), z.exp().mean()]
        step = Step(losses, features=z, engine=Engine(batched=batched))
        rows[layout] = step.jacobian().clone()
        step.backward(torch.tensor([1.0, -2.0]))
        for p, g in zip(encoder.parameters(), plain(losses[0] - 2 * losses[1],
                        list(encoder.parameters())), strict=True):  # fmt: skip
            torch.testing.assert_close(p.grad, g)
            p.grad = None
    torch.testing.assert_close(*rows.values())


def test_clipping_and_several_optimizers():
    encoder, heads = parts()
    method = Method.find("mgda")(2)
    optimizers = [
        torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9),
        *(torch.optim.Adam(head.parameters(), lr=0.05) for head in heads),
    ]
    engine, history = Engine(), []
    for _ in range(40):
        z, losses = losses_of(encoder, heads)
        method.backward(Step(losses, features=z, engine=engine))
        norm = nn.utils.clip_grad_norm_(encoder.parameters(), 0.05)
        clipped = torch.cat([p.grad.flatten() for p in encoder.parameters()]).norm()
        assert clipped <= min(float(norm), 0.05) * 1.001
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        history.append(sum(losses).item())
    assert history[-1] < 0.3 * history[0]


class Sums(nn.Module):
    """An encoder that adds two parameters, and expands the sum of a third."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 6, bias=False)
            self.position, self.kind = (nn.Parameter(torch.randn(6)) for _ in range(2))
            self.scale = nn.Parameter(torch.randn(3))
            self.words = nn.Embedding(5, 6, sparse=True)

    def forward(self, x):
        words = self.words(torch.arange(len(x)) % 5)
        return torch.tanh(self.layer(x) * self.scale.sum() + (self.position + self.kind) + words)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("mgda", {"space": "features"}),
        ("gradnorm", {"space": "features"}),
        ("encodec", {}),
        ("every+mgda", {}),
        ("last_layer+mgda", {"last_layer.named": "layer"}),
        ("norm_matched+encodec", {}),
    ],
)
def test_every_gradient_has_memory_of_its_own(name, given):
    """What acts in place (clipping, unscaling, another backward) acts once on each."""
    found = {}
    for touched in (False, True):
        (_, heads), encoder = parts(), Sums()
        method = Method.find(name)(2, **given)
        kept = []
        encoder.layer.weight.register_hook(kept.append)
        for batch in range(2):
            for p in encoder.parameters():
                p.grad = None
            z, losses = losses_of(encoder, heads, batch)
            method.backward(Step(losses, features=z, shared=encoder.named_parameters()))
        assert all(p.grad.layout == torch.strided for p in encoder.parameters())
        seen = [g.clone() for g in kept]
        if touched:
            for p in encoder.parameters():
                p.grad *= 0.5
            z, losses = losses_of(encoder, heads, batch)
            losses[0].backward()
        found[touched] = [p.grad for p in encoder.parameters()]
        assert all(map(torch.equal, kept, seen))
    z, losses = losses_of(encoder, heads, batch)
    added = plain(losses[0], list(encoder.parameters()))
    for whole, half, more in zip(found[False], found[True], added, strict=True):
        torch.testing.assert_close(half, 0.5 * whole + more)


@pytest.mark.parametrize("space", ["shared", "features"])
def test_a_parameter_that_encoder_and_head_share(space):
    weight = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))
    other = nn.Linear(5, 1)
    z = torch.tanh(torch.ones(3, 5) @ weight)
    losses = [(z @ weight.T).square().mean(), other(z).square().mean()]
    total = plain(losses[0] + losses[1], [weight, other.weight])
    Step(losses, features=z, shared=[weight]).backward(torch.ones(2), space)
    torch.testing.assert_close(weight.grad, total[0])
    torch.testing.assert_close(other.weight.grad, total[1])


@pytest.mark.parametrize("K", [1, 200])
def test_one_objective_and_two_hundred(K):
    encoder = nn.Linear(4, 8)
    z = encoder(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    losses = [(z.sum(1) - k).square().mean() for k in range(K)]
    Method.find("mgda")(K).backward(Step(losses, features=z))
    assert encoder.weight.grad.isfinite().all()
