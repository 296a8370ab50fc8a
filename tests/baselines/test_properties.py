"""What torchjd's tests state of its aggregators, asked of the methods of the same names here.

Its matrices are restated by what they are: of a rank, at a scale, and stationary or not.
"""

import pytest
import torch
from torch.testing import assert_close

from mtbench import combine

SHAPES = [(1, 1, 1), (4, 3, 1), (4, 3, 2), (4, 3, 3), (9, 11, 5), (9, 11, 9)]
"""K, d and the rank."""
DEPENDENT = [(20, 10, 10), (20, 10, 5), (20, 10, 1), (20, 100, 1), (20, 100, 19)]
SCALES = [1e-10, 1e3, 1e5, 1e10, 1e15]


def of_rank(K, d, rank, seed, left=None):
    """J of a rank, whose first left singular vectors may be given."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.zeros(K, 0) if left is None else left
    rest = torch.randn(K, K - first.shape[1], generator=draw)
    U = torch.hstack([first, torch.linalg.qr(rest - first @ (first.T @ rest))[0]])
    V = torch.linalg.qr(torch.randn(d, d, generator=draw))[0]
    return (U[:, :rank] * torch.randn(rank, generator=draw).abs()) @ V[:rank]


def positive(K, seed):
    """A unit vector, all of it above 0."""
    u = torch.randn(K, 1, generator=torch.Generator().manual_seed(seed)).abs()
    return u / u.norm()


def strongly_stationary(K, d, rank, seed):
    """Some 0 < u has u J = 0."""
    u = positive(K, seed)
    return of_rank(K, d, rank + 1, seed, u) - u @ (u.T @ of_rank(K, d, rank + 1, seed, u))


def weakly_stationary(K, d, rank, seed):
    """Some 0 <= u has u J = 0, which is 0 in the second half, and none above 0 has."""
    whole = positive(K, seed)
    u, v = torch.zeros(K, 1), torch.zeros(K, 1)
    u[: K // 2], v[K // 2 :] = whole[: K // 2], whole[K // 2 :]
    u, v = u / u.norm(), v / v.norm()
    J = of_rank(K, d, min(rank + 1, d, K), seed, torch.hstack([v, u]))
    return J - u @ (u.T @ J)


def descendable(K, d, rank, seed):
    """No 0 <= u other than 0 has u J = 0."""
    return of_rank(K, d, rank, seed, positive(K, seed))


PLAIN = [of_rank(*shape, seed) for seed, shape in enumerate(SHAPES)]
SCALED = [scale * J for scale in SCALES for J in PLAIN]
MOVING = [make(*s, i) for make in (weakly_stationary, descendable) for i, s in enumerate(DEPENDENT)]
STILL = [strongly_stationary(*shape, seed) for seed, shape in enumerate(DEPENDENT[1:])]
TYPICAL = [torch.zeros(1, 1), torch.zeros(4, 3), torch.zeros(9, 11), *PLAIN, *STILL, *MOVING]

LINEAR = ("constant", "config", "sum", "upgrad")
NON_CONFLICTING = ("cagrad, c = 1", "cagrad, c = 2", "dualproj", "fairgrad", "mgda", "upgrad")
SYMMETRIC = (
    *("aligned_mtl", "config", "dualproj", "imtl_g", "mgda", "sum"),
    *("trimmed_mean", "upgrad"),
)
STATIONARY = ("constant", "dualproj", "rgw", "sum", "upgrad")
METHODS = {
    "aligned_mtl": ("aligned_mtl", {}),
    "aligned_mtl, median": ("aligned_mtl", {"scale": "median"}),
    "aligned_mtl, rmse": ("aligned_mtl", {"scale": "rmse"}),
    "cagrad": ("cagrad", {"c": 0.5}),
    "cagrad, c = 1": ("cagrad", {"c": 1.0}),
    "cagrad, c = 2": ("cagrad", {"c": 2.0}),
    "config": ("config", {}),
    "constant": ("ls", {"weights": lambda K: tuple(map(float, range(1, K + 1)))}),
    "dualproj": ("dualproj", {}),
    "fairgrad": ("fairgrad", {"alpha": 0.1}),
    "graddrop": ("graddrop", {}),
    "gradvac": ("gradvac", {"beta": 0.5}),
    "imtl_g": ("imtl_g", {}),
    "krum": ("krum", {"byzantine": lambda K: int(K >= 5)}),
    "mgda": ("mgda", {}),
    "moco": ("moco", {}),
    "nash_mtl": ("nash_mtl", {}),
    "pcd": ("pcd", {}),
    "pcgrad": ("pcgrad", {}),
    "rgw": ("rgw", {}),
    "sum": ("ew", {}),
    "trimmed_mean": ("trimmed_mean", {"trim": lambda K: 1.001 / K if K > 2 else 0.0}),
    "upgrad": ("upgrad", {}),
}


def direction(label, J):
    name, given = METHODS[label]
    return combine(name, J, **{k: v(len(J)) if callable(v) else v for k, v in given.items()})


@pytest.mark.parametrize("label", METHODS)
def test_finite_at_every_scale_and_rank(label):
    for J in (*SCALED, *TYPICAL):
        found = direction(label, J)
        assert found.shape == J.shape[1:]
        assert found.isfinite().all()


@pytest.mark.parametrize("label", NON_CONFLICTING)
def test_no_objective_grows(label):
    for J in TYPICAL:
        falls = J @ direction(label, J)
        assert_close(falls.clamp(min=0).norm(), falls.norm(), rtol=4e-4, atol=4e-4)


@pytest.mark.parametrize("label", SYMMETRIC)
def test_order_does_not_matter(label):
    for seed, J in enumerate(TYPICAL):
        order = torch.randperm(len(J), generator=torch.Generator().manual_seed(seed))
        # Where gradients nearly cancel, exact weights are large, and float32 sums round.
        assert_close(direction(label, J[order]), direction(label, J), rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("label", LINEAR)
def test_linear_in_the_gradients_lengths(label):
    for seed, J in enumerate(TYPICAL):
        draw = torch.Generator().manual_seed(seed)
        (a, b), c, d = torch.rand(2, generator=draw), *torch.rand(2, len(J), 1, generator=draw)
        whole = direction(label, (a * c + b * d) * J)
        parts = a * direction(label, c * J) + b * direction(label, d * J)
        assert_close(whole, parts, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("label", STATIONARY)
def test_still_only_where_it_may_be(label):
    for J in MOVING:
        assert direction(label, J).norm() > 3e-3


@pytest.mark.parametrize("d", [5, 7, 27, 102, 1200])
def test_pcgrad_is_upgrad_of_two(d):
    J = torch.randn(2, d, generator=torch.Generator().manual_seed(d))
    assert_close(combine("pcgrad", J), 2 * combine("upgrad", J), rtol=4e-4, atol=4e-4)


@pytest.mark.parametrize(
    ("name", "given", "J", "expected"),
    [
        ("aligned_mtl", {}, "two", [0.4267, 1.9345, 1.9345]),  # preference 1, not 1/K
        ("cagrad", {"c": 0.5}, "two", [0.2936, 1.9265, 1.9265]),  # K / (1 + c^2) times
        ("config", {}, "two", [0.1588, 2.0706, 2.0706]),
        ("ls", {"weights": (1.0, 2.0)}, "two", [8.0, 3.0, 3.0]),
        ("dualproj", {}, "two", [5 / 9, 10 / 9, 10 / 9]),  # theirs, regularised: 0.5563, 1.1109
        ("ew", {}, "two", [2.0, 2.0, 2.0]),
        ("gradvac", {"beta": 0.5}, "two", [0.5848, 3.8012, 3.8012]),
        ("imtl_g", {}, "two", [0.0767, 1.0, 1.0]),
        ("krum", {"byzantine": 1, "selected": 4}, "outlier", [1.25, 0.75, 1.5]),
        ("mgda", {}, "two", [0.0, 1.0, 1.0]),
        ("nash_mtl", {}, "two", [0.0542, 0.7061, 0.7061]),
        ("pcgrad", {}, "two", [0.5848, 3.8012, 3.8012]),
        ("trimmed_mean", {"trim": 0.25}, "huge", [1.5, 2.5]),
        ("upgrad", {}, "two", [5 / 17.1, 32.5 / 17.1, 32.5 / 17.1]),  # theirs: 0.2929, 1.9004
    ],
)
def test_values(name, given, J, expected):
    matrix = {
        "two": [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]],
        "outlier": [
            *([1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [75.0, -666.0, 23.0]),
            *([1.0, 2.0, 3.0], [2.0, 0.0, 1.0]),
        ],
        "huge": [[1e11, 3.0], [1.0, -1e11], [-1e10, 1e10], [2.0, 2.0]],
    }[J]
    found = combine(name, torch.tensor(matrix), **given)
    assert_close(found, torch.tensor(expected), rtol=0, atol=2e-4)
