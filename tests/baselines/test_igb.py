"""IGB v1 against its formula by autograd."""

import pytest
import torch

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench_baselines.igb import ImprovableGapBalancing
from mtbench_baselines.si import ScaleInvariant


def run(method, losses):
    """One step on loss values; returns the gradient at each loss."""
    x = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    method.backward(Step(list(x.unbind()), shared=[x]))
    return x.grad


@pytest.mark.parametrize("K", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("base_epoch", [0, 1])
def test_gradient_is_that_of_the_weighted_logarithms(K, base_epoch):
    generator = torch.Generator().manual_seed(K)
    epochs = torch.rand(4, 3, K, generator=generator) * 3 + 0.1
    method = ImprovableGapBalancing(K, base_epoch=base_epoch)
    base = epochs[base_epoch].double().mean(0)
    for e, epoch in enumerate(epochs):
        for losses in epoch:
            leaf = losses.double().requires_grad_()
            w = K * (leaf.detach() / base).softmax(0) if e > base_epoch else torch.ones(K)
            (w * leaf.log()).sum().backward()
            torch.testing.assert_close(run(method, losses.tolist()), leaf.grad)
        method.after_epoch()


def test_the_loss_that_has_improved_least_weighs_most():
    method = ImprovableGapBalancing(2, base_epoch=0)
    run(method, [1.0, 1.0])
    method.after_epoch()
    gradient = run(method, [0.1, 0.9]) * torch.tensor([0.1, 0.9])
    assert gradient[1] > gradient[0]
    torch.testing.assert_close(gradient.sum(), torch.tensor(2.0).double())


def test_a_loop_without_epochs_is_si():
    method = ImprovableGapBalancing(2)
    for losses in ([3.0, 0.2], [1.0, 7.0]):
        assert run(method, losses).equal(run(ScaleInvariant(2), losses))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_do_not_matter(scale):
    ends = []
    for s in (1.0, scale):
        method = ImprovableGapBalancing(2, base_epoch=0)
        run(method, [2.0 * s, 3.0])
        method.after_epoch()
        ends.append(run(method, [1.0 * s, 4.0]) * torch.tensor([s, 1.0]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=0)


def test_a_missing_label_is_left_out():
    method = ImprovableGapBalancing(3, base_epoch=0)
    run(method, [2.0, 0.0, 4.0])
    run(method, [4.0, 0.0, 4.0])
    method.after_epoch()
    assert method.base.tolist() == [3, 0, 4]
    gradient = run(method, [3.0, 5.0, 0.0])  # ratios 1, unknown (1), missing
    torch.testing.assert_close(gradient, torch.tensor([1 / 3, 1 / 5, 0]).double())
    method.after_epoch()
    assert method.base.tolist() == [3, 5, 4]
    assert run(method, [0.0, 0.0, 0.0]).isfinite().all()


def test_refuses():
    with pytest.raises(UsageError, match="igb: base_epoch must be at least 0, found -1"):
        ImprovableGapBalancing(2, base_epoch=-1)
