"""The contract catches what it is there to catch."""

import pytest
import torch

from mtbench.balancing.balancer import Scalarizer
from mtbench.testing import BalancerContract


class Good(Scalarizer):
    paper = "none"

    def objective(self, step):
        return step.total(), None


class Forgets(Good):
    """Its history is no buffer."""

    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.count = 0

    def objective(self, step):
        self.count += 1
        return step.total() * self.count, None


class GlobalDraw(Good):
    def objective(self, step):
        return step.total(torch.rand(step.num_objectives)), None


class Overwrites(Good):
    def balance(self, step):
        for parameter in (*step.shared, *(p for head in step.heads for p in head)):
            parameter.grad = None
        return super().balance(step)


class Ascends(Good):
    def objective(self, step):
        return -step.total(), None


class Divides(Good):
    def objective(self, step):
        return step.total(1 / step.values), None


class FirstOnly(Good):
    def objective(self, step):
        return step.losses[0], None


class NeedsFeatures(Good):
    def objective(self, step):
        return step.total() + step.sensitivities[0].sum() * 0, None


contract = BalancerContract()
CASES = [
    (Forgets, contract.test_state_dict_reproduces_the_next_step),
    (GlobalDraw, contract.test_global_generators_are_left_alone),
    (GlobalDraw, contract.test_state_dict_reproduces_the_next_step),
    (Overwrites, contract.test_gradients_accumulate),
    (Ascends, contract.test_one_objective_is_plain_descent),
    (Ascends, contract.test_ends_near_the_pareto_set),
    (Divides, lambda make: contract.test_extreme_gradients(make, "first zero")),
    (FirstOnly, lambda make: contract.test_missing_label_trains_the_other(make, 0)),
    (
        FirstOnly,
        lambda make: contract.test_every_parameter_gets_a_finite_gradient(make, 2, torch.float32),
    ),
    (NeedsFeatures, contract.test_without_features),
]


@pytest.mark.parametrize(("method", "check"), CASES)
def test_broken_methods_fail(method, check):
    check(Good)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check(method)
