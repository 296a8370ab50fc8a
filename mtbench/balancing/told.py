"""What a `Step` is told, checked: each function raises `StepError` where it cannot be meant."""

from collections.abc import Iterable, Sequence, Set
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from mtbench.errors import StepError

Residuals = Sequence[Tensor | None]
Shared = Iterable[Tensor] | Iterable[tuple[str, Tensor]]


def scalars(losses: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Return the losses, a constant 0 for one without labels."""
    if not isinstance(losses, (list, tuple)):
        single = losses.dim() == 0 if isinstance(losses, Tensor) else isinstance(losses, Set)
        if single or not isinstance(losses, Iterable):
            kind = type(losses).__name__
            raise StepError(
                f"Step: losses must be a sequence of scalars, found a {kind}: hand over each "
                "objective's loss in order, not their sum"
            )
    found = list(losses)
    if not found:
        raise StepError("Step: losses must hold at least one scalar tensor, found none")
    first: Tensor | None = None
    for k, loss in enumerate(found):
        if loss is None:
            continue
        if not isinstance(loss, Tensor):
            kind = type(loss).__name__
            raise StepError(
                f"Step: losses[{k}] must be a scalar tensor, or None without labels, found a {kind}"
            )
        if loss.numel() != 1:
            shape = tuple(loss.shape)
            raise StepError(f"Step: losses[{k}] must be a scalar, found shape {shape}")
        made = loss.is_leaf and loss.requires_grad and not isinstance(loss, nn.Parameter)
        if made and not loss.detach().any():  # torch.tensor(0.0, requires_grad=True): no label
            found[k] = loss = loss.detach()
        if loss.is_complex():
            raise StepError(f"Step: losses[{k}] must be real, found {loss.dtype}")
        if first is None:
            first = loss
        elif loss.device != first.device:
            raise StepError(
                f"Step: losses must be on one device, found losses[{k}] on {loss.device} and "
                f"another on {first.device}: say loss.to({str(first.device)!r})"
            )
    like = torch.zeros(()) if first is None else first
    return tuple(like.new_zeros(()) if loss is None else loss for loss in found)


def residuals_of(given: Residuals, losses: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return what each loss squares, one for each."""
    found = tuple(given)
    if len(found) != len(losses):
        raise StepError(
            f"Step: residuals must be one tensor per loss, found {len(found)} for {len(losses)}"
        )
    for k, (residual, loss) in enumerate(zip(found, losses, strict=True)):
        if not loss.requires_grad:
            continue
        if not isinstance(residual, Tensor) or not residual.requires_grad:
            off = "a tensor off the graph" if isinstance(residual, Tensor) else repr(residual)
            raise StepError(
                f"Step: residuals[{k}] must be a tensor on the graph, found {off}: hand over what "
                f"losses[{k}] squares, before it is detached"
            )
    return found


def features_of(features: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the features, also a single one."""
    single = isinstance(features, (Tensor, nn.Module, dict)) or not isinstance(features, Iterable)
    found = (features,) if single else tuple(features)
    for i, feature in enumerate(found):
        if not isinstance(feature, Tensor):
            kind = type(feature).__name__
            raise StepError(
                f"Step: features[{i}] must be a tensor that the heads get, found a {kind}"
            )
    return found


def parameters_of(shared: Shared) -> tuple[tuple[str, Tensor], ...]:
    """Return those that are trained, each once, with what it is called, if that is said."""
    if isinstance(shared, nn.Module):
        name = type(shared).__name__
        raise StepError(
            f"Step: shared must be parameters, found a {name}: give .parameters() of it"
        )
    if isinstance(shared, Tensor):
        raise StepError("Step: shared must be several parameters, found one: hand over a list")
    if not isinstance(shared, Iterable):
        raise StepError(f"Step: shared must be parameters, found a {type(shared).__name__}")
    found: dict[int, tuple[str, Tensor]] = {}
    for i, item in enumerate(shared):
        name, parameter = item if isinstance(item, tuple) and len(item) == 2 else ("", item)
        if not isinstance(parameter, Tensor) or not parameter.is_leaf:
            computed = isinstance(parameter, Tensor)
            kind = "tensor that was computed" if computed else type(parameter).__name__
            raise StepError(f"Step: shared[{i}] must be a parameter, found a {kind}")
        if parameter.requires_grad:
            found[id(parameter)] = (name, parameter)
    return tuple(found.values())


def scale_of(given: Any, device: torch.device) -> float:
    """Return the scale S of a gradient scaler, or the number that it is."""
    if isinstance(given, torch.amp.GradScaler):
        given.scale(torch.ones((), device=device))  # torch makes the scale at its first use
        return float(given.get_scale())
    is_tensor = isinstance(given, Tensor)
    number = given.item() if is_tensor and given.numel() == 1 else given
    is_number = isinstance(number, (float, Real)) and number is not True
    if not (is_number and number > 0):  # an overflow makes it infinite
        shown = f"a tensor of shape {tuple(given.shape)}" if is_tensor else repr(given)
        raise StepError(
            f"Step: loss_scale must be a GradScaler, or a number above 0, found {shown}"
        )
    return float(number)
