"""SAMO against its definition on copies of the model, and that nothing else is touched."""

import copy

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench_baselines._moving import moved
from mtbench_baselines.ew import EqualWeights
from mtbench_baselines.mgda import MGDA
from mtbench_baselines.samo import SAMO

K = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
        self.heads = nn.ModuleList([nn.Linear(5, 1).double() for _ in range(K)])
        self.x = torch.randn(7, 4).double()
        self.y = torch.randn(7, K).double()

    def losses(self):
        z = torch.tanh(self.encoder(self.x))
        return [
            (k + 1) * (head(z)[:, 0] - self.y[:, k]).square().mean()
            for k, head in enumerate(self.heads)
        ]

    def step(self):
        return Step(self.losses(), shared=self.encoder.parameters(), again=self.step)


def flat(grads):
    return torch.cat([g.flatten() for g in grads])


def twin(net, rho, alpha, mu, seed):
    """Shared gradients (K, d) and head gradients, each from a moved copy of the whole model."""
    generator = torch.Generator().manual_seed(seed)
    shared = list(net.encoder.parameters())
    mean = sum(net.losses()) / K
    g0 = torch.autograd.grad(mean, shared, retain_graph=True)
    rows, heads = [], []
    for k in range(K):
        own = list(net.heads[k].parameters())
        head_grad = torch.autograd.grad(mean, own, retain_graph=True)
        draw = int(torch.randint(2**62, (), generator=generator))
        z = [
            torch.randn(p.shape, generator=torch.Generator().manual_seed(draw + i), dtype=p.dtype)
            for i, p in enumerate(shared)
        ]
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(net)
            for p, n in zip(moved.encoder.parameters(), z, strict=True):
                p.data += sign * mu * n
            values.append(moved.losses()[k].item())
        estimate = [(values[0] - values[1]) / (2 * mu) * n for n in z]
        local = [e * g.norm() / e.norm() for e, g in zip(estimate, g0, strict=True)]
        v = [alpha * g + (1 - alpha) * e for g, e in zip(g0, local, strict=True)]
        moved = copy.deepcopy(net)
        for p, part in zip(moved.encoder.parameters(), v, strict=True):
            p.data += rho * part / flat(v).norm()
        for p, part in zip(moved.heads[k].parameters(), head_grad, strict=True):
            p.data += rho * part / flat(head_grad).norm()
        loss = moved.losses()[k]
        rows.append(flat(torch.autograd.grad(loss, moved.encoder.parameters(), retain_graph=True)))
        heads.append(torch.autograd.grad(loss, moved.heads[k].parameters()))
    return torch.stack(rows), heads


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("base", [EqualWeights, MGDA])
def test_base_gets_the_gradients_of_the_moved_copies(base, alpha):
    net = Net()
    rows, heads = twin(net, rho=0.1, alpha=alpha, mu=0.01, seed=5)
    method = SAMO(base(K), seed=5, rho=0.1, alpha=alpha)
    weights = method.backward(net.step())
    expected = MGDA(K).weights(rows @ rows.T, torch.ones(K)) if base is MGDA else torch.ones(K)
    torch.testing.assert_close(weights.double(), expected.double(), rtol=1e-6, atol=1e-9)
    found = flat([p.grad for p in net.encoder.parameters()])
    torch.testing.assert_close(found, expected.double() @ rows)
    for head, grads in zip(net.heads, heads, strict=True):
        for p, grad in zip(head.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, grad)


def test_alpha_one_is_global_sam_and_draws_nothing():
    net = Net()
    rows, _ = twin(net, rho=0.05, alpha=1.0, mu=0.01, seed=0)
    method = SAMO(EqualWeights(K), rho=0.05, alpha=1.0)
    state = method.generator.get_state()
    calls = 0

    def again():
        nonlocal calls
        calls += 1
        return net.step()

    step = net.step()
    method.backward(Step(step.losses, shared=step.shared, again=again))
    assert calls == K
    assert method.generator.get_state().equal(state)
    torch.testing.assert_close(flat([p.grad for p in net.encoder.parameters()]), rows.sum(0))


def test_parameters_come_back_bit_for_bit():
    net = Net().float()
    net.x, net.y = net.x.float(), net.y.float()
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(5):
        SAMO(EqualWeights(K), rho=0.3).backward(net.step())
    assert all(p.equal(b) for p, b in zip(net.parameters(), before, strict=True))


def test_parameters_come_back_after_an_exception():
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    step = net.step()

    def again():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        SAMO(EqualWeights(K)).backward(Step(step.losses, shared=step.shared, again=again))
    assert all(p.equal(b) for p, b in zip(net.parameters(), before, strict=True))


def test_base_sees_the_losses_where_the_parameters_are():
    net = Net()
    seen = []

    class Spy(EqualWeights):
        def objective(self, step):
            seen.append(step.values)
            return super().objective(step)

    SAMO(Spy(K), rho=1.0).backward(net.step())
    assert seen[0].equal(net.step().values)


def test_a_small_move_is_the_base_alone():
    alone, wrapped = Net(), Net()
    MGDA(K).backward(alone.step())
    SAMO(MGDA(K), rho=1e-9).backward(wrapped.step())
    for p, q in zip(alone.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)


def test_what_lies_beside_the_compared_parameters_is_trained():
    found = []
    for method in (MGDA(K), SAMO(MGDA(K), rho=1e-9)):
        net = Net()
        part = net.encoder[2].parameters()
        method.backward(Step(net.losses(), shared=part, again=net.losses))
        found.append(net.encoder[0].weight.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


def test_autocast_keeps_no_copy_of_parameters_that_move():
    layer, x = nn.Linear(3, 1), torch.ones(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        with moved([layer.weight], [torch.ones(1, 3)]):
            there = layer(x)
        after = layer(x)
    torch.testing.assert_close(there, before + 3, rtol=1e-2, atol=1e-2)
    assert after.equal(before)


def test_a_grad_scaler_changes_nothing_but_the_scale():
    found = {}
    for scale in (1.0, 1024.0):
        net = Net()
        step = net.step()
        scaled = Step(step.losses, shared=step.shared, again=net.step, loss_scale=scale)
        SAMO(MGDA(K), rho=0.1).backward(scaled)
        found[scale] = [p.grad / scale for p in net.parameters()]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_needs_to_be_told_how_to_repeat():
    net = Net()
    step = net.step()
    with pytest.raises(ValueError, match="give again=FUNCTION"):
        SAMO(EqualWeights(K)).backward(Step(step.losses, shared=step.shared))
    assert Method.find("samo+mgda")(K).needs_again


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"rho": 0.0}, "rho must be finite and above 0, found 0.0"),
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\], found 1.1"),
        ({"mu": -1.0}, "mu must be finite and above 0, found -1.0"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"samo: {words}"):
        SAMO(EqualWeights(2), **parameters)


@pytest.mark.parametrize(
    ("base", "given"),
    [
        ("rlar", {}),
        *((name, {"mgda.space": "features"}) for name in ("mgda", "unit+mgda", "every+mgda")),
    ],
)
def test_refuses_what_looks_at_features(base, given):
    with pytest.raises(UsageError, match=r"samo gives its base .* no features in common, found"):
        Method.find(f"samo+{base}")(K, **given)
