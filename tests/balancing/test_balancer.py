"""What the signatures decide once for all methods: zero rows, heads, batches without a label."""

from functools import wraps

import pytest
import torch

from mtbench.balancing.balancer import Aggregator, Scalarizer, Weighting
from mtbench.balancing.engine import Engine
from mtbench.balancing.step import Step
from mtbench.errors import StepError, UsageError


class Asked(Weighting):
    """Returns known weights and remembers what it was asked."""

    paper = "none"

    def weights(self, gramian, losses):
        self.gramian, self.losses = gramian, losses
        return torch.arange(1.0, 1 + len(losses))


class Summed(Aggregator):
    paper = "none"
    rows = 0

    def direction(self, jacobian, losses):
        self.rows = len(jacobian)
        assert len(losses) == len(jacobian)
        return jacobian.sum(0)


class First(Scalarizer):
    paper = "none"

    def objective(self, step):
        return step.losses[0], torch.tensor([1.0, 0.0], requires_grad=True)


def problem():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    heads = [torch.tensor(3.0, requires_grad=True) for _ in range(3)]
    z = x * 1.0
    losses = [heads[0] * z[0], heads[1] * z.sum() * 0, heads[2] * z[1] * 2]
    return x, heads, Step(losses, features=z)


def test_weighting_leaves_zero_rows_out():
    x, heads, step = problem()
    method = Asked(3)
    assert method.backward(step).tolist() == [1, 0, 2]
    torch.testing.assert_close(method.gramian, torch.diag(torch.tensor([9.0, 36.0])).double())
    assert method.losses.tolist() == [3, 12]
    assert x.grad.tolist() == [3, 12]
    # Heads get the unweighted gradient of their own loss.
    assert [head.grad and head.grad.item() for head in heads] == [1, None, 4]


class Forgetful(Summed):
    def direction(self, jacobian, losses):
        losses.zero_()
        return jacobian.sum(0)


def test_what_a_method_does_to_the_losses_it_is_handed_is_not_recorded():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    step = Step([x.sum(), x.square().sum()], shared=[x])
    recorded = step.observed
    Forgetful(2).backward(step)
    assert recorded.tolist() == [3, 5]


def test_aggregator_leaves_zero_rows_out():
    x, heads, step = problem()
    method = Summed(3)
    method.backward(step)
    assert method.rows == 2
    assert x.grad.tolist() == [3, 6]
    assert [head.grad and head.grad.item() for head in heads] == [1, None, 4]


class Row(Summed):
    def direction(self, jacobian, losses):
        return jacobian[0]


class Momentum(Summed):
    sized_later = ("momentum",)

    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.register_buffer("momentum", torch.zeros(0))

    def direction(self, jacobian, losses):
        if not self.momentum.numel():
            self.momentum = torch.zeros_like(jacobian[0])
        return self.momentum.add_(jacobian.sum(0))


@pytest.mark.parametrize("method", [Row(2), Momentum(2)])
def test_what_an_aggregator_answers_is_not_the_gradients_memory(method):
    x, heads = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    engine, found = Engine(), []
    for scale in (1.0, 3.0):
        z = x * 1.0
        method.backward(Step([scale * (z * h).sum() for h in heads], features=z, engine=engine))
        found.append(x.grad)
        x.grad = None
    found[1] *= 10  # as clipping does
    shared = 1 if isinstance(method, Row) else 2
    assert found[0].tolist() == [shared] * 2
    if isinstance(method, Momentum):
        assert method.momentum.tolist() == [8] * 2


def test_a_state_may_be_loaded_under_inference_mode():
    x = torch.ones(2, requires_grad=True)
    first, second = Momentum(2), Momentum(2)
    first.backward(Step([x.sum(), x.prod()], shared=[x]))
    with torch.inference_mode():
        second.load_state_dict(first.state_dict())
    for method in (first, second):
        x.grad = None
        method.backward(Step([x.sum(), x.prod()], shared=[x]))
        assert x.grad.tolist() == [4, 4]


@pytest.mark.parametrize("method", [Asked(2), Summed(2)])
def test_no_gradient_at_all_is_no_step(method):
    x = torch.ones(2, requires_grad=True)
    method.backward(Step([x.sum() * 0, x.prod() * 0], shared=[x]))
    assert not x.grad.any()


def test_scalarizer_records_weights_off_the_graph():
    x = torch.ones(2, requires_grad=True)
    weights = First(2).backward(Step([x.sum(), x.prod()], shared=[x]))
    assert not weights.requires_grad
    assert x.grad.tolist() == [1, 1]


def test_scalarizer_without_any_label():
    x = torch.ones(2, requires_grad=True)
    First(2).backward(Step([torch.zeros(()), torch.zeros(())], shared=[x]))
    assert x.grad is None


def test_num_objectives():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        First(0)


def test_a_parameter_without_its_name_is_no_seed():
    for value in (0.4, 1):
        with pytest.raises(UsageError, match=f"goes by its name, as in seed=0, found {value} with"):
            First(2, value)
    with pytest.raises(UsageError, match=r"seed must be an integer, found 0\.4"):
        First(2, seed=0.4)


def test_a_method_that_defines_backward_is_told_to_call_it_balance():
    with pytest.raises(UsageError, match=r"^Mine\.backward is what a loop calls.*yours balance$"):
        type("Mine", (Asked,), {"backward": lambda self, step: None})


