"""Layers whose gradients are not formed: the same numbers as from the Jacobian."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtbench.balancing import layers
from mtbench.balancing.engine import Engine
from mtbench.balancing.step import Step

CONVOLUTIONS: list[type[nn.Module]] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every layer that can be taken, however small."""
    monkeypatch.setattr(layers, "_FEWEST", 0)
    monkeypatch.setattr(layers.Layer, "pays", lambda self, objectives: True)


def losses_of(features: Tensor, K: int) -> list[Tensor]:
    """Return K losses of which some conflict."""
    rows = features.flatten(1)
    weights = torch.randn(K, rows.shape[1], generator=torch.Generator().manual_seed(7))
    return [(rows @ w.to(rows) - 0.3 * k).square().mean() for k, w in enumerate(weights)]


def grads_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the ``.grad``s and forget them."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return found


def both_ways(
    encoder: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    x: Tensor,
    *,
    K: int = 3,
    engine: Callable[[], Engine] = Engine,
    loss_scale: float = 1.0,
) -> tuple[int, list[Tensor], list[Tensor]]:
    """Return how many layers were taken, and Gramian and gradients so and by the Jacobian."""
    weights = torch.linspace(0.2, 1.0, K, dtype=torch.float64)
    results = []
    taken = 0
    for whole in (False, True):
        features = encoder(x)
        step = Step(
            losses_of(features, K),
            features=features,
            shared=parameters,
            engine=engine(),
            loss_scale=loss_scale,
        )
        if whole:
            step.jacobian()
        gramian = step.gramian()
        step.backward(weights)
        if not whole:
            taken = sum(isinstance(item, layers.Layer) for item in step.items)
        results.append([gramian, *grads_of(parameters)])
    return taken, results[0], results[1]


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Check all tensors relative to their largest entry."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * (1e-30 + b.abs().max().item()))


@st.composite
def encoders(draw: st.DrawFn) -> tuple[nn.Sequential, Tensor]:
    """Draw a convolutional or linear encoder with one batch for it."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    batch, channels = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    body: list[nn.Module] = []
    axes = draw(st.integers(0, 3))
    size = 5 if axes == 3 else 9
    x = torch.randn(batch, channels, *(draw(st.integers(size, size + 1)) for _ in range(axes)))
    if axes:
        for _ in range(draw(st.integers(1, 1 if axes == 3 else 2))):
            after = draw(st.integers(1, 4))
            body += [
                CONVOLUTIONS[axes - 1](
                    channels, after, draw(st.integers(1, 3)), draw(st.integers(1, 2)),
                    draw(st.integers(1, 2)), draw(st.integers(1, 2)), bias=draw(st.booleans()),
                ),
                nn.Tanh(),
            ]  # fmt: skip
            channels = after
        body += [nn.Flatten()]
    with torch.no_grad():
        size = nn.Sequential(*body)(x).shape[1]
    for _ in range(draw(st.integers(0 if axes else 1, 2))):
        after = draw(st.integers(1, 5))
        body += [nn.Linear(size, after, bias=draw(st.booleans())), nn.Tanh()]
        size = after
    return nn.Sequential(*body), x


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("batched", [False, True])
@settings(max_examples=30)
@given(drawn=encoders())
def test_equals_the_jacobian(drawn: tuple[nn.Sequential, Tensor], batched: bool) -> None:
    encoder, x = drawn
    encoder, x = encoder.double(), x.double()
    taken, ours, theirs = both_ways(
        encoder, list(encoder.parameters()), x, engine=lambda: Engine(batched=batched)
    )
    assert taken == sum(not isinstance(m, nn.Tanh | nn.Flatten) for m in encoder)
    close(ours, theirs, 1e-9)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("layout", "engine"),
    [
        (torch.contiguous_format, {}),
        (torch.contiguous_format, {"batched": True}),
        (torch.contiguous_format, {"parts": 3}),
        (torch.channels_last, {}),  # nothing else: torch 2.13's group norm cannot
    ],
)
def test_beside_other_parameters(layout: torch.memory_format, engine: dict[str, int]) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8)
    ).to(memory_format=layout)
    taken, ours, theirs = both_ways(
        encoder, list(encoder.parameters()),
        torch.randn(5, 3, 8, 8).contiguous(memory_format=layout),
        engine=lambda: Engine(**engine), loss_scale=1024.0,
    )  # fmt: skip
    assert taken == 2
    close(ours, theirs, 1e-5)


@pytest.mark.usefixtures("always")
def test_under_autocast() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8))

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = encoder(x)
        return y

    taken, ours, theirs = both_ways(
        forward,
        list(encoder.parameters()),
        torch.randn(5, 3, 8, 8),
        engine=lambda: Engine(batched=False),
    )
    assert taken == 2
    assert all(p.dtype == g.dtype for p, g in zip(encoder.parameters(), ours[1:], strict=True))
    close(ours, theirs, 2e-2)  # a gradient formed in bfloat16 rounds to 8 bits


@pytest.mark.usefixtures("always")
def test_tokens() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    taken, ours, theirs = both_ways(
        encoder, list(encoder.parameters()), torch.randn(3, 5, 8).double()
    )
    assert taken == 4  # attention's two, and two of the feed-forward part
    close(ours, theirs, 1e-9)


class Twice(nn.Module):
    """Goes through its layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(torch.tanh(self.layer(x)))
        return y


