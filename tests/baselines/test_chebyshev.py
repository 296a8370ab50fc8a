"""Chebyshev scalarization against autograd on the maximum."""

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.chebyshev import Chebyshev

K = 3


def model():
    torch.manual_seed(0)
    encoder = nn.Linear(4, 5).double()
    heads = [nn.Linear(5, 1).double() for _ in range(K)]
    return encoder, heads, torch.randn(6, 4).double()


def forward(encoder, heads, x):
    z = torch.tanh(encoder(x))
    return z, [(k + 1) * (head(z) - 1).square().mean() for k, head in enumerate(heads)]


@pytest.mark.parametrize("with_features", [True, False])
@pytest.mark.parametrize(
    ("weights", "ideal"),
    [((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), ((9.0, 1.0, 0.5), (0.1, 0.0, -3.0))],
)
def test_shared_gradient_is_that_of_the_maximum(weights, ideal, with_features):
    encoder, heads, x = model()
    _, losses = forward(encoder, heads, x)
    top = torch.stack([w * (v - i) for w, v, i in zip(weights, losses, ideal, strict=True)]).max()
    shared = list(encoder.parameters())
    expected = torch.autograd.grad(top, shared)
    z, losses = forward(encoder, heads, x)
    step = Step(losses, features=z if with_features else (), shared=shared)
    Chebyshev(K, weights=weights, ideal=ideal).backward(step)
    for p, grad in zip(shared, expected, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_every_head_gets_its_own_gradient():
    encoder, heads, x = model()
    z, losses = forward(encoder, heads, x)
    expected = [
        torch.autograd.grad(loss, head.parameters(), retain_graph=True)
        for loss, head in zip(losses, heads, strict=True)
    ]
    Chebyshev(K).backward(Step(losses, features=z))
    for head, grads in zip(heads, expected, strict=True):
        for p, grad in zip(head.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, grad)


def test_a_missing_label_is_never_the_worst():
    x = torch.tensor([2.0, 1.0], requires_grad=True)
    step = Step([-x[0], x[1] * 0], shared=[x])
    assert Chebyshev(2).backward(step).tolist() == [1, 0]


def test_reaches_the_middle_of_a_concave_front():
    """VLMOP2 in one dimension: the sum ends at an end of the front, the maximum in the middle."""
    x = torch.tensor([0.3], requires_grad=True)
    for _ in range(300):
        x.grad = None
        losses = [1 - torch.exp(-(x - sign).square().sum()) for sign in (1, -1)]
        Chebyshev(2).backward(Step(losses, shared=[x]))
        x.data -= 0.01 * x.grad
    assert abs(x.item()) < 0.02


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"weights": (1.0,)}, r"weights must hold one .* objective \(2\), .*, found \(1.0,\)"),
        ({"weights": (1.0, 0.0)}, r"weights .*, each finite and above 0, found \(1.0, 0.0\)"),
        ({"ideal": (0.0,)}, r"ideal must hold one .* objective \(2\), .*, found \(0.0,\)"),
        ({"ideal": (0.0, float("inf"))}, "ideal .*, each finite, found"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"chebyshev: {words}"):
        Chebyshev(2, **parameters)
