"""What a method promises by being written down: rules that need no training, or little.

They come first in `BalancerContract`: what breaks one of them breaks others after it.
"""

import ast
import copy
import inspect
import io
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import takewhile
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn

from mtbench.balancing.balancer import Aggregator, Balancer, Scalarizer, Weighting
from mtbench.balancing.step import Step
from mtbench.balancing.wrapper import Wrapper
from mtbench.plugins import params
from mtbench.testing.equality import alike
from mtbench.testing.problem import Make, Problem

DRAWS = 4
"""How many points of a search space are tried."""

_DEEP = 4
"""Objects and containers in one another that are looked into."""

_BEFORE = 3
"""K of the first object that is asked; the next one has K = 1."""

LONG = 25
"""Steps after which a history of usual length is in use."""


def parts(balancer: Balancer) -> Iterator[Balancer]:
    """Yield a balancer and, of a wrapper, what it is around."""
    yield balancer
    while isinstance(balancer, Wrapper):
        balancer = balancer.base
        yield balancer


def _asked(balancer: Balancer, K: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a Jacobian (K, 7), its Gramian and K losses, as a method is asked about them."""
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(K, 7, generator=generator)
    losses = torch.rand(K, generator=generator) + 0.5
    gramian = jacobian.double() @ jacobian.double().T
    return jacobian, gramian, losses.double() if isinstance(balancer, Weighting) else losses


def _answer(balancer: Balancer, jacobian: Tensor, gramian: Tensor, losses: Tensor) -> Any:
    if isinstance(balancer, Weighting):
        return balancer.weights(gramian, losses)
    assert isinstance(balancer, Aggregator)
    return balancer.direction(jacobian, losses)


def _generators() -> dict[str, Any]:
    return {
        "torch's global generator": torch.get_rng_state().tolist(),
        "Python's global generator": random.getstate(),
        "numpy's global generator": str(np.random.get_state()),  # noqa: NPY002
    }


def _tensors(held: Any, where: str = "self") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in attributes, objects and containers, and what each is called."""
    if isinstance(held, Tensor):
        yield where, held
    elif isinstance(held, np.ndarray) and held.dtype.kind == "f" and held.flags.writeable:
        yield where, torch.from_numpy(held)
    elif isinstance(held, ModuleType) or sum(map(where.count, ".[")) > _DEEP:
        return  # objects and lists may hold themselves
    elif isinstance(held, Mapping):
        for key, value in held.items():
            name = f"{where}.{key}" if where == "self" else f"{where}[{key!r}]"
            yield from _tensors(value, name)
    elif isinstance(held, list | tuple | deque):
        for i, value in enumerate(held):
            yield from _tensors(value, f"{where}[{i}]")
    elif hasattr(held, "__dict__"):
        for name, value in vars(held).items():
            yield from _tensors(value, f"{where}.{name}")


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and (
        a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0
    )


def _plain(part: Balancer) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that hold data and that torch does not keep."""
    for name, value in vars(part).items():
        if name not in _CORES and _is_data(value):
            yield name, copy.deepcopy(value)


def _is_read(method: type, parameter: str) -> bool:
    """Return whether a method's code reads a parameter, or the attribute that it is kept in.

    ``self.alpha = alpha`` by itself reads nothing.
    """
    owners = takewhile(lambda owner: owner is not nn.Module, method.__mro__)
    names = {owner.__module__ for owner in owners}
    try:
        sources = [inspect.getsource(sys.modules[name]) for name in names]
    except (KeyError, OSError, TypeError):  # typed in, or loaded by hand
        return True
    nodes = [node for source in sources for node in _nodes(source)]
    kept = {
        part
        for node in nodes
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for to in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(to, ast.Attribute) and to.attr == parameter
        for part in ast.walk(node.value)
    }
    return any(_name_read(node) == parameter and node not in kept for node in nodes)


@lru_cache(maxsize=16)
def _nodes(source: str) -> list[ast.AST]:
    """Parse a module once: it is asked about each parameter, and the base's about each method's."""
    return list(ast.walk(ast.parse(source)))


def _name_read(node: ast.AST) -> str | None:
    match node:
        case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name, ctx=ast.Load()):
            return name
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
            return name
    return None


class _Bare(Scalarizer):
    def objective(self, step: Step) -> tuple[Tensor, None]:
        return step.total(), None


_CORES = vars(_Bare(1)).keys()
"""What the base keeps itself: of how it is called, which is no state of the method."""


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_data, value.values()))
    if isinstance(value, list | tuple | deque | set):
        return all(map(_is_data, value))
    return value is None or isinstance(value, bool | int | float | str | Tensor | np.ndarray)


class Promises:
    """The first rules of `BalancerContract`."""

    def test_can_be_constructed(self, make: Make) -> None:
        """Its parameters are keywords with a type and a default, and the base is constructed."""
        for method in getattr(make, "classes", [make] if isinstance(make, type) else []):
            self._parameters(method)
        for K in (1, 2, 3):
            balancer = make(K)
            for part in parts(balancer):
                assert {"_parameters", "num_objectives"} <= vars(part).keys(), (
                    "__init__ does not construct its base: begin it with "
                    "super().__init__(num_objectives, seed)"
                )
                assert part.num_objectives == K, (
                    f"__init__ hands num_objectives={part.num_objectives} to its base where "
                    f"{K} are asked for: super().__init__(num_objectives, seed)"
                )

    def _parameters(self, method: type[Balancer]) -> None:
        # The first two are the family's: the number of objectives, or the base; and the seed.
        for own in list(inspect.signature(method).parameters.values())[2:]:
            if own.kind is own.VAR_KEYWORD:  # hands on to the base's
                continue
            rule = f"parameter {own.name!r} of __init__"
            assert own.kind is own.KEYWORD_ONLY, (
                f"{rule} is no keyword: put it behind a *, as in "
                f"(self, num_objectives: int, seed: int = 0, *, {own.name}: float = 0.5)"
            )
            assert own.annotation is not own.empty, (
                f"{rule} has no type: annotate it, as in {own.name}: float = 0.5"
            )
            assert own.default is not own.empty, (
                f"{rule} has no default: give it one, for trial 0 and for who does not tune"
            )
            assert _is_read(method, own.name), (
                f"{rule} is never read: all its values train alike, and tuning it is lost"
            )

    def test_declares_paper_and_cost(self, make: Make) -> None:
        """`paper` and `passes` say where the method is from, and what a step costs."""
        method = make(2)
        assert method.paper, "`paper` is empty: say where the method is defined"
        assert method.passes, "`passes` is empty: say what a step costs, as in 'F + H + K E'"
        for name in (*method.on_host, *method.sized_later):
            assert name in dict(method.named_buffers()), f"`on_host` or `sized_later`: no {name!r}"

    @pytest.mark.parametrize("K", [_BEFORE, 1], ids="K={}".format)
    def test_answers_in_shape(self, make: Make, K: int) -> None:
        """`weights` returns (K,), `direction` (d,), `objective` a scalar on the graph."""
        balancer = make(K)
        if isinstance(balancer, Scalarizer):
            step = Problem(balancer).step()
            found = balancer.objective(step)
            is_pair = isinstance(found, tuple) and len(found) == 2
            assert is_pair, "`objective` returns no pair: return (scalar, weights or None)"
            self._shape("objective", found[0], ())
            assert found[0].requires_grad, "`objective` is off the graph: keep the losses' graph"
        elif isinstance(balancer, Weighting | Aggregator) and not isinstance(balancer, Wrapper):
            what = "weights" if isinstance(balancer, Weighting) else "direction"
            wanted = (K,) if isinstance(balancer, Weighting) else (7,)
            self._shape(what, _answer(balancer, *_asked(balancer, K)), wanted)
        balancer = make(K)  # what the other has kept may be as wide as it was asked about
        weights = balancer.backward(Problem(balancer).step())
        if weights is not None:
            self._shape("backward", weights, (K,))
            assert weights.isfinite().all(), f"`backward` returns {weights.tolist()}: not finite"
            assert not weights.requires_grad, "`backward` returns weights on the graph: detach them"

    def _shape(self, what: str, found: Any, wanted: tuple[int, ...]) -> None:
        assert isinstance(found, Tensor), (
            f"`{what}` returns {type(found).__name__}: return a tensor of shape {wanted}"
        )
        assert wanted != (1,) or found.shape != (_BEFORE,), (
            f"`{what}` returns the shape of another object's, with K = {_BEFORE}: what is kept in "
            "the class or the module is everybody's; keep it in buffers of self"
        )
        assert found.shape == wanted, (
            f"`{what}` returns shape {tuple(found.shape)}: return shape {wanted}"
        )

    def test_fewer_may_be_asked_about(self, make: Make) -> None:
        """It is asked about the objectives that have a gradient: fewer, and all again."""
        balancer = make(3)
        asks = isinstance(balancer, Weighting | Aggregator) and not isinstance(balancer, Wrapper)
        if not asks or balancer.sees_zero_rows or getattr(balancer, "asks_nothing", False):
            pytest.skip("it is asked about all objectives")
        what = "weights" if isinstance(balancer, Weighting) else "direction"
        for asked in (3, 2, 1, 3):
            why = ""
            try:
                found = _answer(balancer, *_asked(balancer, asked))
            except Exception as error:
                first, *_ = str(error).splitlines() or [""]
                why = f"raises {type(error).__name__} ({first})"
            else:
                wanted = (asked,) if what == "weights" else (7,)
                if found.shape != wanted:
                    why = f"returns shape {tuple(found.shape)}"
            assert not why, (
                f"`{what}` {why} where {asked} of 3 objectives have a gradient, and is asked about "
                "these alone: if it keeps a number for each objective, say sees_zero_rows = True, "
                "and the others come as zeros"
            )

    @pytest.mark.parametrize("K", [1, 2, 3], ids="K={}".format)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_every_parameter_gets_a_finite_gradient(
        self, make: Make, K: int, dtype: torch.dtype
    ) -> None:
        """Encoder and every head get gradients of the model's dtype."""
        tried = Problem(make(K), dtype)
        before = [p.detach().clone() for p in tried.model.parameters()]
        tried.balancer.backward(tried.step())
        for old, (name, parameter) in zip(before, tried.model.named_parameters(), strict=True):
            assert torch.equal(parameter, old), (
                f"{name} was changed: write .grad only, and leave the step to the loop's optimizer"
            )
            grad = parameter.grad
            assert grad is not None, (
                f"{name} has no .grad: write it by step.backward(weights), "
                "step.assign(direction) or step.descend(scalar)"
            )
            assert grad.dtype == dtype, f"{name}.grad is {grad.dtype}, the model's is {dtype}"
            assert grad.isfinite().all(), f"{name}.grad is not finite"
        for part, module in (("encoder", tried.model.encoder), ("heads", tried.model.heads)):
            for one in module if isinstance(module, nn.ModuleList) else [module]:
                moved = any(p.grad is not None and p.grad.any() for p in one.parameters())
                assert moved, f"the {part} get zero gradients, and have a loss to descend"

    def test_no_step_is_held(self, make: Make) -> None:
        """What is kept for the next step is off the graph."""
        tried = Problem(make(3))
        tried.train(1)
        buffers = ((f"self.{name}", buffer) for name, buffer in tried.balancer.named_buffers())
        for where, tensor in (*buffers, *_tensors(vars(tried.balancer))):
            assert tensor.grad_fn is None, (
                f"{where} hangs on the graph of the step that made it, which then is never freed, "
                "and cannot be differentiated again: keep what .detach() returns"
            )

    def test_global_generators_are_left_alone(self, make: Make) -> None:
        """All randomness comes from `Balancer.generator`."""
        tried = Problem(make(3))
        for _ in range(2):
            before = _generators()
            tried.train(3)
            for name, state in _generators().items():
                assert state == before[name], (
                    f"{name} was drawn from: draw with generator=self.generator, which a "
                    "checkpoint keeps"
                )

    def test_what_it_is_given_stays(self, make: Make) -> None:
        """Gramian, Jacobian and losses are not changed, and not kept by reference."""
        balancer = make(3)
        if isinstance(balancer, Wrapper) or not isinstance(balancer, Weighting | Aggregator):
            pytest.skip("it is given a step")
        for seed in range(2):
            asked = dict(
                zip(("jacobian", "gramian", "losses"), _asked(balancer, 3, seed), strict=True)
            )
            before = {name: value.clone() for name, value in asked.items()}
            _answer(balancer, *asked.values())
            for name, value in asked.items():
                assert torch.equal(value, before[name]), (
                    f"`{name}` was changed in place: the next who asks gets what is left of it; "
                    "work on a copy"
                )
            kept = [*_tensors(vars(balancer)), *_tensors(balancer.state_dict())]
            for name, value in asked.items():
                for where, tensor in kept:
                    assert not _shares(tensor, value), (
                        f"{where} is the memory of `{name}`, which the next step overwrites: "
                        "keep a .clone()"
                    )

    def test_state_is_in_the_state_dict(self, make: Make) -> None:
        """What changes from step to step is a buffer, a parameter or extra state."""
        tried = Problem(make(3))
        fresh = make(3)
        tried.train(1)  # which may make constants
        begun = [dict(_plain(part)) for part in parts(tried.balancer)]
        tried.train(LONG)
        state = {key: copy.deepcopy(value) for key, value in tried.balancer.state_dict().items()}
        try:
            fresh.load_state_dict(state)
        except RuntimeError as error:
            own = fresh.state_dict()
            for key, value in state.items():
                if key in own and getattr(own[key], "shape", None) != getattr(value, "shape", None):
                    name = key.rpartition(".")[2]
                    pytest.fail(
                        f"self.{name} has shape {tuple(value.shape)} after some steps and "
                        f"{tuple(own[key].shape)} in a fresh object, which refuses the state: give "
                        f"it its shape in __init__, or say sized_later = ({name!r},)"
                    )
            pytest.fail(f"a fresh object refuses the state ({' '.join(str(error).split())})")
        for old, new, before in zip(parts(tried.balancer), parts(fresh), begun, strict=True):
            for name, value in vars(old).items():
                assert not isinstance(value, torch.optim.Optimizer), (
                    f"self.{name} is an optimizer, whose state no state_dict carries: give the "
                    "parameters to the loop's optimizer (balancer.parameters()), or keep its "
                    "moments in buffers"
                )
            restored = dict(_plain(new))
            for name, value in _plain(old):
                changed = name not in before or not alike(before[name], value)
                assert not changed or alike(restored.get(name), value), (
                    f"self.{name} changes from step to step and is not restored: make it a "
                    "buffer (self.register_buffer), or a checkpoint goes on otherwise"
                )

    def test_state_dict_reproduces_the_next_step(self, make: Make) -> None:
        """A fresh object with the state after some steps goes on bit for bit, generator too."""
        tried = Problem(make(3))
        tried.train(LONG)
        file = io.BytesIO()
        torch.save(tried.balancer.state_dict(), file)
        file.seek(0)
        resumed = copy.copy(tried)
        resumed.balancer = make(3, seed=17)
        resumed.balancer.load_state_dict(torch.load(file, weights_only=True))
        # The model is one and the same: only the balancer's memory could make a difference.
        for batch in (LONG, LONG + 1):
            tried.zero_grad()
            expected = tried.backward(batch)
            resumed.zero_grad()
            assert alike(resumed.backward(batch), expected), (
                "after load_state_dict the next step is another one: what it depends on is not in "
                "the state (a module's or class's variable, a generator of its own, the clock): "
                "keep it in buffers, and draw with generator=self.generator"
            )
            for balancer in (tried.balancer, resumed.balancer):
                balancer.after_epoch()

    def test_search_space_is_drawn(self, make: Make) -> None:
        """What `suggest` returns are its parameters, with values that train."""
        suggest = getattr(make, "suggest", None) or type(make(2)).suggest
        known = {name for part in parts(make(2)) for name in params.declared(type(part))}
        told = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is no news here
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        optuna.logging.set_verbosity(told)
        for _ in range(DRAWS):
            drawn = suggest(trial := study.ask(), 2)
            for key in drawn:
                assert key.rpartition(".")[2] in known, (
                    f"`suggest` returns {key!r}, which is no parameter of __init__ (there are: "
                    f"{', '.join(sorted(known)) or 'none'}): it is never used"
                )
            if not drawn:
                return
            assert trial.params, (
                f"`suggest` returns {drawn} and draws nothing: every trial would have these, so "
                "take values from `trial.suggest_...`"
            )
            said = ", ".join(f"{key}={value!r}" for key, value in drawn.items())
            tried = Problem(make(2, **drawn))
            tried.train(2)
            assert all(p.isfinite().all() for p in tried.model.parameters()), (
                f"with {said}, which `suggest` draws, the model is not finite after two steps"
            )
