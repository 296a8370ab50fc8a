"""imtl_g: equal projections, and torchjd. The closed form: tests/balancing/test_solvers.py."""

import pytest
import torch

from mtbench_baselines.imtl_g import IMTLG


def gradients(K, seed, d=20):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(J):
    return IMTLG(len(J)).weights(J @ J.T, torch.ones(len(J))) @ J


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8, 40])
def test_projections_are_equal(K, scale):
    J = gradients(K, K, d=60) * scale
    projections = J @ direction(J) / J.norm(dim=1)
    assert projections.min() > 0
    torch.testing.assert_close(projections, projections.mean().expand(K), rtol=1e-8, atol=0)


def test_two_objectives():
    """d = (|g_2| g_1 + |g_1| g_2) / (|g_1| + |g_2|)."""
    a, b = J = gradients(2, 0)
    expected = (b.norm() * a + a.norm() * b) / (a.norm() + b.norm())
    torch.testing.assert_close(direction(J), expected)


@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_torchjd_agrees(K):
    torchjd = pytest.importorskip("torchjd.aggregation")
    for seed in range(3):
        J = gradients(K, seed, d=40)
        torch.testing.assert_close(direction(J), torchjd.IMTLG()(J), rtol=1e-6, atol=1e-8)
