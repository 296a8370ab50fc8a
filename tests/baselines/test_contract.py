"""Every method in the tree keeps to the contract."""

import inspect
from contextlib import suppress

import optuna
import pytest

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.wrapper import Wrapper
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.plugins.registry import entries, find
from mtbench.testing import BalancerContract

NAMES = list(entries("method"))


def method_of(name):
    return find("method", name).load(Balancer)


def runnable(name):
    """A wrapper is tried around a method on losses and one on gradients."""
    cls = method_of(name)
    if not issubclass(cls, Wrapper):
        return [name]
    tried = [Method.find(f"{name}+mgda")]
    with suppress(UsageError):  # some go around methods on gradients alone
        Method.find(f"{name}+ew")(2)
        tried.append(Method.find(f"{name}+ew"))
    return [method.name for method in tried]


class TestContract(BalancerContract):
    @pytest.fixture(params=[method for name in NAMES for method in runnable(name)])
    def make(self, request):
        return Method.find(request.param)


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_drawn_parameter_constructs(name, K):
    method = method_of(name)
    composed = Method.find(runnable(name)[0])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        parameters = method.suggest(study.ask(), K)
        composed(K, **{composed.key(name, key): value for key, value in parameters.items()})
        assert set(parameters) <= set(inspect.signature(method).parameters)


def test_all_say_what_they_were_checked_against():
    assert [name for name in NAMES if not method_of(name).checked_against] == []


def test_all_methods_are_found():
    assert {"ew", "ls", "stl", "uw", "gradnorm", "pcgrad", "cagrad", "mgda", "rlar"} <= set(NAMES)
