"""One forward pass of a multitask model, and every derivative a balancing method may ask of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Space = Literal["shared", "features"]

_BLOCK = 1 << 16  # columns of the Jacobian that are multiplied at a time


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


def _grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    seeds: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad`, answering None where nothing depends on an input, never raising."""
    live = [i for i, output in enumerate(outputs) if output.requires_grad]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not live or not wanted:
        return (None,) * len(inputs)
    grads = iter(
        torch.autograd.grad(
            [outputs[i] for i in live],
            wanted,
            grad_outputs=None if seeds is None else [seeds[i] for i in live],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return tuple(next(grads) if tensor.requires_grad else None for tensor in inputs)


def _accumulate(parameter: Tensor, grad: Tensor) -> None:
    parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)


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
        self._feature_grads: tuple[tuple[Tensor, ...], ...] | None = None
        self._head_grads: tuple[tuple[Tensor | None, ...], ...] = ()
        self._jacobian: Tensor | None = None

    @property
    def num_objectives(self) -> int:
        """K, the number of losses."""
        return len(self.losses)

    def again(self) -> "Step":
        """Return a new step of the same batch at the parameters as they are now.

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
        return torch.stack([loss.detach().float().reshape(()) for loss in self.losses])

    def total(self, weights: Sequence[float] | Tensor | None = None) -> Tensor:
        """Return sum_k w_k L_k on the graph; the plain sum by default."""
        if weights is None:
            return sum(self.losses[1:], start=self.losses[0])
        terms: list[Tensor] = [
            weight * loss for weight, loss in zip(weights, self.losses, strict=True)
        ]
        return sum(terms[1:], start=terms[0])

    @cached_property
    def heads(self) -> tuple[tuple[Tensor, ...], ...]:
        """Per objective, the trainable parameters that are not shared."""
        if self._given_heads is None:
            shared = {id(p) for p in self.shared}
            reached = [_leaves([loss], stop=self.features) for loss in self.losses]
            return tuple(tuple(p for p in leaves if id(p) not in shared) for leaves in reached)
        return tuple(tuple(p for p in head if p.requires_grad) for head in self._given_heads)

    @cached_property
    def offsets(self) -> list[int]:
        """Where each shared parameter begins in the flat vector; the last entry is d."""
        offsets = [0]
        for parameter in self.shared:
            offsets.append(offsets[-1] + parameter.numel())
        return offsets

    def feature_grads(self) -> tuple[tuple[Tensor, ...], ...]:
        """Return per objective dL_k/dfeatures, detached, a tuple with the features' shapes.

        Costs one backward of each head. A feature that an objective does not use gets zeros.
        """
        if self._feature_grads is None:
            split = len(self.features)
            grads = [
                _grad([loss], (*self.features, *head))
                for loss, head in zip(self.losses, self.heads, strict=True)
            ]
            self._head_grads = tuple(row[split:] for row in grads)
            self._feature_grads = tuple(self._or_zeros(row[:split]) for row in grads)
        return self._feature_grads

    def _or_zeros(self, grads: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return tuple(
            torch.zeros_like(feature) if grad is None else grad
            for feature, grad in zip(self.features, grads, strict=True)
        )

    @cached_property
    def sensitivities(self) -> tuple[Tensor, ...]:
        """Per objective dL_k/dz, itself differentiable (``create_graph=True``).

        Costs one backward of each head, and another where the result is differentiated.
        """
        self._need_features("sensitivities")
        grads = [_grad([loss], [self.z], create_graph=True)[0] for loss in self.losses]
        return tuple(torch.zeros_like(self.z) if grad is None else grad for grad in grads)

    def jacobian(self) -> Tensor:
        """Return the (K, d) matrix of dL_k/dshared, in one buffer.

        Costs the heads' backward once and K encoder backwards; without features, K backwards.
        """
        if self._jacobian is None:
            like = self.shared[0] if self.shared else self.losses[0]
            jacobian = like.new_zeros(self.num_objectives, self.offsets[-1])
            for row, grads in zip(jacobian, self._rows(), strict=True):
                for grad, (start, end) in zip(grads, pairwise(self.offsets), strict=True):
                    if grad is not None:
                        row[start:end].copy_(grad.reshape(-1))
            self._jacobian = jacobian
        return self._jacobian

    def _rows(self) -> Iterator[tuple[Tensor | None, ...]]:
        """Yield dL_k/dshared, objective by objective."""
        if self.features:
            for feature_grads in self.feature_grads():
                yield self._pull_back(feature_grads)
            return
        split = len(self.shared)
        head_grads = []
        for loss, head in zip(self.losses, self.heads, strict=True):
            grads = _grad([loss], (*self.shared, *head))
            head_grads.append(grads[split:])
            yield grads[:split]
        self._head_grads = tuple(head_grads)

    def _pull_back(self, feature_grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Carry a gradient at the features back to the shared parameters."""
        return _grad(self.features, self.shared, seeds=feature_grads)

    def gramian(self, space: Space = "shared") -> Tensor:
        """Return G = J J^T, (K, K), of the gradients in a space.

        Args:
            space: ``"shared"`` parameters, or ``"features"`` (no encoder backward is paid).
        """
        if space == "shared":
            blocks = [self.jacobian()]
        else:
            self._need_features("gramian")
            rows = zip(
                *([g.flatten() for g in grads] for grads in self.feature_grads()), strict=True
            )
            blocks = [torch.stack(grads) for grads in rows]
        # In float64, a cache's worth at a time: float32 squares lose angles below 3e-4 and, at
        # 1e-20 or 1e20, everything; autocast leaves float64 alone.
        gramian = self.values.new_zeros(self.num_objectives, self.num_objectives).double()
        for block in blocks:
            for part in torch.split(block, _BLOCK, dim=1):
                part = part.double()
                gramian += part @ part.T
        return gramian

    def assign(self, direction: Tensor, head_weights: Tensor | None = None) -> None:
        """Write a (d,) direction into the shared parameters' ``.grad``, and the heads' gradients.

        The ``.grad``s are views of the direction. Existing ones are added to (gradient
        accumulation). Head k gets the gradient of its own loss, times ``head_weights[k]`` if given.
        """
        self._assign_heads(head_weights)
        for parameter, (start, end) in zip(self.shared, pairwise(self.offsets), strict=True):
            _accumulate(parameter, direction[start:end].view_as(parameter))

    def backward(
        self, weights: Tensor, space: Space = "shared", head_weights: Tensor | None = None
    ) -> None:
        """Write the gradient of sum_k w_k L_k into the shared parameters' ``.grad``.

        Args:
            weights: (K,), constants.
            space: where the weights were found: with ``"shared"`` the Jacobian is at hand and one
                product suffices; with ``"features"`` one encoder backward is paid.
            head_weights: as in `assign`.
        """
        if space == "shared":
            jacobian = self.jacobian()
            with torch.autocast(jacobian.device.type, enabled=False):
                direction = weights.to(jacobian) @ jacobian
            self.assign(direction, head_weights)
            return
        self._need_features("backward")
        mixed = [
            torch.stack([w * g for w, g in zip(weights.to(grads[0]), grads, strict=True)]).sum(0)
            for grads in zip(*self.feature_grads(), strict=True)
        ]
        self._assign_heads(head_weights)
        for parameter, grad in zip(self.shared, self._pull_back(mixed), strict=True):
            if grad is not None:
                _accumulate(parameter, grad)

    def _assign_heads(self, head_weights: Tensor | None) -> None:
        scales = [1.0] * self.num_objectives if head_weights is None else head_weights.tolist()
        for head, grads, scale in zip(self.heads, self._head_grads, scales, strict=True):
            for parameter, grad in zip(head, grads, strict=True):
                if grad is not None:
                    _accumulate(parameter, grad.mul(scale))

    def _need_features(self, what: str) -> None:
        if not self.features:
            raise ValueError(f"Step.{what}: this needs Step(features=...), found no features")
