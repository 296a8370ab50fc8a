"""MetaBalance against a plain twin, tensor by tensor, over several steps."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.metabalance import MetaBalance

K = 3


def net():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    heads = [nn.Linear(5, 1).double() for _ in range(K)]
    return encoder, heads


def forward(encoder, heads, batch):
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(6, 4, generator=generator).double()
    z = torch.tanh(encoder(x))
    scales = (1.0, 100.0, 0.01)
    return z, [s * (head(z) - 1).square().mean() for s, head in zip(scales, heads, strict=True)]


@pytest.mark.parametrize("main", [0, 2])
@pytest.mark.parametrize("relax", [0.0, 0.7, 1.0])
def test_is_the_twin(main, relax):
    encoder, heads = net()
    shared = list(encoder.parameters())
    method = MetaBalance(K, main=main, relax=relax)
    norms = [[0.0] * len(shared) for _ in range(K)]
    for batch in range(4):
        z, losses = forward(encoder, heads, batch)
        rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
        expected = []
        for p in range(len(shared)):
            for k in range(K):
                norms[k][p] = 0.9 * norms[k][p] + 0.1 * rows[k][p].norm().item()
            expected.append(
                sum(
                    rows[k][p] * norms[main][p] / norms[k][p] * relax + rows[k][p] * (1 - relax)
                    for k in range(K)
                )
            )
        encoder.zero_grad()
        method.backward(Step(losses, features=z, shared=shared))
        for p, grad in zip(shared, expected, strict=True):
            torch.testing.assert_close(p.grad, grad)


def test_heads_get_their_own_gradient():
    encoder, heads = net()
    z, losses = forward(encoder, heads, 0)
    own = [
        torch.autograd.grad(loss, head.parameters(), retain_graph=True)
        for loss, head in zip(losses, heads, strict=True)
    ]
    MetaBalance(K).backward(Step(losses, features=z))
    for head, grads in zip(heads, own, strict=True):
        for p, grad in zip(head.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, grad)


def test_an_objective_without_gradient_keeps_its_averages():
    x = torch.ones(2, requires_grad=True)
    method = MetaBalance(2)
    method.backward(Step([x[0] * 0, 4 * x[1]], shared=[x]))
    assert x.grad.tolist() == [0, 4]  # the main objective has no norm yet
    method.backward(Step([x[0], 4 * x[1]], shared=[x]))
    before = method.norms.clone()
    method.backward(Step([x[0] * 0, 8 * x[1]], shared=[x]))
    assert method.norms[0].equal(before[0])
    assert method.norms[1] > before[1]


def test_a_first_label_that_comes_late_is_no_larger_norm():
    """Averages that begin at 0 would make it 0.7 / (1 - 0.9) + 0.3 times as long."""
    x = torch.ones(2, requires_grad=True)
    method = MetaBalance(2)
    for labelled in (0, 0, 0, 1):
        x.grad = None
        method.backward(Step([x[0], labelled * x[1]], shared=[x]))
    torch.testing.assert_close(x.grad, torch.ones(2))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"main": 2}, "main must be at least 0 and below 2, found 2"),
        ({"relax": 1.5}, r"relax must be in \[0, 1\], found 1.5"),
        ({"beta": 1.0}, "beta must be at least 0 and below 1, found 1.0"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"metabalance: {words}"):
        MetaBalance(2, **parameters)


def test_starts_anew_where_others_are_trained():
    encoder, heads = net()
    method, fresh = MetaBalance(K), MetaBalance(K)
    for frozen, balancers in ((True, [method]), (False, [method, fresh])):
        encoder[0].requires_grad_(not frozen)
        found = []
        for balancer in balancers:
            encoder.zero_grad()
            lost = not frozen and balancer is method
            with pytest.warns(UserWarning, match="begins anew") if lost else nullcontext():
                balancer.backward(forward(encoder, heads, 0)[1])
            found.append(encoder[2].weight.grad.clone())
    assert found[0].equal(found[1])
