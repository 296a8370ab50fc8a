"""RotoGrad against a twin that hooks the rotated z and lets torch optimise the rotations."""

import copy

import pytest
import torch
from torch import nn

from mtbench.balancing.model import MultitaskModel
from mtbench.balancing.step import Step
from mtbench.errors import StepError, UsageError
from mtbench_baselines.rotograd import RotoGrad

K = 3


class Net(nn.Module):
    """An encoder to (B, 4) or to maps (B, 4, 2, 3), and heads that read it pixel by pixel."""

    def __init__(self, maps=False):
        super().__init__()
        torch.manual_seed(0)
        self.maps = maps
        self.encoder = nn.Linear(3, 24 if maps else 4).double()
        self.heads = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double() for _ in range(K)]
        )
        self.x = torch.randn(6, 3).double()
        self.y = torch.randn(6, K).double()

    def encode(self):
        z = torch.tanh(self.encoder(self.x))
        return z.reshape(6, 4, 2, 3) if self.maps else z

    def loss(self, k, r):
        output = self.heads[k](r.movedim(1, -1)).reshape(6, -1).mean(1)
        return (10.0 ** (k - 1)) * (output - self.y[:, k]).square().mean()

    def step(self, method):
        z = self.encode()
        losses = [self.loss(k, method.view((z,), k)[0]) for k in range(K)]
        return Step(losses, features=z)


def apply(R, z):
    return torch.einsum("ij,bj...->bi...", R, z)


class Twin:
    """The method with the rotated z on the graph, the loss ||R v - u~||^2 / 2, and torch's Adam."""

    def __init__(self, net, lr, burn_in, size):
        self.net, self.burn_in, self.size = net, burn_in, size
        self.A = [nn.Parameter(torch.zeros(size, size).double()) for _ in range(K)]
        self.optimizer = torch.optim.Adam(self.A, lr=lr)
        self.t, self.initial = 0, None

    def rotate(self, k, z):
        R = torch.linalg.matrix_exp(self.A[k] - self.A[k].T)
        return torch.cat([apply(R, z[:, : self.size]), z[:, self.size :]], dim=1)

    def step(self):
        z = self.net.encode()
        at_z, at_r = [], []
        for k in range(K):
            r = self.rotate(k, z).detach().requires_grad_()
            self.net.loss(k, r).backward()
            at_r.append(r.grad)
            leaf = z.detach().requires_grad_()
            self.rotate(k, leaf).backward(r.grad)
            at_z.append(leaf.grad)
        norms = torch.stack([g.norm() for g in at_z])
        if self.initial is None or self.t == self.burn_in:
            self.initial = norms
        self.t += 1
        alpha = norms / self.initial
        C = (alpha / alpha.sum() * norms).sum()
        z.backward(C * sum(g / n for g, n in zip(at_z, norms, strict=True)))
        v = sum(g / n for g, n in zip(at_z, norms, strict=True)) / K
        self.optimizer.zero_grad()
        for k in range(K):
            (self.rotate(k, v) - at_r[k] / norms[k]).square().sum().div(2).backward()
        self.optimizer.step()


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("size", [4, 2])
def test_is_the_twin(maps, size):
    ours, theirs = Net(maps), Net(maps)
    method = RotoGrad(K, lr=0.05, burn_in=3, size=size)
    twin = Twin(theirs, lr=0.05, burn_in=3, size=size)
    for _ in range(6):
        for net in (ours, theirs):
            net.zero_grad()
        method.backward(ours.step(method))
        twin.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-10)
        for A, B in zip(method.skew, twin.A, strict=True):
            torch.testing.assert_close(A, B.detach(), rtol=1e-6, atol=1e-9)
        for net in (ours, theirs):
            for p in net.parameters():
                p.data -= 0.1 * p.grad
    assert (method.skew != 0).any()


def test_rotations_stay_rotations():
    net = Net()
    method = RotoGrad(K, lr=0.5)
    for _ in range(20):
        method.backward(net.step(method))
    torch.testing.assert_close(
        method.rotation @ method.rotation.mT, torch.eye(4).double().expand(K, 4, 4)
    )
    torch.testing.assert_close(torch.linalg.det(method.rotation), torch.ones(K).double())
    z = torch.randn(5, 4)
    torch.testing.assert_close(method.view((z,), 1)[0].norm(dim=1), z.norm(dim=1))


