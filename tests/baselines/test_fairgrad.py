"""fairgrad: the alpha-fair utility, by other means."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mtbench.errors import UsageError
from mtbench_baselines.fairgrad import FairGrad
from mtbench_baselines.nash_mtl import NashMTL


def gradients(K, seed, d=20):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(J, **parameters):
    return FairGrad(len(J), **parameters).weights(J @ J.T, torch.ones(len(J))) @ J


@pytest.mark.parametrize("alpha", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_maximises_the_alpha_fair_utility(K, alpha):
    """A general solver on the paper's problem in gradient space, d in the unit ball."""

    def utility(d, J):
        return (np.maximum(J @ d, 1e-9) ** (1 - alpha) / (1 - alpha)).sum()

    for seed in range(3):
        J = gradients(K, seed, d=8).numpy()
        ours = direction(torch.from_numpy(J), alpha=alpha).numpy()
        ours /= np.linalg.norm(ours)
        found = minimize(
            lambda d, J=J: -utility(d, J),
            0.5 * ours + 1e-2 * J.mean(0),
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda d: 1 - d @ d},
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        assert utility(ours, J) >= utility(found, J) - 1e-8
        np.testing.assert_allclose(ours, found, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("K", [2, 8, 40])
def test_equation(K, alpha, scale):
    J = gradients(K, K, d=200) * scale
    w = FairGrad(K, alpha=alpha, max_norm=0.0).weights(J @ J.T, torch.ones(K)) / K
    torch.testing.assert_close(J @ (w @ J), w ** (-1 / alpha), rtol=1e-9, atol=0)


def test_limits():
    J = gradients(4, 0)
    near_sum = direction(J, alpha=1e-3, max_norm=0.0)
    torch.testing.assert_close(near_sum / 4, J.sum(0), rtol=1e-2, atol=1e-2)
    nash, fair = direction(J, alpha=1.0), NashMTL(4).weights(J @ J.T, torch.ones(4)) @ J
    torch.testing.assert_close(nash / nash.norm(), fair / fair.norm())
    gains = J @ direction(J, alpha=1e3)
    assert gains.max() / gains.min() < 1.01


def test_longest_step():
    J = gradients(3, 0)
    d = direction(J, max_norm=0.0)
    torch.testing.assert_close(direction(J, max_norm=0.1), d * (0.1 / d.norm()))
    torch.testing.assert_close(direction(J, max_norm=2 * d.norm().item()), d)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_torchjd_agrees(K):
    torchjd = pytest.importorskip("torchjd.aggregation")
    for seed in range(3):
        J = gradients(K, seed)
        J = J / J.norm()
        found = torchjd.FairGrad(2.0)(J)
        torch.testing.assert_close(direction(J, max_norm=0.0) / K, found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"alpha": 0.0}, "alpha must be finite and above 0, found 0.0"),
        ({"alpha": math.inf}, "alpha must be finite"),
        ({"max_norm": math.nan}, "max_norm must be finite"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"fairgrad: {words}"):
        FairGrad(2, **parameters)
