"""pivrg: the equation by other means, and the shares by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from mtbench import Judged
from mtbench.errors import UsageError
from mtbench_baselines.fairgrad import FairGrad
from mtbench_baselines.pivrg import PIVRG
from tests.training.test_bilevel import train


def gradients(K, seed, d=20):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def judged(objective, value, higher=False, primary=True):
    return Judged(f"m{value}", value, objective, higher, primary)


def after_an_epoch(values, **parameters):
    method = PIVRG(len(values), max_norm=0.0, **parameters)
    method.after_evaluation([judged(k, value) for k, value in enumerate(values)])
    return method


@pytest.mark.parametrize("K", [2, 3, 5])
def test_equation(K):
    method = after_an_epoch([1.0 + k for k in range(K)], single_task=(1.0,) * K)
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
    method = after_an_epoch([1.0, 2.0, 3.0, 4.0])
    J = gradients(4, 0)
    expected = FairGrad(4, max_norm=0.0).weights(J @ J.T, torch.ones(4))
    torch.testing.assert_close(method.weights(J @ J.T, torch.ones(4)), expected)


def test_shares():
    """Drops of 50 and -50 %, of 200, and of 50 %: means 0, 200, 50; T = 200 / log 4."""
    method = PIVRG(3, single_task=(2.0, 0.5, -1.0, 8.0), bound=4.0)
    metrics = [
        judged(0, 3.0), judged(0, 0.75, higher=True), judged(1, 1.0), judged(2, 4.0, higher=True),
        judged(2, 99.0, primary=False), judged(None, 99.0),
    ]  # fmt: skip
    method.after_evaluation(metrics)
    raw = torch.tensor([1.0, 4.0, 4.0**0.25], dtype=torch.float64)
    torch.testing.assert_close(method.omega, 3 * raw / raw.sum())


def test_near_equal_drops_are_not_blown_up():
    """A spread of 1 % stays below the least temperature, 10 %."""
    method = after_an_epoch([1.01, 1.0], single_task=(1.0, 1.0))
    torch.testing.assert_close(
        method.omega, 2 * torch.softmax(torch.tensor([0.1, 0.0]), 0).double()
    )


def test_an_undefined_metric_is_left_out_and_the_last_one_changes_nothing():
    method = PIVRG(2, single_task=(1.0, 1.0, 1.0))
    method.after_evaluation([judged(0, 2.0), judged(0, math.nan), judged(1, 1.0)])
    before = method.omega.clone()
    assert before[0] > before[1]
    method.after_evaluation([judged(0, 9.0), judged(0, 9.0), judged(1, math.nan)])
    assert method.omega.equal(before)


def test_wants_a_reference_for_each_metric():
    with pytest.raises(
        UsageError, match=r"each primary metric \(m1.0, m2.0\), found \(1.0, 1.0, 2"
    ):
        after_an_epoch([1.0, 2.0], single_task=(1.0, 1.0, 2.0))


def test_wants_a_metric_of_each_objective():
    """Without one, its share would stand still, and with it all others."""
    method = PIVRG(3, single_task=(1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match=r"pivrg: every objective .* these have none: 1; leave"):
        method.after_evaluation([judged(0, 2.0), judged(1, 3.0, primary=False), judged(2, 1.0)])


@pytest.mark.parametrize("number", [2, -1])
def test_wants_metrics_of_objectives_that_there_are(number):
    method = PIVRG(2, single_task=(1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match=f"numbered from 0 to 1, and metrics judge {number}: give"):
        method.after_evaluation([judged(0, 2.0), judged(1, 3.0), judged(number, 1.0)])


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ([judged(0, 2.0), 0.2], 0.2), ({"a": 0.9}, {"a": 0.9}), (judged(0, 2.0), "m2.0"),
        (0.9, 0.9), (None, None),
    ],
)  # fmt: skip
def test_wants_metrics_that_say_what_they_judge(metrics, found):
    with pytest.raises(UsageError, match=r"takes a sequence of mtbench\.Judged, ") as told:
        PIVRG(2).after_evaluation(metrics)
    assert str(told.value).endswith(f"found {found!r}")


def test_metrics_reach_it_in_training(tiny, tmp_path):
    run = train(tiny, tmp_path, "pivrg", single_task="1e-3,1.0")
    assert run.load("checkpoint.pt")["balancer"]["omega"].tolist() == pytest.approx([4 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"single_task": (1.0, 0.0)}, "single_task must be finite and not 0"),
        ({"single_task": (1.0,)}, r"single_task must hold .* each of 2 objectives, found \(1.0,\)"),
        ({"bound": 1.0}, "bound must be finite and above 1, found 1.0"),
        ({"min_temperature": 0.0}, "min_temperature must be finite and above 0, found 0.0"),
        ({"max_norm": math.inf}, "max_norm must be finite and at least 0, found inf"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"pivrg: {words}"):
        PIVRG(2, **parameters)
