"""edm: the shortest convex combination of directions, as a step."""

import numpy as np
import pytest
import scipy.optimize
import torch

from mtbench_baselines.edm import EDM
from mtbench_baselines.imtl_g import IMTLG
from mtbench_baselines.mgda import MGDA
from mtbench_baselines.unit import Unit


def gradients(K, seed, d=20):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(method, J):
    return method.weights(J @ J.T, torch.ones(len(J)).double())


@pytest.mark.parametrize("spread", [1.0, 1e6])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8])
def test_one_angle_with_all_that_have_a_weight_and_a_smaller_one_with_the_others(K, spread):
    """And the step is a convex combination of the gradients."""
    for seed in range(5):
        J = gradients(K, seed, d=4) * torch.linspace(1, spread, K).double()[:, None]
        w = weights(EDM(K), J)
        d = w @ J
        cosines = (J @ d) / J.norm(dim=1)
        assert w.min() >= 0
        assert w.sum().item() == pytest.approx(1)
        assert (cosines >= cosines.min() - 1e-9 * d.norm()).all()
        used = w * J.norm(dim=1) > 1e-9 * d.norm()
        torch.testing.assert_close(cosines[used], cosines.min().expand(int(used.sum())))


def test_scipy():
    for seed in range(3):
        J = gradients(4, seed, d=5)
        units = (J / J.norm(dim=1, keepdim=True)).numpy()
        solved = scipy.optimize.minimize(
            lambda w, units=units: np.square(w @ units).sum(),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            tol=1e-14,
        ).x
        gamma = 1 / (solved / J.norm(dim=1).numpy()).sum()
        found = weights(EDM(4), J) @ J
        np.testing.assert_allclose(found, gamma * solved @ units, atol=1e-5)


def test_it_is_imtl_g_where_that_has_no_negative_weight():
    found = set()
    for seed in range(20):
        J = gradients(3, seed, d=4)
        ours, theirs = weights(EDM(3), J), weights(IMTLG(3), J)
        found.add(bool(theirs.min() >= 0))
        assert torch.allclose(ours, theirs) == (theirs.min() >= 0)
    assert found == {True, False}


def test_the_direction_is_that_of_mgda_on_unit_gradients():
    J = gradients(5, 0, d=6) * torch.logspace(-6, 6, 5).double()[:, None]
    ours, theirs = weights(EDM(5), J) @ J, weights(Unit(MGDA(5)), J) @ J
    torch.testing.assert_close(ours / ours.norm(), theirs / theirs.norm())
    normalised = weights(MGDA(5, normalise="l2"), J) @ J
    assert torch.cosine_similarity(ours, normalised, dim=0) < 0.9
