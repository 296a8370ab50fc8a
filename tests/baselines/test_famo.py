"""FAMO against its formulas, torchjd, and what it is for."""

import pytest
import torch

from mtbench.balancing.step import Step
from mtbench_baselines.famo import FAMO
from mtbench_baselines.si import ScaleInvariant
from tests.baselines.test_scalarizers import apply, by_autograd, close, draw

SIZES = [1, 2, 3, 5, 8, 40]


def losses_after(method, values):
    method.after_step(lambda: list(values.unbind()))


@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchjd_agrees(K, dtype):
    """Over steps of falling losses: gradients, and logits by torch's own Adam."""
    scalarization = pytest.importorskip("torchjd.scalarization")
    minima = -draw(K, 9)
    peer = scalarization.FAMO(K, minima.to(dtype), lr=0.05, weight_decay=0.02)
    ours = FAMO(K, lr=0.05, decay=0.02, minima=tuple(minima.tolist()))
    for t in range(6):
        before, after = draw(K, 2 * t, dtype), draw(K, 2 * t + 1, dtype)
        found, weights = apply(ours, before)
        torch.testing.assert_close(found, by_autograd(peer, before), rtol=1e-4, atol=1e-5)
        assert weights.sum() == pytest.approx(1)
        losses_after(ours, after)
        peer.update(after)
        torch.testing.assert_close(ours.logits.float(), peer._w.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_logits_descend_the_papers_gradient(K):
    """The gradient by autograd through the softmax; Adam's first step is its sign."""
    method = FAMO(K, decay=0.0)
    method.logits.copy_(draw(K, 5))
    before, after = draw(K, 0), draw(K, 1)
    apply(method, before)
    xi = method.logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(xi.softmax(0) @ (before / after).log(), xi)
    losses_after(method, after)
    close(method.first_moment, 0.1 * grad)
    close(method.logits, draw(K, 5) - 0.025 * grad.sign())


def test_an_objective_without_a_label_goes_on_as_if_nothing_was():
    full, missing = FAMO(2), FAMO(3)
    for t in range(5):
        for seed, act in ((2 * t, apply), (2 * t + 1, losses_after)):
            values = draw(2, seed)
            act(full, values)
            act(missing, torch.cat([values[:1], values[:1] * 0, values[1:]]))
    close(missing.logits[::2], full.logits)
    assert missing.logits[1] == missing.count[1] == 0


def test_a_loss_below_its_bound_trains_but_its_logit_stays():
    method = FAMO(2, decay=0.0)
    grad, _ = apply(method, torch.tensor([-2.0, 1.0]))
    close(grad, torch.tensor([1 / 3, 2 / 3]))
    losses_after(method, torch.tensor([-3.0, 0.5]))
    assert method.logits.tolist() == [0.0, 0.0]  # alone, the second has nobody to compare with


def test_the_graph_is_not_kept():
    x = torch.ones(2, requires_grad=True)
    method = FAMO(2)
    method.backward(Step(list(x.unbind()), shared=[x]))
    method.after_step(lambda: [x[0] * 1, x[1] * 2])
    assert not any(state.requires_grad for state in method.state_dict().values())


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-6, 1e3)])
def test_losses_fall_at_one_rate(scales):
    """x_1^4 and x_2: the gradients of their logarithms differ fourfold."""
    scale, power = torch.tensor(scales), torch.tensor([4.0, 1.0])

    def ratio_of_rates(method):
        x = torch.ones(2, requires_grad=True)

        def losses():
            return list((scale * x**power).unbind())

        for t in range(400):
            if t == 200:  # the logits have found their place
                first = torch.stack(losses()).detach()
            x.grad = None
            method.backward(Step(losses(), shared=[x]))
            with torch.no_grad():
                x -= 0.001 * x.grad / x.grad.norm()
            method.after_step(losses)
        rates = (torch.stack(losses()).detach() / first).log()
        return (rates[0] / rates[1]).item()

    assert ratio_of_rates(FAMO(2, decay=0.0, lr=0.05)) == pytest.approx(1, rel=0.1)
    assert ratio_of_rates(ScaleInvariant(2)) > 3


def test_a_step_that_changed_nothing_moves_nothing():
    """Double precision losses are compared as they are: Adam would make a step of any rounding."""
    method = FAMO(2, decay=0.0)
    losses = torch.tensor([1 / 3, 0.1], dtype=torch.float64)
    apply(method, losses)
    losses_after(method, losses)
    assert method.logits.tolist() == [0.0, 0.0]
