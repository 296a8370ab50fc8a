"""moco, modo, db_mtl: methods that remember a gradient per objective."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

from mtbench.balancing.solvers import min_norm
from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines._tracked import Following, project
from mtbench_baselines.cyclic import Cyclic
from mtbench_baselines.db_mtl import DBMTL
from mtbench_baselines.excess_mtl import ExcessMTL
from mtbench_baselines.grouped import Grouped
from mtbench_baselines.metabalance import MetaBalance
from mtbench_baselines.mgda import MGDA
from mtbench_baselines.moco import MoCo
from mtbench_baselines.modo import MoDo
from mtbench_baselines.norm_matched import NormMatched
from mtbench_baselines.sam_gs import SAMGS


def gradients(K, seed, d=6):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e24])
@pytest.mark.parametrize("K", [1, 2, 3, 8, 40])
def test_projection_on_the_simplex(K, scale):
    """x is the projection of w if <w - x, y - x> <= 0 for every vertex y."""
    for seed in range(5):
        w = scale * gradients(1, seed, d=K)[0]
        x = project(w)
        assert (x >= 0).all()
        assert x.sum().item() == pytest.approx(1)
        inner = (torch.eye(K, dtype=torch.float64) - x) @ (w - x)
        assert (inner <= 1e-12 * max(scale, 1)).all()


def test_projection_of_equal_numbers():
    torch.testing.assert_close(project(torch.full((4,), -1e30)), torch.full((4,), 0.25))


@pytest.mark.parametrize("K", [1, 2, 3, 8])
def test_moco_twin(K):
    """Algorithm 1 of the paper; the projection as in test_projection_on_the_simplex."""
    method = MoCo(K, beta=0.3, gamma=0.2, rho=0.1)
    Y, weights = torch.zeros(K, 6, dtype=torch.float64), torch.full((K,), 1 / K).double()
    for seed in range(10):
        J = gradients(K, seed)
        Y = Y - 0.3 * (Y - J)
        weights = project(weights - 0.2 * (Y @ Y.T @ weights + 0.1 * weights))
        torch.testing.assert_close(method.direction(J, torch.ones(K)), weights @ Y)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_moco_tends_to_the_min_norm_point(K):
    J = gradients(K, 0)
    J /= J.norm()
    method = MoCo(K, gamma=2.0)
    for _ in range(200):  # it is there, to 1e-13, after a hundred
        found = method.direction(J, torch.ones(K))
    torch.testing.assert_close(found, min_norm(J @ J.T) @ J, atol=1e-6, rtol=0)


def test_moco_is_steadier_than_mgda_under_noise():
    J = torch.tensor([[1.0, 0.2], [-0.6, 0.7]]).double()
    method, exact, wobble = MoCo(2, beta=0.05, gamma=1.0), min_norm(J @ J.T), []
    for seed in range(400):
        noisy = J + 0.5 * gradients(2, seed, d=2)
        method.direction(noisy, torch.ones(2))
        wobble.append([(w - exact).norm() for w in (method.simplex, min_norm(noisy @ noisy.T))])
    ours, mgda = torch.tensor(wobble[100:]).mean(0)
    assert ours < 0.3 * mgda


@pytest.mark.parametrize("K", [2, 3, 8])
def test_modo_torchjd(K):
    torchjd = pytest.importorskip("torchjd.aggregation")
    ours, theirs = MoDo(K, gamma=0.05), torchjd.MoDoWeighting(gamma=0.05)
    before = gradients(K, 0)
    for seed in range(10):
        J = gradients(K, seed)
        expected = theirs(J @ before.T) @ J
        torch.testing.assert_close(ours.direction(J, torch.ones(K)), expected)
        before = J


def test_modo_over_many_blocks_of_columns():
    before, J = 1e-3 * gradients(3, 0, d=200_001), 1e-3 * gradients(3, 1, d=200_001)
    method = MoDo(3, rho=0.0)
    method.direction(before, torch.ones(3))
    weights = method.simplex.clone()
    method.direction(J, torch.ones(3))
    torch.testing.assert_close(method.simplex, project(weights - 0.1 * (J @ before.T @ weights)))


@pytest.mark.parametrize("method", [MoCo(3, beta=0.5), MoDo(3), DBMTL(3)])
def test_without_a_gradient_the_memory_stays(method):
    J = gradients(3, 0)
    J[2] = 0
    method.direction(J, torch.ones(3))
    assert not method.tracked[2].any()
    method.direction(gradients(3, 1), torch.ones(3))
    before = method.tracked.clone()
    found = method.direction(J, torch.ones(3))
    assert found.isfinite().all()
    assert method.tracked[2].equal(before[2])
    assert not method.tracked[1].equal(before[1])


@pytest.mark.parametrize("method", [MoCo(3), MoDo(3), DBMTL(3)])
def test_overflow_is_shown_and_not_remembered(method):
    method.direct(gradients(3, 0), torch.ones(3))
    before = {name: value.clone() for name, value in method.named_buffers()}
    found = method.direct(
        gradients(3, 1) * torch.tensor([[1.0], [torch.inf], [1.0]]), torch.ones(3)
    )
    assert not found.isfinite().all()
    assert all(value.equal(before[name]) for name, value in method.named_buffers())


@pytest.mark.parametrize("method", [MoCo, MoDo])
def test_an_objective_never_seen_has_no_weight(method):
    J = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).double()
    made = method(3, gamma=0.1)
    for _ in range(50):
        found = made.direction(J, torch.ones(3))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5]).double())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Linear(3, 4).double()
            self.heads = nn.ModuleList(nn.Linear(4, 1).double() for _ in range(3))

    def step(self, seed):
        z = torch.tanh(self.encoder(gradients(5, seed, d=3)))
        losses = [(head(z) - k).square().mean() * 10**k for k, head in enumerate(self.heads)]
        return Step(losses, features=z)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_db_mtl_on_log_losses_by_autograd(decay):
    net, twin = Net(), Net()
    method, memory = DBMTL(3, beta=0.6, decay=decay), None
    for t in range(1, 6):
        net.zero_grad()
        method.backward(net.step(t))
        logs = [loss.log() for loss in twin.step(t).losses]
        rows = []
        for log, head in zip(logs, net.heads, strict=True):
            twin.zero_grad()
            log.backward(retain_graph=True)
            rows.append(torch.cat([p.grad.flatten() for p in twin.encoder.parameters()]))
            k = len(rows) - 1
            for p, q in zip(head.parameters(), twin.heads[k].parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad)
        rows = torch.stack(rows)
        share = 0.6 / t**decay
        memory = rows + share * ((0 if memory is None else memory) - rows)
        norms = memory.norm(dim=1)
        expected = sum(norms.max() / n * g for n, g in zip(norms, memory, strict=True))
        found = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
        torch.testing.assert_close(found, expected)


def test_db_mtl_scale_of_a_loss_is_of_no_account():
    J, losses = gradients(3, 0), torch.tensor([1.0, 2.0, 3.0]).double()
    scale = torch.tensor([1.0, 1e-9, 1e9]).double()
    expected = DBMTL(3).direction(J, losses)
    torch.testing.assert_close(DBMTL(3).direction(J * scale[:, None], losses * scale), expected)


def test_db_mtl_negative_and_zero_losses_keep_their_direction():
    J = torch.eye(3)
    found = DBMTL(3, beta=0.0).direction(J, torch.tensor([-2.0, 0.0, 4.0]))
    assert found.tolist() == [1, 1, 1]


@pytest.mark.parametrize("make", [MoCo, MoDo, DBMTL, lambda K: NormMatched(MoCo(K))])
def test_a_fresh_object_loads_memory_of_any_size(make):
    net, old, new = Net(), make(3), make(3)
    for seed in range(3):
        old.backward(net.step(seed))
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new.load_state_dict(torch.load(file, weights_only=True))
    grads = []
    for method in (old, new):
        net.zero_grad()
        method.backward(net.step(3))
        grads.append(net.encoder.weight.grad)
    assert grads[0].equal(grads[1])


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        (MoCo, {"beta": 0.0}, "moco: beta must be above 0 and at most 1, found 0.0"),
        (MoCo, {"gamma": 0.0}, "moco: gamma must be finite and above 0, found 0.0"),
        (MoCo, {"rho": -1.0}, "moco: rho must be finite and at least 0, found -1.0"),
        (MoDo, {"gamma": float("inf")}, "modo: gamma must be finite and above 0"),
        (MoDo, {"rho": -1.0}, "modo: rho must be finite and at least 0"),
        (DBMTL, {"beta": 1.0}, "db_mtl: beta must be at least 0 and below 1, found 1.0"),
        (DBMTL, {"decay": -0.5}, "db_mtl: decay must be finite and at least 0, found -0.5"),
    ],
)
def test_refuses(method, parameters, words):
    with pytest.raises(UsageError, match=words):
        method(2, **parameters)


@pytest.mark.parametrize(
    "make",
    [MoCo, DBMTL, SAMGS, ExcessMTL, MetaBalance, lambda K: Grouped(MoCo(K), by="all")],
    ids=lambda make: make.__name__,
)
def test_other_parameters_of_one_size_begin_anew(make):
    """Not a copy of them, for a copy of the method."""
    x, y = (torch.ones(3, requires_grad=True) for _ in range(2))

    def step(method, x):
        method.backward(Step([x.sum(), x.square().sum()], shared=[x]))

    method = make(2)
    step(method, x)
    method = copy.deepcopy(method)
    step(method, y)
    with pytest.warns(UserWarning, match="the shared parameters are not those of before"):
        step(method, x)


def test_one_objective_a_batch_follows_its_own_gradient():
    encoder, heads = nn.Linear(2, 2), [nn.Linear(2, 1) for _ in range(2)]
    method = MoCo(2)
    for k in (0, 1, 0):
        loss = heads[k](encoder(torch.ones(1, 2))).square().sum()
        (own,) = torch.autograd.grad(loss, heads[k].weight, retain_graph=True)
        with warnings.catch_warnings(action="ignore"):
            method.backward([loss if j == k else None for j in range(2)])
        found, heads[k].weight.grad = heads[k].weight.grad, None
        assert torch.cosine_similarity(found, own).item() == pytest.approx(1)


@pytest.mark.parametrize("make", [MoCo, SAMGS, ExcessMTL, MetaBalance])
def test_what_is_loaded_is_of_the_model_there_is(make):
    """Another one of its size, made anew, while the one that it trained before is still alive."""
    method, models = make(2), [nn.ModuleList(nn.Linear(3, 3) for _ in range(3)) for _ in range(2)]
    for encoder, *heads in models:
        method.load_state_dict(method.state_dict())
        z = encoder(torch.ones(1, 3))
        method.backward([head(z).square().mean() for head in heads])


@pytest.mark.parametrize(
    "make", [MoCo, MoDo, DBMTL, SAMGS, lambda K: Cyclic(MGDA(K))], ids=lambda make: make.__name__
)
def test_what_begins_anew_is_told_and_does(make):
    def step(method, d):
        x = torch.ones(d, requires_grad=True)
        method.backward(Step([x.sum(), x.square().sum()], shared=[x]))
        return x.grad

    method, fresh = make(2), make(2)
    for _ in range(20):
        step(method, 3)
    with pytest.warns(UserWarning, match=r"remembers of them begins anew: say shared=") as told:
        found = step(method, 4)
    assert len(told) == 1
    if make is not DBMTL and not isinstance(method, Following | SAMGS):  # these keep more than that
        torch.testing.assert_close(found, step(fresh, 4))
    else:
        assert 0.2 < found.norm() / step(fresh, 4).norm() < 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: MoCo(2, beta=0.003),
        lambda: Cyclic(MGDA(2), beta=0.99),
        lambda: SAMGS(2, beta1=0.997, gamma=0.0),
        lambda: DBMTL(2, beta=0.997),
        lambda: ExcessMTL(2, step_size=0.01),
    ],
    ids=["moco", "cyclic", "sam_gs", "db_mtl", "excess_mtl"],
)
def test_what_is_remembered_of_a_16_bit_model_is_kept_in_32(make):
    """In 16 bits an average stops half a unit in the last place of its step away: far off."""

    def kept(dtype):
        method = make()
        for _ in range(600):
            x = torch.ones(2, dtype=dtype, requires_grad=True)
            method.backward(Step([x[0], 2 * x[1]], shared=[x]))
            assert x.grad.dtype == dtype
        return method.roots if isinstance(method, ExcessMTL) else method.tracked

    torch.testing.assert_close(kept(torch.bfloat16), kept(torch.float32))


def test_db_mtl_of_a_16_bit_model_divides_by_losses_that_16_bits_do_not_hold():
    """1e-5 is 1e5 upside down, and float16 ends at 65,504."""
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    heads = [torch.ones((), requires_grad=True) for _ in range(2)]
    losses = [(x[0] * heads[0]).float() * 1e-5, x[1].float() * heads[1]]
    DBMTL(2, beta=0.0).backward(Step(losses, shared=[x]))
    torch.testing.assert_close(x.grad, torch.ones(2).half(), rtol=1e-2, atol=0)
    for head in heads:
        torch.testing.assert_close(head.grad, torch.ones(()), rtol=1e-2, atol=0)
