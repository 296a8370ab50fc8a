"""Every way to compute and multiply the Jacobian gives the same numbers."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtbench import Engine, Step
from mtbench.balancing.engine import gramian, lengths

K = 3


class Net(nn.Module):
    """Two features; one parameter that nothing reaches."""

    def __init__(self, layer=nn.Linear):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.idle = layer(4, 6), layer(6, 5), layer(2, 2)
            self.heads = nn.ModuleList([nn.Linear(n, 1) for n in (11, 5, 6)])
        self.double()

    def step(self, batch=0, **options):
        x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
        skip = torch.tanh(self.first(x))
        skip, z = skip.view_as(skip), torch.tanh(self.second(skip))
        seen = (torch.cat([skip, z], 1), z, skip)
        losses = [
            (head(f) - k).square().mean()
            for k, (head, f) in enumerate(zip(self.heads, seen, strict=True))
        ]
        shared = [*self.first.parameters(), *self.second.parameters(), *self.idle.parameters()]
        return Step(losses, features=[skip, z], shared=shared, **options)


def grads(net):
    found = [p.grad for p in net.parameters()]
    net.zero_grad()
    return found


def assert_same(found, expected):
    """None and zeros are the same gradient."""
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            assert a is b or not (b if a is None else a).any()
        else:
            torch.testing.assert_close(a, b)


ENGINES = [
    {"batched": batched, "parts": parts}
    for batched, parts in itertools.product([None, False, True], [1, 2, 3, 100])
]


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize("space", ["shared", "features"])
def test_engines_agree(options, space):
    net, engine, weights = Net(), Engine(**options), torch.tensor([0.3, -1.0, 2.0])
    for batch in range(3):
        plain = net.step(batch)
        plain.backward(weights, space)
        expected = grads(net)
        step = net.step(batch, engine=engine)
        torch.testing.assert_close(step.gramian(space), plain.gramian(space))
        step.backward(weights, space)
        assert_same(grads(net), expected)
        torch.testing.assert_close(net.step(batch, engine=engine).jacobian(), plain.jacobian())


@pytest.mark.parametrize("parts", [1, 3])
def test_engines_agree_without_features(parts):
    net, weights = Net(), torch.tensor([0.3, -1.0, 2.0])
    full = net.step()
    full.backward(weights)
    expected = grads(net)
    step = Step(net.step().losses, shared=full.shared, engine=Engine(parts=parts))
    torch.testing.assert_close(step.gramian(), full.gramian())
    step.backward(weights)
    assert_same(grads(net), expected)


def test_groups_are_balanced_and_complete():
    sizes = [5, 1, 1, 8, 2, 2, 1]
    parameters = [torch.zeros(size) for size in sizes]
    groups = list(Engine(parts=3).groups(parameters))
    assert [len(p) for group in groups for p in group] == sizes
    assert len(groups) == 3
    assert max(sum(map(len, group)) for group in groups) <= 20 / 3 + 8
    assert list(Engine(parts=3).groups([])) == []


def test_memory_is_reused_and_grows():
    net, engine = Net(), Engine(batched=False)
    first = net.step(engine=engine).jacobian()
    again = net.step(1, engine=engine).jacobian()
    assert first.data_ptr() == again.data_ptr()
    cpu = torch.device("cpu")
    assert engine.buffer(2, 10**6, torch.float32, cpu).shape == (2, 10**6)
    assert engine.buffer(3, 4, torch.float64, cpu).dtype == torch.float64


def test_a_layer_that_cannot_be_vmapped_falls_back_to_the_loop():
    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2 if g.sum().item() else g  # what depends on data cannot be vmapped

    engine, x = Engine(), torch.ones(3, requires_grad=True)
    z = Stubborn.apply(x)[None]
    step = Step([z.sum(), z.square().sum()], features=z, shared=[x], engine=engine)
    with pytest.raises(RuntimeError):
        step._vmapped([x])
    assert step.jacobian().tolist() == [[2.0] * 3, [8.0] * 3]
    assert engine.batched is False


def test_the_choice_is_measured_once_and_kept(tmp_path: Path):
    engine, pulled = Engine(notebook=tmp_path), []
    choice = engine.choose(pulled.append, "sizes")
    assert set(pulled) == {False, True}
    pulled.clear()
    assert engine.choose(pulled.append, "sizes") is choice
    assert Engine(notebook=tmp_path).choose(pulled.append, "sizes") is choice
    assert pulled == []
    Engine(notebook=tmp_path).choose(pulled.append, "other sizes")
    assert pulled


@pytest.mark.parametrize("slow", [False, True])
def test_the_faster_one_is_taken(slow):
    work = torch.randn(300, 300)

    def pull(batched):
        for _ in range(20 if batched == slow else 1):
            work @ work

    assert Engine().choose(pull, "") is not slow


def test_parts_below_one_are_refused():
    with pytest.raises(ValueError, match="parts must be at least 1, found 0"):
        Engine(parts=0)


@pytest.mark.parametrize("d", [3, 1024, 50_000])
@pytest.mark.parametrize("kind", ["independent", "equal", "near", "zero", "tiny", "huge"])
def test_gramian_is_accurate(d, kind):
    rng = np.random.default_rng(0)
    J = rng.normal(size=(5, d))
    if kind == "equal":
        J[1] = J[0]
    if kind == "near":
        J[1] = J[0] * (1 + 1e-4 * rng.normal(size=d))
    if kind == "zero":
        J[2] = 0
    if kind in ("tiny", "huge"):
        J[3] *= 1e-18 if kind == "tiny" else 1e18
    rows = torch.from_numpy(J).float()
    exact = rows.double() @ rows.double().T
    norms = exact.diagonal().sqrt()
    unit = torch.where(norms > 0, norms, 1)
    found = gramian([rows[:, : d // 3], rows[:, d // 3 :]])
    assert found.dtype == torch.float64
    error = (found - exact) / torch.outer(unit, unit)
    assert error.abs().max() < 5e-7
    if kind in ("equal", "near") and d > 3:  # what is left of a difference keeps its digits
        w = torch.tensor([1.0, -1.0, 0, 0, 0], dtype=torch.float64)
        assert w @ found @ w == pytest.approx(float(w @ exact @ w), rel=1e-4, abs=1e-12)


def test_zero_that_is_only_too_small_for_float32():
    rows = torch.full((2, 5000), 1e-30)
    rows[1] = 0
    found = gramian([rows])
    assert found[0, 0] == pytest.approx(5e-57, rel=1e-6)
    assert found[1].tolist() == [0, 0]


@pytest.mark.parametrize("d", [0, 1, 5000, 40_000])
def test_lengths(d):
    rows = torch.randn(4, 2 * d, generator=torch.Generator().manual_seed(0))[:, ::2]
    rows *= torch.tensor([[1e-30], [1.0], [1e30], [0.0]])
    expected = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    torch.testing.assert_close(lengths(rows), expected, rtol=1e-12, atol=0)
