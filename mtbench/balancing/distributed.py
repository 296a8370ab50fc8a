r"""Data-parallel training that balances the gradients of the global batch.

A batch is dealt out to R ranks (processes); each sends its samples through the model. Whatever a
method is shown must be what one process would have shown it, and almost nothing that methods look
at is a mean over ranks: the Gramian of a mean is not the mean of the Gramians, and the loss of a
batch with missing labels is not the mean of its parts' losses. So two rules hold everywhere:

- **Losses are global.** Every rank holds the same K values :math:`L_k`, on a graph that reaches
  its own samples alone. The trainer gathers the heads' outputs (`Ranks.gather`) and every rank
  computes the task's losses from all of them, which is exact for any loss; a loop of your own may
  add up sums over samples (`Ranks.total`).
- **Gradients are summed.** With :math:`J^{(r)}`, (K, d), what rank r's backward passes give, the
  Jacobian of the global losses is :math:`J = \sum_r J^{(r)}`. It is summed before a method sees it.
  :math:`J J^\top` is not the sum of :math:`J^{(r)} J^{(r)\top}`, whose mixed terms are missing:
  only in feature space, where every row belongs to one sample and every sample to one rank, are
  Gramians summed.

All ranks then compute the same weights from the same numbers and the same generator, and make the
same step: what a method keeps agrees without being sent.
"""

import gc
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mtbench.errors import RunError, StepError, UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

GRACE = 10.0
"""Seconds that a rank waits to be stopped by whoever started all of them, before it says what went
wrong: who lost another rank does not know why, and what concerns all is for rank 0 to say."""


class LostError(RunError):
    """Another rank is gone."""


