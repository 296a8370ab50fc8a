"""The backward passes of one step: what is differentiated, in which pieces, into which memory."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtbench.balancing.compiled import Compiled
from mtbench.balancing.distributed import ALONE, Ranks
from mtbench.balancing.engine import Engine, due, explain, grad, must_be_whole
from mtbench.balancing.graph import (
    Parting,
    around,
    as_read,
    edge_of,
    is_hooked,
    part,
    part_at,
    refuse_hidden,
)
from mtbench.balancing.jacobian import Item, Pulled, beside, dtype_of, flat, owned, point, width
from mtbench.balancing.layers import Layer, find
from mtbench.errors import StepError

_PAUSE = 8
"""Steps between the first tries of layers, which cost a backward pass."""

DOUBT = 0.1
"""Of a gradient's length: more than any rounding changes."""

Row = tuple[Tensor | None, ...]


class Roles(NamedTuple):
    """Who is who among the parameters.

    Attributes:
        shared: where gradients are compared.
        rest: what several objectives reach beside them, where they were chosen.
        heads: per objective, its own.
        cut: where the chain rule splits; empty where it does not.
    """

    shared: tuple[Tensor, ...]
    rest: tuple[Tensor, ...]
    heads: tuple[tuple[Tensor, ...], ...]
    cut: tuple[GradientEdge, ...]


