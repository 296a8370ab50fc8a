"""What autograd recorded of a forward pass, walked from its losses to its leaves.

Every walk is a plain loop that visits a node once or twice, however many losses there are.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from mtbench.balancing.engine import HIDDEN
from mtbench.errors import StepError

Parents = Mapping[Node, Any]
"""Each node that was visited, with the edges to what it was computed from."""

_LIGHT = {f"{kind}Backward0" for kind in ("Add", "Sub", "Mul", "Div")}
"""What may be done with a parameter among the losses, as with their own learnt weights."""

_SEVERAL = -1
"""The owner of what more than one objective reaches."""


class Parting(NamedTuple):
    """Where K losses part.

    Attributes:
        cut: edges (a node, one of its outputs) such that every path from a loss to a shared
            parameter crosses exactly one; empty where there are none, and objectives have to go
            back in one piece.
        shared: the trainable leaves under it.
        heads: per objective, those that its loss reaches otherwise.
        apart: whether an objective's way to the cut, or to the leaves, is its own alone.
        tangled: what keeps the features from being told apart; empty where nothing does.
        parents: the graph.
    """

    cut: tuple[GradientEdge, ...]
    shared: tuple[Tensor, ...]
    heads: tuple[tuple[Tensor, ...], ...]
    apart: bool
    tangled: str
    parents: Parents


def edge_of(tensor: Tensor) -> GradientEdge | None:
    """Return where a tensor stands on the graph; None for a constant."""
    node = tensor.grad_fn
    if node is not None:
        return GradientEdge(node, tensor.output_nr)
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def part(losses: Sequence[Tensor], chosen: Collection[int] = (), scale: float = 1.0) -> Parting:
    """Part losses by the graph alone.

    Shared is what several losses reach; the cut, the edges that lead there from what one loss alone
    reaches. Where heads' outputs or losses were put into one tensor, ways meet there and part
    again: then a loss goes on where a NaN of its own arrives, or else its own gradient.

    Args:
        losses: K scalars.
        chosen: ids of leaves that are trained whatever they are.
        scale: of the losses, S.
    """
    roots = [edge_of(loss) for loss in losses]
    owner, parents = _owners(roots, [()] * len(roots))
    meetings = _meetings(roots, owner, parents)
    if meetings:
        refuse_hidden(parents)
        owner, parents = _owners(roots, _barred(losses, meetings, parents, scale))
    common = {node for node, of in owner.items() if of == _SEVERAL} - meetings
    cut = {(r.node, r.output_nr): None for r in roots if r and r.node in common}
    above = [edges for node, edges in parents.items() if node not in common]
    cut |= {edge: None for edges in above for edge in edges if edge[0] in common}
    inner = {parent for node in common for parent, _ in parents[node]}
    leaves = _trainable(parents, chosen)
    shared: list[Tensor] = []
    heads: list[list[Tensor]] = [[] for _ in losses]
    for node, leaf in leaves.items():
        (shared if owner[node] == _SEVERAL else heads[owner[node]]).append(leaf)
    # An edge that leads to another one would count that one's gradient twice; to another output of
    # its node, each objective's pass would run what is between. A parameter in the cut is read by a
    # head itself.
    splits = not any(node in inner or node in leaves for node, _ in cut)
    return Parting(
        cut=tuple(GradientEdge(*edge) for edge in cut) if splits else (),
        shared=tuple(shared),
        heads=tuple(map(tuple, heads)),
        apart=not meetings and (splits or common <= leaves.keys()),
        tangled="" if splits else "an objective reads what another one's features come from",
        parents=parents,
    )


def _owners(
    roots: Sequence[GradientEdge | None], barred: Sequence[Collection[Any]]
) -> tuple[dict[Node, int], dict[Node, Any]]:
    """Return which loss reaches each node, or `_SEVERAL`, and the nodes' edges.

    Args:
        roots: where the losses stand.
        barred: per loss the edges that it does not take.
    """
    owner: dict[Node, int] = {}
    parents: dict[Node, Any] = {}
    for k, (root, never) in enumerate(zip(roots, barred, strict=True)):
        stack = [] if root is None else [root.node]
        met: set[Node] = set()
        while stack:
            node = stack.pop()
            found = owner.get(node)
            if found is None:
                owner[node] = k
                parents[node] = edges = node.next_functions
            elif found == k or (found == _SEVERAL and (not never or node in met)):
                continue
            else:
                owner[node] = _SEVERAL
                edges = parents[node]
            met.add(node)
            for edge in edges:
                if edge[0] is not None and edge not in never:
                    stack.append(edge[0])  # noqa: PERF401 - a list takes twice as long
    return owner, parents


def _meetings(
    roots: Sequence[GradientEdge | None], owner: Mapping[Node, int], parents: Parents
) -> set[Node]:
    """Return the nodes that several losses pass before parameters are read.

    An empty set if no way parts there: each node has a single edge onwards.
    """
    found: set[Node] = set()
    parts = False
    for node, reads in _before(roots, parents).items():
        if parents[node] and not reads and owner[node] == _SEVERAL:
            found.add(node)
            parts |= sum(parent is not None for parent, _ in parents[node]) > 1
    return found if parts else set()


def _before(roots: Sequence[GradientEdge | None], parents: Parents) -> dict[Node, bool]:
    """Return the nodes that losses pass until parameters are read, and whether they read some."""
    found: dict[Node, bool] = {}
    stack = [root.node for root in roots if root is not None]
    while stack:
        node = stack.pop()
        if node in found:
            continue
        reads = False
        for parent, _ in parents[node]:
            if parent is not None:
                # A parameter is read as it is, or as what is made of it alone: a transpose.
                of = [p for p, _ in parents[parent] if p is not None]
                reads |= not of or (len(of) == 1 and not parents[of[0]])
        found[node] = reads = reads and node.name() not in _LIGHT
        if not reads:
            stack += [parent for parent, _ in parents[node] if parent is not None]
    return found


def as_read(parameters: Sequence[Tensor], parents: Parents) -> list[Tensor]:
    """Return parameters in the order in which the forward pass read them first.

    It is the same whichever losses lead there; that of a walk is not.
    """
    first: dict[int, tuple[int, int]] = {}
    for node, edges in parents.items():
        for at, (parent, _) in enumerate(edges):
            if not parents.get(parent, True):  # some were never visited
                place, leaf = (node._sequence_nr(), at), id(getattr(parent, "variable", None))
                first[leaf] = min(place, first.get(leaf, place))
    return sorted(parameters, key=lambda p: first.get(id(p), (0, 0)))  # or a loss itself


def readers(losses: Sequence[Tensor], parents: Parents) -> set[Node]:
    """Return the nodes at which losses come to their first parameters."""
    return {node for node, reads in _before([*map(edge_of, losses)], parents).items() if reads}


def _barred(
    losses: Sequence[Tensor], meetings: Collection[Node], parents: Parents, scale: float
) -> list[set[Any]]:
    """Return per loss the edges away from where losses meet at which nothing of it arrives.

    A NaN arrives whatever the factors on the way, 0 among them. Hooks on the way may clean it or
    refuse it: where none arrives, the loss' own gradient is sent.

    Args:
        losses: K scalars.
        meetings: the nodes at which they meet.
        parents: the nodes' edges.
        scale: of the loss, by which its own gradient does not vanish in half precision.
    """
    edges = list({edge: None for node in meetings for edge in parents[node] if edge[0] is not None})
    points = [GradientEdge(*edge) for edge in edges]

    def arrived(loss: Tensor, value: float) -> set[Any]:
        seed = [torch.full_like(loss, value)]
        with torch.autograd.set_detect_anomaly(False):
            found = torch.autograd.grad([loss], points, seed, retain_graph=True, allow_unused=True)
        return {edge for edge, g in zip(edges, found, strict=True) if g is not None and g.any()}

    barred = []
    for loss in losses:
        there = set[Any]()
        if loss.requires_grad:
            with suppress(Exception):  # a hook refuses it
                there = arrived(loss, torch.nan)
            if all(node in meetings for node, _ in there):
                there = arrived(loss, scale)
        barred.append({*edges} - there)
    return barred


def part_at(
    losses: Sequence[Tensor], features: Sequence[Tensor], chosen: Collection[int] = ()
) -> Parting:
    """Part losses at the features that their heads get.

    Args:
        losses: K scalars.
        features: tensors between encoder and heads.
        chosen: as in `part`.

    Raises:
        StepError: no loss reads any of the features.
    """
    stops: dict[Any, int] = {}
    tangled = ""
    for i, edge in enumerate(map(edge_of, features)):
        if edge is not None and (first := stops.setdefault((edge.node, edge.output_nr), i)) != i:
            tangled = f"features[{first}] and features[{i}] are the same"
    nodes = [node for node, _ in stops]
    tops = set(nodes)
    above: dict[Node, Any] = {}
    ways: list[Parents] = []
    met, apart = False, True
    for root in map(edge_of, losses):
        way: dict[Node, Any] = {}
        stack: list[Any] = [] if root is None else [(root.node, root.output_nr)]
        while stack:
            edge = stack.pop()
            node = edge[0]
            if node in tops and edge in stops:
                met = True
            elif node is not None and node not in way:
                way[node] = edges = node.next_functions
                stack += edges
        apart = apart and not any(way[node] for node in above.keys() & way.keys())
        above |= way
        ways.append(way)
    below: dict[Node, Any] = {}
    nested = False
    while nodes:
        node = nodes.pop()
        if node not in below:
            below[node] = edges = node.next_functions
            for edge in edges:
                if edge[0] is not None:
                    nodes.append(edge[0])
                if edge[0] in tops:
                    nested = True
                    if edge in stops:
                        tangled = f"another feature is computed from features[{stops[edge]}]"
    if features and not met and part(losses).shared:
        raise StepError(
            f"Step: no loss reads features[0], of shape {tuple(features[0].shape)}, yet losses "
            "have parameters in common: hand over the very tensors that the heads get, not copies "
            "or detached ones, or leave features out"
        )
    parents = above | below
    leaves = _trainable(parents, chosen)
    shared = {node: leaf for node, leaf in leaves.items() if node in below}
    crossed = not above.keys().isdisjoint(shared)
    splits = not crossed and not nested  # by a node's other output, maybe
    return Parting(
        cut=tuple(GradientEdge(*edge) for edge in stops) if splits else (),
        shared=tuple(shared.values()),
        heads=tuple(tuple(leaves[node] for node in way if node in leaves) for way in ways),
        apart=apart and splits,
        tangled=tangled,
        parents=parents,
    )


def around(loss: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """Return the trainable leaves that a loss reaches otherwise than through features."""
    stops = {(edge.node, edge.output_nr) for edge in map(edge_of, features) if edge is not None}
    _, parents = _owners([edge_of(loss)], [stops])
    return list(_trainable(parents, ()).values())


def comers(losses: Sequence[Tensor]) -> dict[tuple[Node, int], set[int]]:
    """Return the losses that come to each edge of the graph, a node and one of its outputs."""
    found: dict[tuple[Node, int], set[int]] = {}
    for k, root in enumerate(map(edge_of, losses)):
        met: set[Node] = set()
        stack: list[Any] = [] if root is None else [(root.node, root.output_nr)]
        while stack:
            edge = stack.pop()
            if edge[0] is not None:
                found.setdefault(edge, set()).add(k)
                if edge[0] not in met:
                    met.add(edge[0])
                    stack += edge[0].next_functions
    return found


class _Noticed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows whether torch was asked to do anything."""

    asked = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked = True
        return func(*args, **(kwargs or {}))


