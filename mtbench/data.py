"""Ready-made parts of a task: splits, losses where labels are missing, torchmetrics.

They share a convention: a batch holds each objective's labels under the objective's name, and a
label is missing where it is NaN or, if it is an integer, negative.
"""

from mtbench.training.data import (
    DatasetSplit,
    PerObjectiveSplit,
    TensorSplit,
    TorchmetricsMeter,
    fingerprint,
    known,
    labelled_loss,
    mean_where,
    regular,
)

__all__ = [
    "DatasetSplit",
    "PerObjectiveSplit",
    "TensorSplit",
    "TorchmetricsMeter",
    "fingerprint",
    "known",
    "labelled_loss",
    "mean_where",
    "regular",
]
