"""IMTL: both halves against their definitions, torchjd and LibMTL."""

import pytest
import torch
from torch import nn

from mtbench.balancing.step import Step
from mtbench_baselines.imtl import IMTL
from tests.baselines import libmtl_shim


def gradients(K, seed, d=60):
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled(K, seed):
    method = IMTL(K)
    method.log_scale.data = torch.linspace(-2, 2, K) * (seed + 1) / 3
    return method


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_equal_projections_of_the_scaled_gradients(K, unit):
    for seed in range(3):
        J = gradients(K, seed) * unit ** torch.linspace(0, 1, K).double()[:, None]
        method = scaled(K, seed)
        scales = method.log_scale.detach().double().exp()
        weights = method.weights(J @ J.T, torch.ones(K))
        d = weights @ J
        projections = J @ d / J.norm(dim=1)
        torch.testing.assert_close(projections, projections.mean().expand(K), rtol=1e-5, atol=0)
        alpha = weights / scales
        if alpha.sum() != pytest.approx(1):  # the solver's bound on a sum near 0, or below it
            assert alpha.abs().sum() == pytest.approx(10)
        plain = IMTL(K).weights(J @ J.T, torch.ones(K)) @ J
        torch.testing.assert_close(d / d.norm(), plain / plain.norm())


@pytest.mark.parametrize("K", [2, 3, 5])
def test_torchjd_agrees(K):
    peer = pytest.importorskip("torchjd.aggregation").IMTLG()
    for seed in range(3):
        J = gradients(K, seed)
        method = scaled(K, seed)
        scales = method.log_scale.detach().double().exp()
        expected = peer(scales[:, None] * J)
        torch.testing.assert_close(method.weights(J @ J.T, torch.ones(K)) @ J, expected)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_libmtl_agrees(K):
    """Encoder, heads and scales."""
    torch.manual_seed(K)
    encoder, heads = nn.Linear(20, 10), nn.ModuleList(nn.Linear(10, 1) for _ in range(K))
    x = torch.randn(30, 20)

    def forward():
        z = torch.tanh(encoder(x))
        return z, [(i + 1) * (head(z) - 1).square().mean() for i, head in enumerate(heads)]

    shared, own = list(encoder.parameters()), list(heads.parameters())
    ours = scaled(K, 0)
    theirs = libmtl_shim.method("IMTL", K, shared)
    theirs.loss_scale.data.copy_(ours.log_scale.data)
    theirs.backward(torch.stack(forward()[1]))
    expected = [p.grad.clone() for p in (*shared, *own, theirs.loss_scale)]
    for p in (*shared, *own):
        p.grad = None
    z, losses = forward()
    ours.backward(Step(losses, features=z))
    for p, grad in zip((*shared, *own, ours.log_scale), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("space", ["shared", "features"])
def test_spaces_agree_where_the_encoder_is_an_isometry(space):
    x = nn.Parameter(torch.tensor([[1.0, 2.0, -1.0]]))
    method = IMTL(3, space=space)
    z = x.flip(1) * 1.0
    matrix = gradients(3, 1, d=3).float()
    weights = method.backward(Step(list((matrix @ z[0]).square()), features=z))
    J = 2 * (matrix @ z[0].detach())[:, None] * matrix
    d = weights.float() @ J
    torch.testing.assert_close(x.grad[0].flip(0), d, rtol=1e-3, atol=1e-4)
    projections = J @ d / J.norm(dim=1)
    torch.testing.assert_close(projections, projections[0].expand(3), rtol=1e-3, atol=1e-4)


def test_missing_label():
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    method = IMTL(3)
    weights = method.backward(Step([x[0], x[0] * 0, 2 * x[1]], shared=[x]))
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 0, 1 / 3]).double())
    assert method.log_scale.grad.tolist() == [0.0, 0.0, 3.0]


def test_gradients_of_the_scales_accumulate():
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    method = IMTL(2)
    for _ in range(2):
        method.backward(Step([3 * x[0], x[1]], shared=[x]))
    assert method.log_scale.grad.tolist() == [4.0, 2.0]
