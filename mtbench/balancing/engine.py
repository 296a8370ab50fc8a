"""How the K gradients of the shared parameters are computed, held and multiplied.

The numbers do not depend on it, but for rounding; time and memory do.
"""

import hashlib
import platform
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtbench.errors import StepError


class Sized(Protocol):
    """Has a number of entries, as a tensor does."""

    def numel(self) -> int:
        """Return it."""


Item = TypeVar("Item", bound=Sized)

_COLUMNS = 1024  # whose float32 products are summed before float64 takes over
_CACHED = 64 * _COLUMNS  # as many float64 as stay in a CPU's cache
_LEAST = 1e-3  # eigenvalue of the cosines above which float32 products suffice
_SHARDED = {"_is_flat_param", "ds_id", "_hp_mapping"}
"""What FSDP and DeepSpeed (ZeRO 3; 1 and 2) leave on a parameter."""

HIDDEN = (
    "torch.utils.checkpoint(..., use_reentrant=True) hides its parameters from autograd: gradients "
    "objective by objective need use_reentrant=False"
)
_NO_SECOND = (
    "this method differentiates gradients, and a head has none that can be differentiated: leave "
    "heads uncompiled (and attention and recurrent layers to plain kernels: "
    "sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False))"
)
_COMPLAINTS = {
    "backward through the graph a second time": "the graph of these losses is gone, for an earlier "
    "backward pass freed it: balance all losses that come of it in one call, or send the batch "
    "through the model again",
    "donated buffers": "torch.compile lets a backward pass overwrite what the next objective's "
    "needs: set torch._functorch.config.donated_buffer = False before the model's first step",
    "use_reentrant=True": HIDDEN,
    "ouble backward": _NO_SECOND,
    "derivative for ": _NO_SECOND,
}
"""What torch says, and what to do about it."""

_AS_IT_IS = nullcontext()
_RANGE = (1e-30, 1e35)  # squared norms that float32 sums without loss


