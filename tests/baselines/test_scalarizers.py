"""Scalarizers against their formulas by autograd, torchjd and LibMTL."""

from copy import deepcopy
from importlib import import_module
from inspect import isclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.model import MultitaskModel
from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.cosmos import COSMOS
from mtbench_baselines.dwa import DynamicWeightAverage
from mtbench_baselines.ew import EqualWeights
from mtbench_baselines.gls import GeometricLoss
from mtbench_baselines.gradnorm import GradNorm
from mtbench_baselines.imtl_l import IMTLLoss
from mtbench_baselines.ldc_mtl import LossDiscrepancyControl
from mtbench_baselines.ls import LinearScalarization
from mtbench_baselines.pbi import PenaltyBoundaryIntersection
from mtbench_baselines.rlw import RandomLossWeighting
from mtbench_baselines.si import ScaleInvariant
from mtbench_baselines.stch import SmoothTchebycheff
from mtbench_baselines.stl import SingleTask
from mtbench_baselines.uw import UncertaintyWeighting
from mtbench_baselines.uw_so import SoftOptimalUncertainty
from tests.baselines import libmtl_shim

# The methods are asked by themselves, without the loop that they wait for.
pytestmark = pytest.mark.filterwarnings("ignore:.*, and the method needs it")
NAMES = [
    "cosmos",
    "dwa",
    "excess_mtl",
    "famo",
    "gls",
    "go4align",
    "imtl",
    "imtl_l",
    "ldc_mtl",
    "pbi",
    "rlw",
    "si",
    "stch",
    "uw_so",
]
SIZES = [1, 2, 3, 5, 8, 40]


def method_of(name):
    module = import_module(f"mtbench_baselines.{name}")
    (method,) = (
        value
        for value in vars(module).values()
        if isclass(value) and issubclass(value, Balancer) and value.__module__ == module.__name__
    )
    return method


def draw(K, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(K, generator=generator, dtype=torch.float64).to(dtype) * 3 + 0.1


def apply(method, values):
    """Run one step on L_k = x_k; return dscalar/dL, that is x.grad, and the weights."""
    x = values.detach().clone().requires_grad_()
    weights = method.backward(Step(list(x.unbind()), shared=[x]))
    return x.grad, weights


def by_autograd(function, values):
    x = values.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(x), x)
    return grad


def close(found, expected):
    torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_formulas(K, dtype):
    """Every closed-form weight is the formula's derivative."""
    L = draw(K, K, dtype)
    r = draw(K, K + 1, dtype)
    preference = tuple(r.tolist())
    cosine = torch.cosine_similarity
    for method, formula in (
        (ScaleInvariant(K), lambda x: x.log().sum()),
        (GeometricLoss(K), lambda x: x.prod() ** (1 / K)),
        (SoftOptimalUncertainty(K, temperature=0.7), lambda x: (1 / L / 0.7).softmax(0) @ x),
        (COSMOS(K, penalty=2.0, preference=preference), lambda x: r @ x - 2 * cosine(r, x, dim=0)),
        (SmoothTchebycheff(K), lambda x: x.log().sum()),
    ):
        found, weights = apply(method, L)
        close(found, by_autograd(formula, L))
        close(weights, found)


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("theta", [0.0, 0.5, 5.0])
def test_pbi(K, theta):
    L, r, z = draw(K), draw(K, 1), -draw(K, 2)
    unit = r / r.norm()

    def formula(x):
        along = (x - z) @ unit
        return along + theta * (x - z - along * unit).norm()

    method = PenaltyBoundaryIntersection(
        K, theta=theta, preference=tuple(r.tolist()), reference=tuple(z.tolist())
    )
    close(apply(method, L)[0], by_autograd(formula, L))
    peer = pytest.importorskip("torchjd.scalarization").PBI(theta, r, z)
    close(apply(method, L)[0], by_autograd(peer, L))


def test_pbi_on_the_ray_has_no_penalty():
    grad, _ = apply(
        PenaltyBoundaryIntersection(3, preference=(1.0, 2.0, 2.0)), torch.tensor([0.1, 0.2, 0.2])
    )
    close(grad, torch.tensor([1.0, 2.0, 2.0]) / 3)


