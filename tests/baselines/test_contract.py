"""Every method in the tree keeps to the contract."""

import inspect
from importlib import import_module
from pathlib import Path

import optuna
import pytest

import mtbench_baselines
from mtbench.balancer import Balancer
from mtbench.testing import BalancerContract

NAMES = sorted(
    path.stem
    for path in Path(mtbench_baselines.__path__[0]).glob("*.py")
    if not path.stem.startswith("_")
)


def method_of(name):
    module = import_module(f"mtbench_baselines.{name}")
    (method,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Balancer)
        and value.__module__ == module.__name__
    )
    return method


class TestContract(BalancerContract):
    @pytest.fixture(params=NAMES)
    def make(self, request):
        return method_of(request.param)


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_drawn_parameter_constructs(name, K):
    method = method_of(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        parameters = method.suggest(study.ask(), K)
        method(K, **parameters)
        assert set(parameters) <= set(inspect.signature(method).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_own_parameters_are_keywords_with_types_and_defaults(name):
    own = list(inspect.signature(method_of(name)).parameters.values())[2:]
    for parameter in own:
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.annotation is not parameter.empty
        assert parameter.default is not parameter.empty


def test_all_methods_are_found():
    assert {"ew", "ls", "stl", "uw", "gradnorm", "pcgrad", "cagrad", "mgda", "rlar"} <= set(NAMES)
