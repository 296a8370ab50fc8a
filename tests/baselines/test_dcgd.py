"""dcgd: a twin in gradient space, and the dual cone of two groups."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from mtbench.errors import UsageError
from mtbench_baselines.dcgd import DCGD

VARIANTS = ["center", "average", "projection"]


def gradients(K, seed, d=6):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(J, **parameters):
    method = DCGD(len(J), **parameters)
    return method.weigh(J @ J.T, torch.ones(len(J)).double()) @ J


def in_gradient_space(a, b, variant):
    """The definitions, with the sums of the groups' gradients."""
    total = a + b
    if variant == "center":
        c = a / a.norm() + b / b.norm()
        return (c @ total) / (c @ c) * c
    if total @ a >= 0 and total @ b >= 0:
        return total
    across_b, across_a = a - (a @ b) / (b @ b) * b, b - (a @ b) / (a @ a) * a
    if variant == "average":
        return (across_b + across_a) / 2
    return across_b if total @ b < 0 else across_a


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("K", "first"), [(2, 1), (3, 1), (3, 2), (6, 2)])
def test_twin(K, first, variant):
    conflicts = 0
    for seed in range(30):
        J = gradients(K, seed, d=3) * torch.logspace(-1, 1, K).double()[:, None]
        a, b = J[:first].sum(0), J[first:].sum(0)
        found = direction(J, first=first, variant=variant)
        torch.testing.assert_close(found, in_gradient_space(a, b, variant))
        assert found @ a >= -1e-12 * found.norm() * a.norm()
        assert found @ b >= -1e-12 * found.norm() * b.norm()
        conflicts += bool(min((a + b) @ a, (a + b) @ b) < 0)
    assert 0 < conflicts < 30


def test_the_projection_is_on_the_dual_cone():
    for seed in range(10):
        J = gradients(2, seed, d=2) * torch.tensor([[1.0], [3.0]])
        v, _ = nnls(J.T.numpy(), -J.sum(0).numpy())
        found = direction(J, variant="projection")
        np.testing.assert_allclose(found, J.sum(0).numpy() + v @ J.numpy(), atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_opposite_groups_cancel_and_a_silent_one_is_left_out(variant):
    J = torch.tensor([[1.0, 0.0], [-3.0, 0.0]]).double()
    assert direction(J, variant=variant).norm() < 1e-12
    silent = torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double()
    assert direction(silent, variant=variant).tolist() == [1, 2]
    within = torch.tensor([[1.0, 2.0], [1.0, 0.0], [-1.0, 0.0]]).double()  # cancels within b
    assert direction(within, variant=variant).tolist() == [1, 2]
    assert direction(J * 0, variant=variant).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"first": 0}, "dcgd: first must be from 1 to 3, found 0"),
        ({"first": 4}, "dcgd: first must be from 1 to 3, found 4"),
        ({"variant": "mean"}, "dcgd: variant must be one of center, .*, found 'mean'"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=words):
        DCGD(4, **parameters)
