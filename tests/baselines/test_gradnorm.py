"""GradNorm against its own definition by double backward."""

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.gradnorm import GradNorm

K = 3


def model():
    torch.manual_seed(0)
    encoder = nn.Linear(4, 5).double()
    heads = [nn.Linear(5, 1).double() for _ in range(K)]
    x = torch.randn(7, 4, dtype=torch.float64)
    return encoder, heads, x


def losses_of(encoder, heads, x):
    z = torch.tanh(encoder(x))
    scales = (1.0, 30.0, 0.02)
    return z, [s * (h(z) - 1).square().mean() for s, h in zip(scales, heads, strict=True)]


@pytest.mark.parametrize("space", ["shared", "features"])
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradient_of_the_weights_is_the_papers(space, alpha):
    """The first Adam step moves by lr * sign(dL_grad/dw); later ones by the moments of it."""
    encoder, heads, x = model()
    method = GradNorm(K, alpha=alpha, space=space)
    first = None
    m, v = torch.zeros(K).double(), torch.zeros(K).double()
    w_twin = torch.ones(K).double()
    for t in range(1, 6):
        z, losses = losses_of(encoder, heads, x)
        method.backward(Step(losses, features=z))

        # The textbook: differentiate |G_k - target| through the gradient norms.
        z, losses = losses_of(encoder, heads, x)
        values = torch.stack([loss.detach() for loss in losses])
        first = values if first is None else first
        w = w_twin.clone().requires_grad_()
        wrt = list(encoder.parameters()) if space == "shared" else [z]
        norms = torch.stack(
            [
                torch.cat(
                    [
                        g.flatten()
                        for g in torch.autograd.grad(w[k] * losses[k], wrt, create_graph=True)
                    ]
                ).norm()
                for k in range(K)
            ]
        )
        rate = values / first / (values / first).mean()
        target = (norms.mean() * rate**alpha).detach()
        (grad,) = torch.autograd.grad((norms - target).abs().sum(), w)
        grad = grad / (norms.detach() / w_twin).mean()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        w_twin = w_twin - 0.025 * (m / (1 - 0.9**t)) / (v / (1 - 0.999**t)).sqrt()
        w_twin = w_twin * K / w_twin.sum()
        torch.testing.assert_close(method.loss_weights, w_twin, rtol=1e-6, atol=1e-8)

        with torch.no_grad():
            for p in [*encoder.parameters(), *(p for h in heads for p in h.parameters())]:
                p -= 0.01 * p.grad
                p.grad = None


def test_model_gets_the_weighted_gradient_heads_too():
    encoder, heads, x = model()
    method = GradNorm(K)
    method.loss_weights.copy_(torch.tensor([0.5, 1.0, 1.5]))
    z, losses = losses_of(encoder, heads, x)
    weights = method.backward(Step(losses, features=z))
    assert weights.tolist() == [0.5, 1.0, 1.5]  # those that were applied, not those after
    z, losses = losses_of(encoder, heads, x)
    parameters = [*encoder.parameters(), *(p for h in heads for p in h.parameters())]
    total = sum(w * loss for w, loss in zip((0.5, 1.0, 1.5), losses, strict=True))
    for p, expected in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(p.grad, expected)


def test_weights_move_at_every_third_step_and_are_applied_in_between():
    encoder, heads, x = model()
    often, seldom = GradNorm(K), GradNorm(K, update_weights_every=3)
    weights = []
    for t in range(5):
        for p in (*encoder.parameters(), *nn.ModuleList(heads).parameters()):
            p.grad = None
        z, losses = losses_of(encoder, heads, x)
        weights.append(seldom.backward(Step(losses, features=z)))
        found = encoder.weight.grad.clone()
        z, losses = losses_of(encoder, heads, x)
        sum(w * loss for w, loss in zip(weights[-1], losses, strict=True)).backward()
        torch.testing.assert_close(encoder.weight.grad - found, found)
        if t in (0, 3):
            z, losses = losses_of(encoder, heads, x)
            often.backward(Step(losses, features=z))
            torch.testing.assert_close(seldom.loss_weights, often.loss_weights)
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[3], weights[4])


def test_balances_gradient_norms():
    encoder, heads, x = model()
    method = GradNorm(K, alpha=0.0)
    for _ in range(200):
        z, losses = losses_of(encoder, heads, x)
        step = Step(losses, features=z)
        method.backward(step)
    norms = step.gramian().diagonal().sqrt() * method.loss_weights
    assert method.loss_weights.sum() == pytest.approx(K)
    assert norms.max() / norms.min() < 1.5  # 1500 at equal weights


def test_initial_loss_is_that_of_the_first_label():
    x = torch.tensor([2.0, 5.0], requires_grad=True)
    method = GradNorm(2)
    method.backward(Step([x[0] ** 2, x[1] * 0], shared=[x]))
    assert method.initial.tolist() == [4.0, 0.0]
    assert method.count.tolist() == [1.0, 0.0]
    method.backward(Step([x[0] ** 2 / 2, x[1] * 3], shared=[x]))
    assert method.initial.tolist() == [4.0, 15.0]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"alpha": -1.0}, "alpha must be finite and at least 0, found -1.0"),
        ({"lr": 0.0}, "lr must be finite and above 0, found 0.0"),
        ({"space": "latent"}, "space must be one of shared, features, found 'latent'"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"gradnorm: {words}"):
        GradNorm(2, **parameters)
