"""Every derivative of a Step against plain autograd on a small model with skips and heads."""

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step

K = 3


class Net(nn.Module):
    """An encoder with two features, as a U-Net's; head 0 reads both, 1 the deep, 2 the shallow."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.down = nn.Linear(3, 4)
        self.deep = nn.Linear(4, 5)
        self.idle = nn.Linear(2, 2)  # never used
        self.heads = nn.ModuleList([nn.Linear(9, 1), nn.Linear(5, 1), nn.Linear(4, 1)])
        self.to(dtype)

    def features(self, x):
        skip = torch.tanh(self.down(x))
        return skip.view_as(skip), torch.tanh(self.deep(skip))

    def losses(self, skip, z):
        inputs = (torch.cat([skip, z], 1), z, skip)
        return [
            (head(value) - k).square().mean()
            for k, (head, value) in enumerate(zip(self.heads, inputs, strict=True))
        ]

    def shared(self):
        return [*self.down.parameters(), *self.deep.parameters()]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def batch(dtype=torch.float64, seed=0):
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_step(net, with_features=True, **kwargs):
    features = net.features(batch(next(net.parameters()).dtype))
    losses = net.losses(*features)
    if with_features:
        return Step(losses, features=features, **kwargs)
    return Step(losses, shared=net.shared(), **kwargs)


def plain_rows(net, parameters):
    """dL_k/dparameters by one autograd call each, on fresh graphs."""
    rows = []
    for k in range(K):
        losses = net.losses(*net.features(batch(next(net.parameters()).dtype)))
        grads = torch.autograd.grad(losses[k], parameters, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for p, g in zip(parameters, grads, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def assert_grads(net, weights, head_weights=(1.0,) * K, times=1.0):
    """All .grads are what the weighted sum gives the encoder, and each head its own loss."""
    rows = plain_rows(net, net.shared())
    expected = torch.as_tensor(weights, dtype=rows.dtype) @ rows * times
    found = torch.cat([p.grad.flatten() for p in net.shared()])
    torch.testing.assert_close(found, expected)
    for k, head in enumerate(net.heads):
        own = plain_rows(net, list(head.parameters()))[k] * head_weights[k] * times
        torch.testing.assert_close(torch.cat([p.grad.flatten() for p in head.parameters()]), own)
    assert all(p.grad is None for p in net.idle.parameters())


@pytest.mark.parametrize("with_features", [True, False])
def test_jacobian_and_gramian(net, with_features):
    step = make_step(net, with_features)
    order = {id(p): i for i, p in enumerate(step.shared)}
    assert set(order) == {id(p) for p in net.shared()}
    rows = plain_rows(net, step.shared)
    torch.testing.assert_close(step.jacobian(), rows)
    torch.testing.assert_close(step.gramian(), rows @ rows.T)
    assert step.jacobian() is step.jacobian()


def test_feature_grads_and_their_gramian(net):
    step = make_step(net)
    features = [f.detach().requires_grad_() for f in step.features]
    flat = []
    for k, loss in enumerate(net.losses(*features)):
        expected = torch.autograd.grad(loss, features, allow_unused=True)
        for found, want, f in zip(step.feature_grads()[k], expected, features, strict=True):
            torch.testing.assert_close(found, torch.zeros_like(f) if want is None else want)
        flat.append(torch.cat([g.flatten() for g in step.feature_grads()[k]]))
    rows = torch.stack(flat)
    torch.testing.assert_close(step.gramian("features"), rows @ rows.T)


def test_sensitivities_are_differentiable(net):
    step = make_step(net)
    for k, g in enumerate(step.sensitivities):
        torch.testing.assert_close(g.detach(), step.feature_grads()[k][-1])
    assert not step.sensitivities[2].any()  # head 2 does not read z
    (second,) = torch.autograd.grad(step.sensitivities[1].square().sum(), [net.down.weight])
    z = step.z.detach()

    def squared(weight):  # head 1 is linear: dL/dz = 2 (h(z) - 1) w / B
        skip = torch.tanh(nn.functional.linear(batch(), weight, net.down.bias))
        z = torch.tanh(net.deep(skip))
        g = 2 * (net.heads[1](z) - 1) * net.heads[1].weight / len(z)
        return g.square().sum()

    weight = net.down.weight.detach().requires_grad_()
    torch.testing.assert_close(second, torch.autograd.grad(squared(weight), [weight])[0])
    assert second.any()
    assert step.z.shape == z.shape == (6, 5)


@pytest.mark.parametrize("space", ["shared", "features"])
def test_backward(net, space):
    weights = torch.tensor([0.2, 3.0, -1.0])
    make_step(net).backward(weights, space)
    assert_grads(net, weights)


def test_backward_without_features(net):
    make_step(net, with_features=False).backward(torch.tensor([0.2, 3.0, -1.0]))
    assert_grads(net, [0.2, 3.0, -1.0])


@pytest.mark.parametrize("space", ["shared", "features"])
def test_head_weights(net, space):
    weights = torch.tensor([0.2, 3.0, 0.5])
    make_step(net).backward(weights, space, head_weights=weights)
    assert_grads(net, weights, head_weights=weights.tolist())


@pytest.mark.parametrize("space", ["shared", "features"])
def test_gradients_accumulate(net, space):
    weights = torch.tensor([1.0, 2.0, 0.5])
    for _ in range(3):
        make_step(net).backward(weights, space)
    assert_grads(net, weights, times=3)


def test_assign_writes_views_of_one_buffer(net):
    step = make_step(net)
    step.jacobian()
    direction = torch.arange(step.offsets[-1], dtype=torch.float64)
    step.assign(direction)
    storages = {p.grad.untyped_storage().data_ptr() for p in step.shared}
    assert storages == {direction.untyped_storage().data_ptr()}
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in step.shared]), direction)


def test_heads_are_found(net):
    found = make_step(net).heads
    for head, parameters in zip(net.heads, found, strict=True):
        assert {id(p) for p in parameters} == {id(p) for p in head.parameters()}


def test_frozen_parameters_get_nothing(net):
    net.down.requires_grad_(False)
    net.heads[1].weight.requires_grad_(False)
    step = make_step(net)
    step.backward(torch.ones(K))
    assert net.down.weight.grad is None
    assert net.heads[1].weight.grad is None
    assert net.heads[1].bias.grad is not None
    torch.testing.assert_close(step.jacobian(), plain_rows(net, step.shared))


@pytest.mark.parametrize("space", ["shared", "features"])
def test_frozen_encoder_still_trains_the_heads(net, space):
    for parameter in net.shared():
        parameter.requires_grad_(False)
    step = make_step(net)
    assert step.gramian(space).equal(torch.zeros(K, K))
    step.backward(torch.ones(K), space)
    assert all(p.grad.any() for p in net.heads.parameters())


def test_unused_parameters_are_zero_columns(net):
    features = net.features(batch())
    step = Step(net.losses(*features), features=features, shared=[*net.shared(), net.idle.weight])
    assert not step.jacobian()[:, -4:].any()
    step.backward(torch.ones(K))
    assert net.deep.weight.grad.any()


def test_tied_head_gets_both_losses(net):
    head = nn.Linear(5, 1).double()
    skip, z = net.features(batch())
    losses = [head(z).square().mean(), (head(z) - 1).square().mean()]
    expected = torch.autograd.grad(sum(losses), [head.weight], retain_graph=True)[0]
    Step(losses, features=[skip, z]).backward(torch.ones(2))
    torch.testing.assert_close(head.weight.grad, expected)


@pytest.mark.parametrize("space", ["shared", "features"])
def test_missing_label(net, space):
    skip, z = net.features(batch())
    losses = net.losses(skip, z)
    losses[1] = net.heads[1](z).sum() * 0
    losses[2] = torch.zeros((), dtype=torch.float64)  # not even on the graph
    step = Step(losses, features=[skip, z])
    gramian = step.gramian(space)
    assert gramian[0, 0] > 0
    assert not gramian[1:].any()
    step.backward(torch.ones(K), space)
    assert net.heads[1].weight.grad is None  # a zero would let an optimizer's momentum move it
    assert net.heads[2].weight.grad is None
    assert not step.sensitivities[2].any()
    expected = plain_rows(net, net.shared())[0]
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in net.shared()]), expected)


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1.0, 1e12, 1e18])
@pytest.mark.parametrize("space", ["shared", "features"])
def test_gramian_at_any_scale(net, scale, space):
    reference = make_step(net).gramian(space)
    single = Net(torch.float32)
    single.load_state_dict(net.state_dict())
    features = single.features(batch(torch.float32))
    losses = single.losses(*features)
    losses[0] = losses[0] * scale
    unit = torch.tensor([scale, 1, 1], dtype=torch.float64)
    found = Step(losses, features=features).gramian(space) / torch.outer(unit, unit)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)


def test_gramian_keeps_small_angles():
    base = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x = torch.zeros_like(base).requires_grad_()
    rows = torch.stack([base, base * (1 + 1e-5 * torch.sign(torch.arange(len(base)) % 2 - 0.5))])
    gramian = Step([rows[0] @ x, rows[1] @ x], shared=[x]).gramian()
    w = torch.tensor([1.0, -1.0], dtype=torch.float64)
    exact = (rows[0].double() - rows[1].double()).square().sum()
    torch.testing.assert_close(w @ gramian @ w, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("space", ["shared", "features"])
def test_bf16_autocast(net, inside, space):
    reference = make_step(net).gramian(space)
    single = Net(torch.float32)
    single.load_state_dict(net.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        step = make_step(single)
        if inside:
            step.backward(torch.ones(K), space)
    if not inside:
        step.backward(torch.ones(K), space)
    for parameter in (*single.shared(), *single.heads.parameters()):
        assert parameter.grad.dtype == torch.float32
    torch.testing.assert_close(step.gramian(space), reference, rtol=0.1, atol=0.02)


def test_autocast_does_not_round_what_step_computes(net):
    single = Net(torch.float32)
    weights = torch.tensor([0.3, 0.3, 0.3])
    step = make_step(single)
    expected = weights @ step.jacobian()
    exact = step.jacobian().double() @ step.jacobian().double().T
    with torch.autocast("cpu", torch.bfloat16):
        step.backward(weights)
        torch.testing.assert_close(step.gramian(), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in step.shared]), expected)


def test_total_values_and_counts(net):
    step = make_step(net)
    torch.testing.assert_close(step.total().detach(), step.values.sum())
    weights = [0.5, 0.0, 2.0]
    expected = step.values @ torch.tensor(weights).double()
    torch.testing.assert_close(step.total(weights).detach(), expected)
    assert step.num_objectives == K


def test_a_look_without_a_graph_leaves_the_total_its_own(net):
    step = make_step(net)
    with torch.no_grad():
        assert step.values.shape == (K,)
    step.descend(step.total(torch.tensor([1.0, 2.0, 3.0])))
    assert_grads(net, [1.0, 2.0, 3.0], head_weights=(1.0, 2.0, 3.0))


def test_what_is_refused(net):
    _, z = net.features(batch())
    with pytest.raises(ValueError, match="at least one scalar"):
        Step([], features=z)
    with pytest.raises(ValueError, match=r"losses\[1\] must be a scalar, found shape \(6, 5\)"):
        Step([z.sum(), z], features=z)
    step = make_step(net, with_features=False)
    for ask in (
        lambda: step.sensitivities,
        lambda: step.feature_grads(),
        lambda: step.z,
    ):
        with pytest.raises(ValueError, match="features"):
            ask()
