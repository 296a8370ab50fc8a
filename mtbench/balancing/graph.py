"""What autograd recorded of a forward pass, walked from its losses to its leaves."""

from collections.abc import Iterable

from torch import Tensor


def leaves(roots: Iterable[Tensor], stop: Iterable[Tensor] = ()) -> list[Tensor]:
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
