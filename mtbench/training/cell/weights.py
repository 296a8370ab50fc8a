"""Trained weights from elsewhere: which of a file's tensors a model can start from."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from mtbench.errors import RunError
from mtbench.training.cell.rundir import RunDirectory

PACKED = "model.safetensors"
"""A packaged model's weights, in its folder; `MODEL` and `BALANCER` begin the tensors' names."""

MODEL, BALANCER = "model.", "balancer."


@dataclass(frozen=True)
class Fit:
    """What of a file's weights a model can start from.

    Attributes:
        source: the file.
        digest: its sha256.
        tensors: by the model's names.
        prefixes: what the names begin with in the file and, for the same tensors, in the model.
        total: the number of the model's tensors.
        missing: the model's other tensors, and why each of them is not in `tensors`.
        unused: the file's other tensors.
    """

    source: Path
    digest: str
    tensors: dict[str, Tensor]
    prefixes: tuple[str, str]
    total: int
    missing: dict[str, str]
    unused: list[str]

    def summary(self) -> str:
        """Return one line for a person."""
        theirs, ours = self.prefixes
        renamed = f" ('{theirs}' in its names is '{ours}' here)" if theirs != ours else ""
        reasons = Counter(reason.partition(":")[0] for reason in self.missing.values())
        fresh = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        return (
            f"{len(self.tensors)} of the model's {self.total} tensors are from {self.source}"
            f"{renamed}; begin fresh: {fresh or 'none'}; unused in the file: {len(self.unused)}; "
            "init.json names each"
        )

    def record(self) -> dict[str, Any]:
        """Return all of it, but the numbers, as JSON."""
        return {
            "sha256": self.digest,
            "prefixes": list(self.prefixes),
            "loaded": sorted(self.tensors),
            "missing": self.missing,
            "unused": self.unused,
        }


def fit(path: Path, model: nn.Module) -> Fit:
    """Return which of a file's tensors fit a model, by name and shape.

    The names may begin otherwise than the model's: of all pairs (p, q) the one is taken for which
    most tensors ``p.NAME`` of the file have the shape of the model's ``q.NAME``; of equals, the
    pair that changes least. So a checkpoint of the bare encoder fits, and one that
    `torch.nn.DataParallel` wrote.

    Args:
        path: a run directory, a packaged model, a ``.safetensors`` file, or what `torch.save` wrote
            of a state dict, which may lie anywhere within dictionaries.
        model: what wants weights.

    Raises:
        RunError: it is absent or broken, or nothing fits.
    """
    file, theirs = _read(path)
    ours = {name: x for name, x in model.state_dict().items() if isinstance(x, Tensor)}
    prefixes = _prefixes(theirs, ours)
    if prefixes is None:
        name, shape = next(((k, _shape(x)) for k, x in theirs.items()), ("", ""))
        raise RunError(
            f"--init {path}: none of its {len(theirs)} tensors fits this task's model by name and "
            f"shape; it begins with {name} {shape}, the model with {next(iter(ours))} "
            f"{_shape(ours[next(iter(ours))])}"
        )
    renamed = {
        prefixes[1] + name.removeprefix(prefixes[0]): name
        for name in theirs
        if name.startswith(prefixes[0])
    }
    tensors, missing = {}, {}
    for name, own in ours.items():
        other = renamed.get(name)
        if other is None:
            missing[name] = "not in the file"
        elif theirs[other].shape != own.shape:
            missing[name] = f"of another shape: {_shape(theirs[other])}, needed {_shape(own)}"
        else:
            tensors[name] = theirs[other]
    used = {renamed[name] for name in tensors}
    return Fit(
        source=path,
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        tensors=tensors,
        prefixes=prefixes,
        total=len(ours),
        missing=missing,
        unused=[name for name in theirs if name not in used],
    )


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the model's and the balancer's tensors of a packaged model's file.

    Raises:
        SafetensorError: it is none.
    """
    tensors: dict[str, Tensor] = load(content)
    model, balancer = (
        {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
        for part in (MODEL, BALANCER)
    )
    return model, balancer


def _read(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Return the file that a path stands for, and its tensors."""
    if (file := path / PACKED).is_file():
        return file, _safetensors(file)
    if path.is_dir():
        run = RunDirectory(path)
        run.spec()
        state = run.load("best.pt")
        if state is None:
            raise RunError(
                f"--init {path}: has no trained weights (best.pt); finish that run first"
            )
        if best := max(_dictionaries(state.get("model")), key=len, default={}):
            return path / "best.pt", best
        raise RunError(f"--init {path}: best.pt holds no model's tensors; give another run")
    if not path.is_file():
        raise RunError(
            f"--init {path}: no such file or folder; give a run directory, a packaged model, "
            "or a .pt, .pth or .safetensors file"
        )
    if path.suffix == ".safetensors":
        return path, _safetensors(path)
    return path, _state_dict(path)


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file}: does not load as safetensors ({error})") from error
    return tensors


def _state_dict(file: Path) -> dict[str, Tensor]:
    """Return the dictionary of tensors, wherever it lies; of several, the largest."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise RunError(
            f"--init {file}: does not load as a state dict ({type(error).__name__}): only tensors "
            "in dictionaries are read, no pickled objects; save model.state_dict()"
        ) from error
    best = max(_dictionaries(found), key=len, default={})
    if not best:
        raise RunError(f"--init {file}: holds no dictionary of tensors; save model.state_dict()")
    return best


def _dictionaries(value: Any) -> Iterator[dict[str, Tensor]]:
    if isinstance(value, Mapping):
        yield {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
        for item in value.values():
            yield from _dictionaries(item)


def _prefixes(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the pair of prefixes that joins the most tensors, None if none joins any."""
    by_end: defaultdict[str, list[tuple[str, torch.Size]]] = defaultdict(list)
    for name, tensor in ours.items():
        for start, end in _cuts(name):
            by_end[end].append((start, tensor.shape))
    joined = Counter(
        (start, own)
        for name, tensor in theirs.items()
        for start, end in _cuts(name)
        for own, shape in by_end.get(end, ())
        if shape == tensor.shape
        and ("." in end or not (start and own))  # any two layers have a `bias`
    )
    return max(joined, key=lambda pair: (joined[pair], -len("".join(pair)), pair), default=None)


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield a name in two, cut before each of its parts.

    >>> list(_cuts("encoder.conv.weight"))
    [('', 'encoder.conv.weight'), ('encoder.', 'conv.weight'), ('encoder.conv.', 'weight')]
    """
    parts = name.split(".")
    for count in range(len(parts)):
        start = "".join(f"{part}." for part in parts[:count])
        yield start, name.removeprefix(start)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