class Elsewhere(Twice):
    """Reads the layer's weight a second time, beside it."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.layer.weight.sum()
        return y


class Scaled(Twice):
    """Computes its weight, as weight normalisation does."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2 * self.layer.weight, self.layer.bias)


class Checkpointed(Twice):
    """Computes its layer anew in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.layer, x, use_reentrant=False)
        return y


class Weighted(Twice):
    """Scales product and sum within one operation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.layer.bias, x, self.layer.weight.T, alpha=2, beta=3)


class Hooked(Twice):
    """Changes its weight's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.weight.register_hook(lambda grad: 3 * grad)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


class Matrix(Twice):
    """Adds a whole matrix, one row for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.bias = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.layer.bias, x, self.layer.weight.T)


class Grouped(nn.Module):
    """A convolution in groups, and one backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.back = nn.Conv1d(2, 4, 3, groups=2), nn.ConvTranspose1d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.back(self.grouped(x.view(5, 2, 3)))
        return y


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "kind", [Twice, Elsewhere, Scaled, Checkpointed, Weighted, Hooked, Matrix, Grouped]
)
def test_what_is_no_plain_layer_is_left_to_the_jacobian(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    encoder = kind().double()
    taken, ours, theirs = both_ways(encoder, list(encoder.parameters()), torch.randn(5, 6).double())
    assert taken == 0
    close(ours, theirs, 1e-12)


@pytest.mark.usefixtures("always")
def test_frozen_parameters_get_nothing_and_those_beside_the_chosen_the_weighted_sum() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    encoder = encoder.double()
    encoder[0].weight.requires_grad_(False)
    encoder[2].bias.requires_grad_(False)
    shared = [p for p in encoder.parameters() if p is not encoder[4].weight]
    x = torch.randn(7, 4).double()
    taken, ours, theirs = both_ways(encoder, shared, x)
    assert taken == 1  # the middle one; the first one's and the last one's biases stand alone
    close(ours, theirs, 1e-12)
    weights = torch.linspace(0.2, 1.0, 3, dtype=torch.float64)
    total = sum(w * loss for w, loss in zip(weights, losses_of(encoder(x), 3), strict=True))
    (expected,) = torch.autograd.grad(total, [encoder[4].weight])
    torch.testing.assert_close(encoder[4].weight.grad, 2 * expected)  # it was done both ways


@pytest.mark.usefixtures("always")
def test_the_jacobian_may_be_asked_for_afterwards() -> None:
    torch.manual_seed(0)
    encoder = nn.Linear(6, 5)
    features = encoder(torch.randn(4, 6))
    step = Step(losses_of(features, 2), features=features, engine=Engine(batched=False))
    gramian = step.gramian()
    jacobian = step.jacobian().clone()  # overwrites the memory of what the Gramian was made of
    step.backward(torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(gramian, (jacobian @ jacobian.T).double(), rtol=1e-5, atol=0)
    written = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(written, 0.25 * jacobian[0] + 0.75 * jacobian[1])


@pytest.mark.usefixtures("always")
def test_rounds_no_worse_than_the_gradient_where_most_of_it_cancels() -> None:
    """Large inputs that hardly differ, and gradients that sum to nearly zero."""
    torch.manual_seed(0)
    x = 100 + torch.randn(64, 96)
    layer = nn.Linear(96, 8, bias=False)
    direction = torch.randn(3, 64, 8)
    direction -= direction.mean(1, keepdim=True)

    def gramian(dtype: torch.dtype, whole: bool) -> Tensor:
        own = nn.Linear(96, 8, bias=False).to(dtype)
        own.load_state_dict(layer.state_dict())
        y = own(x.to(dtype))
        step = Step([(y * d.to(dtype)).sum() for d in direction], features=y)
        if whole:
            step.jacobian()
        return step.gramian()

    truth = gramian(torch.float64, whole=True)
    assert truth.diagonal().max() < 1e-2 * (x @ x.T).norm() * direction.square().sum()
    error = {w: (gramian(torch.float32, w) - truth).abs().max() for w in (True, False)}
    assert error[False] < 4 * error[True]
    assert error[False] < 1e-5 * truth.diagonal().min()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_an_input_of_zeros_or_not_finite(value: float) -> None:
    layer = nn.Linear(4, 3, bias=False)
    y = layer(torch.full((5, 4), value))
    gramian = Step([y.sum(), y.square().sum()], features=y).gramian()
    if value == 0:
        assert (gramian == 0).all()
    else:
        assert not gramian.isfinite().any()


@pytest.mark.usefixtures("always")
def test_parameters_that_are_put_away_are_refused() -> None:
    """As `fully_shard` does after its own backward pass."""
    layer = nn.Linear(4, 3)
    y = layer(torch.randn(5, 4))
    step = Step([y.sum(), y.square().sum()], features=y, engine=Engine(batched=False))
    layer.weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="a parameter is sharded"):
        step.gramian()


def test_is_taken_where_it_pays_and_holds_no_jacobian() -> None:
    torch.manual_seed(0)
    K, n = 4, 300
    for batch, expected in ((16, 2), (4 * n, 0)):
        encoder = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n))
        engine = Engine(batched=False)
        features = encoder(torch.randn(batch, n))
        step = Step(losses_of(features, K), features=features, engine=engine)
        step.gramian()
        assert sum(isinstance(item, layers.Layer) for item in step.items) == expected
        held = K * 2 * batch * n if expected else K * 2 * (n * n + n)
        assert engine._buffer.numel() == held
