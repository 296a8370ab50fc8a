"""mtbench beside other people's tools: Lightning, Accelerate, MLflow, TensorBoard.

Each module needs the library that it is named after, which is an extra of mtbench's.
"""

import torch


def loss_scale(
    scaler: "torch.amp.GradScaler | None", device: torch.device, accumulate: int = 1
) -> float:
    r"""Return what `Step` takes as ``loss_scale``: :math:`S / n`.

    Gradients then come out :math:`S` times as large, as the scaler expects them, and :math:`n`
    batches add up to their mean.

    Args:
        scaler: multiplies losses by S so that float16 holds their gradients; None for S = 1.
        device: where training runs.
        accumulate: n, the batches whose gradients are added up before the optimizer's step.

    Example:
        >>> loss_scale(torch.amp.GradScaler("cpu", init_scale=1024.0), torch.device("cpu"), 4)
        256.0
    """
    if scaler is None:
        return 1 / accumulate
    scaler.scale(torch.ones((), device=device))  # torch makes the scale at its first use
    return float(scaler.get_scale()) / accumulate
