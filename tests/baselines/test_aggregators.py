"""Stateful and robust methods on the Gramian or the Jacobian, against papers and peers."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtbench.balancing.balancer import Aggregator
from mtbench.errors import UsageError
from mtbench_baselines.config import ConFIG
from mtbench_baselines.db_mtl import DBMTL
from mtbench_baselines.dcgd import DCGD
from mtbench_baselines.dibs_mtl import DiBSMTL
from mtbench_baselines.edm import EDM
from mtbench_baselines.gradcraft import GradCraft
from mtbench_baselines.graddrop import GradDrop
from mtbench_baselines.gradvac import GradVac, vaccinate
from mtbench_baselines.imgrad import IMGrad
from mtbench_baselines.krum import Krum
from mtbench_baselines.moco import MoCo
from mtbench_baselines.modo import MoDo
from mtbench_baselines.pcd import PCD, bend
from mtbench_baselines.rgw import RandomGradientWeighting
from mtbench_baselines.sdmgrad import SDMGrad
from mtbench_baselines.trimmed_mean import TrimmedMean
from tests.baselines.libmtl_shim import method as libmtl

METHODS = {
    **{"gradvac": GradVac, "config": ConFIG, "krum": Krum, "sdmgrad": SDMGrad, "pcd": PCD},
    **{"dibs_mtl": DiBSMTL, "rgw": RandomGradientWeighting, "graddrop": GradDrop},
    **{"trimmed_mean": TrimmedMean, "moco": MoCo, "modo": MoDo, "db_mtl": DBMTL},
    **{"edm": EDM, "dcgd": DCGD, "imgrad": IMGrad, "gradcraft": GradCraft},
}
NAMES = list(METHODS)


def combine(name, J, **parameters):
    """As mtbench.combine, without looking the name up."""
    method = METHODS[name](len(J), **parameters)
    if isinstance(method, Aggregator):
        return method.direct(J, torch.ones(len(J)))
    G = J.double() @ J.double().T
    return method.weigh(G, torch.ones(len(J)).double()).to(J) @ J


def gradients(K, seed, d=6):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hard(K):
    """Gradients that break solvers: name and (K, d)."""
    base = gradients(K, 1, d=50)
    same = base[:1].expand(K, -1)
    yield "near-parallel", same + 1e-7 * base
    yield "equal", same
    yield "near-opposite", same * (-1.0) ** torch.arange(K)[:, None] + 1e-7 * base
    yield "opposite", same * (-1.0) ** torch.arange(K)[:, None]
    yield "rank 2", gradients(K, 2, d=2)
    yield "zero row", base * (torch.arange(K) > 0)[:, None]
    yield "all zero", base * 0
    yield "one huge", base * (10.0 ** (12 * (torch.arange(K) == 0)))[:, None]
    yield "spread", base * torch.logspace(-12, 12, K, dtype=torch.float64)[:, None]
    yield "all tiny", base * 1e-12
    yield "all huge", base * 1e12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_finite_on_hard_matrices(name, dtype):
    for K in (1, 2, 3, 8, 40):
        for case, J in hard(K):
            found = combine(name, J.to(dtype))
            assert found.dtype == dtype
            assert found.isfinite().all(), (K, case)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("moco", "modo", "dibs_mtl")])
@settings(max_examples=10)
@given(K=st.integers(1, 6), seed=st.integers(0, 999), exponent=st.integers(-12, 12))
def test_the_unit_of_the_losses_scales_the_direction(name, K, seed, exponent):
    J = gradients(K, seed)
    expected = 10.0**exponent * combine(name, J)
    torch.testing.assert_close(combine(name, 10.0**exponent * J), expected, rtol=1e-6, atol=0)


ORDERLESS = ["config", "sdmgrad", "dibs_mtl", "trimmed_mean", "edm", "imgrad", "gradcraft"]


@pytest.mark.parametrize("name", ORDERLESS)
@settings(max_examples=10)
@given(order=st.permutations(range(5)), seed=st.integers(0, 999))
def test_order_of_the_objectives_is_of_no_account(name, order, seed):
    J = gradients(5, seed, d=12)
    torch.testing.assert_close(combine(name, J[order]), combine(name, J))


def gradvac_in_gradient_space(J, targets, orders, beta):
    """Algorithm 1 of the paper, as written."""
    total = torch.zeros_like(J[0])
    for i, order in enumerate(orders.tolist()):
        g = J[i].clone()
        for j in order:
            if j == i:
                continue
            cosine, target = g @ J[j] / g.norm() / J[j].norm(), targets[i, j].clone()
            if cosine < target:
                up = target * (1 - cosine**2).sqrt() - cosine * (1 - target**2).sqrt()
                g = g + g.norm() * up / (J[j].norm() * (1 - target**2).sqrt()) * J[j]
                torch.testing.assert_close(g @ J[j] / g.norm() / J[j].norm(), target)
            targets[i, j] = (1 - beta) * target + beta * cosine
        total += g
    return total


@pytest.mark.parametrize("K", [1, 2, 3, 5, 8])
def test_gradvac_twin(K):
    generator = torch.Generator().manual_seed(3)
    ours, theirs = np.zeros((K, K)), torch.zeros(K, K, dtype=torch.float64)
    turned = 0
    for seed in range(20):
        J = gradients(K, seed) + 0.3
        orders = torch.rand(K, K, generator=generator).argsort(dim=1)
        expected = gradvac_in_gradient_space(J, theirs, orders, 0.3)
        weights, ours = vaccinate((J @ J.T).numpy(), ours, orders.numpy(), 0.3)
        torch.testing.assert_close(torch.from_numpy(weights) @ J, expected)
        torch.testing.assert_close(torch.from_numpy(ours), theirs)
        turned += not torch.allclose(expected, J.sum(0))
    assert turned >= 10 or K == 1


@pytest.mark.parametrize("K", [2, 3, 8])
def test_gradvac_torchjd(K, monkeypatch):
    torchjd = pytest.importorskip("torchjd.aggregation")
    monkeypatch.setattr(torch, "randperm", torch.arange)
    theirs = torchjd.GradVac(beta=0.2, eps=0.0)
    targets, orders = np.zeros((K, K)), np.tile(np.arange(K), (K, 1))
    for seed in range(10):
        J = gradients(K, seed) + 0.3
        weights, targets = vaccinate((J @ J.T).numpy(), targets, orders, 0.2)
        torch.testing.assert_close(torch.from_numpy(weights) @ J, theirs(J))


def test_gradvac_libmtl():
    """Where every pair is in conflict LibMTL, too, moves every target."""
    x = torch.zeros(6, requires_grad=True)
    theirs, ours = libmtl("GradVac", 2, [x]), GradVac(2, beta=0.5)
    for seed in range(4):
        a, b = gradients(2, seed).float()
        J = torch.stack([a, 0.3 * b - a])
        x.grad = None
        theirs.backward([J[0] @ x, J[1] @ x], beta=0.5)
        G = (J @ J.T).double()
        torch.testing.assert_close(ours.weights(G, torch.ones(2)).float() @ J, x.grad)


def test_gradvac_equal_gradients_are_left_alone():
    """Their cosines are 1 but for rounding, and so are the targets before long."""
    J = gradients(1, 0).expand(3, -1) * torch.tensor([[1.0], [3.0], [0.7]])
    method = GradVac(3, beta=1.0)
    for _ in range(5):
        weights = method.weights(J @ J.T, torch.ones(3))
        assert weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
def test_config_has_one_cosine_with_all(K):
    for seed in range(5):
        J = gradients(K, seed, d=60) * torch.logspace(-3, 3, K, dtype=torch.float64)[:, None]
        d = combine("config", J)
        cosines = J @ d / J.norm(dim=1) / d.norm()
        torch.testing.assert_close(cosines, cosines[:1].expand(K))
        assert cosines[0] > 0
        torch.testing.assert_close(d.norm(), (J @ d / d.norm()).sum())  # length by projection


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
def test_config_torchjd(K):
    torchjd = pytest.importorskip("torchjd.aggregation")
    for seed in range(3):
        for d in (60, 4):  # at d = 4 < K there is a least-squares direction only
            J = gradients(K, seed, d) * torch.logspace(-2, 2, K, dtype=torch.float64)[:, None]
            torch.testing.assert_close(combine("config", J), torchjd.ConFIG()(J))


def test_config_opposite_gradients_have_no_direction():
    J = torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    assert combine("config", J).tolist() == [0, 0]
    assert combine("config", J[[0, 0]]).tolist() == [2, 4]


def test_config_tends_to_zero_as_gradients_become_opposite():
    """As the common cosine does: no jump before the rank is lost."""
    lengths = []
    for angle in (1e-1, 1e-2, 1e-3, 1e-4):
        J = torch.tensor([[1.0, 0.0], [-np.cos(angle), np.sin(angle)]], dtype=torch.float64)
        lengths.append(combine("config", J).norm().item())
    np.testing.assert_allclose(lengths, [2 * np.sin(a / 2) for a in (1e-1, 1e-2, 1e-3, 1e-4)])
    assert ConFIG(2).weights(torch.eye(2), torch.ones(2)).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(("K", "byzantine"), [(2, 0), (3, 0), (5, 1), (8, 2), (40, 5)])
@pytest.mark.parametrize("selected", [1, 2])
def test_krum_twin(K, byzantine, selected):
    for seed in range(10):
        J = gradients(K, seed)
        scores = []
        for i in range(K):
            others = sorted((J[i] - J[j]).square().sum().item() for j in range(K) if j != i)
            scores.append(sum(others[: max(K - byzantine - 2, 1)]))
        best = np.argsort(np.round(scores, 9), kind="stable")[:selected]
        found = combine("krum", J, byzantine=byzantine, selected=selected)
        torch.testing.assert_close(found, J[best].mean(0))


def test_krum_torchjd():
    """With three objectives one neighbour counts, and the two closest are selected."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    theirs = torchjd.Krum(n_byzantine=0, n_selected=2)
    for seed in range(10):
        J = gradients(3, seed)
        torch.testing.assert_close(combine("krum", J, selected=2), theirs(J))


