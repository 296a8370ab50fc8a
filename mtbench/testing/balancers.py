"""The conformance suite of balancing methods.

Subclass it and name the method; the class's name begins with ``Test`` so that pytest collects it::

    class TestMine(BalancerContract):
        @pytest.fixture
        def make(self):
            return Mine
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.step import Step
from mtbench.errors import MtbenchError
from mtbench.testing.equality import alike
from mtbench.testing.problem import Change, Make, Problem, flat
from mtbench.testing.promises import Promises


def _assert_finite(grads: Sequence[Tensor | None], found: str) -> None:
    assert all(g is None or g.isfinite().all() for g in grads), f"{found}, .grad is not finite"


SCALES: dict[str, Change] = {
    "all zero": lambda _, loss: loss * 0,
    "first zero": lambda k, loss: loss * (k != 0),
    "last 1e12": lambda k, loss: loss * 10.0 ** (12 * (k == 1)),
    "last 1e-12": lambda k, loss: loss * 10.0 ** (-12 * (k == 1)),
    "all 1e12": lambda _, loss: loss * 1e12,
    "all 1e-12": lambda _, loss: loss * 1e-12,
}


class BalancerContract(Promises):
    """What every balancing method keeps to; one fixture, `make`, names the method."""

    @pytest.fixture
    def make(self) -> Make:
        """Return what constructs the method; to be overridden."""
        raise NotImplementedError("BalancerContract: override the fixture `make`")

    def test_weights_are_those_of_the_gradient(self, make: Make) -> None:
        """The encoder's gradient is that of the sum with the weights returned, if so declared."""
        tried = Problem(make(3), torch.float64)
        if not tried.balancer.is_weighted_sum:
            pytest.skip("declared by is_weighted_sum = False")
        for _ in range(3):
            weights = tried.balancer.backward(tried.step())
            if weights is None:
                pytest.skip("it returns no weights")
            found = tried.encoder_grad()
            tried.zero_grad()
            tried.step().total(weights.tolist()).backward()  # type: ignore[no-untyped-call]
            wanted = tried.encoder_grad()
            assert (found - wanted).norm() <= 1e-6 * wanted.norm(), (
                "`backward` returns weights, and what it writes is not the gradient of the losses' "
                "sum with these: return None, or say is_weighted_sum = False"
            )
            tried.train(1)

    def test_one_objective_is_plain_descent(self, make: Make) -> None:
        """With K = 1 the encoder's gradient is a positive multiple of the loss's own."""
        tried = Problem(make(1), torch.float64)
        if tried.balancer.needs_again:
            pytest.skip("its gradients are those of other parameters")
        tried.balancer.backward(tried.step())
        found = tried.encoder_grad()
        tried.zero_grad()
        torch.autograd.backward([tried.step().losses[0]])
        assert torch.cosine_similarity(found, tried.encoder_grad(), dim=0) > 1 - 1e-9, (
            "with K = 1 the encoder's gradient points elsewhere than the loss's own: there is "
            "nothing to balance, so return a weight above 0"
        )

    @pytest.mark.parametrize("scale", SCALES)
    def test_extreme_gradients(self, make: Make, scale: str) -> None:
        """Zero, huge and tiny gradients never give NaN nor an exception, also in later steps."""
        tried = Problem(make(2), change=SCALES[scale])
        for batch in range(3):
            _assert_finite(
                tried.backward(batch),
                "where losses are so scaled (division by 0, or squares beyond the dtype: clamp "
                "divisors, keep to the dtype that is handed over)",
            )
            tried.zero_grad()
            tried.balancer.after_epoch()
        begun = make(2).state_dict()
        for name, value in tried.balancer.state_dict().items():
            lost = ~torch.as_tensor(value).isfinite()
            known = torch.as_tensor(begun.get(name, 0)).isfinite()
            if known.shape == lost.shape:  # NaN may stand for "not seen yet"
                lost &= known
            assert not lost.any(), (
                f"where losses are so scaled, self.{name} is not finite, and so is all that "
                "follows: update state from finite values only"
            )

    def test_negative_losses(self, make: Make) -> None:
        """Losses below 0 train, or are refused in a line that says so."""
        tried = Problem(make(2), change=lambda _, loss: loss - 10)
        try:
            tried.train(2)
        except (ValueError, MtbenchError):
            return
        except Exception as error:
            pytest.fail(
                f"losses below 0 raise {type(error).__name__} ({error}): refuse them by a "
                "ValueError that says so"
            )
        assert all(p.isfinite().all() for p in tried.model.parameters()), (
            "losses below 0 make the model non-finite (a logarithm or a root of the losses?): "
            "refuse them by a ValueError that says so"
        )

    def test_equal_objectives(self, make: Make) -> None:
        """Linearly dependent gradients never give NaN nor an exception."""
        balancer = make(3)
        weight = nn.Parameter(torch.tensor([[0.3, -0.4]]))
        features = torch.tensor([[1.0], [-2.0]]) @ weight
        residual = features.view_as(features) - 1
        loss = residual.square().mean()
        losses = [loss, loss * 1, loss * 2]

        def again() -> Step:
            return Step(losses, features=features, shared=[weight])

        step = Step(
            losses,
            features=features,
            shared=[weight],
            again=again,
            validation=again,
            residuals=[residual] * 3,
        )
        balancer.backward(step)
        assert weight.grad is not None, "with equal objectives there is no .grad"
        _assert_finite([weight.grad], "with equal objectives (a singular Gramian: add a ridge)")
        assert weight.grad.any(), "with equal objectives .grad is 0, and there is a way down"

    def test_their_order_makes_no_difference(self, make: Make) -> None:
        """Objectives in another order train alike, unless declared otherwise."""
        grads = []
        for order in ([0, 1, 2], [2, 0, 1]):
            tried = Problem(make(3), torch.float64, order=order)
            if not tried.balancer.is_symmetric:
                pytest.skip("declared by is_symmetric = False")
            tried.train(3)
            tried.backward(3)
            if any(map(_has_drawn, tried.balancer.modules())):
                pytest.skip("it draws")
            grads.append(tried.encoder_grad())
        # A solver that stops near the solution may stop elsewhere.
        assert (grads[1] - grads[0]).norm() <= 1e-3 * grads[0].norm(), (
            "objectives in another order train otherwise, so that its rank hangs on how a task "
            "happens to list them: treat them alike, or say is_symmetric = False"
        )

    @pytest.mark.parametrize("missing", [0, 1])
    def test_missing_label_trains_the_other(self, make: Make, missing: int) -> None:
        """Where one objective has no label (its loss is ``sum() * 0``) the other still trains."""
        tried = Problem(make(2), change=lambda k, loss: loss * (k != missing))
        for batch in range(3):
            tried.zero_grad()
            _assert_finite(tried.backward(batch), f"where objective {missing} has no label")
            other = tried.model.heads[1 - missing]
            for part, grad in (("head", flat(other)), ("encoder", tried.encoder_grad())):
                assert grad.any(), (
                    f"where objective {missing} has no label, the {part} of the other gets a zero "
                    "gradient"
                )
            assert not flat(tried.model.heads[missing]).any(), (
                f"where objective {missing} has no label, its head gets a gradient"
            )

    def test_the_graph_goes_with_the_step(self, make: Make) -> None:
        """The last derivative frees the graph, whose memory the next forward pass needs."""
        tried = Problem(make(3))
        step = tried.step()
        tried.balancer.backward(
            step.losses,
            features=step.features,
            shared=step.named_shared,
            again=step.again,
            validation=step.validation,
            residuals=step.residuals,
        )
        first = next(tried.model.encoder.parameters())
        try:
            torch.autograd.grad(step.losses[0], first)
        except RuntimeError:
            return
        pytest.fail(
            "the graph outlives the step, and lies beside the next one's: say step.release() "
            "before the last derivative that is asked for"
        )

    def test_deterministic_at_a_seed(self, make: Make) -> None:
        """Equal seeds give equal training, bit for bit."""
        ends = []
        for _ in range(2):
            tried = Problem(make(3, seed=3))
            tried.train(4)
            ends.append([p.detach() for p in tried.parameters()])
        assert alike(*ends), (
            "two trainings at one seed end apart: draw with generator=self.generator, and look at "
            "no clock"
        )

    def test_without_features(self, make: Make) -> None:
        """Losses and parameters suffice, or the method says clearly that it needs features."""
        tried = Problem(make(2))
        if tried.balancer.needs_features:
            with pytest.raises(ValueError, match="features"):
                tried.backward(with_features=False)
            return
        _assert_finite(tried.backward(with_features=False), "without features")
        assert tried.encoder_grad().any(), "without features the encoder gets a zero gradient"

    def test_gradients_accumulate(self, make: Make) -> None:
        """Two backwards without zeroing in between give the sum of the two gradients."""
        apart, together = Problem(make(2), torch.float64), Problem(make(2), torch.float64)
        sums = [torch.zeros_like(p) for p in apart.parameters()]
        for batch in range(2):
            for total, grad in zip(sums, apart.backward(batch), strict=True):
                if grad is not None:
                    total += grad
            apart.zero_grad()
            together.balancer.backward(together.step(batch))
        for total, grad in zip(sums, together.grads(), strict=True):
            if grad is not None:
                assert torch.allclose(grad, total, rtol=1e-6, atol=1e-7), (
                    "the second .grad is not added to the first: write it by step.backward, "
                    "step.assign or step.descend, which add"
                )

    def test_ends_near_the_pareto_set(self, make: Make) -> None:
        r"""On two convex quadratics x comes to their front, unless declared otherwise.

        It may take 400 steps, and less where it is well there twice, ten steps apart, from the
        hundredth on.

        They are :math:`1 + (x-u_i)^\top A_i (x-u_i)`, and the front is
        :math:`x(w) = (\sum_i w_i A_i)^{-1} \sum_i w_i A_i u_i`.
        """
        balancer = make(2)
        if not balancer.finds_front:
            pytest.skip("declared by finds_front = False")
        A = torch.tensor([[[1.0, 0.2], [0.2, 0.3]], [[0.5, -0.2], [-0.2, 1.0]]])
        u, root = torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.linalg.cholesky(A)
        x = nn.Parameter(torch.tensor([[-0.5, 2.5]]))
        optimizer = torch.optim.SGD([x, *balancer.parameters()], lr=0.05)

        def offsets(features: Tensor) -> list[Tensor]:
            return [balancer.view((features,), k)[0] - u[k] for k in range(2)]

        def losses(features: Tensor) -> list[Tensor]:
            return [
                1 + (offset @ A[k] * offset).sum() for k, offset in enumerate(offsets(features))
            ]

        def step() -> Step:
            features = x * 1.0
            return Step(
                losses(features),
                features=features,
                shared=[x],
                again=step,
                validation=step,
                residuals=[
                    torch.cat([features.new_ones(1), (offset @ root[k])[0]])
                    for k, offset in enumerate(offsets(features))
                ],
            )

        w = torch.linspace(0, 1, 1001)[:, None, None]
        mixed = w * A[0] + (1 - w) * A[1]
        pulls = w[:, 0] * (A[0] @ u[0]) + (1 - w[:, 0]) * (A[1] @ u[1])
        front = torch.linalg.solve(mixed, pulls)
        near = 0  # times in a row, and it was there: what only passes by is gone ten steps later
        for tens in range(1, 41):
            for _ in range(10):
                optimizer.zero_grad()
                balancer.backward(step())
                optimizer.step()
                balancer.after_step(lambda: losses(x * 1.0))
            if tens < 10:  # what warms up, or changes later, has not shown it yet
                continue
            distance = float((front - x.detach()).norm(dim=1).min())
            near = near + 1 if distance < 0.02 else 0
            if near == 2:
                break
        assert distance < 0.05, (
            f"after 400 steps on two convex quadratics x is {distance:.2g} away from their front: "
            "the direction is no descent for both, or say finds_front = False"
        )

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_cuda(self, make: Make) -> None:
        """The method runs where the model is."""
        balancer = make(2).to("cuda")
        encoder = nn.Linear(3, 4, device="cuda")
        for _ in range(2):
            features = encoder(torch.ones(5, 3, device="cuda"))
            residuals = [features, (features / 2).exp()]
            losses = [r.square().mean() for r in residuals]
            balancer.backward(Step(losses, features=features, residuals=residuals))
        assert encoder.weight.grad is not None, "on a GPU there is no .grad"
        _assert_finite([encoder.weight.grad], "on a GPU")


def _has_drawn(part: nn.Module) -> bool:
    """Return whether a method has drawn anything, be it when it was constructed."""
    if not isinstance(part, Balancer):
        return False
    fresh = torch.Generator().manual_seed(part.generator.initial_seed())
    return not part.generator.get_state().equal(fresh.get_state())
