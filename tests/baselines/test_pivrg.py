"""pivrg: the equation by other means, and the shares by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from mtbench.errors import UsageError
from mtbench_baselines.fairgrad import FairGrad
from mtbench_baselines.pivrg import PIVRG


def gradients(K, seed, d=20):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def after_one_epoch(K, losses, **parameters):
    method = PIVRG(K, max_norm=0.0, **parameters)
    for step in losses:
        method.weights(torch.eye(K).double(), torch.tensor(step).double())
    method.after_epoch()
    return method


@pytest.mark.parametrize("K", [2, 3, 5])
def test_equation(K):
    losses = [[1.0 + k for k in range(K)]]
    method = after_one_epoch(K, losses, single_task=(1.0,) * K)
    omega = method.omega.numpy()
    for seed in range(3):
        J = gradients(K, seed)
        J = J / J.norm()
        G = (J @ J.T).numpy()
        ours = method.weights(J @ J.T, torch.ones(K)).numpy() / K
        np.testing.assert_allclose(G @ ours, np.sqrt(omega / ours), rtol=1e-9)
        found = least_squares(
            lambda w, G=G: G @ w - np.sqrt(omega / w),
            np.full(K, 1.0),
            bounds=(1e-9, np.inf),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        ).x
        np.testing.assert_allclose(ours, found, rtol=1e-6)


def test_without_a_reference_is_fairgrad():
    method = after_one_epoch(4, [[1.0, 2.0, 3.0, 4.0]])
    J = gradients(4, 0)
    expected = FairGrad(4, max_norm=0.0).weights(J @ J.T, torch.ones(4))
    torch.testing.assert_close(method.weights(J @ J.T, torch.ones(4)), expected)


def test_shares():
    """Mean losses (3, 1, 1.5) against (1, 1, 1): drops of 200, 0, 50 %; T = 200 / log 4."""
    method = after_one_epoch(
        3, [[4.0, 1.0, 2.0], [2.0, 1.0, 1.0]], single_task=(1.0, 1.0, 1.0), bound=4.0
    )
    raw = torch.tensor([4.0, 1.0, 4.0**0.25], dtype=torch.float64)
    torch.testing.assert_close(method.omega, 3 * raw / raw.sum())


def test_near_equal_drops_are_not_blown_up():
    """A spread of 1 % stays below the least temperature, 10 %."""
    method = after_one_epoch(2, [[1.01, 1.0]], single_task=(1.0, 1.0))
    torch.testing.assert_close(
        method.omega, 2 * torch.softmax(torch.tensor([0.1, 0.0]), 0).double()
    )


def test_an_epoch_without_a_label_changes_nothing():
    method = after_one_epoch(2, [[2.0, 1.0]], single_task=(1.0, 1.0))
    before = method.omega.clone()
    method.weights(torch.diag(torch.tensor([1.0, 0.0])).double(), torch.tensor([9.0, 0.0]).double())
    method.after_epoch()
    assert method.omega.equal(before)
    assert method.count.sum() == 0


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"single_task": (1.0,)}, r"single_task must hold one number per objective \(2\)"),
        ({"single_task": (1.0, 0.0)}, "single_task must be finite and not 0"),
        ({"bound": 1.0}, "bound must be finite and above 1, found 1.0"),
        ({"min_temperature": 0.0}, "min_temperature must be finite and above 0, found 0.0"),
        ({"max_norm": math.inf}, "max_norm must be finite and at least 0, found inf"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"pivrg: {words}"):
        PIVRG(2, **parameters)
