"""What a method's name stands for: a balancer's class, perhaps inside wrappers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench import seeding
from mtbench.balancing.balancer import Balancer
from mtbench.balancing.step import Step
from mtbench.balancing.wrapper import Wrapper
from mtbench.errors import PluginError, UsageError
from mtbench.plugins import params
from mtbench.plugins.registry import Entry, parts

if TYPE_CHECKING:
    from optuna import Trial


@dataclass(frozen=True)
class Method:
    """A method that can be constructed; called like a balancer's class.

    Its parameters are its class's own. Where several classes are involved they are called
    ``part.key``, as in ``damped.rate``.

    Attributes:
        name: as given, such as ``mgda``, or ``damped+mgda`` with wrappers before their base.
        entries: where each part comes from, in the name's order.
        classes: the parts' classes.
    """

    name: str
    entries: tuple[Entry, ...]
    classes: tuple[type[Balancer], ...]

    @classmethod
    def find(cls, name: str, plugins: Sequence[Path | str] = ()) -> "Method":
        """Return the method of a name.

        Raises:
            UsageError: no such method, or a composition that makes no sense.
            PluginError: a module that does not load.
        """
        entries = parts(name, plugins)
        if len({entry.name for entry in entries}) < len(entries):
            raise UsageError(f"method {name!r} names a part twice")
        classes = [entry.load(Balancer) for entry in entries]
        *outer, (last, base) = zip(entries, classes, strict=True)
        for entry, part in outer:
            if not issubclass(part, Wrapper):
                raise UsageError(f"method {name!r}: {entry.name} wraps no other method")
        if issubclass(base, Wrapper):
            raise UsageError(
                f"method {name!r}: {last.name} wraps another method: name it, as in "
                f"{last.name}+METHOD"
            )
        return cls(name, tuple(entries), tuple(classes))

    @cached_property
    def declared(self) -> dict[str, dict[str, Parameter]]:
        """The parameters of each part, by its name."""
        return {
            entry.name: params.declared(part)
            for entry, part in zip(self.entries, self.classes, strict=True)
        }

    def key(self, part: str, parameter: str) -> str:
        """Return what a part's parameter is called."""
        return parameter if len(self.classes) == 1 else f"{part}.{parameter}"

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return every parameter, those given over the defaults.

        Raises:
            UsageError: an unknown name, a value of the wrong type, or a required one missing.
        """
        return {
            self.key(entry.name, parameter): value
            for entry, part, share in zip(
                self.entries, self.classes, self._shares(given), strict=True
            )
            for parameter, value in params.resolve(part, share, entry.name).items()
        }

    def _shares(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        if len(self.classes) == 1:
            return [dict(given)]
        shares: dict[str, dict[str, Any]] = {entry.name: {} for entry in self.entries}
        for name, value in given.items():
            part, _, parameter = name.partition(".")
            if part not in shares:
                owners = [owner for owner, its in self.declared.items() if name in its]
                said = " or ".join(f"{owner}.{name}" for owner in owners) or "PART.PARAMETER"
                raise UsageError(f"{self.name} has no parameter {name!r}: say {said}")
            shares[part][parameter] = value
        return list(shares.values())

    def __call__(self, num_objectives: int, seed: int = 0, **parameters: Any) -> Balancer:
        """Return a new balancer.

        Raises:
            UsageError: a parameter that does not exist or has no such value.
        """
        shares = self._shares(self.resolve(parameters))
        *outer, base = zip(self.entries, self.classes, shares, strict=True)
        balancer = _constructed(*base, num_objectives, seed)
        for entry, part, share in reversed(outer):
            own = seeding.derive(seed, entry.name)
            balancer = _constructed(entry, part, share, balancer, own)
        return balancer

    def suggest(self, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw every part's parameters from its search space; the rest keeps its defaults."""
        found: dict[str, Any] = {}
        for entry, part in zip(self.entries, self.classes, strict=True):
            asked: Any = trial if len(self.classes) == 1 else _Prefixed(trial, entry.name)
            own: Any = part.suggest(asked, num_objectives)
            if not isinstance(own, Mapping):
                raise PluginError(
                    f"{entry.path}: suggest must return its parameters by name, as in "
                    f"{{'alpha': trial.suggest_float('alpha', 0, 1)}}, found {own!r}"
                )
            found |= {self.key(entry.name, name): value for name, value in own.items()}
        return found

    @property
    def passes(self) -> str:
        """What a step costs."""
        *outer, base = self.classes
        own = [part.passes for part in outer if part.passes != Wrapper.passes]
        return ", around ".join([*own, base.passes])

    @property
    def reference(self) -> bool:
        """Whether its row is the one that delta-m is measured against."""
        return len(self.classes) == 1 and self.classes[0].reference

    @property
    def is_weighted_sum(self) -> bool:
        """Whether the weights that it returns say all of what it does."""
        return all(part.is_weighted_sum for part in self.classes)

    @property
    def digests(self) -> dict[str, str]:
        """What code each part is, by its name."""
        return {entry.name: entry.digest() for entry in self.entries}