@pytest.mark.parametrize(("preference", "end"), [((1.0, 1.0), 0.0), ((1.0, 3.0), 0.268)])
def test_pbi_ends_on_the_ray_and_the_front_when_the_rate_falls(preference, end):
    """(x - 1)^2 and (x + 1)^2, and a second coordinate that both want at 0."""
    x = torch.tensor([0.3, 0.8], requires_grad=True)
    method = PenaltyBoundaryIntersection(2, theta=2.0, preference=preference)
    for t in range(800):
        x.grad = None
        losses = [(x[0] - s).square() + x[1].square() for s in (1.0, -1.0)]
        method.backward(Step(losses, shared=[x]))
        with torch.no_grad():
            x -= 0.3 / (t + 10) * x.grad
    ratio = ((1 + end) / (1 - end)) ** 2
    assert ratio == pytest.approx(preference[1] / preference[0], rel=1e-2)
    torch.testing.assert_close(x.detach(), torch.tensor([end, 0.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize("K", SIZES)
def test_torchjd_agrees(K):
    peers = pytest.importorskip("torchjd.scalarization")
    L, r = draw(K), draw(K, 1)
    close(apply(GeometricLoss(K), L)[0], by_autograd(peers.GeometricMean(), L))
    close(apply(EqualWeights(K), L)[0], by_autograd(peers.Sum(), L))
    fixed = LinearScalarization(K, weights=tuple(r.tolist()))
    close(apply(fixed, L)[0], by_autograd(peers.Constant(r), L))
    ours = COSMOS(K, penalty=0.5, preference=tuple(r.tolist()))
    close(apply(ours, L)[0], by_autograd(peers.COSMOS(0.5, r), L))

    for method, peer, mine in (
        (IMTLLoss(K), peers.IMTLL(K), "log_scale"),
        (UncertaintyWeighting(K), peers.UW(K), "log_variance"),
    ):
        (state,) = peer.parameters()
        with torch.no_grad():
            state.copy_(draw(K, 2) - 1)
            getattr(method, mine).copy_(state)
        # Theirs halves the loss and the regulariser; ours only the latter.
        factor = 2 if mine == "log_variance" else 1
        x = (L * factor).requires_grad_()
        peer(x).backward()
        found, _ = apply(method, L)
        close(found, x.grad * factor)
        close(getattr(method, mine).grad, state.grad)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = by_autograd(peers.Random(), L.float())
    close(apply(RandomLossWeighting(K, seed=3), L.float())[0], expected)


def run_epochs(method, losses):
    """Run epochs of steps, (E, S, K); return the weights of each step."""
    found = []
    for epoch in losses:
        found += [apply(method, values)[0] for values in epoch]
        method.after_epoch()
    return torch.stack(found)


@pytest.mark.parametrize("K", SIZES)
def test_dwa_peers_agree(K):
    losses = draw(4 * 3 * K).reshape(4, 3, K)
    found = run_epochs(DynamicWeightAverage(K, temperature=1.5), losses)

    peer = pytest.importorskip("torchjd.scalarization").DWA(1.5)
    expected = []
    for epoch in losses:
        expected += [by_autograd(peer, values) for values in epoch]
        peer.step()
    close(found, torch.stack(expected))

    means = losses.mean(1).T.numpy()
    for epoch, step in ((1, 4), (2, 7), (3, 9)):
        theirs = libmtl_shim.method("DWA", K, epoch=epoch, train_loss_buffer=means)
        x = losses[epoch, step % 3].clone().requires_grad_()
        theirs.backward(x, T=1.5)
        close(found[step], x.grad)


def test_dwa_leaves_missing_labels_out_of_the_means():
    losses = torch.tensor(
        [[[2.0, 5.0], [0.0, 7.0]], [[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]
    )
    method = DynamicWeightAverage(2, temperature=1.0)
    run_epochs(method, losses[:2])
    assert method.before.tolist() == [2.0, 0.0]
    assert method.last.tolist() == [1.0, 6.0]  # no label in epoch 1: still that of epoch 0
    close(run_epochs(method, losses[2:])[0], 2 * torch.tensor([0.5, 1.0]).softmax(0))


@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("mu", [0.01, 0.1, 1.0])
def test_stch(K, mu):
    losses = draw(4 * 3 * K).reshape(4, 3, K)
    found = run_epochs(SmoothTchebycheff(K, mu=mu, warmup=1), losses)
    close(found[:6], 1 / losses[:2].reshape(6, K))
    nadir = losses[1].mean(0)
    peer = pytest.importorskip("torchjd.scalarization").STCH(mu, weights=torch.ones(K).double())
    for grad, values in zip(found[6:], losses[2:].reshape(6, K), strict=True):
        close(grad, by_autograd(lambda x: K * peer((x / nadir).log()), values))


def test_stch_at_mu_0_descends_the_worst_alone():
    losses = torch.tensor([[[1.0, 10.0, 4.0]], [[0.5, 2.0, 3.0]]])
    found = run_epochs(SmoothTchebycheff(3, mu=1e-3, warmup=0), losses)
    close(found[1], torch.tensor([0.0, 0.0, 3 / 3.0]))


def test_stch_nadir_without_a_label():
    losses = torch.tensor([[[2.0, 0.0]], [[1.0, 50.0]]])
    found = run_epochs(SmoothTchebycheff(2, mu=1.0, warmup=0), losses)
    close(found[1], 2 * torch.tensor([1 / 3, 2 / 3 / 50]))


@pytest.mark.parametrize("K", [1, 2, 3, 5, 8])
def test_libmtl_agrees(K):
    L = draw(K, dtype=torch.float32)
    x = L.clone().requires_grad_()
    libmtl_shim.method("GLS", K).backward(x)
    close(apply(GeometricLoss(K), L)[0], x.grad)

    theirs = libmtl_shim.method("UW", K)  # the loss halved, as in torchjd
    ours = UncertaintyWeighting(K)
    ours.log_variance.data.copy_(theirs.loss_scale.data)
    x = (2 * L).requires_grad_()
    theirs.backward(x)
    close(apply(ours, L)[0], 2 * x.grad)
    close(ours.log_variance.grad, theirs.loss_scale.grad)

    x = L.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        libmtl_shim.method("RLW", K).backward(x, dist="Normal")
    close(apply(RandomLossWeighting(K, seed=5), L)[0], x.grad)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_libmtl_gradnorm_agrees(K):
    """The gradient of L_grad in w; theirs goes on through a softmax."""
    torch.manual_seed(K)
    shared = nn.Parameter(torch.randn(6))
    matrix = torch.randn(K, 3, 6)

    def losses():
        return (matrix @ shared).square().mean(1)

    ours = GradNorm(K, alpha=1.2)
    first = losses().detach()
    ours.initial.copy_(first * torch.linspace(0.5, 2, K))
    theirs = libmtl_shim.method(
        "GradNorm", K, [shared], epoch=1, train_loss_buffer=ours.initial[:, None].numpy()
    )
    theirs.backward(losses(), alpha=1.2)
    direction = shared.grad.clone()

    shared.grad = None
    step = Step(list(losses()), shared=[shared])
    ours.backward(step)
    close(shared.grad, direction)  # all weights are 1
    norms = step.gramian().diagonal().sqrt()
    grad = ours.first_moment / 0.1 * norms.mean()
    close(theirs.loss_scale.grad, grad - grad.mean())  # the softmax of equal logits, times K


class Encoder(nn.Linear):
    def forward(self, inputs):
        return (torch.tanh(super().forward(inputs)),)


class Head(nn.Linear):
    def forward(self, features):
        return super().forward(features[0])


def test_stl_is_k_models_trained_one_by_one():
    torch.manual_seed(0)
    K = 3
    single = MultitaskModel(Encoder(4, 5), [Head(5, 1) for _ in range(K)])
    alone = [deepcopy(single) for _ in range(K)]
    method = SingleTask(K)
    together = method.wrap(single)

    def train(model, method, objectives):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for seed in range(5):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            features = model.encode(x)
            outputs = model.decode(features, method.view)
            losses = [(outputs[k] - k).square().mean() for k in objectives]
            method.backward(Step(losses, features=features))
            optimizer.step()
        return model.decode(model.encode(torch.ones(1, 4)), method.view)

    outputs = train(together, method, range(K))
    for k in range(K):
        torch.testing.assert_close(outputs[k], train(alone[k], SingleTask(1), [k])[k])


def test_rlw_dirichlet_is_uniform_on_the_simplex():
    K = 3
    method = RandomLossWeighting(K, distribution="dirichlet")
    draws = torch.stack([apply(method, torch.ones(K))[1] for _ in range(2000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(2000))
    torch.testing.assert_close(draws.mean(0), torch.full((K,), 1 / 3), atol=0.02, rtol=0)
    # Var of Dirichlet(1, 1, 1) is 2 / (9 * 4).
    torch.testing.assert_close(draws.var(0), torch.full((K,), 1 / 18), atol=0.006, rtol=0)


def test_uw_so_is_uw_at_its_optimum_up_to_a_factor():
    L = draw(4)
    method = SoftOptimalUncertainty(4, temperature=1e6)
    torch.testing.assert_close(
        apply(method, L)[1], torch.full((4,), 0.25).double(), atol=1e-4, rtol=0
    )
    close(apply(SoftOptimalUncertainty(4, temperature=1e-3), L)[1], (L.min() == L).double())


def test_imtl_l_rests_where_every_scaled_loss_is_1():
    method = IMTLLoss(3)
    L = torch.tensor([1e-2, 1.0, 50.0])
    method.log_scale.data.copy_(-L.log())
    _, weights = apply(method, L)
    close(weights * L, torch.ones(3))
    close(method.log_scale.grad, torch.zeros(3))


def test_imtl_l_leaves_scales_alone_where_no_loss_is_positive():
    method = IMTLLoss(3)
    grad, _ = apply(method, torch.tensor([0.0, -2.0, 3.0]))
    assert method.log_scale.grad.tolist() == [0.0, 0.0, 2.0]
    assert grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("K", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("penalty", [0.0, 0.1, 2.0])
def test_ldc_mtl_formula(K, penalty):
    method = LossDiscrepancyControl(K, penalty=penalty)
    first, L = draw(K, 0, torch.float32), draw(K, 1, torch.float32)
    apply(method, first)
    method.logits.data.copy_(draw(K, 2))
    method.logits.grad = None
    found, weights = apply(method, L)

    x, logits = L.clone().requires_grad_(), method.logits.detach().clone().requires_grad_()
    weighted = logits.softmax(0) * x / first
    (weighted.sum() + penalty * (weighted[1:] - weighted[:-1]).abs().sum()).backward()
    close(found, x.grad)
    close(method.logits.grad, logits.grad)
    close(weights, x.grad)


def test_ldc_mtl_missing_label():
    """The neighbours of the objective that is missing become neighbours."""
    method, two = LossDiscrepancyControl(3, penalty=0.4), LossDiscrepancyControl(2, penalty=0.4)
    for values in ([1.0, 1.0, 1.0], [2.0, 0.0, 3.0]):
        L = torch.tensor(values)
        grad, _ = apply(method, L)
        kept, _ = apply(two, L[::2])
    close(grad[::2], kept)
    assert method.initial.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("K", SIZES)
def test_ldc_mtl_first_step_is_that_of_relative_losses(K):
    """All differences are 0 there; rounding must not choose their signs."""
    L = draw(K, dtype=torch.float32)
    close(apply(LossDiscrepancyControl(K, penalty=0.4), L)[0], 1 / L / K)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"rlw", "ldc_mtl"}))
@settings(max_examples=10)
@given(st.permutations(range(4)))
def test_no_objective_is_privileged(name, order):
    """Permuted losses get permuted weights, over epochs; LDC-MTL's neighbours are an exception."""
    losses = draw(6 * 2 * 4).reshape(6, 2, 4)
    ends = []
    for shown in (losses, losses[..., order]):
        method = method_of(name)(4)
        ends.append(run_epochs(method, shown))
    torch.testing.assert_close(ends[1], ends[0][:, order])


@pytest.mark.parametrize("name", ["si", "stch", "famo", "dwa", "ldc_mtl", "excess_mtl"])
def test_units_do_not_matter(name):
    """With L_k in another unit the weighted losses are the same, but for DWA's weights."""
    losses = draw(7 * 2 * 3).reshape(7, 2, 3)
    units = torch.tensor([1e-12, 1.0, 1e12], dtype=torch.float64)
    one = run_epochs(method_of(name)(3), losses)
    other = run_epochs(method_of(name)(3), losses * units)
    if name in ("si", "stch", "ldc_mtl"):
        other = other * units
    if name == "famo":  # w_k L_k up to a common factor
        one, other = (g * L.reshape(g.shape) for g, L in ((one, losses), (other, losses * units)))
        one, other = one / one.sum(1, keepdim=True), other / other.sum(1, keepdim=True)
    close(one, other)


BAD = [0.0, 1e-45, 1e-30, 1e-12, 1.0, 1e12, 1e30, -1e-30, -1.0, -1e12]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("K", SIZES)
def test_never_nan(name, K):
    """Missing labels, all scales at once, negative losses, all zero, all equal."""
    generator = torch.Generator().manual_seed(K)
    patterns = [torch.full((K,), value) for value in BAD]
    patterns += [
        torch.tensor(BAD)[torch.randint(len(BAD), (K,), generator=generator)] for _ in range(10)
    ]
    method = method_of(name)(K)
    for values in patterns:
        grad, weights = apply(method, values)
        assert grad is None or grad.isfinite().all()  # None: there is no label at all
        assert weights.isfinite().all()
        method.after_step(lambda values=values: list((values * 0.9).unbind()))
        method.after_epoch()
        for value in method.state_dict().values():
            assert value.isfinite().all()


@pytest.mark.parametrize("name", sorted({*NAMES} - {"imtl", "excess_mtl", "rlw", "cosmos"}))
def test_a_missing_label_changes_nothing_for_the_others(name):
    """K objectives of which one never has a label: the others go as K - 1 objectives.

    RLW draws for all K; COSMOS has another preference, 1/K, then.
    """
    losses = draw(7 * 2 * 3).reshape(7, 2, 3)
    with_missing = torch.cat([losses[..., :1], losses[..., :1] * 0, losses[..., 1:]], dim=-1)
    found = run_epochs(method_of(name)(4), with_missing)[:, [0, 2, 3]]
    expected = run_epochs(method_of(name)(3), losses)
    found, expected = (g / g.sum(1, keepdim=True) for g in (found, expected))  # factors of K
    close(found, expected)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("rlw", {"distribution": "uniform"}, "distribution must be one of normal, dirichlet"),
        ("uw_so", {"temperature": 0.0}, "temperature must be finite and above 0, found 0.0"),
        ("dwa", {"temperature": -1.0}, "temperature must be finite and above 0, found -1.0"),
        ("stch", {"mu": 0.0}, "mu must be finite and above 0, found 0.0"),
        ("stch", {"warmup": -1}, "warmup must be at least 0, found -1"),
        ("pbi", {"theta": -1.0}, "theta must be finite and at least 0, found -1.0"),
        ("pbi", {"preference": (1.0,)}, r"preference must hold one .* \(2\), .*, found \(1.0,\)"),
        ("pbi", {"preference": (1.0, 0.0)}, "preference .*, each finite and above 0"),
        ("pbi", {"reference": (1.0, float("nan"))}, "reference .*, each finite, found"),
        ("cosmos", {"penalty": -1.0}, "penalty must be finite and at least 0, found -1.0"),
        ("cosmos", {"preference": (1.0, -1.0)}, "preference .*, each finite and above 0"),
        ("ldc_mtl", {"penalty": float("inf")}, "penalty must be finite and at least 0, found inf"),
        ("famo", {"lr": 0.0}, "lr must be finite and above 0, found 0.0"),
        ("famo", {"decay": -1.0}, "decay must be finite and at least 0, found -1.0"),
        ("famo", {"minima": (0.0,)}, r"minima must hold one .* \(2\), .*, found \(0.0,\)"),
        ("excess_mtl", {"step_size": 0.0}, "step_size must be finite and above 0, found 0.0"),
        ("go4align", {"groups": 0}, "groups must be at least 1, found 0"),
        ("go4align", {"step_size": -1.0}, "step_size must be finite and at least 0, found -1.0"),
        ("imtl", {"space": "z"}, "space must be one of shared, features, found 'z'"),
    ],
)
def test_refuses(name, parameters, words):
    with pytest.raises(UsageError, match=f"{name}: {words}"):
        method_of(name)(2, **parameters)
