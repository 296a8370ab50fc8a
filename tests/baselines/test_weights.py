"""ls, uw: fixed and learnt weights."""

import optuna
import pytest
import torch

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.ls import LinearScalarization
from mtbench_baselines.uw import UncertaintyWeighting


def step():
    x = torch.tensor([2.0, 5.0], requires_grad=True)
    return x, Step([x[0] ** 2, 3 * x[1]], shared=[x])  # losses 4, 15; gradients (4, 0), (0, 3)


def test_ls():
    x, forward = step()
    weights = LinearScalarization(2, weights=(0.5, 2.0)).backward(forward)
    assert weights.tolist() == [0.5, 2.0]
    assert x.grad.tolist() == [2.0, 6.0]


def test_ls_default_is_equal_weights():
    x, forward = step()
    LinearScalarization(2).backward(forward)
    assert x.grad.tolist() == [4.0, 3.0]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((1.0,), r"one number per objective \(2\), .*, found \(1.0,\)"),
        ((1.0, -1.0), "at least 0"),
        ((1.0, float("nan")), "finite"),
        ((float("inf"), 1.0), "finite"),
        ((0.0, 0.0), "not all be 0"),
    ],
)
def test_ls_refuses(weights, words):
    with pytest.raises(UsageError, match=f"ls: weights.*{words}"):
        LinearScalarization(2, weights=weights)


@pytest.mark.parametrize("K", [2, 3])
def test_ls_search_space_covers_the_simplex(K):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    shares = []
    for _ in range(200):
        weights = LinearScalarization.suggest(study.ask(), K)["weights"]
        assert sum(weights) == pytest.approx(K)
        LinearScalarization(K, weights=weights)
        shares.append(torch.tensor(weights) / K)
    shares = torch.stack(shares)
    assert (shares.min(0).values < 0.05).all()
    assert (shares.max(0).values > 0.8).all()
    torch.testing.assert_close(shares.mean(0), torch.full((K,), 1 / K), atol=0.05, rtol=0)


def test_uw_formula():
    x, forward = step()
    method = UncertaintyWeighting(2)
    method.log_variance.data = torch.tensor([0.5, -1.0])
    weights = method.backward(forward)
    torch.testing.assert_close(weights, torch.exp(torch.tensor([-0.5, 1.0])))
    torch.testing.assert_close(x.grad, weights * torch.tensor([4.0, 3.0]))
    torch.testing.assert_close(method.log_variance.grad, 0.5 - weights * torch.tensor([4.0, 15.0]))


def test_uw_settles_at_one_over_twice_the_loss():
    method = UncertaintyWeighting(2)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        weights = method.backward(step()[1])
        optimizer.step()
    torch.testing.assert_close(weights, torch.tensor([1 / 8, 1 / 30]), rtol=2e-2, atol=0)


def test_uw_leaves_a_missing_label_alone():
    x, forward = step()
    method = UncertaintyWeighting(2)
    method.backward(Step([forward.losses[0] * 0, forward.losses[1]], shared=[x]))
    assert method.log_variance.grad.tolist() == [0.0, -14.5]
