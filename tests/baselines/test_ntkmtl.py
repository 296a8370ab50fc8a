"""NTKMTL: its weights against kernels built from one backward per sub-batch."""

from functools import partial

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench.testing import BalancerContract
from mtbench_baselines.ntkmtl import NTKMTL, _top_eigenvalue

K, B = 3, 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).double()
        self.heads = nn.ModuleList([nn.Linear(5, 1).double() for _ in range(K)])
        self.x = torch.randn(B, 4).double()
        self.y = torch.randn(B, K).double() * torch.tensor([0.1, 1.0, 30.0])

    def samples(self, z):
        """(B, K) losses, sample by sample."""
        outputs = torch.cat([head(z) for head in self.heads], dim=1)
        return (outputs - self.y).square()

    def step(self):
        z = self.encoder(self.x)
        return Step(list(self.samples(z).mean(0)), features=z)


def twin(net, wrt, splits, power=0.5):
    """The textbook: a kernel per objective from one gradient per sub-batch; eq. 15."""
    z = net.encoder(net.x)
    wrt = [z] if wrt == "features" else list(net.encoder.parameters())
    tops = []
    for k in range(K):
        rows = [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(part[:, k].mean(), wrt, retain_graph=True)
                ]
            )
            for part in net.samples(z).chunk(splits)
        ]
        J = torch.stack(rows)
        tops.append(torch.linalg.eigvalsh(J @ J.T)[-1])
    tops = torch.stack(tops)
    return (tops.mean() / tops) ** power


@pytest.mark.parametrize("power", [0.5, 0.75])
def test_weights_are_the_papers(power):
    net = Net()
    weights = NTKMTL(K, power=power).backward(net.step())
    torch.testing.assert_close(weights, twin(net, "shared", 1, power))


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 8, 20])  # 3: parts of 3, 3 and 2 samples
def test_sr_weights_are_the_papers(splits):
    net = Net()
    weights = NTKMTL(K, space="features", splits=splits).backward(net.step())
    torch.testing.assert_close(weights, twin(net, "features", splits))


@pytest.mark.parametrize("space", ["shared", "features"])
def test_what_is_descended(space):
    """The weighted sum; heads are weighted in SR alone."""
    net = Net()
    weights = NTKMTL(K, space=space).backward(net.step())
    losses = net.samples(net.encoder(net.x)).mean(0)
    shared = list(net.encoder.parameters())
    for p, g in zip(
        shared,
        torch.autograd.grad((weights * losses).sum(), shared, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(p.grad, g)
    for k, head in enumerate(net.heads):
        scale = weights[k] if space == "features" else 1.0
        for p in head.parameters():
            (g,) = torch.autograd.grad(losses[k] * scale, p, retain_graph=True)
            torch.testing.assert_close(p.grad, g)


class TestSRKeepsToTheContract(BalancerContract):
    @pytest.fixture
    def make(self):
        return partial(NTKMTL, space="features")


@pytest.mark.parametrize("size", [2, 3, 5, 8, 40])
def test_levels_the_eigenvalues_at_every_scale(size):
    """w_k ||g_k|| is the same for all: the root of the mean squared norm."""
    generator = torch.Generator().manual_seed(size)
    J = torch.randn(size, 50, generator=generator, dtype=torch.float64)
    J *= 10.0 ** torch.linspace(-12, 12, size, dtype=torch.float64)[:, None]
    gramian = J @ J.T
    weights = NTKMTL(size).weights(gramian, torch.ones(size))
    expected = gramian.diagonal().mean().sqrt().expand(size)
    torch.testing.assert_close(weights * gramian.diagonal().sqrt(), expected)


def test_equal_gradients_give_the_plain_sum():
    weights = NTKMTL(3).weights(torch.ones(3, 3) * 7, torch.ones(3))
    torch.testing.assert_close(weights, torch.ones(3).double())


def test_zero_gradient_is_left_out():
    gramian = torch.diag(torch.tensor([4.0, 0.0, 1.0])).double()
    weights = NTKMTL(3).weigh(gramian, torch.ones(3).double())
    torch.testing.assert_close(weights, torch.tensor([0.625, 0.0, 2.5]).double().sqrt())


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"space": "z"}, "space must be one of shared, features, found 'z'"),
        ({"splits": 0}, "splits must be at least 1, found 0"),
        ({"power": -0.5}, "power must be finite and at least 0, found -0.5"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"ntkmtl: {words}"):
        NTKMTL(2, **parameters)


def test_a_batch_is_cut_into_as_many_parts_as_asked():
    """Nine samples into 3, 2, 2 and 2: the smallest parts have the largest kernels."""
    assert _top_eigenvalue(torch.ones(9), 4) == pytest.approx(2 * (9 / 2) ** 2)


def test_a_latent_of_one_number_a_sample():
    def weights(shape):
        z = torch.linspace(1, 2, 8, requires_grad=True) * 1.0
        z = z.reshape(shape)
        return NTKMTL(2, space="features").backward(
            Step([z.sum(), 3 * z.square().mean()], features=z)
        )

    assert torch.equal(weights((8,)), weights((8, 1)))
