"""What autograd recorded of a forward pass, walked from its losses to its leaves.

Every walk is a plain loop that visits a node once or twice, however many losses there are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from mtbench.errors import StepError

Parents = Mapping[Node, Any]
"""Each node that was visited, with the edges to what it was computed from."""

_SEVERAL = -1
"""The owner of what more than one objective reaches."""


@dataclass(frozen=True)
class Parting:
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
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def part(losses: Sequence[Tensor], chosen: Collection[int] = ()) -> Parting:
    """Part losses by the graph alone.

    Shared is what several losses reach; the cut, the edges that lead there from what one loss alone
    reaches.

    Args:
        losses: K scalars.
        chosen: ids of leaves that are trained whatever they are.
    """
    roots = [edge_of(loss) for loss in losses]
    owner: dict[Node, int] = {}
    parents: dict[Node, Any] = {}
    for k, root in enumerate(roots):
        stack = [] if root is None else [root.node]
        while stack:
            node = stack.pop()
            found = owner.get(node)
            if found is None:
                owner[node] = k
                parents[node] = node.next_functions
            elif found in (k, _SEVERAL):
                continue
            else:
                owner[node] = _SEVERAL
            stack += [parent for parent, _ in parents[node] if parent is not None]
    several = {node for node, of in owner.items() if of == _SEVERAL}
    cut = {(root.node, root.output_nr): None for root in roots if root and root.node in several}
    inner: set[Node] = set()
    for node, edges in parents.items():
        if node in several:
            inner.update(parent for parent, _ in edges if parent is not None)
        else:
            cut |= {edge: None for edge in edges if edge[0] in several}
    leaves = _trainable(parents, chosen)
    heads: list[list[Tensor]] = [[] for _ in losses]
    for node, leaf in leaves.items():
        if node not in several:
            heads[owner[node]].append(leaf)
    # An edge that leads to another one would count that one's gradient twice; to another output of
    # its node, each objective's pass would run what is between. A parameter in the cut is read by a
    # head itself.
    splits = not any(node in inner or node in leaves for node, _ in cut)
    return Parting(
        cut=tuple(GradientEdge(*edge) for edge in cut) if splits else (),
        shared=tuple(leaf for node, leaf in leaves.items() if node in several),
        heads=tuple(map(tuple, heads)),
        apart=splits or several <= leaves.keys(),
        tangled="" if splits else "an objective reads what another one's features come from",
        parents=parents,
    )


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
    above: dict[Node, Any] = {}
    ways: list[Parents] = []
    met, apart = False, True
    for root in map(edge_of, losses):
        way: dict[Node, Any] = {}
        stack: list[Any] = [] if root is None else [(root.node, root.output_nr)]
        while stack:
            edge = stack.pop()
            node = edge[0]
            if edge in stops:
                met = True
            elif node is not None and node not in way:
                way[node] = edges = node.next_functions
                stack += edges
        apart &= not any(node in above for node, edges in way.items() if edges)
        above |= way
        ways.append(way)
    below: dict[Node, Any] = {}
    nodes = [node for node, _ in stops]
    tops, nested = set(nodes), False
    while nodes:
        node = nodes.pop()
        if node not in below:
            below[node] = edges = node.next_functions
            for edge in edges:
                if edge[0] is not None:
                    nodes.append(edge[0])
                    nested |= edge[0] in tops
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
    crossed = any(node in below for node in leaves if node in above)
    splits = not crossed and not nested  # by a node's other output, maybe
    return Parting(
        cut=tuple(GradientEdge(*edge) for edge in stops) if splits else (),
        shared=tuple(leaf for node, leaf in leaves.items() if node in below),
        heads=tuple(tuple(leaf for n, leaf in leaves.items() if n in way) for way in ways),
        apart=apart and splits,
        tangled=tangled,
        parents=parents,
    )


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
    for edge in cut:
        like: Any = edge.node._input_metadata[edge.output_nr]
        if like.is_nested_tensor:  # there are no zeros of its shape
            return True
        seed = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        with _Noticed() as noticed:  # type: ignore[no-untyped-call]
            (found,) = torch.autograd.grad([edge], [edge], [seed], retain_graph=True)
        if noticed.asked or found is not seed:
            return True
    return False


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
    parameters = {node for node, leaf in found.items() if isinstance(leaf, nn.Parameter)}
    if not parameters:
        return found
    return {n: leaf for n, leaf in found.items() if n in parameters or id(leaf) in chosen}


def refuse_hidden(parents: Parents) -> None:
    """Refuse graphs that hide parameters.

    Raises:
        StepError: there is a reentrant checkpoint.
    """
    if any(kind.__name__ == "CheckpointFunctionBackward" for kind in set(map(type, parents))):
        raise StepError(
            "torch.utils.checkpoint(..., use_reentrant=True) hides its parameters from autograd: "
            "gradients objective by objective need use_reentrant=False"
        )
