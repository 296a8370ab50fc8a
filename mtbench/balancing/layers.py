"""Layers whose gradients need not be formed to be multiplied.

What an encoder's gradient costs beside the backward pass itself is the weights' share: K matrices
of the weight's size, formed, kept and multiplied. Where a batch has fewer rows than the weight
has, their products follow from much smaller matrices.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node


class _Kind(NamedTuple):
    """How autograd records a layer.

    Attributes:
        input: what it calls the saved input.
        weight: which of the node's parents leads to the weight.
        bias: likewise.
        transposed: whether it uses the weight's transpose.
    """

    input: str
    weight: int
    bias: int | None
    transposed: bool


_KINDS = {
    "AddmmBackward0": _Kind("mat1", 2, 0, transposed=True),
    "MmBackward0": _Kind("self", 1, None, transposed=True),
    "ConvolutionBackward0": _Kind("input", 1, 2, transposed=False),
}

_ON_THE_WAY = {"TBackward0", "ToCopyBackward0"}
"""What may lie between a layer and its parameter; autocast makes copies."""

_HELD = 25
"""Float32 multiplications in whose time an entry of the Jacobian is written, copied and read."""

_OF_DOUBLE = {"cpu": 2, "cuda": 32}
"""Those in whose time one of float64 is done; most graphics cards have few units for it."""

_RIDGE = 2.0**-46

_SPAN = 48
"""Rows of a triangle that are multiplied at once, with nothing of the other one but theirs."""

_FEWEST = 2**18
"""Entries of a Jacobian below which looking for layers takes longer than they save."""


class Layer:
    r"""A linear layer or a convolution that its input passed once.

    Let the input have N rows :math:`A \in \mathbb{R}^{N \times n}` (samples, or samples times
    positions; another column of ones where there is a bias), and let
    :math:`D_k \in \mathbb{R}^{N \times m}` be objective k's gradient at the output. With
    :math:`A A^\top = L L^\top` (Cholesky) there is a Q of orthonormal rows, :math:`A = L Q`, and

    .. math::
        \nabla_W L_k = D_k^\top A = (L^\top D_k)^\top Q, \qquad
        \langle \nabla_W L_j, \nabla_W L_k \rangle = \langle L^\top D_j, L^\top D_k \rangle.

    :math:`L^\top D_k`, N x m, is the gradient in fewer coordinates. Its rounding is that of the
    gradient itself, :math:`\epsilon \|A\| \|D_k\|`; :math:`\langle D_j, A A^\top D_k \rangle`
    would lose more where much of D cancels.

    Args:
        node: what autograd recorded of it.
        weight: the parameter, a leaf.
        bias: likewise, or None.
    """

    def __init__(self, node: Any, weight: Tensor, bias: Tensor | None) -> None:
        self.edge = GradientEdge(node, 0)
        self.weight, self.bias = weight, bias
        self.parameters = (weight,) if bias is None else (weight, bias)
        self.dtype = weight.dtype
        self.input: Tensor = getattr(node, f"_saved_{_KINDS[node.name()].input}")
        self.window: list[tuple[int, int, int, int]] = []
        """Along each axis: kernel, stride, padding, dilation."""
        if kernels := weight.shape[2:]:
            how = (node._saved_stride, node._saved_padding, node._saved_dilation)
            self.window = list(zip(kernels, *how, strict=True))
        positions = [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, (kernel, stride, padding, dilation) in zip(
                self.input.shape[2:], self.window, strict=True
            )
        ]
        self.shape = torch.Size((len(self.input), len(weight), *positions))
        """Of the output, (B, m, ...)."""

    def numel(self) -> int:
        """Return how many numbers an objective's gradient at the output has."""
        return self.shape.numel()

    def pays(self, objectives: int) -> bool:
        """Return whether K gradients at the output are cheaper to use than K of the weight."""
        K, m = objectives, self.shape[1]
        N, n = self.numel() // m, self.weight.numel() // m
        of_double = _OF_DOUBLE.get(self.input.device.type, _OF_DOUBLE["cuda"])
        here = of_double * (N * N * n + N**3) + K * N * N * m + K * K * N * m + N * n * m
        return here < K * n * m * (N + K + _HELD)

    def turn(self, grads: Tensor, out: Tensor) -> None:
        """Write the parameters' gradients in fewer coordinates.

        Args:
            grads: the objectives' gradients at the output, (K, numel).
            out: where to, likewise.
        """
        rows, D = self._rows.double(), self._at_rows(grads)
        spans = [(i, i + _SPAN) for i in range(0, len(rows), _SPAN)]
        square = rows.new_zeros(len(rows), len(rows))  # and its root: one triangle is enough
        for i, j in spans:
            square[i:, i:j] = rows[i:] @ rows[i:j].T
        if self.bias is not None:
            square += 1
        # Fewer independent rows than N: what keeps Cholesky going is below float32's rounding.
        square.diagonal().add_((_RIDGE * square.trace()).clamp(min=1e-300))
        root = torch.linalg.cholesky_ex(square).L.to(grads)
        turned = out.view(D.shape)
        for i, j in spans:
            for_each = root[i:, i:j].T.expand(len(D), -1, -1)
            torch.bmm(for_each, D[:, i:], out=turned[:, i:j])

    def pull_back(self, grads: Tensor) -> Iterator[Tensor]:
        """Yield the parameters' gradients for one gradient at the output, (numel,)."""
        D = self._at_rows(grads[None])[0]
        yield (D.T @ self._rows.to(D)).view_as(self.weight).to(self.weight)
        if self.bias is not None:
            yield D.sum(0).to(self.bias)

    def _at_rows(self, grads: Tensor) -> Tensor:
        """Return gradients at the output as (K, N, m)."""
        return grads.view(len(grads), *self.shape).movedim(2, -1).flatten(1, -2)

    @cached_property
    def _rows(self) -> Tensor:
        """A, (N, n), without the ones."""
        x = self.input.detach()
        if not self.window:
            return x
        x = F.pad(x, [p for *_, p, _ in reversed(self.window) for _ in range(2)])
        for axis, (kernel, stride, _, dilation) in enumerate(self.window, start=2):
            x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        return x.movedim(1, 1 + len(self.window)).flatten(0, len(self.window)).flatten(1)


