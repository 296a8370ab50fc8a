"""Preferences of upgrad, dualproj, config, aligned_mtl, against torchjd."""

import pytest
import torch

from mtbench.errors import UsageError
from mtbench_baselines.aligned_mtl import AlignedMTL
from mtbench_baselines.config import ConFIG
from mtbench_baselines.dualproj import DualProj
from mtbench_baselines.upgrad import UPGrad

METHODS = [UPGrad, DualProj, ConFIG, AlignedMTL]
ONES = torch.ones(4).double()
RAY = (1.0, 0.2, 3.0, 0.5)


def gradients(seed, K=4, d=20):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(method, J):
    return method.weights(J @ J.T, torch.ones(len(J)).double()).to(J) @ J


@pytest.mark.parametrize("seed", range(4))
def test_torchjd_agrees(seed):
    """Theirs is taken as it is, ours scaled: to the sum 1, and K for aligned_mtl."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    projector = pytest.importorskip("torchjd.linalg").QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    J, given = gradients(seed), torch.tensor(RAY).double()
    shares = given / given.sum()
    for ours, theirs in (
        (UPGrad, torchjd.UPGrad(shares, projector=projector)),
        (DualProj, torchjd.DualProj(shares, projector=projector)),
        (ConFIG, torchjd.ConFIG(given)),
        (AlignedMTL, torchjd.AlignedMTL(4 * shares)),
    ):
        found = direction(ours(4, preference=RAY), J)
        torch.testing.assert_close(found, theirs(J), rtol=1e-6, atol=1e-8)


def test_config_has_the_preferred_cosines():
    J = gradients(0)
    d = direction(ConFIG(4, preference=RAY), J)
    cosines = (J @ d) / J.norm(dim=1)
    torch.testing.assert_close(cosines / cosines[0], torch.tensor(RAY).double())


@pytest.mark.parametrize("method", METHODS)
def test_equal_preferences_are_none_and_only_ratios_count(method):
    J = gradients(1)
    plain = direction(method(4), J)
    torch.testing.assert_close(direction(method(4, preference=(3.0,) * 4), J), plain)
    found = direction(method(4, preference=RAY), J)
    large = direction(method(4, preference=tuple(1e6 * r for r in RAY)), J)
    torch.testing.assert_close(large, found)
    assert not torch.allclose(found, plain)


@pytest.mark.parametrize("method", METHODS)
def test_an_objective_without_a_gradient_takes_its_preference_along(method):
    G = gradients(2) @ gradients(2).T
    G[1] = G[:, 1] = 0
    weights = method(4, preference=RAY).weigh(G, ONES)
    left = [0, 2, 3]
    inside = method(3, preference=(1.0, 3.0, 0.5)).weigh(G[left][:, left], ONES[left])
    assert weights[1] == 0
    torch.testing.assert_close(weights[left], inside)
    assert not method(4, preference=RAY).weigh(G * 0, ONES).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [(1.0, 2.0), (1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, float("inf"))])
def test_refuses(method, wrong):
    name = method.__module__.rpartition(".")[2]
    with pytest.raises(UsageError, match=f"{name}: preference .*, each finite and above 0"):
        method(4, preference=wrong)