class Passes:
    """The backward passes of K losses, each made on first use, once.

    Args:
        losses: K scalars.
        features: where methods in feature space look; may be empty.
        at_features: whether these are also what parts encoder and heads.
        chosen: the shared parameters, or None for those found on the graph.
        engine: how the Jacobian is computed and where it lies.
        loss_scale: S.
        ranks: the processes that share the batch.
    """

    def __init__(
        self,
        losses: tuple[Tensor, ...],
        features: tuple[Tensor, ...],
        at_features: bool,
        chosen: tuple[Tensor, ...] | None,
        engine: Engine,
        loss_scale: float,
        ranks: Ranks,
    ) -> None:
        self.losses, self.features = losses, features
        self.engine, self.loss_scale, self.ranks = engine, loss_scale, ranks
        self._at_features, self._chosen = at_features, chosen
        self._head_grads: list[Row] = []
        self.transient = False
        """Whether nobody else holds this step: its graph may go with the last derivative."""
        self._frees = self._frees_heads = False
        self._trained: set[int] = set()
        """Ids of leaves beside the chosen ones that are trained whatever they are."""

    def release(self, heads: bool = True) -> None:
        """Say that the next derivative, and what is written from it, is the last one asked for.

        The graph is freed on the way, as `torch.Tensor.backward` frees it, unless the step is
        somebody's, who may ask for more.

        Args:
            heads: whether that goes for the heads too. Without them nothing is freed where the
                chain rule does not split.
        """
        self._frees_heads = self.transient and heads
        self._frees = self._frees_heads or (self.transient and bool(self.roles.cut))

    @property
    @abstractmethod
    def read(self) -> list[float]:
        """The losses as numbers, for which the host waits once in a step."""

    @property
    def trained(self) -> Iterator[Tensor]:
        """What the losses reach and is trained."""
        return chain(self.parting.shared, *self.parting.heads)

    @property
    def is_apart(self) -> bool:
        """Whether gradients were taken objective by objective."""
        return "roles" in vars(self)

    @property
    def told(self) -> bool:
        """Whether it was said what is shared, by the parameters or by the features above them."""
        return self._at_features or self._chosen is not None

    @cached_property
    def parting(self) -> Parting:
        """Where the losses part."""
        chosen = {id(p) for p in self._chosen or ()} | self._trained
        if self._at_features:
            return part_at(self.losses, self.features, chosen)
        return part(self.losses, chosen, self.loss_scale)

    @cached_property
    def _compiled(self) -> Compiled | None:
        """What is compiled, if the graph is to say which heads are in there."""
        if self._at_features or len(self.losses) == 1:
            return None
        return Compiled.of(self.losses, self.parting, self.engine)

    @cached_property
    def roles(self) -> Roles:
        """Who is who among the parameters.

        Raises:
            StepError: what was said is not what the graph says.
        """
        parting = self.parting
        refuse_hidden(parting.parents)
        self.refuse_constants()
        compiled = {} if self._compiled is None else self._compiled.heads()
        common = self._common(compiled)
        shared = common if self._chosen is None else self._chosen
        ids = {id(p) for p in shared}
        live = any(loss.requires_grad for loss in self.losses)
        if live and shared and ids.isdisjoint(self._reached):
            raise StepError(
                f"Step: no loss reaches any of the {len(shared)} shared parameters: is what the "
                "heads get detached, or another model's?"
            )
        rest = tuple(p for p in common if id(p) not in ids)
        ids |= {id(p) for p in rest}
        heads = [[p for p in head if id(p) not in ids] for head in parting.heads]
        splits = sum(map(len, heads)) == sum(map(len, parting.heads)) and not compiled
        for p in parting.shared if compiled else ():
            k = compiled.get(id(p), -1)
            if k >= 0 and id(p) not in ids:
                heads[k].append(p)
        splits = splits and not self._hooked
        return Roles(shared, rest, tuple(map(tuple, heads)), parting.cut if splits else ())

    @property
    def _hooked(self) -> bool:
        """Whether hooks at the cut would run twice; those of tensors at hand show."""
        if self._at_features:
            return any(f._backward_hooks or f.retains_grad for f in self.features)
        return is_hooked(self.parting.cut)

    def _common(self, compiled: Mapping[int, int]) -> tuple[Tensor, ...]:
        """What objectives have in common, to anyone's knowledge."""
        parting = self.parting
        if self._at_features:
            on_graph = any(feature.requires_grad for feature in self.features)
            if self._chosen is None and on_graph and not parting.shared:
                raise StepError(
                    "Step: no parameter lies under the features: hand over what the encoder "
                    "returns, not a leaf made of it"
                )
            return parting.shared
        if parting.shared or sum(map(bool, parting.heads)) > 1:
            others = [p for p in parting.shared if id(p) not in compiled]
            unsure = set() if self._compiled is None else self._compiled.unsure
            sure = (p for p in others if id(p) not in unsure)
            known = self.engine.remember(sure, partial(as_read, parents=parting.parents))
            return tuple({id(p): p for p in (*known, *others)}.values())
        known = self.engine.remember(())
        if known or self._chosen is not None:
            return known
        return tuple(chain(*parting.heads))  # an objective alone has all in common with itself

    @cached_property
    def _reached(self) -> set[int]:
        return {id(p) for p in chain(self.parting.shared, *self.parting.heads)}

    def reaches(self, parameter: Tensor) -> bool:
        """Return whether any loss depends on a parameter."""
        return id(parameter) in self._reached

    def refuse_unread(self, unread: Sequence[int]) -> None:
        """Refuse features that losses were not computed from, unless nothing depends on them.

        Args:
            unread: the losses that were not.

        Raises:
            StepError: they are all, and features require grad or losses have parameters in common;
                or one reaches shared parameters without the features.
        """
        if len(unread) < len(self.losses):
            shared = {id(p) for p in self.parting.shared}
            for k in unread:
                if not shared.isdisjoint(map(id, around(self.losses[k], self.features))):
                    raise StepError(
                        f"Step: losses[{k}] reaches shared parameters, but not by way of the "
                        "latent representation: hand over what every head gets, or take gradients "
                        "at the shared parameters (space='shared', or another method)"
                    )
        elif any(f.requires_grad for f in self.features) or self.parting.shared:
            raise StepError(
                "Step: no loss was computed from the latent representation that was handed over: "
                "give the very tensor that the heads get, not a copy or a compiled module's output "
                "beside its losses"
            )

    def refuse_constants(self) -> None:
        """Refuse losses that are not on the graph, unless they say that there is no label.

        Raises:
            StepError: a loss has a value, and no gradient.
        """
        off = [k for k, loss in enumerate(self.losses) if not loss.requires_grad]
        lost = [k for k in off if self.read[k] and not isnan(self.read[k])]
        if lost and len(off) == len(self.losses):
            raise StepError(
                "no loss depends on anything that requires grad: was the forward pass under "
                "torch.no_grad(), or its output detached?"
            )
        if lost:
            raise StepError(
                f"losses[{lost[0]}] depends on nothing that requires grad: was it detached, or "
                "computed under torch.no_grad()? If nothing of it is trained, say None in its place"
            )

    @cached_property
    def _seeds(self) -> list[Tensor]:
        """Per loss, what its backward begins with."""
        return [torch.full_like(loss, self.loss_scale) for loss in self.losses]

    @cached_property
    def _at_cut(self) -> list[Row]:
        """Per objective its gradients at the cut, times the loss scale; the heads' on the way."""
        _, _, heads, cut = self.roles
        split, last = len(cut), len(self.losses) - 1
        rows = []
        self._head_grads = []
        for k, (loss, seed, head) in enumerate(zip(self.losses, self._seeds, heads, strict=True)):
            free = self._frees_heads and (self.parting.apart or k == last)
            row = grad([loss], (*cut, *head), [seed], free=free)
            self._head_grads.append(row[split:])
            rows.append(row[:split])
        return rows

    @cached_property
    def _feature_grads(self) -> tuple[tuple[Tensor, ...], ...]:
        """Per objective dL_k/dfeatures, times the loss scale; at the cut without features."""
        if self._at_features and self.parting.tangled:
            raise StepError(
                f"Step: {self.parting.tangled}, so gradients at the features would count twice: "
                "hand over each once, and f.view_as(f) where the encoder goes on from f"
            )
        edges = [edge_of(feature) for feature in self.features]
        cut = self.roles.cut
        place = {(edge.node, edge.output_nr): i for i, edge in enumerate(cut)}
        if not self.features:
            if not cut:
                raise StepError(
                    "Step: losses alone do not show where features lie: give latent=z, the tensor "
                    "that the heads get"
                )
            columns = [[row[i] for row in self._at_cut] for i in range(len(cut))]
        elif all(edge is None or (edge.node, edge.output_nr) in place for edge in edges):
            columns = [
                [edge and row[place[edge.node, edge.output_nr]] for row in self._at_cut]
                for edge in edges
            ]
        else:
            rows = [
                grad([loss], self.features, [seed])
                for loss, seed in zip(self.losses, self._seeds, strict=True)
            ]
            columns = list(map(list, zip(*rows, strict=True)))
        rows = list(zip(*columns, strict=True))
        unread = [k for k, row in enumerate(rows) if all(g is None for g in row)]
        if self.features and unread:
            self.refuse_unread(unread)
        like = self.features or [next((g for g in c if g is not None), None) for c in columns]
        return tuple(
            tuple(
                torch.zeros_like(shape) if value is None else value
                for value, shape in zip(row, like, strict=True)
                if shape is not None
            )
            for row in rows
        )

    @cached_property
    def items(self) -> list[Item]:
        """The shared parameters, but for those of layers whose gradients need not be formed."""
        shared = self.roles.shared
        # Other ranks' samples are not at hand, and products of sums are no sums of products.
        engine, usable = self.engine, self.ranks.size == 1 and self.engine.layered
        try:
            layers = find(self.parting.parents if usable else {}, shared, len(self.losses))
        except RuntimeError as error:  # what the graph had saved is gone
            explain(error)
            raise
        if layers:
            if due(engine.factored, _PAUSE):
                engine.layered = all(map(self._bears_out, engine.groups(layers)))
            engine.factored += 1
        of = {id(p): layer for layer in layers if engine.layered for p in layer.parameters}
        return list(dict.fromkeys(of.get(id(p), p) for p in shared))

    @cached_property
    def whole(self) -> Pulled:
        """The Jacobian."""
        return self.pull_back(self.roles.shared)

    @cached_property
    def _factored(self) -> Pulled:
        return self.pull_back(self.items)

    @property
    def held(self) -> Pulled:
        """What products are taken of: the Jacobian if it is there, perhaps in the others' place."""
        whole: Pulled | None = self.__dict__.get("whole")
        return self._factored if whole is None else whole

    def pull_back(self, items: Sequence[Item]) -> Pulled:
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

    def _bears_out(self, layers: Sequence[Layer]) -> bool:
        """Return whether autograd's gradients of some layers are what they are computed to be.

        A hook on a node of the graph changes them, and cannot be seen. One objective is tried.
        """
        cut = self.roles.cut
        outputs, rows = (cut, self._at_cut) if cut else (self.losses, [])
        seeds: Row = next((row for row in rows if any(g is not None for g in row)), ())
        if not seeds:
            live = next((k for k, loss in enumerate(self.losses) if loss.requires_grad), 0)
            outputs, seeds = self.losses[live : live + 1], (self._seeds[live],)
        own = [p for layer in layers for p in layer.parameters]
        found = grad(outputs, [*(layer.edge for layer in layers), *own], seeds)
        at_output, truth = found[: len(layers)], iter(found[len(layers) :])
        for layer, grads in zip(layers, at_output, strict=True):
            computed = [None] * len(layer.parameters) if grads is None else layer.pull_back(grads)
            for ours, theirs in zip(computed, truth, strict=False):
                if ours is None or theirs is None or not theirs.isfinite().all():
                    continue
                if (ours - theirs).norm() > DOUBT * theirs.norm():
                    return False
        return True

    def _blocks(self, items: Sequence[Item]) -> list[Tensor]:
        """Return all objectives' gradients side by side, in one block or in one (K, n) per item."""
        if not self.roles.cut or not items:
            return self._looped(items, self.ranks, self._last)
        pulls = {False: self._looped, True: self._vmapped}
        if self.engine.batched is None:
            at_cut = [tuple(g.shape) for g in chain(*self._at_cut) if g is not None]
            shapes = [at_cut, [width(item) for item in items]]  # the encoder alone is measured
            choice = self.engine.choose(
                lambda batched: pulls[batched](items),
                f"{len(self.losses)} {shapes} {self.losses[0].device}",
            )
            self.engine.batched = bool(self.ranks.agree(choice))
        return pulls[self.engine.batched](items, self.ranks, self._last)

    @property
    def _last(self) -> bool:
        """Whether the Jacobian's passes are the last ones through the graph."""
        return self._frees and self.engine.parts == 1 and not self.roles.rest

    def _vmapped(
        self, items: Sequence[Item], ranks: Ranks = ALONE, last: bool = False
    ) -> list[Tensor]:
        K = len(self.losses)
        seeds = [_stacked(column) for column in zip(*self._at_cut, strict=True)]
        points = [point(item) for item in items]
        found = grad(self.roles.cut, points, seeds, batched=True, free=last)
        like = self.losses[0].new_zeros(0, dtype=self._dtype)
        blocks = [
            like.new_zeros(K, width(item))
            if value is None
            else torch.stack([flat(row) for row in value]).to(like)
            for item, value in zip(items, found, strict=True)
        ]
        for block in blocks:
            ranks.begin(block)
        ranks.wait()
        return blocks

    @property
    def _dtype(self) -> torch.dtype:
        return dtype_of(self.roles.shared, self.losses[0].dtype)

    def _looped(
        self, items: Sequence[Item], ranks: Ranks = ALONE, last: bool = False
    ) -> list[Tensor]:
        device = next(iter(self.roles.shared), self.losses[0]).device
        sizes = [width(item) for item in items]
        block = self.engine.buffer(len(self.losses), sum(sizes), self._dtype, device)
        points = [point(item) for item in items]
        for row, values in zip(block, self._rows(points, last), strict=True):
            for place, value in zip(torch.split(row, sizes), values, strict=True):
                if value is None:
                    place.zero_()
                else:
                    place.copy_(flat(value))
            ranks.begin(row)  # is under way while the next one is computed
        ranks.wait()
        return [block]

    def _rows(self, points: Sequence[Tensor | GradientEdge], last: bool) -> Iterator[Row]:
        """Yield an objective's gradients at some points of the graph, objective by objective."""
        _, _, heads, cut = self.roles
        if cut:
            live = [k for k, row in enumerate(self._at_cut) if any(g is not None for g in row)]
            for k, row in enumerate(self._at_cut):
                yield grad(cut, points, row, free=last and [k] == live[-1:], met=k in live[1:])
            return
        split = len(points)
        self._head_grads = []
        live = [k for k, loss in enumerate(self.losses) if loss.requires_grad]
        for k, (loss, seed, head) in enumerate(zip(self.losses, self._seeds, heads, strict=True)):
            own = self.parting.apart and not self.parting.cut  # to the leaves, not to the cut only
            free = last and (own or [k] == live[-1:])
            values = grad([loss], (*points, *head), [seed], free=free)
            self._head_grads.append(values[split:])
            yield values[:split]

    def rows(self, parameters: Sequence[Tensor]) -> list[Row]:
        """Return per objective the gradients of some parameters, times the loss scale."""
        return list(self._rows(parameters, self._frees))

    def row(self, k: int, parameters: Sequence[Tensor]) -> Row:
        """Return one objective's gradients of some parameters, times the loss scale."""
        _ = self.head_grads  # before the graph goes
        cut = self.roles.cut
        outputs, seeds = (cut, self._at_cut[k]) if cut else ([self.losses[k]], [self._seeds[k]])
        return grad(outputs, parameters, seeds, free=self._frees)

    def mixed(self, weights: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return the gradient of sum_k w_k L_k by one backward from the cut, or the losses."""
        if not parameters:
            return ()
        cut = self.roles.cut
        if not cut:
            w = beside(self._seeds[0], weights)
            seeds = [w_k * seed for w_k, seed in zip(w, self._seeds, strict=True)]
            _ = self.head_grads  # before the graph goes
            found = grad(self.losses, parameters, seeds, free=self._frees)
        else:
            mixed = [_mixture(column, weights) for column in zip(*self._at_cut, strict=True)]
            found = grad(cut, parameters, mixed, free=self._frees)
        return self.ranks.sums(owned(found, parameters))

    @property
    def head_grads(self) -> list[Row]:
        """Per objective the gradients of its head, of this rank's samples."""
        if self.roles.cut:
            _ = self._at_cut  # computes the heads' own on the way
        elif not self._head_grads:
            self._head_grads = [
                grad([loss], head, [seed])
                for loss, seed, head in zip(self.losses, self._seeds, self.roles.heads, strict=True)
            ]
        return self._head_grads


def _stacked(column: Sequence[Tensor | None]) -> Tensor | None:
    """Return K gradients at one point as one tensor, zeros for None; None if all are."""
    like = next((g for g in column if g is not None), None)
    if like is None:
        return None
    return torch.stack([torch.zeros_like(like) if g is None else g for g in column])


def _mixture(column: Sequence[Tensor | None], weights: Tensor) -> Tensor | None:
    """Return the weighted sum of K gradients at one point."""
    found = [(k, g) for k, g in enumerate(column) if g is not None]
    if not found:
        return None
    w = beside(found[0][1], weights)
    return torch.stack([w[k] * g for k, g in found]).sum(0)
