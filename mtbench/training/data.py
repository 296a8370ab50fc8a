"""What is public as `mtbench.data`, which says the convention that its parts share."""

import hashlib
import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mtbench import seeding
from mtbench.balancing.distributed import map_leaves
from mtbench.balancing.model import PerObjective
from mtbench.errors import DataError, PluginError, UsageError
from mtbench.training.task import Batch, Meter, Split, Task

if TYPE_CHECKING:
    import torchmetrics


class TensorSplit(Split):
    """Samples in memory, one row of each tensor.

    >>> split = TensorSplit(torch.zeros(3, 4), size=torch.tensor([1.0, 2.0, torch.nan]))
    >>> split.batch(torch.tensor([0, 1]))["size"]
    tensor([1., 2.])

    Args:
        inputs: (N, ...), what goes to the encoder.
        groups: each sample's group, such as its patient; None if samples are independent.
        labels: (N, ...) each, what else a batch holds.

    Raises:
        DataError: numbers of rows differ.
    """

    def __init__(
        self, inputs: Tensor, *, groups: Sequence[Hashable] | None = None, **labels: Tensor
    ) -> None:
        self._tensors = {"inputs": inputs, **labels}
        rows = {name: len(tensor) for name, tensor in self._tensors.items()}
        if len(set(rows.values())) > 1:
            raise DataError(f"a split's tensors have one row per sample each, found {rows}")
        self._groups = groups

    def __len__(self) -> int:
        return len(self._tensors["inputs"])

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the rows at `indices`."""
        return {name: tensor[indices] for name, tensor in self._tensors.items()}

    def groups(self) -> Sequence[Hashable] | None:
        """Return each sample's group."""
        return self._groups


class DatasetSplit(Split):
    """A map-style Dataset, of torch's or of anybody's, collated as torch's ``DataLoader`` does.

    If it augments, it draws from the global generators of Python, numpy or torch: these are seeded
    from the batch's own for as long as it is read, and equally so where no augmentation is wanted.

    >>> pairs = [(torch.zeros(4), 1), (torch.ones(4), 0)]
    >>> DatasetSplit(pairs, names=("inputs", "kind")).batch(torch.tensor([1, 0]))["kind"]
    tensor([0, 1])

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        names: what the parts of a sample are called in a batch; None for samples that are
            dictionaries and have ``inputs``.
        groups: each sample's group, such as its patient; None if samples are independent.
    """

    def __init__(
        self,
        dataset: Any,
        names: Sequence[str] | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        self._dataset, self._names, self._groups = dataset, names, groups

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the samples at `indices`."""
        if not len(indices) and len(self._dataset):  # of nothing, torch would not know the shape
            one = self.batch(torch.zeros(1, dtype=torch.long))
            return {name: map_leaves(lambda leaf: leaf[:0], part) for name, part in one.items()}
        drawn = 0 if generator is None else torch.randint(2**62, (), generator=generator).item()
        with seeding.preserved():
            seeding.seed_everything(int(drawn))
            samples = [self._dataset[i] for i in indices.tolist()]
        if self._names is not None:
            counts = {len(sample) for sample in samples} - {len(self._names)}
            if counts:
                raise UsageError(
                    f"the dataset's samples have {max(counts)} parts, and names has "
                    f"{len(self._names)}: {', '.join(self._names)}"
                )
            samples = [dict(zip(self._names, sample, strict=True)) for sample in samples]
        batch: Batch = default_collate(samples)
        return batch

    def groups(self) -> Sequence[Hashable] | None:
        """Return each sample's group."""
        return self._groups


class PerObjectiveSplit(Split):
    """Samples of which every objective has its own, from splits of unequal length.

    A batch holds some of each: ``inputs`` are `mtbench.PerObjective`, and the labels of an
    objective, which lie under its name, are of its own samples. The encoder makes one pass per
    objective.

    >>> parts = {
    ...     "a": TensorSplit(torch.arange(5), a=torch.ones(5)),
    ...     "b": TensorSplit(torch.arange(2), b=torch.zeros(2)),
    ... }
    >>> batch = PerObjectiveSplit(parts, "cycle").batch(torch.tensor([0, 1, 4]))
    >>> batch["inputs"]
    (tensor([0, 1, 4]), tensor([0, 1, 0]))

    Args:
        splits: one for each objective, in the task's order; their batches hold ``inputs`` and the
            labels.
        rule: ``cycle`` for training: an epoch is a pass over the longest split, and the others
            begin again. ``once`` for validation and test: who has run out has no sample left.

    Attributes:
        by_objective: the splits, which know their groups.

    Raises:
        DataError: a split has no sample.
        UsageError: there is no such rule.
        PluginError: a batch lacks an objective's labels.
    """

    def __init__(self, splits: Mapping[str, Split], rule: Literal["cycle", "once"]) -> None:
        if rule not in ("cycle", "once"):
            raise UsageError(f"rule must be 'cycle' or 'once', found {rule!r}")
        if empty := [name for name, split in splits.items() if not len(split)]:
            raise DataError(f"every objective needs a sample of its own, {empty[0]!r} has none")
        self.by_objective: Mapping[str, Split] = splits
        self._rule = rule

    def __len__(self) -> int:
        return max(map(len, self.by_objective.values()))

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the samples at `indices` of each split."""
        own = {
            name: split.batch(
                indices % len(split) if self._rule == "cycle" else indices[indices < len(split)],
                generator,
            )
            for name, split in self.by_objective.items()
        }
        inputs = PerObjective(batch["inputs"] for batch in own.values())
        return {"inputs": inputs} | {name: _labels(batch, name) for name, batch in own.items()}


def fingerprint(*tensors: Tensor) -> str:
    """Return what identifies the content of tensors: the sha256 of types, shapes and values.

    >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(2)) != fingerprint(torch.zeros(1, 2))
    True
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def regular(path: Path) -> Path:
    """Return a path that is to be read, unless reading might never end.

    >>> regular(Path("/dev/null"))
    Traceback (most recent call last):
        ...
    mtbench.errors.DataError: /dev/null: is a pipe or a device; give a regular file

    Raises:
        DataError: it is a pipe, a device or a socket. What is not there is for the reader to tell.
    """
    if not path.is_file() and path.exists() and not path.is_dir():
        raise DataError(f"{path}: is a pipe or a device; give a regular file")
    return path