def find(parents: Mapping[Node, Any], parameters: Iterable[Tensor], objectives: int) -> list[Layer]:
    """Return the layers of a graph for which it pays.

    Their parameters are leaves that nothing else reads, and their inputs lie in memory as they were
    (under `torch.utils.checkpoint` they would be computed anew).
    """
    known = {id(p): p.numel() for p in parameters}
    if objectives * sum(known.values()) < _FEWEST:
        return []
    uses = Counter(chain.from_iterable(parents.values()))  # of edges: each of these has one output

    def parameter(node: Node, parent: int | None, transposed: bool = False) -> Tensor | None:
        if parent is None:
            return None
        edge = parents[node][parent]
        while uses[edge] == 1 and edge[0] is not None and (name := edge[0].name()) in _ON_THE_WAY:
            transposed ^= name == "TBackward0"
            edge = parents[edge[0]][0]
        if uses[edge] > 1 or transposed:
            return None
        variable: Tensor | None = getattr(edge[0], "variable", None)
        if variable is None or id(variable) not in known or variable._backward_hooks:
            return None
        return variable

    layers = []
    for node in parents:
        kind = _KINDS.get(node.name())
        if kind is None or (weight := parameter(node, kind.weight, kind.transposed)) is None:
            continue
        bias = parameter(node, kind.bias)
        if (bias is None or bias.shape == weight.shape[:1]) and _is_plain(node, kind):
            layers.append(Layer(node, weight, bias))
    return [layer for layer in layers if layer.pays(objectives)]


def _is_plain(node: Any, kind: _Kind) -> bool:
    if kind.input == "input" and (node._saved_groups > 1 or node._saved_transposed):
        return False
    if kind.input == "mat1" and not node._saved_alpha == node._saved_beta == 1:
        return False
    if getattr(node, f"_raw_saved_{kind.input}").unpack_hook is not None:
        return False
    saved: Tensor | None = getattr(node, f"_saved_{kind.input}")
    return saved is not None and saved.layout == torch.strided and saved.is_floating_point()
