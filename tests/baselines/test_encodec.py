"""encodec: one backward per objective at the features, and shares that are kept."""

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.encodec import EnCodec


class Net(nn.Module):
    """Two feature maps, three objectives of very different scale."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Linear(3, 4).double()
            self.heads = nn.ModuleList(nn.Linear(4, 1).double() for _ in range(3))

    def forward(self, seed):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).double()
        fine = torch.tanh(self.encoder(x))
        features = (fine.view_as(fine), fine.square())
        losses = [
            scale * (head(features[0] + features[1]) - 1).square().mean()
            for scale, head in zip((1.0, 1e6, 1e-6), self.heads, strict=True)
        ]
        return features, losses


def encoder_grad(net):
    return torch.cat([p.grad.flatten() for p in net.encoder.parameters()])


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_twin(decay):
    net, method = Net(), EnCodec(3, preference=(1.0, 2.0, 5.0), total_norm=2.0, decay=decay)
    history = []
    for seed in range(5):
        features, losses = net(seed)
        net.zero_grad()
        method.backward(Step(losses, features=features))
        found = encoder_grad(net)
        heads = [p.grad.clone() for p in net.heads.parameters()]

        grads = [torch.autograd.grad(loss, features, retain_graph=True) for loss in losses]
        norms = [
            sum((a[b].square().sum() + c[b].square().sum()).sqrt() for b in range(5)) / 5
            for a, c in grads
        ]
        history.append(torch.stack(norms))
        ages = [decay**age for age in reversed(range(len(history)))]
        means = sum(a * n for a, n in zip(ages, history, strict=True)) / sum(ages)
        mixed = [
            sum(2.0 * w / 8 / n * part for w, n, part in zip((1, 2, 5), means, parts, strict=True))
            for parts in zip(*grads, strict=True)
        ]
        net.zero_grad()
        torch.autograd.backward(features, mixed, retain_graph=True)
        torch.testing.assert_close(found, encoder_grad(net))
        own = torch.autograd.grad(sum(losses), list(net.heads.parameters()))
        for ours, expected in zip(heads, own, strict=True):
            torch.testing.assert_close(ours, expected)


def test_every_objective_has_its_share_of_the_norm():
    """Without memory, each part of the gradient at the features is as long as was asked."""
    net, method = Net(), EnCodec(3, preference=(1.0, 2.0, 5.0), decay=0.0)
    for seed in range(3):
        features, losses = net(seed)
        step = Step(losses, features=features)
        weights = method.backward(step)
        parts = [
            w * torch.cat([g.flatten(1) for g in grads], dim=1).norm(dim=1).mean()
            for w, grads in zip(weights, step.feature_grads(), strict=True)
        ]
        torch.testing.assert_close(torch.stack(parts), torch.tensor([1.0, 2.0, 5.0]).double() / 8)


def test_a_missing_label_keeps_its_mean_and_gives_its_share_away():
    net, method = Net(), EnCodec(3, preference=(1.0, 2.0, 5.0))
    features, losses = net(0)
    first = method.backward(Step(losses, features=features))
    before = method.total[1].clone(), method.count[1].clone()
    features, losses = net(0)
    found = method.backward(Step([losses[0], losses[1] * 0, losses[2]], features=features))
    assert (method.total[1], method.count[1]) == before
    torch.testing.assert_close(found, first * torch.tensor([8 / 6, 0, 8 / 6]).double())


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"preference": (1.0,)}, r"encodec: preference must hold one .* \(2\), .*, found \(1.0,\)"),
        ({"total_norm": 0.0}, "encodec: total_norm must be finite and above 0, found 0.0"),
        ({"decay": 1.5}, r"encodec: decay must be in \[0, 1\], found 1.5"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=words):
        EnCodec(2, **parameters)


def test_a_latent_of_one_number_a_sample():
    def weights(shape):
        z = torch.linspace(1, 2, 8, requires_grad=True) * 1.0
        z = z.reshape(shape)
        return EnCodec(2).backward(Step([z.sum(), 3 * z.square().mean()], features=z))

    assert torch.equal(weights((8,)), weights((8, 1)))
