"""SAM-GS against a plain twin of its Algorithm 1, over several steps."""

import pytest
import torch

from mtbench.errors import UsageError
from mtbench_baselines.sam_gs import SAMGS


def draw(K, d, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(K, d, generator=generator, dtype=torch.float64)
    return J * 10.0 ** torch.linspace(0, spread, K, dtype=torch.float64)[:, None]


def twin(jacobians, gamma, beta1=0.9, beta2=0.99, eps=1e-8):
    """Algorithm 1, line by line; pairs i < j; returns the directions and whether they are equal."""
    K, d = jacobians[0].shape
    m, h, found, equalised = torch.zeros(K, d).double(), 0.0, [], []
    for t, g in enumerate(jacobians, start=1):
        norm = [row.norm().item() for row in g]
        pairs = [(i, j) for i in range(K) for j in range(i + 1, K)]
        psi = sum(2 * norm[i] * norm[j] / (norm[i] ** 2 + norm[j] ** 2) for i, j in pairs)
        psi /= len(pairs)
        m = beta1 * m + (1 - beta1) * g
        h = beta2 * h + (1 - beta2) * (1 - psi) ** 2 + eps
        m_hat, h_hat = m / (1 - beta1**t), h / (1 - beta2**t)
        equalised.append(psi < gamma)
        if psi < gamma:
            found.append(sum(sum(norm) / K / norm[k] * g[k] for k in range(K)))
        else:
            found.append(sum(m_hat[k].abs() / (h_hat**0.5 + eps) * g[k] for k in range(K)))
    return found, equalised


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
def test_is_algorithm_1(K, spread):
    jacobians = [draw(K, 30, seed, spread * (seed % 2)) for seed in range(6)]
    expected, equalised = twin(jacobians, gamma=0.4)
    method = SAMGS(K, gamma=0.4)
    for J, direction in zip(jacobians, expected, strict=True):
        torch.testing.assert_close(method.direct(J, torch.ones(K)), direction)
    assert any(equalised) == (spread == 6.0 or (spread == 1.0 and K == 2))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale(scale):
    """Of degree one where norms are equalised, of degree two where they are alike."""
    for spread, degree in ((0.0, 2), (6.0, 1)):
        J = draw(3, 20, 1, spread)
        reference = SAMGS(3, gamma=0.5).direct(J, torch.ones(3))
        found = SAMGS(3, gamma=0.5).direct((J * scale).float(), torch.ones(3))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double() / scale**degree, reference, rtol=1e-4, atol=1e-4)


def test_an_objective_without_gradient_keeps_its_moment():
    J = draw(3, 10, 2, 0.0)
    gap = J.clone()
    gap[1] = 0
    method = SAMGS(3)
    method.direct(J, torch.ones(3))
    before = method.tracked.clone()
    found = method.direct(gap, torch.ones(3))
    assert method.tracked[1].equal(before[1])
    assert method.steps.tolist() == [2, 1, 2]
    assert found.isfinite().all()
    nothing = method.direct(torch.zeros(3, 10).double(), torch.ones(3))
    assert nothing.equal(torch.zeros(10).double())


def test_state_of_a_fresh_object():
    J = draw(3, 10, 3, 0.0)
    method, fresh = SAMGS(3), SAMGS(3)
    method.direct(J, torch.ones(3))
    fresh.load_state_dict(method.state_dict())
    assert fresh.direct(J * 2, torch.ones(3)).equal(method.direct(J * 2, torch.ones(3)))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1, found 1.0"),
        ({"beta2": -0.1}, "beta2 must be at least 0 and below 1, found -0.1"),
        ({"gamma": 2.0}, r"gamma must be in \[0, 1\], found 2.0"),
    ],
)
def test_refuses(parameters, words):
    with pytest.raises(UsageError, match=f"sam_gs: {words}"):
        SAMGS(2, **parameters)
