"""Which parameters are heads where they are compiled together with the encoder.

What is compiled is one node for autograd, under which everything seems shared. Where losses come
to it by different outputs, a NaN sent back from one loss arrives at what that loss depends on,
whatever the factors on the way (0 in a head that begins with zeros). What only one objective's
arrives at is its head, unless a step that tries says otherwise. Until one arrives, it counts as
shared.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from mtbench.balancing.engine import Arrivals, Engine, due, grad, unhooked
from mtbench.balancing.graph import Parting, comers, readers

_KIND = "CompiledFunctionBackward"
"""The node of what `torch.compile` made."""


class Compiled:
    """What is compiled, on the graph of one step.

    Args:
        nodes: of it.
        losses: of the step.
        parting: where they seem to part.
        engine: of the loop, which knows what arrived in earlier steps.
    """

    def __init__(
        self, nodes: Sequence[Node], losses: Sequence[Tensor], parting: Parting, engine: Engine
    ) -> None:
        self._losses, self._parting, self._engine = losses, parting, engine
        parents = parting.parents
        reads = Counter(parent for edges in parents.values() for parent, _ in edges)
        shared = {id(p): p for p in parting.shared}
        places = {
            (node, at): shared.get(id(getattr(parent, "variable", None)))
            for node in nodes
            for at, (parent, _) in enumerate(parents[node])
            if reads[parent] == 1
        }
        self._together = {place: p for place, p in places.items() if p is not None}
        """What several losses seem to reach because it is compiled with what they do reach.

        By its place: the compiled node that reads it, and as which input. What is read in several
        places is none of it.
        """

    @classmethod
    def of(cls, losses: Sequence[Tensor], parting: Parting, engine: Engine) -> "Compiled | None":
        """Return what is compiled on a graph; None where nothing is."""
        nodes = [node for node in parting.parents if type(node).__name__ == _KIND]
        return cls(nodes, losses, parting, engine) if nodes else None

    def heads(self) -> dict[int, int]:
        """Return the objectives of heads that are compiled together with the encoder, by their ids.

        -1 says that a head's objective is not there. It is asked once in a step, and then tells the
        engine what has arrived where.
        """
        if not self._together:
            return {}
        together, known, ways = self._together, self._arrivals, self._come_by
        if self._slices:  # each is told by itself
            ways = {node: [(k,) for k in range(len(self._losses))] for node in known}
        sure = True
        if any(
            outputs and due(known[node].steps[outputs])
            for node, _ in together
            for outputs in ways[node]
        ):
            by = self._comers()
            # One of 0 or NaN that has nothing in common with others may be without labels.
            told = {k for owners in by if len(owners) > 1 for k in owners}
            # One that is not on the graph is not in what is compiled: nothing of it is to come.
            told.update(
                k
                for k, loss in enumerate(self._losses)
                if not loss.requires_grad or loss.detach().abs() > 0
            )
            sure = len(told) == len(self._losses)
            of = {id(p): owners for p, owners in zip(self._parting.shared, by, strict=True)}
            for (node, at), parameter in together.items():
                owners = of[id(parameter)]
                if sure or len(owners) > 1:
                    known[node].at.setdefault(at, set()).update(ways[node][k] for k in owners)
        for node, arrivals in known.items() if sure else ():
            arrivals.steps.update(set(ways[node]))
        found = {}
        for (node, at), parameter in together.items():
            arrived = known[node].at.get(at, set())
            owners = [k for k, outputs in enumerate(ways[node]) if outputs in arrived]
            if arrived and len(owners) < 2:
                found[id(parameter)] = owners[0] if owners else -1
        return found

    @property
    def unsure(self) -> set[int]:
        """The ids of what counts as shared because nothing of two objectives has arrived yet."""
        return {
            id(p)
            for (node, at), p in self._together.items()
            if len(self._arrivals[node].at.get(at, ())) < 2
        }

    @cached_property
    def _arrivals(self) -> dict[Node, Arrivals]:
        """What is known of what is compiled; of a class of its own each time that it is compiled.

        An output that losses share may hold several of them, and nothing says which is whose: then
        every step tries.
        """
        nodes = dict.fromkeys(node for node, _ in self._together)
        if self._slices:
            return {node: Arrivals() for node in nodes}
        return {node: self._engine.compiled.setdefault(type(node), Arrivals()) for node in nodes}

    @cached_property
    def _edges(self) -> dict[tuple[Node, int], set[int]]:
        """The losses that come to each edge of the graph."""
        return comers(self._losses)

    @cached_property
    def _come_by(self) -> dict[Node, list[tuple[int, ...]]]:
        """By what is compiled, the outputs by which each loss comes to it."""
        found: dict[Node, list[tuple[int, ...]]] = {}
        for (node, output), those in self._edges.items():
            if type(node).__name__ == _KIND:
                ways = found.setdefault(node, [()] * len(self._losses))
                for k in those:
                    ways[k] = (*ways[k], output)
        return {node: [tuple(sorted(way)) for way in ways] for node, ways in found.items()}

    @cached_property
    def _slices(self) -> bool:
        """Whether losses may be parts of one output of what is compiled."""
        several = {
            node
            for node, ways in self._come_by.items()
            if sum(map(len, ways)) > len(set(chain(*ways)))
        }
        if not several:
            return False
        return not readers(self._losses, self._parting.parents).isdisjoint(several)

    def _comers(self) -> list[list[int]]:
        """Return per parameter that several losses seem to reach those that do."""
        shared = self._parting.shared
        alike = all(len({*ways} - {()}) == 1 for ways in self._come_by.values())
        if alike and not self._slices:
            edges = [get_gradient_edge(p) for p in shared]
            return [sorted(self._edges[edge.node, edge.output_nr]) for edge in edges]
        with unhooked(shared), torch.autograd.set_detect_anomaly(False):
            rows = [
                grad([loss], shared, [torch.full_like(loss, math.nan)]) for loss in self._losses
            ]
        touched = [[g is not None and bool(g.isnan().any()) for g in row] for row in rows]
        return [[k for k, hit in enumerate(hits) if hit] for hits in zip(*touched, strict=True)]
