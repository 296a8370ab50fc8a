"""ConsMTL against a twin in plain autograd."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.consmtl import ConsMTL

K = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(4, 5).double()
        self.heads = nn.ModuleList(
            [nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double() for _ in range(K)]
        )
        self.x = torch.randn(7, 4).double()
        self.y = torch.randn(7, K).double()

    def forward(self):
        z = torch.tanh(self.encoder(self.x))
        losses = [
            (k + 1) * (head(z)[:, 0] - self.y[:, k]).square().mean()
            for k, head in enumerate(self.heads)
        ]
        return z, losses

    def step(self):
        z, losses = self.forward()
        return Step(losses, features=z)


def flat(grads):
    return torch.cat([g.flatten() for g in grads if g is not None])


def fair_weights(J, alpha):
    """A least-squares solver on the equation, in log w."""
    G = (J @ J.T).numpy()

    def residual(u):
        return np.log(G @ np.exp(u)) + u / alpha if (G @ np.exp(u) > 0).all() else 1e3 + u

    found = least_squares(
        residual, -np.log(np.diag(G)) * alpha / (1 + alpha), xtol=1e-15, ftol=1e-15
    )
    return torch.from_numpy(np.exp(found.x))


def twin(net, weight, alpha):
    """Gradients of the encoder's parameters and of the heads', as the authors' code has them."""
    z, losses = net.forward()
    shared = list(net.encoder.parameters())
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    w = fair_weights(torch.stack([flat(row) for row in rows]), alpha)
    trunk = [sum(w[k] * rows[k][i] for k in range(K)) for i in range(len(shared))]
    deltas = [torch.autograd.grad(loss, z, create_graph=True)[0] for loss in losses]
    joint = sum(w[k] * deltas[k] for k in range(K)).detach()
    heads = []
    for k in range(K):
        own = list(net.heads[k].parameters())
        first = torch.autograd.grad(losses[k], own, retain_graph=True)
        extra = -weight * (deltas[k] * joint).sum()
        second = torch.autograd.grad(extra, own, retain_graph=True, allow_unused=True)
        scale = min(1.0, (0.1 * flat(first).norm() / flat(second).norm()).item())
        heads.append(
            [f if s is None else f + scale * s for f, s in zip(first, second, strict=True)]
        )
    return w, trunk, heads


@pytest.mark.parametrize("weight", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_is_the_twin(weight, alpha):
    net = Net()
    w, trunk, heads = twin(net, weight, alpha)
    weights = ConsMTL(K, weight=weight, alpha=alpha).backward(net.step())
    torch.testing.assert_close(weights, w, rtol=1e-6, atol=1e-9)
    for p, grad in zip(net.encoder.parameters(), trunk, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-6, atol=1e-9)
    for head, grads in zip(net.heads, heads, strict=True):
        for p, grad in zip(head.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-6, atol=1e-9)


def test_weight_zero_leaves_the_heads_alone():
    net = Net()
    ConsMTL(K, weight=0.0).backward(net.step())
    _, losses = net.forward()
    for k, head in enumerate(net.heads):
        own = torch.autograd.grad(losses[k], head.parameters(), retain_graph=True)
        for p, grad in zip(head.parameters(), own, strict=True):
            torch.testing.assert_close(p.grad, grad)


def test_the_extra_gradient_is_bounded_and_not_by_what_was_there_before():
    """A tenth of this step's own gradient, also where gradients accumulate."""
    net = Net()
    method = ConsMTL(K, weight=1e6)
    method.backward(net.step())
    once = [p.grad.clone() for p in net.parameters()]
    method.backward(net.step())
    for p, grad in zip(net.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * grad)
    _, losses = net.forward()
    for k, head in enumerate(net.heads):
        own = flat(torch.autograd.grad(losses[k], head.parameters(), retain_graph=True))
        extra = flat([p.grad for p in head.parameters()]) / 2 - own
        torch.testing.assert_close(extra.norm(), 0.1 * own.norm())


def test_a_grad_scaler_changes_nothing_but_the_scale():
    found = {}
    for scale in (1.0, 1024.0):
        net = Net()
        z, losses = net.forward()
        ConsMTL(K).backward(Step(losses, features=z, loss_scale=scale))
        found[scale] = [p.grad / scale for p in net.parameters()]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_extra_steps_align_the_heads_with_the_joint_gradient():
    """Descending the extra losses alone raises every <delta_k, delta>."""
    net = Net()
    method = ConsMTL(K)
    w = torch.ones(K)

    def agreement(step, joint):
        return [(s * joint).sum().item() for s in step.sensitivities]

    step = net.step()
    joint = sum(step.sensitivities).detach()
    before = agreement(step, joint)
    for head, slopes in zip(step.heads, method.head_slopes(step, w), strict=True):
        for p, slope in zip(head, slopes, strict=True):
            if slope is not None:
                p.data -= 0.05 * slope
    after = agreement(net.step(), joint)
    assert all(b < a for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"weight": -1.0}, "weight must be finite and at least 0, found -1.0"),
        ({"alpha": 0.0}, "alpha must be finite and above 0, found 0.0"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"consmtl: {words}"):
        ConsMTL(2, **parameters)
