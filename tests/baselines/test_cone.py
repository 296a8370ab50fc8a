"""upgrad, dualproj: against scipy's NNLS in gradient space, and torchjd."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from mtbench_baselines.dualproj import DualProj
from mtbench_baselines.pcgrad import PCGrad
from mtbench_baselines.upgrad import UPGrad


def gradients(K, seed, d=6):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(method, J):
    return method(len(J)).weights(J @ J.T, torch.ones(len(J))).to(J) @ J


def project(x, J):
    v, _ = nnls(J.T, -x)
    return x + v @ J


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8, 40])
def test_are_the_projections(K, scale):
    for seed in range(5):
        J = gradients(K, seed, d=30)
        rows = J.numpy()
        upgrad = np.mean([project(row, rows) for row in rows], axis=0)
        dualproj = project(rows.mean(0), rows)
        found = direction(UPGrad, J * scale) / scale
        np.testing.assert_allclose(found, upgrad, rtol=1e-6, atol=1e-8)
        found = direction(DualProj, J * scale) / scale
        np.testing.assert_allclose(found, dualproj, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_harms_nobody_however_short(method):
    """One gradient 1e6 times the others: peers' directions then oppose the short ones."""
    for seed in range(20):
        J = gradients(4, seed, d=10)
        J[0] *= 1e6
        d = direction(method, J)
        assert (J @ d >= -1e-9 * J.norm(dim=1) * d.norm()).all()


@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_without_conflict_is_the_mean(method):
    J = gradients(4, 0).abs()
    torch.testing.assert_close(direction(method, J), J.mean(0))


@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_opposite_gradients_cancel(method):
    J = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(direction(method, J), torch.tensor([0.0, 1 / 3]).double())


def test_two_objectives_are_half_of_pcgrad():
    for seed in range(10):
        J = gradients(2, seed, d=3)
        torch.testing.assert_close(direction(UPGrad, J), direction(PCGrad, J) / 2)


@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_torchjd_agrees(K):
    """Its regularisation, 1e-4 of the Gramian's trace, is off here."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    projector = pytest.importorskip("torchjd.linalg").QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    for seed in range(3):
        J = gradients(K, seed, d=20)
        for method, peer in ((UPGrad, torchjd.UPGrad), (DualProj, torchjd.DualProj)):
            torch.testing.assert_close(
                direction(method, J), peer(projector=projector)(J), rtol=1e-6, atol=1e-8
            )
