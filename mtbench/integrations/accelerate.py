"""What a loop with Hugging Face Accelerate needs beside `Step`: ``accelerator.backward``'s scaling.

``examples/accelerate_loop.py`` is such a loop.
"""

from typing import TYPE_CHECKING

from mtbench import integrations
from mtbench.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator


def loss_scale(accelerator: "Accelerator") -> float:
    """Return what `Step` takes as ``loss_scale``, so that ``.grad`` is what Accelerate expects.

    It is the scale of ``accelerator.scaler`` over ``gradient_accumulation_steps``;
    ``accelerator.clip_grad_norm_`` and the prepared optimizer go on from there.

    Raises:
        UsageError: Accelerate trains with several processes.

    Example:
        >>> from accelerate import Accelerator
        >>> loss_scale(Accelerator(cpu=True, gradient_accumulation_steps=4))
        0.25
    """
    if accelerator.num_processes > 1:
        raise UsageError(
            "Accelerate does not average a balancer's gradients over "
            f"{accelerator.num_processes} processes; launch one"
        )
    return integrations.loss_scale(
        accelerator.scaler, accelerator.device, accelerator.gradient_accumulation_steps
    )
