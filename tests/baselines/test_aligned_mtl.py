"""aligned_mtl: against the polar factor by SVD in gradient space, and torchjd."""

import pytest
import torch

from mtbench.errors import UsageError
from mtbench_baselines.aligned_mtl import AlignedMTL


def gradients(K, seed, d=20):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(J, **parameters):
    return AlignedMTL(len(J), **parameters).weights(J @ J.T, torch.ones(len(J))) @ J


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8, 40])
def test_is_the_sum_of_the_rows_of_the_polar_factor(K, scale):
    J = gradients(K, K, d=60)
    U, s, V = torch.linalg.svd(J, full_matrices=False)
    aligned = s[-1] * U @ V
    torch.testing.assert_close(direction(J * scale) / scale, aligned.sum(0))
    torch.testing.assert_close(direction(J).norm(), K**0.5 * s[-1])
    torch.testing.assert_close(
        direction(J, scale="rmse"), s.square().mean().sqrt() * (U @ V).sum(0)
    )


def test_equal_gradients_are_one_component():
    g = gradients(1, 0)
    torch.testing.assert_close(direction(g.expand(3, -1)), 3 * g[0])


def test_rank_does_not_depend_on_rounding():
    """Two gradients 1e-8 apart, in float32 or float64, count as one direction."""
    J = gradients(3, 0)
    J[1] = J[0] * (1 + 1e-8) + 1e-8 * J[2]
    d = direction(J)
    torch.testing.assert_close(direction(J.float().double()), d, rtol=1e-5, atol=1e-6)
    assert d.norm() > 0.1


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_torchjd_agrees(K, scale):
    """It takes the mean where this takes the sum."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    J = gradients(K, K)
    found = torchjd.AlignedMTL(scale_mode=scale)(J)
    torch.testing.assert_close(direction(J, scale=scale) / K, found, rtol=1e-6, atol=1e-8)


def test_refuses():
    words = "aligned_mtl: scale must be one of min, median, rmse, found 'max'"
    with pytest.raises(UsageError, match=words):
        AlignedMTL(2, scale="max")
