"""CoV-weighting against a twin that keeps all losses."""

import numpy as np
import pytest
import torch

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.cov_weighting import CoVWeighting


def weights_of(method, losses):
    return method.objective(Step(list(torch.as_tensor(losses)), shared=[]))[1].numpy()


def twin(history, t):
    """The weights of step t from the losses (T, K) of the steps before it."""
    if t < 2:
        return np.full(history.shape[1], 1 / history.shape[1])
    ratios = [np.ones(history.shape[1])]
    ratios += [history[s] / history[:s].mean(0) for s in range(1, t)]
    variation = np.sqrt(np.var(ratios, axis=0) + 1e-8) / np.mean(ratios, axis=0)
    return variation / variation.sum()


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_weights_are_the_papers(K, scale):
    history = np.random.default_rng(K).uniform(0.5, 3.0, (12, K)) * np.linspace(1, 9, K) * scale
    history = history.astype(np.float32).astype(float)  # a step's values are float32
    method = CoVWeighting(K)
    for t in range(12):
        np.testing.assert_allclose(weights_of(method, history[t]), twin(history, t), rtol=1e-9)


def test_moving_average():
    """As in the authors' code: means decay, the squared deviations are summed."""
    history = np.random.default_rng(0).uniform(0.5, 3.0, (8, 2)).astype(np.float32).astype(float)
    method = CoVWeighting(2, decay=0.7)
    mean_L = mean_l = spread = None
    for t, losses in enumerate(history):
        if t < 2:
            expected = np.full(2, 0.5)
        else:
            variation = np.sqrt(spread / t + 1e-8) / mean_l
            expected = variation / variation.sum()
        np.testing.assert_allclose(weights_of(method, losses), expected, rtol=1e-9)
        ratio = np.ones(2) if t == 0 else losses / mean_L
        new = ratio if t == 0 else 0.7 * mean_l + 0.3 * ratio
        spread = np.zeros(2) if t == 0 else spread + (ratio - mean_l) * (ratio - new)
        mean_l, mean_L = new, losses if t == 0 else 0.7 * mean_L + 0.3 * losses


def test_an_objective_without_label_keeps_its_statistics():
    history = np.random.default_rng(1).uniform(0.5, 3.0, (6, 2))
    gapped, whole = CoVWeighting(2), CoVWeighting(2)
    for losses in history:
        weights_of(whole, losses)
        weights_of(gapped, losses)
        missing = weights_of(gapped, [0.0, losses[1] * 1.1])
        assert missing[0] == 0
        assert missing[1] == 1
    assert gapped.count.tolist() == [6, 12]
    assert gapped.mean_ratio[0] == whole.mean_ratio[0]
    assert gapped.spread[0] == whole.spread[0]


def test_a_loss_that_stands_still_loses_its_weight():
    method = CoVWeighting(2)
    for t in range(50):
        weights = weights_of(method, [1.0, 1 / (t + 1)])
    assert weights[1] > 0.999


def test_negative_losses_have_weights_too():
    method = CoVWeighting(2)
    for t in range(5):
        weights = weights_of(method, [-1.0 - t, 2.0 * (-1) ** t])
        assert (weights >= 0).all()
        assert np.isfinite(weights).all()


def test_refuses():
    words = "cov_weighting: decay must be at least 0 and below 1, found 1.0"
    with pytest.raises(UsageError, match=words):
        CoVWeighting(2, decay=1.0)