def test_every_objective_gets_the_same_norm_at_z():
    net = Net()
    method = RotoGrad(K)
    weights = method.backward(step := net.step(method))
    norms = torch.stack([grads[0].norm() for grads in step.feature_grads()])
    assert norms.max() / norms.min() > 20
    # At the first step every alpha is 1/K: C is the mean norm.
    torch.testing.assert_close(weights * norms, norms.mean().expand(K))


def test_heads_get_their_own_gradient():
    net, plain = Net(), Net()
    RotoGrad(K).backward(net.step(RotoGrad(K)))
    sum(plain.loss(k, plain.encode()) for k in range(K)).backward()
    for p, q in zip(net.heads.parameters(), plain.heads.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_rotations_align_the_gradients():
    """Frozen linear heads that pull z in opposite directions: the rotations end the conflict."""
    a = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.2, 0.0, 0.0]]).double()
    method = RotoGrad(2, lr=0.05)
    cosines = []
    for _ in range(100):
        z = torch.ones(1, 4, requires_grad=True).double() * 1.0
        step = Step([(method.view((z,), k)[0] @ a[k]).sum() for k in range(2)], features=z)
        g = [grads[0].flatten() for grads in step.feature_grads()]
        cosines.append(torch.cosine_similarity(g[0], g[1], dim=0).item())
        method.backward(step)
    assert cosines[0] < -0.95
    assert cosines[-1] > 0.95


def test_only_z_is_rotated():
    method = RotoGrad(2, lr=0.3)
    encoder = torch.nn.Linear(2, 3)
    model = MultitaskModel(encoder, [nn.Identity(), nn.Identity()], latent=0)
    assert method.wrap(model) is model
    weight = torch.randn(2, 3, requires_grad=True)
    for _ in range(2):
        z, other = weight * 1.0, weight * 2.0
        seen = [method.view((z, other), k) for k in range(2)]
        assert all(features[1] is other for features in seen)
        losses = [seen[0][0].square().sum(), (seen[1][0][:, 0] + seen[1][1][:, 0]).sum()]
        method.backward(Step(losses, features=(z, other), shared=[weight], latent=0))
    assert not torch.equal(seen[0][0], z)


def test_an_objective_without_gradient_is_left_out():
    net = Net()
    method = RotoGrad(K, lr=0.1)
    step = net.step(method)
    weights = method.backward(Step([step.losses[0] * 0, *step.losses[1:]], features=step.features))
    assert weights[0] == 0
    assert method.initial[0] == 0
    assert not method.skew[0].any()
    assert method.skew[1].any()
    method.backward(net.step(method))
    assert method.initial[0] > 0
    assert method.turns.tolist() == [1, 2, 2]


def test_a_single_objective_turns_nothing():
    z = torch.ones(2, 3, requires_grad=True) * 1.0
    method = RotoGrad(1)
    method.backward(Step([z.square().sum()], features=z))
    assert not method.rotation.numel()


def test_decay_and_state():
    net = Net()
    method = RotoGrad(K, lr=0.1, decay=0.5)
    method.backward(net.step(method))
    method.after_epoch()
    assert method.rate == 0.05
    fresh = RotoGrad(K)
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    z = torch.randn(2, 4)
    for k in range(K):
        assert fresh.view((z,), k)[0].equal(method.view((z,), k)[0])


def test_which_feature_is_z_is_in_the_state():
    weight = torch.randn(2, 3, requires_grad=True)
    method, fresh = RotoGrad(2, lr=0.1), RotoGrad(2, lr=0.1)
    features = (weight * 1.0, weight * 2.0)
    method.backward(
        Step([features[0].square().sum(), features[0][:, 0].sum()], features=features, latent=0)
    )
    fresh.load_state_dict(method.state_dict())
    for own, loaded in zip(method.view(features, 1), fresh.view(features, 1), strict=True):
        assert own.equal(loaded)
    assert fresh.view(features, 1)[1] is features[1]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"lr": 0.0}, "lr must be finite and above 0, found 0.0"),
        ({"decay": 1.5}, "decay must be above 0 and at most 1, found 1.5"),
        ({"burn_in": -1}, "burn_in must be at least 0, found -1"),
        ({"size": 0}, "size must be at least 1, found 0"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"rotograd: {words}"):
        RotoGrad(2, **parameters)


def test_wants_channels():
    z = torch.ones(4, requires_grad=True) * 1.0
    with pytest.raises(
        StepError, match=r"rotograd: .* found z of shape \(4,\): give it as \(B, C\)"
    ):
        RotoGrad(2).backward(Step([z.sum(), z.square().sum()], features=z))