class Ranks:
    """The processes that share a batch, as one of them sees them; as it stands, one process.

    Attributes:
        rank: which of them this is, from 0.
        size: R, how many there are.
    """

    rank = 0
    size = 1

    @property
    def later(self) -> "Ranks":
        """Who shares what is computed anew."""
        return self

    def of(self, samples: int) -> "Ranks":
        """Return `ALONE` for a batch below R, which every rank computes whole; else these ranks."""
        return self if samples >= self.size else ALONE

    def share(self, tree: Any) -> tuple[Any, list[int]]:
        """Return this rank's samples of a batch, and how many each rank has.

        Args:
            tree: tensors (B, ...), in tuples, lists or dictionaries.

        Raises:
            UsageError: something else is in there, or B is below R.
        """
        return tree, []

    def gather(self, tree: Any, sizes: Sequence[int] | None = None) -> Any:
        """Return all ranks' samples, in the order of ranks; the gradient reaches this rank's.

        Args:
            tree: tensors (B_r, ...), in tuples, lists or dictionaries.
            sizes: how many samples each rank has, where that is known.
        """
        return tree

    def total(self, share: Tensor) -> Tensor:
        """Return the sum over ranks; its gradient is that of this rank's share."""
        return share

    def maximum(self, value: Tensor) -> Tensor:
        """Return the elementwise maximum over ranks, detached."""
        return value.detach()

    def extremes(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the elementwise minimum and maximum over ranks, sent as one, detached."""
        most, least = self.maximum(torch.stack([value, -value]))
        return -least, most

    def sums(self, values: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Return the sums over ranks of many tensors, sent as one; None stays None."""
        return values

    def begin(self, tensor: Tensor) -> None:
        """Begin to replace a contiguous tensor by its sum over ranks; `wait` ends it."""

    def wait(self) -> None:
        """Wait until all that was begun is done."""

    def agree(self, value: int) -> int:
        """Return rank 0's value."""
        return value

    def agreed(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether all ranks hold the same tensors, judged by their sums in float64."""
        return True

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let rank 0 go through a block before the others."""
        yield


ALONE = Ranks()
"""One process: nothing is sent, and torch.distributed is not touched."""


class Summed(Ranks):
    """Ranks whose gradients of this step are summed already.

    Args:
        ranks: those ranks.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.rank, self.size, self._later = ranks.rank, ranks.size, ranks.later

    @property
    def later(self) -> Ranks:
        """Who shares what is computed anew."""
        return self._later


class Group(Ranks):
    """The ranks of a process group of torch.distributed.

    Every rank must build the same graph and ask for the same things in the same order.

    Args:
        group: the default one if left out.

    Example:
        A loop of your own under ``torchrun``; `count` is this rank's number of labelled samples::

            ranks = Group()
            total = ranks.total(count).clamp(min=1)  # no label anywhere: the loss is 0
            losses = [ranks.total(loss.sum()) / total for loss in per_sample_losses]
            balancer.backward(Step(losses, features=z, ranks=ranks))
            optimizer.step()

        The model is not wrapped in DistributedDataParallel, which would add up a second time.
    """

    def __init__(self, group: "ProcessGroup | None" = None) -> None:
        from torch import distributed

        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self._group, self._api = group, distributed
        nccl = distributed.get_backend(group) == "nccl"  # which knows no tensors on the CPU
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else None
        self._begun: list[Work] = []

    def share(self, tree: Any) -> tuple[Any, list[int]]:
        """Return this rank's samples of a batch, and how many each rank has."""
        found: list[int] = []

        def cut(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.ndim:
                raise UsageError(
                    "processes share a batch of tensors whose first axis is the samples; its "
                    f"inputs hold a {type(value).__name__}: train this task with one process"
                )
            sizes = [len(part) for part in torch.arange(len(value)).tensor_split(self.size)]
            if sum(found) not in (0, len(value)) or len(value) < self.size:
                raise UsageError(
                    f"{self.size} processes share a batch by its samples, at least one each; a "
                    f"tensor of its inputs has {len(value)}"
                )
            found[:] = sizes
            return value.tensor_split(self.size)[self.rank]

        return map_leaves(cut, tree), found

    def gather(self, tree: Any, sizes: Sequence[int] | None = None) -> Any:
        """Return all ranks' samples, in the order of ranks; the gradient reaches this rank's."""

        def join(mine: Any) -> Any:
            if not isinstance(mine, Tensor):
                return mine
            counts = self._sizes(len(mine)) if sizes is None else sizes
            if not mine.ndim or len(mine) != counts[self.rank]:
                raise UsageError(
                    "processes share a batch by samples; an output of shape "
                    f"{tuple(mine.shape)} for {counts[self.rank]} samples cannot be joined"
                )
            padded = mine.new_zeros(max(counts), *mine.shape[1:])
            padded[: len(mine)] = mine.detach()
            parts: list[Tensor] = [torch.empty_like(padded) for _ in counts]
            self._do(self._api.all_gather, parts, padded)
            parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
            parts[self.rank] = mine
            return torch.cat(parts)

        return map_leaves(join, tree)

    def _sizes(self, own: int) -> list[int]:
        sizes = torch.zeros(self.size, dtype=torch.long)
        sizes[self.rank] = own
        return [int(size) for size in self.total(sizes)]

    def total(self, share: Tensor) -> Tensor:
        """Return the sum over ranks; its gradient is that of this rank's share."""
        found: Tensor = _Total.apply(share, self)  # type: ignore[no-untyped-call]
        return found

    def maximum(self, value: Tensor) -> Tensor:
        """Return the elementwise maximum over ranks, detached."""
        return self._reduced(value, self._api.ReduceOp.MAX)

    def sums(self, values: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Return the sums over ranks of many tensors, sent as one; None stays None."""
        found = list(values)
        for dtype in dict.fromkeys(value.dtype for value in found if value is not None):
            chosen = [(i, v) for i, v in enumerate(found) if v is not None and v.dtype == dtype]
            flat = torch.cat([value.reshape(-1) for _, value in chosen])
            self._do(self._api.all_reduce, flat)
            pieces = torch.split(flat, [value.numel() for _, value in chosen])
            for (i, value), piece in zip(chosen, pieces, strict=True):
                found[i] = piece.view(value.shape)
        return found

    def begin(self, tensor: Tensor) -> None:
        """Begin to replace a contiguous tensor by its sum over ranks; `wait` ends it."""
        self._begun.append(self._do(self._api.all_reduce, tensor, async_op=True))

    def wait(self) -> None:
        """Wait until all that was begun is done."""
        begun, self._begun = self._begun, []
        for work in begun:
            self._do(work.wait, grouped=False)

    def agree(self, value: int) -> int:
        """Return rank 0's value."""
        own = torch.tensor(int(value) if self.rank == 0 else 0)
        return int(self._reduced(own, self._api.ReduceOp.SUM))

    def agreed(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether all ranks hold the same tensors, judged by their sums in float64."""
        own = torch.stack([tensor.detach().double().sum().cpu() for tensor in tensors])
        # NaN is equal to nothing, and which of it and a number is the maximum is anybody's guess.
        told = torch.cat([own.nan_to_num(), own.isnan().double()])
        return torch.equal(*self.extremes(told))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let rank 0 go through a block before the others."""
        if self.rank:
            self.agree(0)
        yield
        if not self.rank:
            self.agree(0)

    def _reduced(self, value: Tensor, how: Any) -> Tensor:
        sent = value.detach().to(self._device or value.device, copy=True).contiguous()
        self._do(self._api.all_reduce, sent, op=how)
        return sent.to(value.device)

    def _do(self, call: Callable[..., Any], *args: Any, grouped: bool = True, **named: Any) -> Any:
        """Do something with the others, or say that one of them is gone."""
        try:
            return call(*args, **named, **({"group": self._group} if grouped else {}))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise LostError(
                f"process {self.rank} of {self.size} has lost another one, which died or asked for "
                f"something else ({reason}); the same command goes on from the last checkpoint"
            ) from error


class _Total(torch.autograd.Function):
    """The sum over ranks, exactly the same number on each; backward passes the gradient on."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, ranks: Group) -> Tensor:
        return ranks._reduced(share, ranks._api.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def map_leaves(change: Callable[[Any], Any], tree: Any) -> Any:
    """Return tuples (named ones too), lists and dictionaries with every leaf changed."""
    if isinstance(tree, dict):
        return {key: map_leaves(change, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        items = [map_leaves(change, value) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return change(tree)


def processes() -> int:
    """Return how many processes torch.distributed has joined; 0 where it was not asked to."""
    from torch import distributed

    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 0


_asked = itertools.count()


def differ(found: Sequence[float]) -> bool:
    """Return whether the processes that torch.distributed has joined found different numbers.

    All processes ask as often. They leave theirs in the store and read the others': in a collective
    call, one that never comes would make all wait.
    """
    from torch import distributed

    turn = next(_asked)
    store = distributed.distributed_c10d._get_default_store()
    keys = [f"mtbench-found-{turn}-{rank}" for rank in range(distributed.get_world_size())]
    store.set(keys[distributed.get_rank()], json.dumps(found))
    try:
        store.wait(keys, timedelta(seconds=GRACE))
    except RuntimeError:  # somebody does something else
        return True
    theirs = [json.loads(store.get(key)) for key in keys]
    return not all(
        len(other) == len(found) and np.allclose(other, found, rtol=1e-3, atol=0, equal_nan=True)
        for other in theirs
    )


def must_agree(losses: Sequence[float], trained: Iterable[Tensor]) -> None:
    """Refuse losses or gradients that differ between the processes that torch.distributed joins.

    Raises:
        StepError: they do.
    """
    if differ([*losses, *lengths_of(p.grad for p in trained)]):
        raise StepError(
            "losses or gradients differ between the processes that torch.distributed joins: "
            "give ranks=Group() of mtbench.balancing.distributed, with losses of the whole "
            "batch and no DistributedDataParallel; or ranks=ALONE if each trains by itself"
        )


def lengths_of(gradients: Iterable[Tensor | None]) -> list[float]:
    """Return gradients' lengths, but for those of which each process has a part.

    Losses may be the same whatever the samples, where heads begin with zeros. Gradients are not.
    """
    return [
        float((g if g.layout == torch.strided else g.to_dense()).detach().norm())
        for g in gradients
        if g is not None and not hasattr(type(g), "placements")
    ]


def refuse_wrapped(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters of a model that is wrapped in DistributedDataParallel.

    It leaves no trace on them, nor on the graph: its hooks are C++, which no node lists. So its
    objects are found through their class.

    Raises:
        StepError: there is one.
    """
    own = {id(p) for p in parameters}
    wrapper = nn.parallel.DistributedDataParallel
    kinds = [wrapper]
    for kind in kinds:
        kinds += kind.__subclasses__()
    for held in gc.get_referrers(*kinds):
        if isinstance(held, wrapper) and any(id(p) in own for p in held.parameters()):
            raise StepError(
                "DistributedDataParallel averages what Tensor.backward gives, and this method takes"
                " gradients objective by objective: give ranks=Group() with losses of the whole "
                "batch, or take a method that descends one scalar and learns nothing itself"
            )
