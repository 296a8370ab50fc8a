"""gradcraft: a twin in gradient space."""

import pytest
import torch

from mtbench.errors import UsageError
from mtbench_baselines.gradcraft import GradCraft
from mtbench_baselines.pcgrad import PCGrad

ONES = torch.ones(4).double()


def gradients(K, seed, d=8):
    J = torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return J * torch.logspace(-1, 1, K).double()[:, None]


def changed(J, norms, relax, margin):
    """Return the gradients, brought near one length, and free of conflict, as in the paper."""
    near = torch.stack(
        [relax * g * norms.max() / n + (1 - relax) * g for g, n in zip(J, norms, strict=True)]
    )
    free = []
    for g in near:
        G = near[near @ g < 0]
        if len(G):
            goal = margin * g.norm() * G.norm(dim=1) - G @ g
            free.append(g + torch.linalg.solve(G @ G.T, goal) @ G)
        else:
            free.append(g)
    return near, torch.stack(free)


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("relax", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("K", [1, 2, 4, 6])
def test_twin_over_several_steps(K, relax, margin):
    method, norms = GradCraft(K, relax=relax, margin=margin, beta=0.7), torch.zeros(K).double()
    for seed in range(6):
        J = gradients(K, seed)
        norms = 0.7 * norms + 0.3 * J.norm(dim=1)
        _, free = changed(J, norms, relax, margin)
        found = method.weights(J @ J.T, torch.ones(K).double()) @ J
        torch.testing.assert_close(found, free.mean(0))


def test_all_conflicts_are_gone_at_once():
    """PCGrad's projections, one after the other, leave some."""
    for seed in range(5):
        J = gradients(5, seed)
        near, free = changed(J, J.norm(dim=1), 1.0, 0.0)
        before, after = near @ near.T, free @ near.T
        assert (after[before < 0].abs() < 1e-10).all()


def test_two_objectives_are_half_of_pcgrad():
    J = torch.tensor([[1.0, 0.0], [-1.0, 2.0]]).double()
    found = GradCraft(2, relax=0.0).weights(J @ J.T, ONES[:2])
    torch.testing.assert_close(found, PCGrad(2).weights(J @ J.T, ONES[:2]) / 2)


def test_dependent_conflicts_have_a_least_squares_solution():
    """The second gradient twice: what one of them asks for, both do."""
    J = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [-1.0, 2.0]]).double()
    found = GradCraft(3, relax=0.0).weights(J @ J.T, ONES[:3]) @ J
    free = torch.tensor([[0.8, 0.4], [0.0, 2.0], [0.0, 2.0]]).double()
    torch.testing.assert_close(found, free.mean(0))


def test_a_missing_label_leaves_its_norm_alone():
    J = gradients(4, 0)
    method, other = GradCraft(4, beta=0.9), GradCraft(3, beta=0.9)
    method.weights(J @ J.T, ONES)
    left = [0, 2, 3]
    other.weights((J @ J.T)[left][:, left], ONES[left])
    before = method.norms.clone()
    J = gradients(4, 1)
    J[1] = 0
    weights = method.weights(J @ J.T, ONES)
    assert weights[1] == 0
    assert method.norms[1] == before[1]
    torch.testing.assert_close(weights[left], other.weights((J @ J.T)[left][:, left], ONES[left]))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"relax": 1.1}, r"gradcraft: relax must be in \[0, 1\], found 1.1"),
        ({"margin": 1.0}, "gradcraft: margin must be at least 0 and below 1, found 1.0"),
        ({"beta": 1.0}, "gradcraft: beta must be at least 0 and below 1, found 1.0"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=words):
        GradCraft(2, **parameters)
