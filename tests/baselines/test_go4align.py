"""GO4Align: k-means on a line against all partitions and scipy; its weights by hand."""

from itertools import product

import pytest
import torch
from scipy.cluster.vq import kmeans

from mtbench_baselines.go4align import GO4Align, group_means
from tests.baselines.test_scalarizers import apply, close, draw


def cost(values, means):
    return (values - means).square().sum()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_group_means_are_the_best_of_all_partitions(n, groups):
    for seed in range(3):
        values = draw(n, seed)
        found = group_means(values, groups)
        assert len(found.unique()) == min(n, groups)
        least = min(
            sum(
                float((part - part.mean()).square().sum())
                for g in range(groups)
                if len(part := values[torch.tensor(labels) == g])
            )
            for labels in product(range(groups), repeat=n)
        )
        assert cost(values, found) == pytest.approx(least, abs=1e-12)
        for mean in found.unique():  # each is the mean of those that have it
            assert mean == pytest.approx(values[found == mean].mean().item())


@pytest.mark.parametrize(("n", "groups"), [(8, 2), (40, 2), (40, 3)])
def test_group_means_against_scipy(n, groups):
    values = draw(n, n)
    book, _ = kmeans(values.numpy()[:, None], groups, iter=50, rng=0)
    nearest = (values[:, None] - torch.from_numpy(book).T).square().min(1).values.sum()
    assert cost(values, group_means(values, groups)) <= nearest + 1e-12


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_group_means_at_any_scale(scale):
    values = torch.tensor([1.0, 1.1, 5.0, 5.2, 1.0]).double()
    expected = torch.tensor([3.1 / 3, 3.1 / 3, 5.1, 5.1, 3.1 / 3]).double()
    torch.testing.assert_close(group_means(values * scale, 2), expected * scale)
    torch.testing.assert_close(group_means(values * scale, 9), values * scale)
    equal = torch.full((4,), 0.3).double() * scale
    torch.testing.assert_close(group_means(equal, 2), equal)


def test_shares_remember_all_losses():
    """p is a softmax of minus eta times the sum of the losses so far."""
    method = GO4Align(3, groups=3, step_size=0.2)
    total = torch.zeros(3).double()
    for seed in range(4):
        L = draw(3, seed)
        total += L
        grad, _ = apply(method, L)
        close(grad, (-0.2 * total).softmax(0) * L.sum() / L)


def test_what_others_lose_is_no_gain_without_a_label():
    method = GO4Align(3, step_size=1.0)
    for _ in range(4):
        apply(method, torch.tensor([1.0, 2.0, 0.0]).double())
        shares = method.log_shares.softmax(0)
        assert shares[2] == pytest.approx(1 / 3)
    assert shares[1] < shares[0]


def test_one_group_is_equal_weights():
    grad, _ = apply(GO4Align(5, groups=1), draw(5))
    close(grad / grad[0], torch.ones(5))
