"""One forward pass of a multitask model, and every derivative a balancing method may ask of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtbench.balancing.distributed import ALONE, Ranks
from mtbench.balancing.engine import Engine, grad, gramian, must_be_whole
from mtbench.balancing.layers import Layer, find

Space = Literal["shared", "features"]


def _leaves(roots: Iterable[Tensor], stop: Iterable[Tensor] = ()) -> list[Tensor]:
    """Return the leaf tensors that autograd reaches from `roots` without crossing `stop`."""
    seen = {tensor.grad_fn for tensor in stop}
    stack = [root.grad_fn for root in roots]
    found: dict[int, Tensor] = {}
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # only AccumulateGrad nodes have one
        if variable is not None:
            found[id(variable)] = variable
        stack.extend(parent for parent, _ in node.next_functions)
    return list(found.values())


class Pulled(NamedTuple):
    """All objectives' gradients of shared parameters, times the loss scale.

    Attributes:
        layers: those whose gradients were not formed, with the gradients at their output, (K, n).
        parameters: the others.
        blocks: their gradients side by side, (K, n) each.
    """

    layers: list[tuple[Layer, Tensor]]
    parameters: list[Tensor]
    blocks: list[Tensor]

    def gramian(self, to_host: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradients' products, (K, K), float64, on the CPU."""
        with torch.autocast(self.blocks[0].device.type, enabled=False):
            turned = chain.from_iterable(layer.turn(grads) for layer, grads in self.layers)
            return gramian([*turned, *self.blocks], to_host)

    def mixed(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter with the gradient of sum_k w_k L_k."""
        with torch.autocast(self.blocks[0].device.type, enabled=False):
            own = [block.T @ _beside(block, weights) for block in self.blocks]
            found = list(views(own[0] if len(own) == 1 else torch.cat(own), self.parameters))
            for layer, grads in self.layers:
                at_output = grads.T @ _beside(grads, weights)
                found += zip(layer.parameters, layer.pull_back(at_output), strict=True)
        return found


def views(flat: Tensor, parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter with its part of a flat vector, in its shape."""
    sizes = [p.numel() for p in parameters]
    for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
        yield parameter, part.view_as(parameter)


def _beside(gradients: Tensor, weights: Tensor) -> Tensor:
    """Return the weights as these gradients need them, without waiting for the device."""
    return weights.to(gradients.device, gradients.dtype, non_blocking=True)


def _point(item: Layer | Tensor) -> Tensor | GradientEdge:
    return item.edge if isinstance(item, Layer) else item


def _accumulate(parameter: Tensor, value: Tensor) -> None:
    parameter.grad = value if parameter.grad is None else parameter.grad.add_(value)


class Step:
    r"""One forward pass; each derivative is computed on first use, once.

    With :math:`K` objectives, shared parameters :math:`\theta \in \mathbb{R}^d` and features
    :math:`h`, the chain rule splits at the features: the heads are differentiated once per
    objective, the encoder at most :math:`K` times, and nothing twice.

    Args:
        losses: K scalar losses on the graph. They are never stacked: a stack would send each
            objective's backward through all heads.
        features: what the encoder hands to every head. No feature may be computed from another:
            where the encoder goes on from ``f``, hand over ``f.view_as(f)``. Leave out to use only
            losses and parameters.
        shared: the encoder's parameters; by default those that the features depend on. Frozen ones
            are skipped.
        heads: per objective, the parameters of its head; by default those that its loss reaches
            beside the encoder.
        latent: which of the features is the latent representation z.
        again: repeats the forward pass on the same batch with the parameters as they are then, for
            methods that look at other points (``needs_again``).
        engine: how the Jacobian is computed and where it lies; one for all steps of a loop saves
            allocations, and only the last step's Jacobian is valid then.
        loss_scale: S, of a `torch.amp.GradScaler`: hand over the losses as they are. Gradients are
            computed S times as large, so that float16 holds them, and so they reach ``.grad``;
            what methods see of them is divided by S.
        ranks: the processes that share the batch, `mtbench.balancing.distributed.Group()`. Features
            are of this rank's samples; losses have the value of the whole batch's, on the graph of
            this rank's samples. Then all that methods see is of the whole batch, but for what is
            per sample (`feature_grads`, `sensitivities`), and so is ``.grad``:
            :math:`J = \sum_r J^{(r)}`.

    Raises:
        ValueError: no loss, a loss that is not a scalar, or neither features nor shared parameters.

    Example:
        >>> encoder, head_1, head_2 = (torch.nn.Linear(2, 2) for _ in range(3))
        >>> z = encoder(torch.ones(4, 2))
        >>> step = Step([head_1(z).square().mean(), head_2(z).abs().mean()], features=z)
        >>> step.jacobian().shape
        torch.Size([2, 6])
        >>> step.backward(torch.tensor([0.3, 0.7]))
        >>> encoder.weight.grad.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        losses: Sequence[Tensor],
        *,
        features: Tensor | Sequence[Tensor] = (),
        shared: Iterable[Tensor] | None = None,
        heads: Sequence[Iterable[Tensor]] | None = None,
        latent: int = -1,
        again: "Callable[[], Step] | None" = None,
        engine: Engine | None = None,
        loss_scale: float = 1.0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.losses = tuple(losses)
        self.features = (features,) if isinstance(features, Tensor) else tuple(features)
        self.latent = latent
        if not self.losses:
            raise ValueError("Step: losses must hold at least one scalar tensor, found none")
        for k, loss in enumerate(self.losses):
            if loss.numel() != 1:
                shape = tuple(loss.shape)
                raise ValueError(f"Step: losses[{k}] must be a scalar, found shape {shape}")
        if shared is None:
            if not self.features:
                raise ValueError("Step: give features, shared parameters, or both; found neither")
            shared = _leaves(self.features)
        self.shared = tuple(p for p in shared if p.requires_grad)
        self._given_heads = heads
        self._again = again
        self.engine = Engine(batched=False) if engine is None else engine
        self.loss_scale = loss_scale
        self.ranks = ranks
        self._head_grads: list[tuple[Tensor | None, ...]] = []
        self.gramians: dict[Space, Tensor] = {}  # those computed so far

    @property
    def num_objectives(self) -> int:
        """K, the number of losses."""
        return len(self.losses)

    def again(self) -> "Step":
        """Return a new step of the same batch at the parameters as they are now.

        This step's Jacobian may be overwritten by the other's.

        Raises:
            ValueError: it was not said how.
        """
        if self._again is None:
            raise ValueError("Step.again: this method needs Step(again=...), found none")
        return self._again()

    @property
    def z(self) -> Tensor:
        """The latent representation, (B, ...)."""
        return self.features[self.latent]

    @cached_property
    def values(self) -> Tensor:
        """The K loss values, detached, (K,)."""
        return self._stacked().detach().float()

    def _stacked(self) -> Tensor:
        return torch.stack([x if x.dim() == 0 else x.reshape(()) for x in self.losses])

    def total(self, weights: Sequence[float] | Tensor | None = None) -> Tensor:
        """Return sum_k w_k L_k on the graph; the plain sum by default."""
        if weights is None:
            return sum(self.losses[1:], start=self.losses[0])
        if isinstance(weights, Tensor):
            return (self._stacked() * weights).sum()
        terms: list[Tensor] = [
            weight * loss for weight, loss in zip(weights, self.losses, strict=True)
        ]
        return sum(terms[1:], start=terms[0])

    @cached_property
    def _read_directly(self) -> list[list[Tensor]]:
        """Per objective, the trainable parameters that its loss reaches beside the features."""
        if self._given_heads is None:
            return [_leaves([loss], stop=self.features) for loss in self.losses]
        return [[p for p in head if p.requires_grad] for head in self._given_heads]

    @cached_property
    def heads(self) -> tuple[tuple[Tensor, ...], ...]:
        """Per objective, the trainable parameters that are not shared."""
        shared = {id(p) for p in self.shared}
        return tuple(tuple(p for p in head if id(p) not in shared) for head in self._read_directly)

    @cached_property
    def _splits(self) -> bool:
        """Whether all that the shared parameters do to the losses goes through the features.

        It does not where a head reads one of them too (tied weights): then every objective goes
        back from its loss, in one piece.
        """
        direct = {id(p) for head in self._read_directly for p in head}
        return bool(self.features) and not any(id(p) in direct for p in self.shared)

    @cached_property
    def offsets(self) -> list[int]:
        """Where each shared parameter begins in the flat vector; the last entry is d."""
        return list(accumulate((p.numel() for p in self.shared), initial=0))

    @cached_property
    def _seeds(self) -> list[Tensor]:
        """Per loss, what its backward begins with."""
        return [torch.full_like(loss, self.loss_scale) for loss in self.losses]

    @cached_property
    def _feature_grads(self) -> tuple[tuple[Tensor, ...], ...]:
        """Per objective dL_k/dfeatures, times the loss scale; the heads' own on the way."""
        split = len(self.features)
        rows = []
        self._head_grads = []
        for loss, seed, head in zip(self.losses, self._seeds, self.heads, strict=True):
            row = grad([loss], (*self.features, *head), [seed])
            self._head_grads.append(row[split:])
            rows.append(
                tuple(
                    torch.zeros_like(feature) if value is None else value
                    for feature, value in zip(self.features, row[:split], strict=True)
                )
            )
        return tuple(rows)

    def feature_grads(self) -> tuple[tuple[Tensor, ...], ...]:
        """Return per objective dL_k/dfeatures, detached, a tuple with the features' shapes.

        They are those of this rank's samples. Costs one backward of each head. A feature that an
        objective does not use gets zeros.
        """
        self._need_features("feature_grads")
        return tuple(tuple(map(self._unscaled, row)) for row in self._feature_grads)

    def _unscaled(self, value: Tensor) -> Tensor:
        if self.loss_scale == 1:
            return value
        return value.to(torch.promote_types(value.dtype, torch.float32)) / self.loss_scale

    @cached_property
    def sensitivities(self) -> tuple[Tensor, ...]:
        """Per objective dL_k/dz of this rank's samples, differentiable (``create_graph=True``).

        Costs one backward of each head, and another where the result is differentiated.
        """
        self._need_features("sensitivities")
        found = [
            grad([loss], [self.z], [seed], create_graph=True)[0]
            for loss, seed in zip(self.losses, self._seeds, strict=True)
        ]
        must_be_whole(chain(*self.heads))  # their backward is to be differentiated
        return tuple(
            torch.zeros_like(self.z) if value is None else self._unscaled(value) for value in found
        )

    def jacobian(self) -> Tensor:
        """Return the (K, d) matrix of dL_k/dshared.

        Costs the heads' backward once and K encoder backwards; without features, K backwards.
        """
        blocks = self._whole.blocks
        return self._unscaled(blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1))

    @cached_property
    def _whole(self) -> Pulled:
        return self._pull_back_all(self.shared)

    @cached_property
    def _factored(self) -> Pulled:
        return self._pull_back_all(self._items)

    @property
    def _held(self) -> Pulled:
        """What products are taken of: the Jacobian if it is there, perhaps in the others' place."""
        whole: Pulled | None = self.__dict__.get("_whole")
        return self._factored if whole is None else whole

    @cached_property
    def _items(self) -> list[Layer | Tensor]:
        """The shared parameters, but for those of layers whose gradients need not be formed."""
        # Other ranks' samples are not at hand, and products of sums are no sums of products.
        layers = (
            find(self.features, self.shared, self.num_objectives)
            if self._splits and self.ranks.size == 1
            else []
        )
        of = {id(p): layer for layer in layers for p in layer.parameters}
        return list(dict.fromkeys(of.get(id(p), p) for p in self.shared))

    def _pull_back_all(self, items: Sequence[Layer | Tensor]) -> Pulled:
        """Return all objectives' gradients at some layers' outputs, and of some parameters."""
        layers = [item for item in items if isinstance(item, Layer)]
        parameters = [item for item in items if isinstance(item, Tensor)]
        blocks = self._blocks([*layers, *parameters])
        must_be_whole(p for layer in layers for p in layer.parameters)
        if len(blocks) == 1:
            sizes = [layer.numel() for layer in layers]
            rest = blocks[0].shape[1] - sum(sizes)
            blocks = list(torch.split(blocks[0], [*sizes, rest], dim=1))
        own = blocks[len(layers) :] or [blocks[0][:, :0]]
        return Pulled(list(zip(layers, blocks, strict=False)), parameters, own)

    def _blocks(self, items: Sequence[Layer | Tensor]) -> list[Tensor]:
        """Return all objectives' gradients side by side, in one block or in one (K, n) per item."""
        if not self._splits or not items:
            return self._looped(items, self.ranks)
        _ = self._feature_grads  # so that the encoder alone is measured
        pulls = {False: self._looped, True: self._vmapped}
        if self.engine.batched is None:
            shapes = [tuple(x.shape) for x in (*self.features, *items)]
            choice = self.engine.choose(
                lambda batched: pulls[batched](items),
                f"{self.num_objectives} {shapes} {self.features[0].device}",
            )
            self.engine.batched = bool(self.ranks.agree(choice))
        return pulls[self.engine.batched](items, self.ranks)

    def _vmapped(self, items: Sequence[Layer | Tensor], ranks: Ranks = ALONE) -> list[Tensor]:
        K = self.num_objectives
        seeds = [torch.stack(grads) for grads in zip(*self._feature_grads, strict=True)]
        found = grad(self.features, [_point(item) for item in items], seeds, batched=True)
        blocks = [
            self.shared[0].new_zeros(K, item.numel())
            if value is None
            else value.reshape(K, -1).contiguous()
            for item, value in zip(items, found, strict=True)
        ]
        for block in blocks:
            ranks.begin(block)
        ranks.wait()
        return blocks

    def _looped(self, items: Sequence[Layer | Tensor], ranks: Ranks = ALONE) -> list[Tensor]:
        like = self.shared[0] if self.shared else self.losses[0]
        columns = sum(item.numel() for item in items)
        block = self.engine.buffer(self.num_objectives, columns, like)
        points = [_point(item) for item in items]
        for row, values in zip(block, self._rows(points), strict=True):
            end = 0
            for item, value in zip(items, values, strict=True):
                start, end = end, end + item.numel()
                if value is None:
                    row[start:end].zero_()
                else:
                    row[start:end].copy_(value.reshape(-1))
            ranks.begin(row)  # is under way while the next one is computed
        ranks.wait()
        return [block]

    def _rows(self, points: Sequence[Tensor | GradientEdge]) -> Iterator[tuple[Tensor | None, ...]]:
        """Yield an objective's gradients at some points of the graph, objective by objective."""
        if self._splits:
            for feature_grads in self._feature_grads:
                yield grad(self.features, points, feature_grads)
            return
        split = len(points)
        self._head_grads = []
        for loss, seed, head in zip(self.losses, self._seeds, self.heads, strict=True):
            values = grad([loss], (*points, *head), [seed])
            self._head_grads.append(values[split:])
            yield values[:split]

    @cached_property
    def host_values(self) -> Tensor:
        """The K loss values, float64, on the CPU."""
        return self.values.double().cpu()

    def _to_host(self, gramian: Tensor) -> Tensor:
        """Copy a Gramian to the CPU, and the losses in the same copy: each waits for the device."""
        if "host_values" in self.__dict__:
            return gramian.cpu()
        both = torch.cat([gramian, self.values[:, None].double()], dim=1).cpu()
        self.host_values = both[:, -1].clone()
        return both[:, :-1].clone()

    def gramian(self, space: Space = "shared") -> Tensor:
        """Return G = J J^T, (K, K), float64, on the CPU, of the gradients in a space.

        Args:
            space: ``"shared"`` parameters, or ``"features"`` (no encoder backward is paid).
        """
        if space not in self.gramians:
            if space == "features":
                self._need_features("gramian")
                blocks = [
                    torch.stack([value.flatten() for value in grads])
                    for grads in zip(*self._feature_grads, strict=True)
                ]
                local = gramian(blocks, to_host=self._to_host)
                found = self.ranks.total(local)  # every column belongs to one rank's sample
            elif self.engine.parts == 1:
                found = self._held.gramian(self._to_host)
            else:
                parts = [  # each is gone before the next one is there
                    self._pull_back_all(group).gramian(self._to_host)
                    for group in self.engine.groups(self._items)
                ]
                found = torch.stack(parts).sum(0)
            self.gramians[space] = found / self.loss_scale**2
        return self.gramians[space]

    def assign(self, direction: Tensor, head_weights: Tensor | None = None) -> None:
        """Write a (d,) direction into the shared parameters' ``.grad``, and the heads' gradients.

        The ``.grad``s are views of the direction. Existing ones are added to (gradient
        accumulation). Head k gets the gradient of its own loss, times ``head_weights[k]`` if given.
        """
        scaled = direction if self.loss_scale == 1 else direction * self.loss_scale
        for parameter, value in views(scaled, self.shared):
            _accumulate(parameter, value)
        self._assign_heads(head_weights)

    def backward(
        self, weights: Tensor, space: Space = "shared", head_weights: Tensor | None = None
    ) -> None:
        """Write the gradient of sum_k w_k L_k into the shared parameters' ``.grad``.

        Args:
            weights: (K,), constants.
            space: where the weights were found: with ``"shared"`` the gradients are at hand and one
                product suffices; with ``"features"``, or an engine that has dropped them, one
                encoder backward is paid.
            head_weights: as in `assign`.
        """
        if space == "features":
            self._need_features("backward")
        mixed: Iterable[tuple[Tensor, Tensor | None]]
        if space == "shared" and self.engine.parts == 1:
            mixed = self._held.mixed(weights)
        else:
            mixed = zip(self.shared, self.ranks.sums(self._mixed(weights)), strict=True)
        for parameter, value in mixed:
            if value is not None:
                _accumulate(parameter, value)
        self._assign_heads(head_weights)

    def _mixed(self, weights: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of sum_k w_k L_k by one backward from the features, or the losses."""
        if not self._splits:
            w = _beside(self._seeds[0], weights)
            seeds = [w_k * seed for w_k, seed in zip(w, self._seeds, strict=True)]
            return grad(self.losses, self.shared, seeds)
        mixed = [
            torch.stack(
                [w * g for w, g in zip(_beside(grads[0], weights), grads, strict=True)]
            ).sum(0)
            for grads in zip(*self._feature_grads, strict=True)
        ]
        return grad(self.features, self.shared, mixed)

    def descend(self, objective: Tensor) -> None:
        """Write the gradient of a scalar on the graph into every ``.grad`` that it reaches.

        A balancer's own parameters, which all ranks compute alike, are not summed over ranks.
        """
        if not objective.requires_grad:  # a batch may hold no label at all
            return
        model: dict[int, Tensor] = {}
        if self.ranks.size > 1:
            model = {id(p): p for p in chain(self.shared, *self.heads)}
        before = [p.grad for p in model.values()]
        for parameter in model.values():
            parameter.grad = None
        objective.backward(torch.full_like(objective, self.loss_scale))  # type: ignore[no-untyped-call]
        sums = self.ranks.sums([p.grad for p in model.values()])
        for parameter, old, value in zip(model.values(), before, sums, strict=True):
            parameter.grad = old
            if value is not None:
                _accumulate(parameter, value)

    def gradient(self, objective: Tensor) -> Sequence[Tensor | None]:
        """Return the gradient of a scalar on the graph in the shared parameters, unscaled."""
        return self.ranks.sums(grad([objective], self.shared))

    def _assign_heads(self, head_weights: Tensor | None) -> None:
        if self._splits:
            _ = self._feature_grads  # computes the heads' own on the way
        elif not self._head_grads:
            self._head_grads = [
                grad([loss], head, [seed])
                for loss, seed, head in zip(self.losses, self._seeds, self.heads, strict=True)
            ]
        scales = [1.0] * self.num_objectives if head_weights is None else list(head_weights)
        sums = iter(self.ranks.sums(list(chain(*self._head_grads))))
        for head, scale in zip(self.heads, scales, strict=True):
            for parameter in head:
                value = next(sums)
                if value is not None:
                    _accumulate(parameter, value.mul(scale))

    def _need_features(self, what: str) -> None:
        if not self.features:
            raise ValueError(f"Step.{what}: this needs Step(features=...), found no features")
