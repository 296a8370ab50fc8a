"""What a balancing method is: the class that turns one forward pass into gradients.

A method picks the narrowest signature that it needs: losses (`Scalarizer`), the K x K Gramian
(`Weighting`), the K x d Jacobian (`Aggregator`), or everything (`Balancer`).
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from numbers import Integral
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    NamedTuple,
    Never,
    Self,
    TypedDict,
    Unpack,
    final,
    overload,
)

import torch
from torch import Tensor, nn

from mtbench.balancing.accumulation import Held
from mtbench.balancing.distributed import Ranks, lengths_of, must_agree, processes, refuse_wrapped
from mtbench.balancing.engine import Engine, largest, without_autocast
from mtbench.balancing.signatures import must_take, name_of
from mtbench.balancing.step import Again, Space, Step
from mtbench.balancing.told import Residuals, Shared, scalars
from mtbench.balancing.watch import HOOKS, Watch, noted
from mtbench.errors import StepError, UsageError, did_you_mean

if TYPE_CHECKING:
    from optuna import Trial

    from mtbench.balancing.model import MultitaskModel

LossesFn = Callable[[], Any]
"""Repeats the forward pass; returns losses as `Balancer.backward` takes them.

A method's own `after_step` is given K scalars in order.
"""
Losses = Sequence[Tensor | None] | Mapping[str, Tensor | None]

_ASKED = (
    "balance",
    "objective",
    "weights",
    "direction",
    "compares",
    "after_evaluation",
    "wrap",
    "suggest",
)
"""What a method may define beside the hooks of a loop."""


class Said(TypedDict, total=False):
    """What `Step` is told beside the losses."""

    features: Tensor | Sequence[Tensor]
    shared: Shared | None
    latent: int | Tensor
    again: Again | None
    validation: Again | None
    residuals: Residuals | None
    engine: Engine | None
    loss_scale: "float | torch.amp.GradScaler"
    ranks: Ranks | None


class Judged(NamedTuple):
    """A metric on the validation split, at the end of an epoch.

    Attributes:
        name: of the metric.
        value: NaN where it is undefined.
        objective: the number of the objective that it judges; None if all together.
        higher_is_better: its direction.
        primary: whether it counts for model selection.
    """

    name: str
    value: float
    objective: int | None
    higher_is_better: bool
    primary: bool


class Balancer(nn.Module, ABC):
    """A balancing method.

    All that step t+1 needs is a parameter, a buffer or extra state, so that `state_dict` carries
    it, in its own precision: ``.to(dtype)`` and ``.half()`` leave a balancer as it is. Trainable
    parameters of a balancer never get the model's weight decay. Every method is
    constructed as ``Method(num_objectives, seed=seed, **its_own_parameters)``, all but the first by
    name.

    Args:
        num_objectives: K.
        seed: seeds `generator`, the only source of randomness a method may use.

    Attributes:
        notes: what the last step tells of the method itself: numbers by name, detached, on the
            device. A trainer records their means. ``acts`` is the share of the samples on which it
            does anything: that of a run which trains as the plain sum would is 0.
        paper: where the method is defined.
        passes: what a step costs: F forward, H heads' backward, E encoder backward.
        checked_against: the independent implementations that the tests compare it with.
        reference: whether its row is the one that delta-m is measured against.
        needs_features: whether the method cannot do with losses and parameters alone.
        needs_again: whether it repeats the forward pass, to take gradients at other parameters.
        needs_validation: whether it asks for `Step.validation`.
        needs_residuals: whether it looks at what the losses square, `Step.residuals`.
        holds_out: the share of the training samples that are kept for `Step.validation` and never
            trained on; 0 if validation batches are other batches of the training split.
        finds_front: whether it ends near the Pareto set where the objectives are convex.
        needs_positive: whether it leaves out objectives whose loss is not above 0.
        is_symmetric: whether the order of the objectives makes no difference, draws aside.
        is_weighted_sum: whether the weights that `backward` returns say all: what it writes at the
            shared parameters is the gradient of the losses' sum with these. The contract checks it,
            and L-BFGS in every step.
        sized_later: buffers whose shape is not known before the first step; a state of as many
            objectives is loaded whatever their shape in it.
        on_host: buffers that stay on the CPU, as they are, wherever the method is moved: those that
            a solver reads there.
    """

    paper: ClassVar[str] = ""
    passes: ClassVar[str] = ""
    checked_against: ClassVar[str] = ""
    reference: ClassVar[bool] = False
    needs_features: bool = False
    needs_again: bool = False
    needs_validation: bool = False
    needs_residuals: bool = False
    holds_out: float = 0.0
    finds_front: bool = True
    needs_positive: bool = False
    is_symmetric: bool = True
    is_weighted_sum: bool = True
    sized_later: ClassVar[tuple[str, ...]] = ()
    on_host: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *first: Any, **named: Any) -> Self:
        """Refuse a parameter without its name, which would be taken for the seed."""
        if len(first) > 1:
            raise UsageError(
                f"{name_of(cls)}: all but the first goes by its name, as in seed=0, found "
                f"{first[1]!r} without one"
            )
        return super().__new__(cls)

    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__()
        for name, number in (("num_objectives", num_objectives), ("seed", seed)):
            if isinstance(number, bool) or not isinstance(number, Integral):
                raise UsageError(f"{self._called}: {name} must be an integer, found {number!r}")
        if num_objectives < 1:
            raise StepError(
                f"{self._called}: num_objectives must be at least 1, found {num_objectives}"
            )
        if not -(2**63) <= seed < 2**64:  # what torch takes
            raise UsageError(f"{self._called}: seed must be below 2**64, found {seed}")
        self.num_objectives = int(num_objectives)
        self.engine = Engine(batched=False)
        self._names: tuple[str, ...] = ()
        self._held: Held | None = None
        self.notes: dict[str, Tensor] = {}
        self.watch = Watch()
        self.generator = torch.Generator().manual_seed(int(seed))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "backward" in vars(cls):
            raise UsageError(
                f"{cls.__name__}.backward is what a loop calls, and every method's is the same: "
                "call yours balance"
            )
        for name in (*HOOKS, *_ASKED):
            must_take(cls, name)
        if "after_step" in vars(cls):
            setattr(cls, "after_step", _asked(vars(cls)["after_step"]))  # noqa: B010 - a method
        if "view" in vars(cls):
            setattr(cls, "view", _several(vars(cls)["view"]))  # noqa: B010 - a method
        for hook in HOOKS:
            if hook in vars(cls):
                setattr(cls, hook, noted(vars(cls)[hook]))

    @overload
    def backward(
        self, losses: Step | Sequence[Tensor | None], **said: Unpack[Said]
    ) -> Tensor | None: ...

    @overload
    def backward(
        self, losses: Mapping[str, Tensor | None], **said: Unpack[Said]
    ) -> dict[str, Tensor] | None: ...

    @final
    def backward(
        self, losses: Step | Losses, **said: Unpack[Said]
    ) -> Tensor | dict[str, Tensor] | None:
        """Write every ``.grad`` for one forward pass, in the place of ``sum(losses).backward()``.

        Args:
            losses: K scalars on the graph, in a sequence or by the objectives' names; None for an
                objective without labels in this batch. Or a `Step`, which may be told more.
            said: what `Step` takes beside losses: ``latent=z`` for methods that look at the latent
                representation, ``loss_scale=scaler`` with a gradient scaler.

        Returns:
            The effective weights (K,) of the objectives, for the record, where the method has any;
            by name if the losses are. They are 1 each where a loss is infinite: then the gradient
            is the plain sum's, for whoever skips such steps (`torch.amp.GradScaler`). They are 0
            where no objective has a label. The method hears of neither, nor of `after_step` then.

        Raises:
            StepError: losses that are not K scalars, or that the graph does not bear out.
        """
        if not torch.is_grad_enabled():  # `Tensor.backward` does not mind either
            with torch.inference_mode(mode=False), torch.enable_grad():
                return self.backward(losses, **said)
        # If this is refused, nothing is left of what it was to end.
        held, self._held = self._held, None
        step, names = self._step(losses, said)
        among = not self.watch.calls and processes() > 1  # the first step of one of several
        unspoken = among and not step.speaks_of_ranks
        if self.watch.begins():
            own, hooks = self.parameters(), self._hooks()
            self.watch.look(
                self._called,
                own,
                lambda: step.trained,
                lambda: step.shared if step.transient else (),  # a trainer wraps
                hooks,
                step.transient,
            )
        if held is not None:
            held.add(step)
            step = held.step(step)
        self.watch.before = step.read if step.transient else ()  # a trainer sees to it
        if self.notes:
            self.notes = {}
        overflows = any(map(math.isinf, step.read))
        # On another rank there may be labels, and what is summed over ranks waits for this one.
        empty = step.ranks.size == 1 and not any(loss.requires_grad for loss in step.losses)
        self.watch.idle = overflows or empty
        trained = list(step.trained) if unspoken else []  # of a graph that is still there
        weights: Tensor | None
        if self.watch.idle:
            step.descend(step.total())
            weights = torch.full_like(step.host_values, float(overflows))
        else:
            weights = self._weights_or_none(self.balance(step))
            if step.transient and step.is_apart:
                self.watch.parted(self._called, bool(step.shared))
            if among and step.speaks_of_ranks and step.ranks.size == 1 and step.is_apart:
                refuse_wrapped(step.shared)  # each is said to train by itself
        if unspoken:
            must_agree(step.read, trained)
        step.engine.tell_hooks()
        if weights is None or not names:
            return weights
        return dict(zip(names, weights.unbind(), strict=True))

    @final
    def accumulate(self, losses: Step | Losses, **said: Unpack[Said]) -> None:
        """Take in one of several micro-batches; `backward` of the last one makes the step.

        The losses of micro-batches add up to those of the whole batch, so a mean is divided by
        their number. The step is then that of the whole batch, to rounding, at the memory of one
        micro-batch and K gradients.

        Args:
            losses: as in `backward`.
            said: as in `backward`.

        Raises:
            StepError: as in `backward`; and the method looks at features or residuals, which are
                those of one micro-batch's samples; and ``again``, which is for the last one, is
                given here to a method that needs it.
        """
        if self.at_features or self.needs_residuals:
            what = "features" if self.at_features else "residuals"
            raise StepError(
                f"{self._called} looks at the {what}, and those of several micro-batches are not "
                "one batch's: hand over whole batches"
            )
        self.watch.accumulates(self._called)
        held, self._held = self._held or Held(self.num_objectives), None
        step, _ = self._step(losses, said)
        if self.needs_again and step.has_again:
            raise StepError(
                f"{self._called} repeats the forward pass of the whole batch: give again= to the "
                "last micro-batch's backward alone, a function that adds up the losses of all"
            )
        held.add(step)
        self._held = held

    @final
    def discard(self) -> None:
        """Forget the micro-batches that `accumulate` has taken in since the last `backward`.

        They would else be part of the next step: an optimizer's ``zero_grad`` does not know them.
        """
        self._held = None

    def _step(self, losses: Step | Losses, said: Said) -> tuple[Step, tuple[str, ...]]:
        """Return what was handed over as this balancer's step, and the objectives' names."""
        names: tuple[str, ...] = ()
        if isinstance(losses, Step):
            if said:
                raise StepError(
                    f"{self._called}: a Step is told all there is to say when it is made, found "
                    f"{', '.join(said)} beside it: say Step(losses, {next(iter(said))}=...)"
                )
            step = losses
        else:
            if isinstance(losses, Mapping):
                if said.get("residuals") is not None:
                    raise StepError(
                        f"{self._called}: residuals have no names: hand over losses in a list, in "
                        "their order"
                    )
                names = self._names = self._named(losses)
                losses = [losses[name] for name in names]
            for word in said.keys() - Said.__annotations__.keys():
                raise StepError(
                    f"{self._called}: backward takes no {word}=: "
                    f"{did_you_mean(word, Said.__annotations__)}"
                )
            said.setdefault("engine", self.engine)
            if (again := said.get("again")) is not None:
                said["again"] = partial(self._repeated, again, "again")
            if (validation := said.get("validation")) is not None:
                said["validation"] = partial(self._repeated, validation, "validation")
            step = Step(losses, **said)
            step.transient = True
        step.refuse_constants()
        step.refuse_chosen(walk=step.transient or not self.watch.calls)  # a trainer's are alike
        self._check(step)
        if step.ranks.size > 1:
            self._refuse_apart(step)
        return step, names

    def _refuse_apart(self, step: Step) -> None:
        """Refuse losses that ranks do not share; at the first step parameters and state, too."""
        kept = [0.0, 0.0]
        if not self.watch.calls and self._held is None:
            own = [x.double() for x in self.state_dict().values() if isinstance(x, Tensor)]
            kept = [
                sum(i * length for i, length in enumerate(lengths_of(tensors), 1))
                for tensors in (step.trained, own)
            ]
        found = torch.tensor([*step.read, *kept], dtype=torch.float64).nan_to_num()
        least, most = step.ranks.extremes(found)
        allowed = torch.tensor([1e-3] * step.num_objectives + [1e-6] * 2)  # by rounding
        apart = most - least > allowed * torch.maximum(most.abs(), least.abs())
        *losses, parameters, state = apart.tolist()
        if any(losses):
            what = f"losses[{losses.index(True)}] differs"
            how = "hand over the whole batch's, made with ranks.total, and None on all or none"
        elif parameters:
            what, how = "parameters differ", "begin with equal ones, by one seed or one checkpoint"
        elif state:
            what, how = "the balancer's state differs", "give all one seed, and load it on all"
        else:
            return
        raise StepError(f"{self._called}: {what} between the processes that share the batch: {how}")

    def _repeated(self, losses_fn: Callable[[], Any], whose: str) -> Step | tuple[Tensor, ...]:
        """Return what another forward pass gives, as K scalars in order if it is no step."""
        if not callable(losses_fn):
            raise StepError(
                f"{self._called}: {whose} needs a function that computes the losses, found a "
                f"{type(losses_fn).__name__}: say lambda: compute_losses(...)"
            )
        torch.clear_autocast_cache()  # parameters may have moved since their copies were made
        losses = losses_fn()
        if isinstance(losses, Step):
            self._count(losses.num_objectives)
            return losses
        if isinstance(losses, Mapping):
            names = self._named(losses)
            losses = [losses[name] for name in names]
        found = scalars(losses)
        self._count(len(found))
        return found

    def _named(self, losses: Mapping[str, Tensor | None]) -> tuple[str, ...]:
        names = self._names or tuple(losses)
        if other := [name for name in losses if not isinstance(name, str | int)]:
            raise StepError(
                f"{self._called}: losses' names must be strings or whole numbers, found "
                f"{other[0]!r}"
            )
        if set(names) != set(losses):
            raise StepError(
                f"{self._called} balances {', '.join(names)}, found losses named "
                f"{', '.join(losses)}: the same names each time, None for one without labels"
            )
        return names

    def _check(self, step: Step) -> None:
        """Refuse a step that is not this balancer's."""
        self._count(step.num_objectives)
        if self.needs_features and not step.features:
            raise StepError(
                f"{self._called} looks at the features: give latent=z, the tensor that the "
                "heads get"
            )
        if self.needs_residuals and not step.has_residuals:
            raise StepError(
                f"{self._called} looks at what the losses square: give residuals=[r_1, ...], for "
                "each loss the tensor of whose squares it is the mean, up to a factor"
            )

    def _count(self, found: int) -> None:
        """Refuse another number of losses."""
        K = self.num_objectives
        if found != K:
            raise StepError(
                f"{self._called} balances {K} objectives, found {found} losses: "
                f"construct it with num_objectives={found}, or hand over {K}"
            )

    def _weights_or_none(self, found: Tensor | None) -> Tensor | None:
        """Return what `balance` answers, if it is weights or None."""
        shape = (self.num_objectives,)
        if found is not None and not (isinstance(found, Tensor) and found.shape == shape):
            self._refuse("balance", f"weights of shape {shape}, or None", found)
        return found

    def _vector(self, what: str, found: Any, shape: torch.Size) -> Tensor:
        """Return what a method answers, if it is a vector of this shape, off the graph."""
        if not isinstance(found, Tensor) or found.shape != shape or found.requires_grad:
            self._refuse(what, f"a tensor of shape {tuple(shape)}, off the graph", found)
        return found

    def _refuse(self, what: str, wanted: str, found: Any, verb: str = "return") -> Never:
        shown = type(found).__name__
        if isinstance(found, Tensor):
            shown = f"shape {tuple(found.shape)}{', on the graph' * found.requires_grad}"
        raise StepError(f"{self._called}: `{what}` must {verb} {wanted}, found {shown}")

    @classmethod
    def _does(cls, hook: str) -> bool:
        """Return whether a hook does anything in this class itself."""
        return getattr(cls, hook) is not getattr(Balancer, hook)

    def _hooks(self) -> set[str]:
        """Return the hooks that do anything in this method."""
        return {name for name in HOOKS if self._does(name)}

    @property
    def at_features(self) -> bool:
        """Whether it looks at gradients at the features, or at the features themselves."""
        return self.needs_features or getattr(self, "space", "shared") == "features"

    @property
    def _called(self) -> str:
        return name_of(type(self))

    def forward(self, *_: object, **__: object) -> Never:
        """Refuse to be called: what a balancer does is `backward`."""
        raise UsageError(
            f"{self._called}: a balancer is not called: say balancer.backward(losses) in the place "
            "of sum(losses).backward()"
        )

    @abstractmethod
    def balance(self, step: Step) -> Tensor | None:
        """Write every ``.grad`` for one pass: what a method implements, and `backward` calls.

        Returns:
            The effective weights (K,) of the objectives, for the record, where the method has any.
        """

    def all_notes(self) -> dict[str, Tensor]:
        """Return the `notes` of this method and of those that it is made of."""
        parts = [part for part in self.modules() if isinstance(part, Balancer)]
        found = {name: value for part in parts for name, value in part.notes.items()}
        for name, value in found.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                self._refuse(f"notes[{name!r}]", "a tensor of one number", value, "be")
        return found

    def after_step(self, losses_fn: LossesFn) -> None:
        """Act after the optimizer's step; `losses_fn()` repeats the forward on the same batch."""

    def after_epoch(self) -> None:
        """Act after an epoch."""

    def after_evaluation(self, metrics: Sequence[Judged]) -> None:
        """Act on the epoch's validation metrics."""

    def view(self, features: tuple[Tensor, ...], k: int) -> tuple[Tensor, ...]:
        """Return the features as head k shall see them."""
        if isinstance(features, Tensor):
            raise StepError(
                f"{self._called}: view takes a tuple of features, found a tensor: say "
                "view((z,), k)[0]"
            )
        return features

    def wrap(self, model: "MultitaskModel") -> "MultitaskModel":
        """Return the model that shall be trained in the place of `model`."""
        return model

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw this method's own parameters from its search space, for K objectives."""
        return {}

    def get_extra_state(self) -> Tensor:
        """Return the generator's state, and behind it the order of the objectives' names."""
        names = json.dumps(self._names).encode() if self._names else b""
        order = torch.tensor([*names], dtype=torch.uint8, device="cpu")
        return torch.cat([self.generator.get_state(), order])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned; earlier versions knew no names."""
        drawn, names = state.cpu().tensor_split([self.generator.get_state().numel()])
        self.generator.set_state(drawn)
        self._names = tuple(json.loads(bytes(names.tolist()) or "[]"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if isinstance(self.on_host, str) or not self._buffers.keys() >= {*self.on_host}:
            raise UsageError(
                f"{self._called}: on_host must be a tuple of its buffers' names, as in ('mean',), "
                f"found {self.on_host!r}"
            )
        kept = {name: self._buffers[name] for name in self.on_host}

        def moved(state: Tensor) -> Tensor:  # half precision would not hold a running mean
            found = fn(state)
            return found if found.dtype == state.dtype else state.to(found.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update(kept)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.engine.forget()
        for name in self.sized_later:
            saved = state_dict.get(prefix + name)
            own: Tensor = getattr(self, name)
            # Left as it is, a state of another K is refused by torch.
            if saved is None or own.shape[:1] == (self.num_objectives,) != saved.shape[:1]:
                continue
            with torch.inference_mode(mode=False):
                setattr(self, name, own.new_empty(saved.shape, dtype=saved.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _asked(after_step: Callable[[Any, LossesFn], None]) -> Callable[[Any, LossesFn], None]:
    """Return the hook, given K scalars, and nothing after a step that it has not heard of."""

    @wraps(after_step)
    def act(self: Balancer, losses_fn: LossesFn) -> None:
        def repeated() -> Sequence[Tensor]:
            found = self._repeated(losses_fn, "after_step")
            losses = found.losses if isinstance(found, Step) else found
            self.watch.repeats(self._called, losses)
            return losses

        if not self.watch.idle:
            after_step(self, repeated)

    return act


_View = Callable[[Any, tuple[Tensor, ...], int], tuple[Tensor, ...]]


def _several(view: _View) -> _View:
    """Return the hook, which then refuses a single tensor."""

    @wraps(view)
    def act(self: Balancer, features: tuple[Tensor, ...], k: int) -> tuple[Tensor, ...]:
        return view(self, Balancer.view(self, features, k), k)

    return act


class Scalarizer(Balancer):
    """A method that minimises one scalar: every parameter, heads too, gets its gradient."""

    passes = "F + H + E"

    @abstractmethod
    def objective(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """Return the scalar to minimise, and the effective weights (K,) for the record."""

    def balance(self, step: Step) -> Tensor | None:
        """Differentiate the scalar once."""
        found = self.objective(step)
        if not isinstance(found, tuple) or len(found) != 2:
            self._refuse("objective", "a pair, the scalar and weights or None", found)
        objective, weights = found
        off = not isinstance(objective, Tensor) or objective.numel() != 1
        if off or (not objective.requires_grad and all(x.requires_grad for x in step.losses)):
            self._refuse("objective", "a scalar on the graph as the first of the pair", objective)
        if weights is not None and not isinstance(weights, Tensor):
            self._refuse("objective", "weights (K,) or None as the second of the pair", weights)
        step.descend(objective)
        return None if weights is None else weights.detach()


class Weighting(Balancer):
    """A method that finds weights from the Gramian of the objectives' gradients.

    The shared parameters get sum_k w_k dL_k, every head the unweighted gradient of its own loss.

    An objective whose gradient is zero (no label in this batch, or solved) has nothing to say: it
    is left out before the method is asked, and its recorded weight is 0.

    Attributes:
        space: where the gradients are taken.
        sees_zero_rows: whether `weights` is asked with all K objectives all the same, for the sake
            of what it keeps per objective.
    """

    passes = "F + H + K E"
    space: Space = "shared"
    sees_zero_rows: bool = False

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the (K,) weights.

        Args:
            gramian: G = J J^T, (K, K), float64, every diagonal entry positive.
            losses: the K loss values, float64.
        """

    @property
    def weighs_only(self) -> bool:
        """Whether a step finds weights, applies them, and does no more; then wrappers may ask."""
        own = (Weighting.balance, Weighting.write)
        return (type(self).balance, type(self).write) == own

    def weigh(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of all K objectives, those without a gradient left out.

        Where a gradient is not finite the answer is 1 each, so that ``.grad`` shows it to whoever
        skips such steps (`torch.amp.GradScaler`), and what the method keeps does not see it.
        """
        # Python's floats: a solver takes some 50 microseconds, each small operation of torch 2 to
        # 10. A gradient that is not finite has no finite square: the diagonal tells.
        squares = gramian.diagonal().tolist()
        if not math.isfinite(sum(squares)):
            return torch.ones_like(losses)
        if self.sees_zero_rows or min(squares) > 0:
            return self._vector("weights", self.weights(gramian, losses), losses.shape)
        active = gramian.diagonal() > 0
        weights = torch.zeros_like(losses)
        if active.any():
            some = losses[active]
            found = self.weights(gramian[active][:, active], some)
            weights[active] = self._vector("weights", found, some.shape).to(weights)
        return weights

    def balance(self, step: Step) -> Tensor:
        """Find the weights and apply them."""
        step.release()
        gramian = step.gramian(self.space)
        weights = self.weigh(gramian, step.host_values)
        self.write(step, weights)
        return weights

    def write(self, step: Step, weights: Tensor) -> None:
        """Write the gradients that the weights make."""
        step.backward(weights, self.space)


class Aggregator(Balancer):
    """A method that finds a direction from the whole Jacobian; all else as in `Weighting`.

    Attributes:
        sees_zero_rows: as in `Weighting`.
        asks_nothing: whether `direction` may be given any Jacobian, rows that are zero or not
            finite too, and shows the latter in what it returns. Then the host waits for nothing.
    """

    passes = "F + H + K E"
    is_weighted_sum = False
    sees_zero_rows: bool = False
    asks_nothing: bool = False

    @abstractmethod
    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Return the (d,) direction that takes the gradient's place.

        Args:
            jacobian: (K, d), every row nonzero.
            losses: the K loss values.
        """

    def compares(self, shared: Sequence[Tensor]) -> None:
        """Hear before each `direction` whose gradients the columns are, in their order."""

    def direct(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Return the direction, objectives without a gradient left out.

        Where a gradient is not finite it is the plain sum, as in `Weighting.weigh`. Autocast does
        not round it.
        """
        with without_autocast(jacobian):
            return self._direct(jacobian, losses)

    def _direct(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        width = jacobian.shape[1:]
        if self.asks_nothing:
            return self._vector("direction", self.direction(jacobian, losses), width)
        sizes = largest(jacobian).cpu()
        active = sizes > 0
        if not sizes.isfinite().all():
            return jacobian.sum(0)
        if self.sees_zero_rows or active.all():
            return self._vector("direction", self.direction(jacobian, losses), width)
        if not active.any():
            return jacobian.new_zeros(width)
        return self._vector("direction", self.direction(jacobian[active], losses[active]), width)

    def balance(self, step: Step) -> None:
        """Find the direction and apply it."""
        step.release()
        self.compares(step.shared)
        jacobian = step.jacobian()
        direction = self.direct(jacobian, step.values.to(jacobian))
        kept = (jacobian, *self.parameters(), *self.buffers())
        if direction.untyped_storage().data_ptr() in {x.untyped_storage().data_ptr() for x in kept}:
            direction = direction.clone()  # its memory becomes that of the gradients
        step.assign(direction)