def on_graph(*_):
    return torch.ones(2, requires_grad=True) * 2


def test_a_search_space_is_a_class_method():
    said = "Mine.suggest must be a class method: put @classmethod above"
    with pytest.raises(UsageError, match=said):
        type("Mine", (Weighting,), {"suggest": lambda self, trial, num_objectives: {}})


@pytest.mark.parametrize("names", ["mean", ("maen",)])
def test_what_stays_on_the_host_is_named(names):
    method = type("Mine", (Weighting,), {"weights": lambda *_: None, "on_host": names})(2)
    method.register_buffer("mean", torch.zeros(2))
    with pytest.raises(UsageError, match="on_host must be a tuple of its buffers' names"):
        method.double()


@pytest.mark.parametrize(
    ("family", "name", "answer", "found"),
    [
        (Weighting, "weights", lambda gramian, _: gramian, r"shape \(2,\).* shape \(2, 2\)"),
        (Weighting, "weights", lambda _, losses: losses.tolist(), "found list"),
        (Weighting, "weights", on_graph, r"found shape \(2,\), on the graph"),
        (Aggregator, "direction", lambda jacobian, _: jacobian, r"found shape \(2, 2\)"),
        (Scalarizer, "objective", lambda step: step.total(), r"a pair, .* shape \(\), on the"),
        (Scalarizer, "objective", lambda step: (step.values, None), r"scalar .* shape \(3,\).*"),
        (Scalarizer, "objective", lambda step: (step.total(), [1.0]), "weights .* found list"),
    ],
)  # fmt: skip
def test_what_a_method_may_not_answer_is_told_in_a_line(family, name, answer, found):
    methods = {"__module__": "plugins.mine", name: lambda _, *asked: answer(*asked)}
    with pytest.raises(StepError, match=rf"^mine: `{name}` must return .*{found}"):
        type("Mine", (family,), methods)(3).backward(problem()[2])


@pytest.mark.parametrize(
    ("name", "takes", "said"),
    [
        (
            "weights",
            lambda self, gramian: gramian,
            r"\(self, gramian, losses\), found \(self, gram",
        ),
        ("weights", lambda gramian, losses: losses, r".*found \(gramian, losses\)"),
        ("after_epoch", lambda self, epoch: None, r"\(self\), found \(self, epoch\)"),
        ("after_step", lambda self: None, r"\(self, losses_fn\), found \(self\)"),
        ("suggest", classmethod(lambda cls, trial: {}), r"\(cls, trial, num_obj.*\(cls, trial\)"),
    ],
    ids=["too few", "no self", "too many", "hook", "class method"],
)
def test_what_a_method_defines_takes_what_it_is_called_with(name, takes, said):
    with pytest.raises(UsageError, match=rf"Mine\.{name} must take {said}"):
        type("Mine", (Asked,), {name: takes})
    more = {"weights": lambda self, gramian, losses, more=1: losses, "after_epoch": lambda *_: None}
    type("Mine", (Asked,), more)


def test_what_can_be_called_is_taken_however_it_is_written():
    """What counts is what a method is called with, not what it inherits."""

    def scaled(weigh):
        return wraps(weigh)(lambda self, gramian, losses: weigh(self, gramian, losses, 2.0))

    class Wide(Asked):
        def weights(self, gramian, losses, power=1):
            return losses**power

        def after_epoch(self, *_):
            pass

    class Narrow(Wide):
        def weights(self, gramian, losses):
            return losses

        def after_epoch(self):
            pass

    class Static(Asked):
        @staticmethod
        def weights(gramian, losses):
            return losses

        @staticmethod
        def suggest(trial, num_objectives):
            return {}

    class Decorated(Asked):
        @scaled
        def weights(self, gramian, losses, factor):
            return factor * losses

    for method in (Wide, Narrow, Static, Decorated):
        assert method(3).backward(problem()[2]).shape == (3,)


@pytest.mark.parametrize("note", [1.0, torch.ones(2)], ids=["float", "vector"])
def test_a_note_is_a_tensor_of_one_number(note):
    method = Asked(2)
    method.notes = {"mine": note}
    with pytest.raises(StepError, match=r"`notes\['mine'\]` must be a tensor of one number, found"):
        method.all_notes()


class Detached(First):
    def objective(self, step):
        return sum(loss.detach() for loss in step.losses), None


class Fewer(First):
    def objective(self, step):
        return step.losses[0], torch.ones(1)


class Listed(First):
    def balance(self, step):
        return [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Detached, r"`objective` must return a scalar on the graph .*, found shape \(\)$"),
        (Fewer, r"`balance` must return weights of shape \(3,\), or None, found shape \(1,\)"),
        (Listed, r"`balance` must return weights of shape \(3,\), or None, found list"),
    ],
)
def test_what_trains_nothing_or_is_no_weights_is_refused(method, said):
    with pytest.raises(StepError, match=said):
        method(3).backward(problem()[2])


class Picks(First):
    def objective(self, step):
        return step.losses[0], None


def test_an_objective_without_a_label_may_be_the_one_that_is_taken():
    assert Picks(3).backward([None, *problem()[2].losses[1:]]) is None
