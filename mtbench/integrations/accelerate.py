"""What a loop with Hugging Face Accelerate says in the place of ``accelerator.backward``.

``examples/accelerate_loop.py`` is such a loop.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Unpack

from torch import Tensor

from mtbench.balancing.balancer import Balancer, Losses, Said
from mtbench.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator


def backward(
    accelerator: "Accelerator", balancer: Balancer, losses: Losses, **said: Unpack[Said]
) -> Tensor | dict[str, Tensor] | None:
    """Write every ``.grad``, as Accelerate expects it.

    Within ``with accelerator.accumulate(...)`` micro-batches are taken in, and the last one's call
    balances all of them as one batch. A gradient scaler is taken into account.

    Args:
        accelerator: of the loop.
        balancer: the method.
        losses: of this batch, as `Balancer.backward` takes them.
        said: likewise.

    Returns:
        The effective weights, as `Balancer.backward` does; None where no step is due.

    Raises:
        UsageError: Accelerate trains with several processes.

    Example:
        >>> from accelerate import Accelerator
        >>> import torch
        >>> from mtbench_baselines.ew import EqualWeights
        >>> x = torch.nn.Parameter(torch.ones(1))
        >>> backward(Accelerator(cpu=True), EqualWeights(2), [(2 * x).sum(), x.sum()])
        tensor([1., 1.])
        >>> x.grad
        tensor([3.])
    """
    if accelerator.num_processes > 1:
        raise UsageError(
            "Accelerate does not average a balancer's gradients over "
            f"{accelerator.num_processes} processes; launch one"
        )
    if accelerator.scaler is not None:
        said["loss_scale"] = accelerator.scaler
    batches = accelerator.gradient_accumulation_steps
    if batches > 1:
        losses = _divided(losses, batches)
    if accelerator.sync_gradients:
        return balancer.backward(losses, **said)
    balancer.accumulate(losses, **said)
    return None


def _divided(losses: Losses, by: int) -> Losses:
    if isinstance(losses, Mapping):
        return {name: None if loss is None else loss / by for name, loss in losses.items()}
    return [None if loss is None else loss / by for loss in losses]
