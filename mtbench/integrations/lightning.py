"""A `LightningModule` that trains with any balancer, by manual optimisation."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.engine import Engine
from mtbench.balancing.step import Step
from mtbench.balancing.told import Shared, parameters_of
from mtbench.errors import UsageError
from mtbench.training.machine.cache import cache_dir

if TYPE_CHECKING:
    from lightning import LightningModule
else:
    LightningModule = object  # so that the modules of `pytorch_lightning` can be mixed in as well

Features = Tensor | Sequence[Tensor]
Pass = (
    tuple[Sequence[Tensor | None], Features]
    | tuple[Sequence[Tensor | None], Features, Sequence[Tensor | None] | None]
)
Forward = Callable[[], Pass]
"""Makes one forward pass; returns the K losses (None without labels) and the features, or ``()``.

And, for methods that look there, what the losses square, the residuals of `Step`.
"""


class Balanced(LightningModule):
    """A mixin, named before ``LightningModule``.

    The balancer is a submodule: Lightning's checkpoints carry its state.

    Args:
        balancer: the method.

    Example:
        >>> import torch
        >>> from lightning import LightningModule
        >>> from mtbench_baselines.cagrad import CAGrad
        >>> class Net(Balanced, LightningModule):
        ...     def __init__(self):
        ...         super().__init__(CAGrad(num_objectives=2))
        ...         self.encoder, self.a, self.b = (torch.nn.Linear(4, 4) for _ in range(3))
        ...
        ...     def losses(self, x):
        ...         z = self.encoder(x)
        ...         return [self.a(z).square().mean(), self.b(z).abs().mean()], z
        ...
        ...     def training_step(self, batch, index):
        ...         self.balance(lambda: self.losses(batch))
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(self.parameter_groups(), lr=1e-3)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(Balanced)]
        if any(base.__name__ == "LightningModule" for base in before):
            raise UsageError(
                f"{cls.__name__}: Balanced comes first: class {cls.__name__}(Balanced, "
                "LightningModule)"
            )

    def __init__(self, balancer: Balancer) -> None:
        super().__init__()
        if not isinstance(balancer, Balancer):
            raise UsageError(
                f"Balanced: wants a balancer, found {balancer!r}: say super().__init__("
                'balancer("cagrad", num_objectives=2)), with `from mtbench import balancer`'
            )
        self.automatic_optimization = False
        self.balancer = balancer
        self.engine = Engine(notebook=cache_dir())
        self._forwards: list[Forward] = []  # of the batches that are held
        self._window: tuple[int, int] | None = None  # of an epoch that has not ended, and in it
        self._balances = False

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return all parameters for an optimizer, the balancer's own without weight decay."""
        own = list(self.balancer.parameters())
        held = {id(p) for p in own}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if id(p) not in held]}
        ]
        return [*groups, {"params": own, "weight_decay": 0.0}] if own else groups

    def balance(
        self,
        forward: Forward,
        *,
        shared: Shared | None = None,
        latent: int = -1,
        accumulate: int = 1,
    ) -> Tensor | None:
        """Do all of a training step: gradients, every optimizer, the balancer's hooks.

        Mixed precision with a gradient scaler is taken into account. Learning-rate schedulers are
        the caller's, and so is clipping: ``self.clip_gradients(optimizer, gradient_clip_val=1.0,
        gradient_clip_algorithm="norm")`` in ``on_before_optimizer_step``.

        Args:
            forward: makes the forward pass of this batch; some methods ask for it again.
            shared: as in `Step`.
            latent: as in `Step`.
            accumulate: the batches that are balanced as one; what is left at the end of an epoch
                makes a smaller step, as in Lightning's own accumulation.

        Returns:
            The effective weights (K,) of the objectives, where the method has any, and a step was
            due.

        Raises:
            UsageError: Lightning trains with several processes, or a gradient scaler and several
                optimizers; `accumulate` is no whole number of at least 1; or `forward` is no
                function, or does not return what it should.
        """
        if not callable(forward):
            raise UsageError(
                f"Balanced: balance takes a function, found a {type(forward).__name__}: say "
                "self.balance(lambda: self.losses(batch))"
            )
        if isinstance(accumulate, bool) or not isinstance(accumulate, Integral) or accumulate < 1:
            raise UsageError(
                "Balanced: accumulate must be a whole number of at least 1, found "
                f"{accumulate!r}: say self.balance(..., accumulate=4) for four batches as one"
            )
        trainer = self.trainer
        if trainer.world_size > 1:
            raise UsageError(
                "Balanced: Lightning does not average a balancer's gradients over "
                f"{trainer.world_size} processes; use Trainer(devices=1)"
            )
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        found = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        # Each optimizer's step in Lightning changes the scale, and the next one unscales by it.
        if scaler is not None and len(optimizers) > 1:
            raise UsageError(
                "Balanced: with a gradient scaler (16-mixed) Lightning unscales rightly for one "
                f"optimizer, found {len(optimizers)}: give one with parameter groups, or train in "
                "bf16-mixed"
            )
        # The encoder may be frozen for a while.
        parameters = () if shared is None else parameters_of(shared)
        window = trainer.current_epoch, trainer.fit_loop.batch_idx // accumulate
        first = trainer.fit_loop.batch_idx % accumulate == 0  # of another `fit`, it may be
        if first or window != self._window:  # batches may be skipped, a window's last one too
            if self._window is not None and self._window[0] != window[0]:
                self.balancer.after_epoch()
            self.balancer.discard()
            self._forwards.clear()
            self._window, self._balances = window, True
        self._forwards.append(forward)
        forwards = tuple(self._forwards)
        last = trainer.is_last_batch
        due = last or (trainer.fit_loop.batch_idx + 1) % accumulate == 0

        def step(forwards: Sequence[Forward] = forwards) -> Step:
            losses, features, *rest = _mean(forwards, accumulate)
            return Step(
                losses,
                features=features,
                residuals=rest[0] if rest else None,
                shared=parameters or None,
                latent=latent,
                again=step if due else None,
                engine=self.engine,
                loss_scale=1.0 if scaler is None else scaler,
            )

        weights = None
        if not due:
            self.balancer.accumulate(step([forward]))
        else:
            weights = self.balancer.backward(step([forward]))
            for optimizer in optimizers:
                optimizer.step()
            self.balancer.after_step(lambda: _mean(forwards, accumulate)[0])
            for optimizer in optimizers:
                optimizer.zero_grad()
        if last:  # not a hook of Lightning's, which a subclass could override without `super`
            self.balancer.after_epoch()
            self._window = None
        return weights

    def on_train_batch_end(self, *args: Any, **named: Any) -> None:
        """Refuse an epoch that nothing was trained in; a batch may be skipped."""
        if self.trainer.is_last_batch and not self._balances:
            raise UsageError(
                "Balanced: training_step did not call balance, so nothing is trained: say "
                "self.balance(lambda: self.losses(batch)) there; what it returns is not looked at"
            )
        super().on_train_batch_end(*args, **named)


def _mean(forwards: Sequence[Forward], count: int) -> Pass:
    """Return 1/count of the batches' losses, and the features if they are of one batch."""
    passes = [_checked(forward()) for forward in forwards]
    if count == 1:
        return passes[0]
    if any(len(found) > 2 for found in passes):
        raise UsageError("Balanced: residuals are looked at in one batch at a time: accumulate=1")
    columns = zip(*(found[0] for found in passes), strict=True)
    there = [[loss for loss in column if loss is not None] for column in columns]
    losses = [sum(some[1:], start=some[0]) / count if some else None for some in there]
    return losses, passes[0][1] if len(passes) == 1 else ()


def _checked(found: Any) -> Pass:
    """Return what a forward pass returned, if it can be that; `Step` looks at the losses."""
    first = found[0] if isinstance(found, list | tuple) and len(found) in (2, 3) else found
    if (
        first is found
        or isinstance(first, Mapping)
        or (isinstance(first, Tensor) and not first.dim())
    ):
        raise UsageError(
            "Balanced: the forward pass must return ([loss_1, loss_2], features), the losses in "
            f"order and features such as z, or (); found a {type(first).__name__}"
            f"{'' if first is found else ' as the first'}"
        )
    return tuple(found)