def is_hooked(cut: Sequence[GradientEdge]) -> bool:
    """Return whether a tensor at some edges has hooks that do something, `retain_grad` included.

    They run where a pass ends and again where the next one begins. A node does not show them, so
    zeros are sent there; the pass ends before it runs any node.
    """
    seeds = []
    for edge in cut:
        like: Any = edge.node._input_metadata[edge.output_nr]
        if like.is_nested_tensor:  # there are no zeros of its shape
            return True
        seeds.append(torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape))
    if not seeds:
        return False
    with _Noticed() as noticed:  # type: ignore[no-untyped-call]
        try:
            found = torch.autograd.grad(cut, cut, seeds, retain_graph=True)
        except Exception:  # a hook refuses zeros, or writes where these lie on one another
            return True
    return noticed.asked or any(a is not b for a, b in zip(found, seeds, strict=True))


def _trainable(parents: Parents, chosen: Collection[int]) -> dict[Node, Tensor]:
    """Return the trainable leaves by their nodes.

    They are `nn.Parameter`s: an input or a coordinate that requires grad is not trained. Where a
    graph has no `nn.Parameter` at all, tensors that require grad are what is trained.
    """
    found: dict[Node, Tensor] = {}
    for node, edges in parents.items():
        if not edges:
            variable = getattr(node, "variable", None)  # only AccumulateGrad nodes have one
            if variable is not None:
                found[node] = variable
    parameters = {
        node
        for node, leaf in found.items()
        if type(leaf) is nn.Parameter or isinstance(leaf, nn.Parameter)
    }
    if not parameters:
        return found
    return {n: leaf for n, leaf in found.items() if n in parameters or id(leaf) in chosen}


def refuse_hidden(parents: Parents) -> None:
    """Refuse graphs that hide parameters.

    Raises:
        StepError: there is a reentrant checkpoint.
    """
    if any(kind.__name__ == "CheckpointFunctionBackward" for kind in set(map(type, parents))):
        raise StepError(HIDDEN)