def _constructed(
    entry: Entry, part: type[Balancer], share: Mapping[str, Any], first: Any, seed: int
) -> Balancer:
    """Return a part of a method, if it is constructed as all are.

    Raises:
        PluginError: it takes other arguments, or leaves its base out.
    """
    what = f"{entry.path}: {part.__name__}.__init__"
    try:
        signature(part.__init__).bind(None, first, seed=seed, **share)
    except TypeError as error:
        said = "base" if issubclass(part, Wrapper) else "num_objectives"
        raise PluginError(
            f"{what} must take (self, {said}, seed=0), and its own parameters by name: {error}"
        ) from None
    found = part(first, seed=seed, **share)
    if "num_objectives" not in vars(found):
        raise PluginError(f"{what} does not construct its base: begin it with super().__init__")
    if not isinstance(found.generator, torch.Generator):
        raise PluginError(f"{what} overwrites self.generator, which is its base's: rename yours")
    return found


class _Prefixed:
    """A trial whose parameters are called after the part that asks for them."""

    def __init__(self, trial: "Trial", part: str) -> None:
        self._trial, self._part = trial, part

    def __getattr__(self, ask: str) -> Any:
        return lambda name, *args, **kwargs: getattr(self._trial, ask)(
            f"{self._part}.{name}", *args, **kwargs
        )


def balancer(
    name: str,
    num_objectives: int,
    *,
    seed: int = 0,
    plugins: Sequence[Path | str] = (),
    **parameters: Any,
) -> Balancer:
    """Return a balancer by its method's name.

    Args:
        name: the method's, such as ``cagrad``; with wrappers before their base, ``damped+mgda``.
        num_objectives: K.
        seed: of the method's randomness.
        plugins: files that define further methods.
        parameters: the method's own, such as ``c=0.4``; ``**{"damped.rate": 0.1}`` with wrappers.

    Raises:
        UsageError: an unknown method or parameter.

    Example:
        >>> model = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
        >>> z = model[0](torch.ones(4, 2))
        >>> losses = [model[1](z).square().mean(), model[2](z).abs().mean()]
        >>> method = balancer("cagrad", num_objectives=2, c=0.4)
        >>> weights = method.backward(losses)
        >>> weights.shape, model[0].weight.grad.shape
        (torch.Size([2]), torch.Size([2, 2]))
    """
    if not isinstance(name, str):
        raise UsageError(f"balancer: name must be a method's, as in 'cagrad', found {name!r}")
    return Method.find(name, plugins)(num_objectives, seed, **parameters)


def combine(
    name: str,
    jacobian: Tensor,
    losses: Tensor | None = None,
    *,
    seed: int = 0,
    plugins: Sequence[Path | str] = (),
    **parameters: Any,
) -> Tensor:
    """Return the (d,) direction that a method makes of K gradients, as at its first step.

    Args:
        name: the method's, such as ``cagrad``.
        jacobian: (K, d), the gradients as rows.
        losses: the K loss values; ones by default.
        seed: of the method's randomness.
        plugins: files that define further methods.
        parameters: the method's own.

    Raises:
        UsageError: an unknown method or parameter, or shapes that do not fit.

    Example:
        >>> combine("mgda", torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([0.4000, 0.8000])
    """
    is_real = isinstance(jacobian, Tensor) and jacobian.is_floating_point()
    if not is_real or jacobian.ndim != 2 or not len(jacobian):
        found = f"a {type(jacobian).__name__}"
        if isinstance(jacobian, Tensor):
            found = f"{tuple(jacobian.shape)} of {jacobian.dtype}"
        raise UsageError(f"combine: jacobian must be (K, d), a tensor of floats, found {found}")
    losses = jacobian.new_ones(len(jacobian)) if losses is None else losses.to(jacobian)
    if losses.shape != jacobian.shape[:1]:
        raise UsageError(f"combine: losses must be ({len(jacobian)},), found {tuple(losses.shape)}")
    x = torch.zeros_like(jacobian[0], requires_grad=True)

    def step() -> Step:
        z = x[None] * 1  # linear losses: their gradients at z, and at x, are the rows
        values = [value + z[0] @ row for value, row in zip(losses, jacobian, strict=True)]
        return Step(values, features=z, shared=[x], again=step, validation=step)

    Method.find(name, plugins)(len(jacobian), seed, **parameters).backward(step())
    return torch.zeros_like(x) if x.grad is None else x.grad