def known(labels: Tensor) -> Tensor:
    """Return which samples have a label, (B,): those of which some entry is not missing.

    >>> known(torch.tensor([2, -1]))
    tensor([ True, False])
    >>> known(torch.tensor([[torch.nan, 0.5], [torch.nan, torch.nan]]))
    tensor([ True, False])

    Args:
        labels: (B, ...).
    """
    return ~_missing(labels)[:, None].flatten(1).all(1)


def _missing(labels: Tensor) -> Tensor:
    return labels.isnan() if labels.is_floating_point() or labels.is_complex() else labels < 0


def labelled_loss(loss: Callable[..., Tensor], output: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of the labels that there are; zero, but on the graph, without any.

    A sample may lack some of its labels. Where it has one loss for several, it needs them all.

    >>> output, labels = torch.tensor([[9.0, 0.0], [0.0, 0.0]]), torch.tensor([-1, 1])
    >>> labelled_loss(torch.nn.functional.cross_entropy, output, labels)
    tensor(0.6931)

    Args:
        loss: one of `torch.nn.functional`, or what takes ``(output, labels, reduction="none")`` as
            they do, and answers with (B, ...) losses.
        output: (B, ...); it is taken in float32 at any precision of the forward pass.
        labels: (B, ...).
    """
    missing = _missing(labels)
    values = loss(output.float(), labels.masked_fill(missing, 0), reduction="none")
    if values.shape != labels.shape[: values.ndim]:  # as (B, 1) beside (B,) makes it (B, B)
        raise UsageError(
            f"labelled_loss: an output of {tuple(output.shape)} and labels of "
            f"{tuple(labels.shape)} give losses of {tuple(values.shape)}: flatten the head's "
            "output, or give the labels its shape"
        )
    return mean_where(~missing[..., None].flatten(values.dim()).any(-1), values)


def mean_where(here: Tensor, values: Tensor) -> Tensor:
    """Return the mean of the values of some samples; zero, but on the graph, if there is none.

    The host need not know how many there are, and so does not wait for the device.

    Args:
        here: which, (B,) or (B, ...).
        values: (B, ...).
    """
    here = _beside(values, here).expand_as(values)
    return torch.where(here, values, 0).sum() / here.sum().clamp(min=1)


def _beside(values: Tensor, here: Tensor) -> Tensor:
    return here.reshape(here.shape + (1,) * (values.dim() - here.dim()))


class TorchmetricsMeter(Meter):
    """Metrics of torchmetrics: each is fed its objective's output and labels, ``batch[objective]``.

    Samples without a label are left out. Binary metrics want probabilities: of logits they guess,
    batch by batch, whether to apply the sigmoid. A metric that saw none, or says by a warning or a
    ValueError that it is undefined on what it saw (an AUROC of one class), is NaN.

    Args:
        task: whose `metrics` say which objective each one judges.
        metrics: those of torchmetrics by the same names, new ones.

    Raises:
        UsageError: the names differ, a metric judges no objective, or has been used.
        PluginError: a batch lacks labels, or a metric is no single number.
    """

    def __init__(self, task: Task, metrics: "Mapping[str, torchmetrics.Metric]") -> None:
        if differ := sorted(task.metrics.keys() ^ metrics.keys()):
            raise UsageError(f"a meter has the metrics that its task declares, found {differ}")
        if used := [name for name, metric in metrics.items() if metric.update_called]:
            raise UsageError(
                f"metrics {used} hold samples already: make new ones whenever `meter` is called"
            )
        judged = {name: metric.objective for name, metric in task.metrics.items()}
        if None in judged.values():
            raise UsageError(
                "a TorchmetricsMeter feeds each metric one objective's output, and "
                f"{[name for name, of in judged.items() if of is None]} judge none: write a Meter"
            )
        self._objectives = {name: task.objectives.index(str(of)) for name, of in judged.items()}
        self._names, self._metrics = task.objectives, metrics

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""
        for name, metric in self._metrics.items():
            k = self._objectives[name]
            labels = _labels(batch, self._names[k])
            here = known(labels)
            if here.any():
                given = outputs[k][here].detach().float().cpu(), labels[here].cpu()
                try:
                    metric.update(*given)
                except (RuntimeError, ValueError) as error:
                    output, label = (tuple(value.shape) for value in given)
                    raise PluginError(
                        f"metric {name!r} does not take an output of {output} and labels of "
                        f"{label}: {error}"
                    ) from error

    def compute(self) -> dict[str, float]:
        """Return every metric."""
        return {name: _value(name, metric) for name, metric in self._metrics.items()}


def _labels(batch: Batch, objective: str) -> Any:
    """Return an objective's labels."""
    if objective not in batch:
        raise PluginError(
            f"a batch has the labels of {objective!r} under this name, found {sorted(batch)}"
        )
    return batch[objective]


def _value(name: str, metric: "torchmetrics.Metric") -> float:
    if not metric.update_called:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            value = metric.compute()
        except (UserWarning, ValueError):
            return math.nan
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise PluginError(
            f"metric {name!r} must compute one number, found {found}: give it an average, or write "
            "a Meter"
        )
    return value.item()