def test_krum_sums_squares():
    """As the paper does; torchjd sums distances, and in a few draws selects another gradient."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    draws = [gradients(8, seed) for seed in range(100)]
    ours = torch.stack([Krum(8, byzantine=2).weights(J @ J.T, torch.ones(8)) for J in draws])
    theirs = torch.stack([torchjd.KrumWeighting(n_byzantine=2)(J @ J.T) for J in draws])
    assert 0 < (ours != theirs).any(dim=1).sum() < 10


def test_krum_leaves_the_outlier_out():
    J = gradients(6, 0)
    J[4] *= 100
    assert Krum(6, byzantine=1, selected=5).weights(J @ J.T, torch.ones(6))[4] == 0


def sdmgrad_value(w, J, strength):
    return 0.5 * np.square(J.T @ (w + strength / len(J))).sum()


@pytest.mark.parametrize("strength", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_sdmgrad_is_optimal(K, strength):
    for seed in range(5):
        J = gradients(K, seed).numpy()
        weights = SDMGrad(K, strength=strength).weights(torch.from_numpy(J @ J.T), torch.ones(K))
        w = weights.numpy() * (1 + strength) - strength / K
        assert w.min() > -1e-12
        assert w.sum() == pytest.approx(1)
        slsqp = scipy.optimize.minimize(
            sdmgrad_value,
            np.full(K, 1 / K),
            (J, strength),
            method="SLSQP",
            bounds=[(0, 1)] * K,
            constraints={"type": "eq", "fun": lambda v: v.sum() - 1},
            options={"ftol": 1e-14},
        )
        assert sdmgrad_value(w, J, strength) <= slsqp.fun + 1e-12
        np.testing.assert_allclose(w, slsqp.x, atol=1e-4)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_sdmgrad_torchjd(K):
    torchjd = pytest.importorskip("torchjd.aggregation")
    for seed in range(3):
        G = gradients(K, seed) @ gradients(K, seed).T
        theirs = torchjd.SDMGradWeighting(lr=0.2, momentum=0.5, n_iter=400, lambda_=0.3)(G)
        torch.testing.assert_close(SDMGrad(K).weights(G, torch.ones(K)), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tau", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8, 40])
def test_pcd_kkt(K, tau):
    for seed in range(5):
        J = gradients(K, seed, d=60)
        weights = bend(J @ J.T, tau)
        d = weights @ J
        slack = J[1:] @ d - tau * J[1:].square().sum(1)
        assert weights[0] == 1
        assert (weights >= 0).all()
        assert (slack > -1e-9).all()
        assert (slack * weights[1:]).abs().sum() < 1e-9
        if K > 1:
            wanted = tau * J[1:].square().sum(1) - J[1:] @ J[0]
            target = torch.linalg.lstsq(J[1:], wanted).solution
            mu, _ = scipy.optimize.nnls(J[1:].T.numpy(), target.numpy())
            np.testing.assert_allclose(weights[1:], mu, atol=1e-9)


@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_pcd_torchjd(K):
    torchjd = pytest.importorskip("torchjd.aggregation")
    theirs, ours = torchjd.PCD(tau=0.3, beta=0.7, eps=0.0), PCD(K, tau=0.3, beta=0.7)
    for seed in range(10):
        J = gradients(K, seed, d=12) * torch.logspace(-2, 2, K, dtype=torch.float64)[:, None]
        torch.testing.assert_close(ours.weights(J @ J.T, torch.ones(K)) @ J, theirs(J))


def test_pcd_without_a_solution_follows_the_primary():
    J = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -2.0, 0.0]])
    assert combine("pcd", J).tolist() == [1, 0, 0]


def test_pcd_equal_secondaries_count_once():
    J = gradients(2, 0, d=12).float()
    J[1] -= J[0]
    twice = torch.cat([J, J[1:] * (1 + 1e-7)])
    torch.testing.assert_close(combine("pcd", twice), combine("pcd", J), atol=1e-5, rtol=1e-4)


def test_pcd_ignores_the_secondaries_scales():
    J = gradients(3, 0)
    scaled = J * torch.tensor([[1.0], [1e-9], [1e9]])
    ours, other = PCD(3), PCD(3)
    for _ in range(3):
        found = ours.weights(J @ J.T, torch.ones(3)) @ J
        torch.testing.assert_close(
            other.weights(scaled @ scaled.T, torch.ones(3)) @ scaled, found, rtol=1e-5, atol=1e-6
        )


def test_pcd_missing_label_leaves_its_average_alone():
    J = gradients(3, 0)
    method = PCD(3)
    method.weights(J @ J.T, torch.ones(3))
    before = method.square.clone(), method.count.clone()
    J[1] = 0
    assert method.weights(J @ J.T, torch.ones(3))[1] == 0
    assert method.square[1] == before[0][1]
    assert (method.count - before[1]).tolist() == [1, 0, 1]


def test_dibs_mtl():
    J = gradients(4, 0) * torch.logspace(-6, 6, 4, dtype=torch.float64)[:, None]
    torch.testing.assert_close(combine("dibs_mtl", J), (J / J.norm(dim=1, keepdim=True)).sum(0))


def test_rgw_torchjd():
    torchjd = pytest.importorskip("torchjd.aggregation")
    J = gradients(4, 0)
    method = RandomGradientWeighting(4, seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for _ in range(3):
            expected = torchjd.Random()(J)
            torch.testing.assert_close(method.weights(J @ J.T, torch.ones(4)) @ J, expected)


@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [1, 2, 3, 8, 40])
def test_graddrop_torchjd(K, dtype, leak):
    torchjd = pytest.importorskip("torchjd.aggregation")
    J = gradients(K, 0, d=1000).to(dtype)
    method = GradDrop(K, seed=7, leak=leak)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = torchjd.GradDrop(leak=torch.full((K,), leak, dtype=dtype))(J)
    torch.testing.assert_close(method.direction(J, torch.ones(K)), expected)


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_graddrop_libmtl(leak):
    """LibMTL acts at the features; of one sample, positive, their gradient is like any other."""
    K, J = 3, gradients(3, 0, d=1000).float()
    theirs = libmtl("GradDrop", K)
    x = torch.zeros(1000, requires_grad=True)
    theirs.rep_grad, theirs.task_name = True, range(K)
    theirs.rep = (x + 1)[None]
    theirs.rep_tasks = [theirs.rep.detach().clone().requires_grad_() for _ in range(K)]
    losses = [(row * rep).sum() for row, rep in zip(J, theirs.rep_tasks, strict=True)]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs.backward(losses, leak=leak)
    found = GradDrop(K, seed=7, leak=leak).direction(J, torch.ones(K))
    torch.testing.assert_close(found, x.grad)


@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_graddrop_shows_what_is_not_finite_and_passes_over_zero_rows(value, leak):
    """It asks nothing beforehand: ``asks_nothing``."""
    J = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    for seed in range(9):
        expected = GradDrop(3, seed=seed, leak=leak).direct(J, torch.ones(3))
        beside = torch.cat([J, torch.zeros_like(J[:1])])
        torch.testing.assert_close(
            GradDrop(4, seed=seed, leak=leak).direct(beside, torch.ones(4)), expected
        )
        for row in range(3):
            broken = J.clone()
            broken[row, 7] = value
            found = GradDrop(3, seed=seed, leak=leak).direct(broken, torch.ones(3))
            assert not found[7].isfinite()


def test_graddrop_is_the_sum_on_average_and_without_conflict():
    J = gradients(3, 0, d=4)
    method = GradDrop(3)
    mean = torch.stack([method.direction(J, torch.ones(3)) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, J.sum(0), atol=0.1, rtol=0)
    torch.testing.assert_close(method.direction(J.abs(), torch.ones(3)), J.abs().sum(0))


@pytest.mark.parametrize("K", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("trim", [0.0, 0.2, 0.4, 0.49])
def test_trimmed_mean(K, trim):
    torchjd = pytest.importorskip("torchjd.aggregation")
    J = gradients(K, 0, d=100)
    found = TrimmedMean(K, trim=trim).direction(J, torch.ones(K))
    np.testing.assert_allclose(found, scipy.stats.trim_mean(J.numpy(), trim, axis=0))
    torch.testing.assert_close(found, torchjd.TrimmedMean(int(trim * K))(J))


@pytest.mark.parametrize("method", [GradDrop(2), TrimmedMean(3)])
def test_blocks_of_columns_are_invisible(method):
    J = gradients(method.num_objectives, 0, d=200_001)
    found = method.direction(J, torch.ones(2))
    for n in (0, 16383, 16384, 65535, 65536, 200_000):
        options = (
            J[:, n].median()
            if len(J) > 2
            else torch.stack([J[:, n].clamp(min=0).sum(), J[:, n].clamp(max=0).sum()])
        )
        assert torch.isclose(options, found[n]).any()


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        (GradVac, {"beta": 1.5}, r"gradvac: beta must be in \[0, 1\], found 1.5"),
        (Krum, {"byzantine": 1}, r"krum: byzantine must be .* K = 4, found 1"),
        (Krum, {"byzantine": -1}, "krum: byzantine must be"),
        (Krum, {"selected": 0}, "krum: selected must be at least 1, found 0"),
        (SDMGrad, {"strength": -1.0}, "sdmgrad: strength must be finite and at least 0"),
        (PCD, {"tau": 1.1}, r"pcd: tau must be in \[0, 1\], found 1.1"),
        (PCD, {"beta": 1.0}, "pcd: beta must be at least 0 and below 1, found 1.0"),
        (GradDrop, {"leak": 2.0}, r"graddrop: leak must be in \[0, 1\], found 2.0"),
        (TrimmedMean, {"trim": 0.5}, "trimmed_mean: trim must be at least 0 and below 1/2"),
    ],
)
def test_refuses(method, parameters, words):
    with pytest.raises(UsageError, match=words):
        method(4, **parameters)


def test_gradvac_of_opposite_gradients_at_beta_1():
    """Targets are -1 then, and where nothing is to be turned there is nothing to divide by."""
    method = GradVac(2, beta=1.0)
    G = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    with np.errstate(all="raise"):
        for _ in range(3):
            weights = method.weights(G, torch.ones(2, dtype=torch.float64))
    assert weights.isfinite().all()
    assert method.targets[0, 1] == -1
