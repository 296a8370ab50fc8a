"""imgrad: scipy on the authors' objective, and where it is cagrad."""

import numpy as np
import pytest
import scipy.optimize
import torch

from mtbench.errors import UsageError
from mtbench_baselines.cagrad import CAGrad
from mtbench_baselines.imgrad import IMGrad
from mtbench_baselines.mgda import MGDA


def gradients(K, seed, d=6):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(method, J):
    return method.weights(J @ J.T, torch.ones(len(J)).double()) @ J


def cosine(J):
    m = direction(MGDA(len(J)), J)
    return torch.cosine_similarity(m, J.mean(0), dim=0).item()


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("K", [2, 3, 5])
def test_scipy(K, c):
    """The objective over w as in the authors' code, here solved from several starts."""
    for seed in range(5):
        J = gradients(K, seed, d=4) * torch.logspace(0, 0.5, K).double()[:, None]
        s, rows = cosine(J), J.numpy()
        mean = rows.mean(0)
        length = c * np.linalg.norm(mean)

        def objective(w, s=s, rows=rows, mean=mean, length=length):
            combined = w @ rows
            return (1.5 - s) * combined @ mean + s * length * np.linalg.norm(combined)

        w = min(
            (
                scipy.optimize.minimize(
                    objective,
                    start,
                    bounds=[(0, 1)] * K,
                    constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
                    tol=1e-14,
                )
                for start in [np.full(K, 1 / K), *np.eye(K)]
            ),
            key=lambda solved: solved.fun,
        ).x
        expected = mean + length * (w @ rows) / np.linalg.norm(w @ rows)
        found = direction(IMGrad(K, c=c), J) * (1 + c * c) / K
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.linalg.norm(mean))


def test_at_three_quarters_it_is_cagrad():
    """Unit gradients at a right angle, one of them k times as long: s falls with k."""

    def at(k):
        return torch.tensor([[1.0, 0.0], [0.0, k]]).double()

    k = scipy.optimize.brentq(lambda k: cosine(at(k)) - 0.75, 1.0, 10.0)
    torch.testing.assert_close(direction(IMGrad(2), at(k)), direction(CAGrad(2), at(k)))
    J = gradients(3, 0)
    assert not torch.allclose(direction(IMGrad(3), J), direction(CAGrad(3), J))


@pytest.mark.parametrize("c", [0.0, 0.4])
def test_without_a_common_descent_direction_the_worst_off_is_served(c):
    """Opposite gradients: s = 0, and the shorter one alone is added."""
    J = torch.tensor([[1.0, 0.0], [-3.0, 0.0]]).double()
    found = direction(IMGrad(2, c=c), J) * (1 + c * c) / 2
    torch.testing.assert_close(found, torch.tensor([-1 + c, 0.0]).double())


def test_no_length_is_the_sum():
    J = gradients(4, 0)
    torch.testing.assert_close(direction(IMGrad(4, c=0.0), J), J.sum(0))


def test_refuses():
    with pytest.raises(UsageError, match="imgrad: c must be finite and at least 0, found -1"):
        IMGrad(2, c=-1.0)