def grad(
    outputs: Sequence[Tensor | GradientEdge],
    inputs: Sequence[Tensor | GradientEdge],
    seeds: Sequence[Tensor | None],
    *,
    create_graph: bool = False,
    batched: bool = False,
    free: bool = False,
    met: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad`, answering None where nothing depends on an input.

    Args:
        outputs: tensors, or edges of the graph.
        inputs: likewise.
        seeds: what backward begins with, per output; one that is None leaves its output out.
        create_graph: as torch has it.
        batched: whether seeds have a first axis more, of backwards done at once.
        free: whether this is the last pass through this part of the graph, which then goes.
        met: whether a pass of this step has met the inputs before, so that they are known to be
            whole.

    Raises:
        StepError: autograd cannot, for a reason that the user can mend.
    """
    live = [
        (output, seed)
        for output, seed in zip(outputs, seeds, strict=True)
        if seed is not None and _is_on_graph(output)
    ]
    wanted = [point for point in inputs if _is_on_graph(point)]
    if not live or not wanted:
        return (None,) * len(inputs)
    try:
        found = torch.autograd.grad(
            [output for output, _ in live],  # type: ignore[arg-type]  # torch takes mixtures too
            wanted,  # type: ignore[arg-type]
            [seed for _, seed in live],
            retain_graph=not free,
            create_graph=create_graph,
            is_grads_batched=batched,
            allow_unused=True,
        )
    except RuntimeError as error:
        explain(error)
        raise
    if not met:
        must_be_whole(point for point in wanted if isinstance(point, Tensor) and point.is_leaf)
    if len(wanted) == len(inputs):
        return found
    grads = iter(found)
    return tuple(next(grads) if _is_on_graph(point) else None for point in inputs)


def explain(error: RuntimeError) -> None:
    """Say in one line what the user can do about what torch complains of, and its first sentence.

    Raises:
        StepError: something can be done.
    """
    for words, remedy in _COMPLAINTS.items():
        if words in str(error):
            said = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
            raise StepError(f"{remedy} (torch says: {said})") from None


def _is_on_graph(point: Tensor | GradientEdge) -> bool:
    return isinstance(point, GradientEdge) or point.requires_grad


def must_be_whole(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters that `fully_shard` has in its hands, once a backward pass has met them.

    It sums over ranks what `Tensor.backward` gives, and knows nothing of other gradients. What it
    shards is a DTensor, and what it had put together for the backward pass has no memory any more.

    Raises:
        StepError: there is one.
    """
    for p in parameters:
        marked = vars(p) and not vars(p).keys().isdisjoint(_SHARDED)
        put_away = p.layout == torch.strided and p.numel() and not p.untyped_storage().size()
        if marked or put_away or hasattr(type(p), "placements"):
            raise StepError(
                "a parameter is sharded (fully_shard) or held by FSDP or DeepSpeed, and this "
                "method takes gradients objective by objective: take a method that descends one "
                "scalar, or replicate the model and give ranks=Group()"
            )


@contextmanager
def unhooked(parameters: Iterable[Tensor], after: bool = False) -> Iterator[None]:
    """Keep parameters' hooks from gradients that are not those of a step.

    Args:
        parameters: whose.
        after: whether it is the hooks after accumulation.
    """
    kind = "_post_accumulate_grad_hooks" if after else "_backward_hooks"
    hooks = [(live, dict(live)) for p in parameters if (live := getattr(p, kind))]
    for live, _ in hooks:
        live.clear()
    try:
        yield
    finally:
        for live, kept in hooks:
            live.update(kept)


def due(steps: int, pause: int = 1) -> bool:
    """Return whether to try again what may have changed unseen: after 0, 1, 2, 4, 8, ... pauses.

    The tries cost next to nothing, and what has changed is found before there are twice as many.
    """
    pauses, rest = divmod(steps, pause)
    return not rest and pauses & (pauses - 1) == 0


def _nothing() -> None:
    """Stand for a parameter that is gone."""


class Arrivals:
    """Where in a compiled graph gradients arrive, which is the same in every step.

    Attributes:
        steps: how many there were since it was tried first, by the outputs by which a loss came.
        at: by the number of an input, the outputs by which losses came whose gradients arrived.
    """

    def __init__(self) -> None:
        self.steps = Counter[tuple[int, ...]]()
        self.at: dict[int, set[tuple[int, ...]]] = {}


class Engine:
    """One is made per training loop and given to every `Step`, which then reuses its memory.

    Args:
        batched: whether all objectives go back through the encoder in one vmapped backward. It
            wins for small matrices and on a GPU, and costs a CPU's convolutions twice the time.
            None measures both at the first Jacobian and takes the loop unless the other wins by
            15 %, or cannot run (norms under autocast, compiled encoders).
        parts: 1 holds all gradients at once: the (K, d) Jacobian, or less for methods on the
            Gramian where `mtbench.balancing.layers` finds layers. With P > 1 the shared parameters
            are visited in P groups, whose gradients are dropped once they are multiplied: memory
            falls to K d / P, and a step costs one encoder backward more, and for each objective up
            to P times the part of an encoder backward that leads to the parameters. Only for
            methods on the Gramian; those that need the Jacobian get it whole.
        notebook: a folder where choices are kept, so that the next loop of the same sizes on this
            machine makes the same one.

    Raises:
        ValueError: parts is below 1.
    """

    def __init__(
        self, *, batched: bool | None = None, parts: int = 1, notebook: Path | None = None
    ) -> None:
        if parts < 1:
            raise ValueError(f"Engine: parts must be at least 1, found {parts}")
        self.batched, self.parts, self.notebook = batched, parts, notebook
        self._buffer = torch.empty(0)
        self.layered = True
        """Whether layers' gradients need not be formed: so until autograd's are found to differ."""
        self.factored = 0
        """The steps in which they were not formed."""
        self.compiled = weakref.WeakKeyDictionary[type, Arrivals]()
        self.hooked: dict[int, Tensor] = {}
        """Parameters whose ``.grad`` is new, and whose hooks are yet to be told."""
        self._common: dict[int, weakref.ref[Tensor]] = {}

    def __reduce__(self) -> Any:
        """A copy has the choices, and nothing of the memory."""
        return partial(Engine, batched=self.batched, parts=self.parts, notebook=self.notebook), ()

    def remember(
        self, common: Iterable[Tensor], ordered: Callable[[list[Tensor]], list[Tensor]] = list
    ) -> tuple[Tensor, ...]:
        """Return all parameters that objectives were ever found to have in common, in one order.

        A batch in which an objective has no label does not show what it shares with others.

        Args:
            common: those found now.
            ordered: puts those that are new in order.
        """
        new = [p for p in common if self._common.get(id(p), _nothing)() is not p]
        for parameter in ordered(new) if new else new:
            self._common[id(parameter)] = weakref.ref(parameter)
        found = (known() for known in self._common.values())
        return tuple(p for p in found if p is not None and p.requires_grad)

    def forget(self) -> None:
        """Forget what objectives had in common: they may be of another model."""
        self._common.clear()

    def tell_hooks(self) -> None:
        """Call the hooks of the parameters whose ``.grad`` is new."""
        hooked, self.hooked = self.hooked, {}
        for parameter in hooked.values():
            for hook in list((parameter._post_accumulate_grad_hooks or {}).values()):
                hook(parameter)

    def choose(self, pull: Callable[[bool], object], sizes: str) -> bool:
        """Return whether all objectives had better go back at once: as noted, or measured now.

        Args:
            pull: computes the Jacobian, vmapped or not.
            sizes: what the choice depends on, in words.
        """
        if self.notebook is None:
            return _batched_is_faster(pull)
        key = f"{sizes} {torch.get_num_threads()} {torch.__version__} {platform.processor()}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        loop, batched = (
            self.notebook / f"jacobian-{digest}-{word}" for word in ("loop", "batched")
        )
        if loop.exists() or batched.exists():
            return not loop.exists()
        choice = _batched_is_faster(pull)
        with suppress(OSError):  # a choice that cannot be kept is made again
            (batched if choice else loop).touch()
        return choice

    def buffer(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a (rows, columns) tensor of any content, the memory of the last one if it fits.

        What the last step's Jacobian was is lost thereby. (Fresh memory costs a CPU more time than
        a copy into it: 60 ms against 7 for 40 x 1e6.)
        """
        flat, size = self._buffer, rows * columns
        if flat.dtype != dtype or flat.device != device or flat.numel() < size:
            self._buffer = flat = torch.empty(0)  # frees the old one first
            self._buffer = flat = torch.empty(size, dtype=dtype, device=device)
        return flat[:size].view(rows, columns)

    def groups(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """Yield the items in at most `parts` runs of about equal size."""
        total = sum(item.numel() for item in items) or 1
        starts = accumulate((item.numel() for item in items), initial=0)
        placed = zip(starts, items, strict=False)
        for _, group in groupby(placed, key=lambda pair: self.parts * pair[0] // total):
            yield [item for _, item in group]


def _batched_is_faster(pull: Callable[[bool], object]) -> bool:
    times: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(4):
        for batched in times:
            begin = _now()
            try:
                pull(batched)
            except RuntimeError:
                if not batched:
                    raise
                return False
            if repeat:  # the first one pays for what is set up once
                times[batched].append(_now() - begin)
    return min(times[True]) < 0.85 * min(times[False])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def largest(rows: Tensor) -> Tensor:
    """Return each row's largest absolute value, (K,); NaN where it holds one."""
    if not rows.numel():
        return rows.new_zeros(len(rows))
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))


def lengths(rows: Tensor) -> Tensor:
    """Return each row's length, (K,), float64, without loss at any scale."""
    if rows.is_cuda:
        found: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return found
    # A CPU does that one number at a time; and fresh memory for copies would cost as much again.
    room = rows.new_empty(_CACHED, dtype=torch.float64)
    squares = rows.new_zeros(len(rows), dtype=torch.float64)
    for square, row in zip(squares, rows, strict=True):
        for part in torch.split(row, _CACHED):
            copy = room[: len(part)].copy_(part)
            square += torch.dot(copy, copy)
    return squares.sqrt()


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Return the context in which autocast does not touch what is computed on a tensor's device."""
    kind = like.device.type
    # Entering the context takes 20 microseconds; a step does it several times.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _AS_IT_IS


def gramian(blocks: Sequence[Tensor]) -> Tensor:
    """Return the sum over blocks (K, n) of B B^T, float64, on the CPU.

    Float32 products, summed in float64 every 1,024 columns, err by about 1e-7 of the norms. Where
    that could show (objectives nearly dependent, or of an extreme scale) float64 multiplies.
    """
    return gramians([blocks])[0]


def gramians(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return `gramian` of several groups of blocks, for which a device is waited for once."""
    with without_autocast(groups[0][0]):
        fast = torch.stack([_fast(blocks) for blocks in groups]).cpu()
        return [
            found
            if _suffices(found, blocks)
            else torch.stack([_exact(block, block) for block in blocks]).sum(0).cpu()
            for found, blocks in zip(fast, groups, strict=True)
        ]


def _fast(blocks: Sequence[Tensor]) -> Tensor:
    found = [products(block, block) for block in blocks if block.shape[1]]
    found = found or [blocks[0].new_zeros(len(blocks[0]), len(blocks[0]), dtype=torch.float64)]
    return torch.stack(found).sum(0) if len(found) > 1 else found[0]


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return A B^T, float64, of A, (K, n), and B, (M, n): float32 products, summed in float64."""
    n = a.shape[1]
    whole = n - n % _COLUMNS if a.dtype == b.dtype == torch.float32 else 0
    if not whole:
        return _exact(a, b)
    left, right = (x[:, :whole].view(len(x), -1, _COLUMNS).transpose(0, 1) for x in (a, b))
    product = torch.bmm(left, right.mT).sum(0, dtype=torch.float64)
    return product + a[:, whole:] @ b[:, whole:].T if whole < n else product


def _exact(a: Tensor, b: Tensor) -> Tensor:
    product = a.new_zeros(len(a), len(b), dtype=torch.float64)
    parts = (torch.split(x, _CACHED, dim=1) for x in (a, b))
    for left, right in zip(*parts, strict=True):
        product += left.double() @ right.double().T
    return product


def _suffices(fast: Tensor, blocks: Sequence[Tensor]) -> bool:
    if all(block.dtype != torch.float32 or block.shape[1] < _COLUMNS for block in blocks):
        return True
    values = fast.numpy()
    squares = values.diagonal().tolist()
    low, high = _RANGE
    for k, square in enumerate(squares):
        if not low < square < high and any(largest(block[k, None]) != 0 for block in blocks):
            return False
    inverse = np.array([square**-0.5 if square > 0 else 1.0 for square in squares])
    cosines = values * inverse * inverse[:, None]
    cosines.flat[:: len(values) + 1] = 1 - _LEAST
    return int(lapack.dpotrf(cosines)[1]) == 0
