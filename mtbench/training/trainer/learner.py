"""What is trained: a task's model, and the method that balances its objectives."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtbench import seeding
from mtbench.balancing.balancer import Balancer
from mtbench.balancing.distributed import ALONE, Ranks, map_leaves
from mtbench.balancing.engine import Engine
from mtbench.balancing.model import MultitaskModel, PerObjective
from mtbench.balancing.signatures import name_of
from mtbench.balancing.step import Step
from mtbench.errors import MtbenchError, PluginError, UsageError
from mtbench.plugins.code import is_foreign, place_of
from mtbench.plugins.method import Method
from mtbench.training.cell.fit import NO_FEATURES, NO_RESIDUALS, UnfitError
from mtbench.training.cell.rundir import Precision, Spec
from mtbench.training.machine.device import autocast, to_device
from mtbench.training.task import Batch, Task
from mtbench.training.trainer.parts import in_parts, refuse_mixing


class Pass(NamedTuple):
    """A batch sent through the model.

    Attributes:
        features: what the encoder handed to every head; none where inputs are `PerObjective`.
        outputs: of the K heads.
        losses: K scalars on the graph.
    """

    features: tuple[Tensor, ...]
    outputs: list[Any]
    losses: list[Tensor]


class Learner:
    """A task's model, and the method that balances its objectives.

    Args:
        spec: the cell, which says where they are and at which precision they compute.
        task: whose losses are minimised.
        model: what is trained.
        balancer: the method.
        engine: how Jacobians are computed.

    Attributes:
        precision: at which a forward pass runs from now on.
    """

    def __init__(
        self,
        spec: Spec,
        task: Task,
        model: MultitaskModel,
        balancer: Balancer,
        engine: Engine | None = None,
    ) -> None:
        self.parts: int = spec.recipe.get("accumulate", 1)
        if self.parts > 1:
            refuse_mixing(model)
        self.task, self.model, self.balancer = task, model, balancer
        self.engine = Engine() if engine is None else engine
        self.device = spec.device
        self.precision: Precision = spec.precision

    def forward(self, batch: Batch, ranks: Ranks = ALONE) -> Pass:
        """Send a batch through the model.

        A loss need not be a mean over samples, and labels may be missing: so every rank computes
        all losses, from the outputs for all samples.

        Raises:
            UsageError: every objective has its own inputs, and there are several ranks.
        """
        if isinstance(batch["inputs"], PerObjective):
            if ranks.size > 1:
                raise UsageError(
                    "a task with a batch per objective is trained by one process: leave out --nproc"
                )
            with autocast(self.precision, self.device), self._faults_told(batch):
                outputs = [
                    self._decode(self._encode(own), k) for k, own in enumerate(batch["inputs"])
                ]
                return Pass((), outputs, self._losses(outputs, batch))
        inputs, sizes = ranks.share(batch["inputs"])
        with autocast(self.precision, self.device), self._faults_told(batch):
            features = self._encode(inputs)
            outputs = [self._decode(features, k) for k in range(len(self.model.heads))]
            outputs = ranks.gather(outputs, sizes)
            return Pass(features, outputs, self._losses(outputs, batch))

    def _losses(self, outputs: list[Any], batch: Batch) -> list[Tensor]:
        found = self.task.losses(outputs, batch)
        if not isinstance(found, list | tuple) or len(found) != len(self.task.objectives):
            count = f" of {len(found)}" if isinstance(found, list | tuple) else ""
            raise PluginError(
                f"{name_of(type(self.task))}: losses must return a list of "
                f"{len(self.task.objectives)} scalars, one for each objective, found a "
                f"{type(found).__name__}{count}"
            )
        return list(found)

    @contextmanager
    def _faults_told(self, batch: Batch) -> Iterator[None]:
        """Say on what inputs a model of somebody's task fails, where no line of it is known."""
        try:
            yield
        except (MtbenchError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            if str(error).startswith("Expected more than 1 value per channel"):
                raise UsageError(
                    "batch norm takes no batch of one sample, as an epoch may end with: choose "
                    "another --batch-size"
                ) from error
            if place_of(error) or not is_foreign(type(self.task).__module__):
                raise
            kinds: list[str] = []

            def note(leaf: Any) -> None:
                if isinstance(leaf, Tensor):
                    kinds.append(f"{tuple(leaf.shape)} of {leaf.dtype}")

            map_leaves(note, batch["inputs"])
            said = str(error).strip().partition("\n")[0]
            raise PluginError(
                f"{name_of(type(self.task))}: its model or losses fail on inputs "
                f"{', '.join(kinds)}: {said}"
            ) from error

    @property
    def _read(self) -> Iterable[Tensor]:
        return chain(self.model.parameters(), self.balancer.parameters())

    def _encode(self, inputs: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = in_parts(self.model.encode, inputs, self.parts, self._read)
        return found

    def _decode(self, features: tuple[Tensor, ...], k: int) -> Any:
        return in_parts(
            lambda part: self.model.read(part, k, self.balancer.view),
            features,
            self.parts,
            self._read,
        )

    def step(
        self, batch: Batch, ranks: Ranks = ALONE, validation: Callable[[], Step] | None = None
    ) -> Step:
        """Send a batch through the model, for the method to make gradients of.

        Args:
            batch: of samples.
            ranks: the processes that share it.
            validation: sends a batch of held-out samples.

        Raises:
            UnfitError: the method needs features that all heads share, or residuals, and there are
                none.
        """
        done = self.forward(batch, ranks)
        if self.balancer.needs_features and not done.features:
            raise UnfitError(f"this method {NO_FEATURES}")
        residuals = None
        if self.balancer.needs_residuals:
            with autocast(self.precision, self.device):
                residuals = self.task.residuals(done.outputs, batch)
            if residuals is None:
                raise UnfitError(f"this method {NO_RESIDUALS}")
        encoder = [x for x in self.model.encoder.named_parameters() if x[1].requires_grad]
        return Step(
            done.losses,
            features=done.features,
            shared=encoder or None,  # it may be frozen
            latent=self.model.latent,
            again=lambda: self.step(batch, ranks, validation),
            validation=validation,
            residuals=residuals,
            engine=self.engine,
            ranks=ranks,
        )

    @torch.no_grad()
    def predict(self, inputs: Any) -> list[Any]:
        """Return the K heads' outputs of the trained model."""
        self.model.eval()
        inputs = to_device({"inputs": inputs}, self.device)["inputs"]
        with autocast(self.precision, self.device):
            outputs: list[Any] = self.model(inputs, self.balancer.view)
        return outputs

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the state dicts of both."""
        return {"model": self.model.state_dict(), "balancer": self.balancer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned, whatever else is in there."""
        self.model.load_state_dict(state["model"])
        self.balancer.load_state_dict(state["balancer"])


def build(
    spec: Spec, task: Task, method: Method, init: Mapping[str, Tensor] | None = None
) -> tuple[MultitaskModel, Balancer]:
    """Return the initial model, equal for every method at one seed, and the balancer.

    Args:
        spec: the cell.
        task: an instance with the spec's parameters.
        method: what constructs the balancer.
        init: weights to start from, taken where name and shape agree.
    """
    seeding.seed_everything(seeding.derive(spec.seed, "model"))
    model = task.model()
    if not isinstance(model, MultitaskModel):
        raise PluginError(
            f"{spec.task}: model must return a MultitaskModel(encoder, heads), found a "
            f"{type(model).__name__}"
        )
    if init is not None:
        model.load_state_dict(_fitting(model, init), strict=False)
    balancer = method(
        len(task.objectives), seeding.derive(spec.seed, "balancer"), **spec.method_params
    )
    return balancer.wrap(model).to(spec.device), balancer.to(spec.device)


def _fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those weights whose name and shape the model has."""
    own = model.state_dict()
    return {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
