"""The run directory: the record of one cell.

``spec.json`` (what), ``epochs.jsonl`` and ``steps.csv`` (how it went), ``checkpoint.pt`` (where to
go on, while it is unfinished), ``best.pt`` (the selected weights), ``test.json`` (sealed: opened by
those who compare), ``result.json`` (written last: with it a cell is finished), ``fitted.json``
(what reading new files needs beside the weights), ``init.json`` (what it started from),
``chosen.json`` (how its parameters were tuned, where a file from `mtbench tune` says so). Every
file is replaced atomically. ``.lock`` is held by the process that works on the cell.
"""

import hashlib
import json
import os
import shutil
import stat
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from mtbench.errors import RunError, first_fault
from mtbench.training.cell.result import Result
from mtbench.training.machine.locks import Lock

Precision = Literal["fp32", "bf16"]

SEALED = ".sealed"
"""The folder of figures that a sweep has drawn of test samples, until the test is opened."""


class WriteError(RunError):
    """A file of a run directory cannot be written, since the disk is full, say."""


class Spec(BaseModel):
    """All that determines a cell; equal specs are the same cell.

    Attributes:
        version: of this format.
        task: its name, and `task_params` with every default filled in.
        method: its name, and `method_params` likewise.
        plugins: sha256 of the code of the task and of each part of the method, by name.
        data: the data's fingerprint.
        init: sha256 of the weights that training started from, None for fresh ones.
        recipe: the optimisation, defaults filled in.
        seed: of everything random.
        precision: ``fp32``, or ``bf16`` autocast.
        device: the device's type.
        stage: a ``trial`` is there to choose parameters and never sees the test split; a ``final``
            cell is tested.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    task: str
    task_params: dict[str, Any]
    method: str
    method_params: dict[str, Any]
    plugins: dict[str, str] = {}
    data: str
    init: str | None = None
    recipe: dict[str, Any]
    seed: int
    precision: Precision = "fp32"
    device: str = "cpu"
    stage: Literal["trial", "final"] = "final"

    def canonical(self) -> str:
        """Return the JSON text that is hashed: sorted keys, no white space."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of `canonical`."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]

    @property
    def path(self) -> str:
        """Where its cell lies below a folder of runs."""
        return f"{self.task}/{self.method}/seed{self.seed}-{self.hash}"


class RunDirectory:
    """Reads and writes the files of one cell.

    Args:
        path: the folder; `at` finds the one of a spec.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock(path / ".lock")

    @classmethod
    def at(cls, out: Path, spec: Spec) -> "RunDirectory":
        """Return the directory of a cell below `out`, made and marked with its spec.

        Raises:
            RunError: it cannot be written, or holds another spec.
        """
        run = cls(out / spec.path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            if not (run.path / "spec.json").exists():
                own = f"spec.json.{uuid.uuid4().hex}"  # another process may make the same cell
                run.write_text(own, json.dumps(spec.model_dump(mode="json"), indent=2))
                (run.path / own).replace(run.path / "spec.json")
        except OSError as error:
            raise RunError(
                f"{run.path}: cannot be written ({error.strerror}); choose another --out"
            ) from error
        if run.spec().canonical() != spec.canonical():
            raise RunError(
                f"{run.path}: spec.json is of another cell ({run.spec().hash}, wanted "
                f"{spec.hash}); it was edited or moved: remove the folder or choose another --out"
            )
        return run

    def claim(self) -> AbstractContextManager[None]:
        """Hold the cell: who changes the directory does it within this context.

        A process that ends, however it ends, lets go.

        Raises:
            HeldError: another process holds it; the message says which.
            RunError: the directory cannot be written, or its file system has no locks.
        """
        return self._lock.hold(str(self.path))

    def holder(self) -> str | None:
        """Return which process holds the cell, None if none does."""
        return self._lock.holder()

    def clear(self, keep: str = "") -> None:
        """Remove all but the spec and a file, so that the cell is trained from its start."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (".lock", keep) and "spec.json" not in path.name:
                path.unlink()

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint of a cell that has ended: nobody goes on from it."""
        with suppress(OSError):  # somebody else's read-only folder
            if (self.path / "result.json").exists():
                (self.path / "checkpoint.pt").unlink(missing_ok=True)

    def spec(self) -> Spec:
        """Return the spec.

        Raises:
            RunError: this is no run directory, or its spec does not parse.
        """
        file = self._file("spec.json")
        if file is None:
            raise RunError(f"{self.path}: no run directory (it has no spec.json)")
        try:
            return Spec.model_validate(parse(_text(file)))
        except ValidationError as error:
            raise RunError(f"{file}: not a spec of version 1: {first_fault(error)}") from error
        except _BROKEN as error:
            raise RunError(
                f"{file}: not a spec: {error}; remove its folder to train the cell again"
            ) from error

    def result(self) -> Result | None:
        """Return the result, None while the cell is unfinished.

        Raises:
            RunError: it does not parse, or is none.
        """
        remedy = "delete it to train the cell again"
        found = self.read("result.json", remedy)
        try:
            return None if found is None else Result.model_validate(found)
        except ValidationError as error:
            raise RunError(
                f"{self.path / 'result.json'}: is no result of version 1 ({first_fault(error)}); "
                f"{remedy}"
            ) from error

    def fitted(self) -> dict[str, Any] | None:
        """Return what `Task.fit` returned, None where it has not been asked.

        Raises:
            RunError: it does not parse.
        """
        return self.read("fitted.json", "delete it and repeat the `mtbench run` that made it")

    def open_test(self) -> dict[str, float]:
        """Return the test metrics, none where there are none; that it was opened stays on record.

        Raises:
            RunError: they do not parse.
        """
        file = self._file("test.json")
        if file is None:
            return {}
        # Opened before, or in somebody else's read-only folder.
        with suppress(OSError), (self.path / "test.opened").open("x") as stream:
            stream.write(f"{time.time()}\n")
        self.unseal()
        try:
            metrics: dict[str, float] = _object(parse(_text(file))["metrics"])
        except (*_BROKEN, KeyError) as error:
            raise RunError(
                f"{file}: does not parse ({error}); delete result.json and repeat the run, which "
                "writes both again"
            ) from error
        return metrics

    def pictures(self) -> list[Path]:
        """Return its figures, as far as they are not sealed."""
        return sorted(self.path.glob("*.png"))

    def unseal(self) -> None:
        """Put the figures, which show test samples, where they are seen."""
        sealed = self.path / SEALED
        if sealed.is_symlink():  # in a folder from elsewhere: files of any place would be moved
            return
        with suppress(OSError):  # somebody else's read-only folder, or another opens it just now
            for file in sealed.glob("*"):
                file.replace(self.path / file.name)
            sealed.rmdir()

    def opened(self) -> float | None:
        """Return when the test metrics were first opened, None if they never were."""
        file = self._file("test.opened")
        if file is None:
            return None
        try:
            return float(_text(file))
        except ValueError as error:
            raise RunError(f"{file}: is no time ({error}); remove it") from error

    def history(self) -> list[dict[str, Any]]:
        """Return the records of the epochs that have ended.

        Raises:
            RunError: they do not parse, or lack what each has.
        """
        file = self._file("epochs.jsonl")
        if file is None:
            return []
        try:
            found = [parse(line) for line in _text(file).splitlines()]
            for record in found:
                for key, kind in _EPOCH.items():
                    if not isinstance(record.get(key), kind):
                        raise TypeError(f"{key}: {record.get(key)!r:.40} is no {kind.__name__}")
            return found
        except _BROKEN as error:
            raise RunError(
                f"{file}: does not parse ({error}); delete result.json and repeat the run, which "
                "writes both again"
            ) from error

    def read(self, name: str, remedy: str) -> dict[str, Any] | None:
        """Return a JSON file's object, None where there is no such file.

        Args:
            name: of the file.
            remedy: what to do where it is broken.

        Raises:
            RunError: it is no regular file, or does not parse.
        """
        file = self._file(name)
        if file is None:
            return None
        try:
            return parse(_text(file))
        except _BROKEN as error:
            raise RunError(f"{file}: does not parse ({error}); {remedy}") from error

    def _file(self, name: str) -> str | None:
        """Return a file that is to be read, None where there is none.

        Raises:
            RunError: it is a folder, or a pipe or device, reading which might never end.
        """
        file = os.path.join(self.path, name)  # noqa: PTH118  # ten thousand cells are read
        try:
            mode = os.stat(file).st_mode  # noqa: PTH116  # once: it may appear between two looks
        except OSError:
            return None
        if not stat.S_ISREG(mode):
            raise RunError(f"{file}: is no regular file; remove it")
        return file

    def write_text(self, name: str, text: str) -> None:
        """Replace a text file atomically.

        Raises:
            WriteError: it cannot be written; what was there before still is.
        """
        with self._replacing(name) as stream:
            stream.write(text.encode())

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Replace a tensor file atomically.

        Raises:
            WriteError: it cannot be written; what was there before still is.
        """
        with self._replacing(name) as stream:
            try:
                torch.save(state, stream)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # why the stream refused torch's writer
                    raise error.__context__ from error
                raise

    @contextmanager
    def _replacing(self, name: str) -> Iterator[BinaryIO]:
        temporary = self.path / f".{name}.tmp"
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.path / name)
        except OSError as error:
            with suppress(OSError):  # gives back what little space there was
                temporary.unlink()
            raise WriteError(
                f"{self.path / name}: cannot be written ({error.strerror}); mend that and repeat "
                "the command, which goes on from the last checkpoint"
            ) from error

    def load(
        self, name: str, device: str = "cpu", *, lazily: bool = False
    ) -> dict[str, Any] | None:
        """Return a tensor file, None where there is none.

        Args:
            name: of the file.
            device: where tensors go.
            lazily: read a tensor's numbers only when somebody looks at them; on the CPU. Then
                damage within them is not seen.

        Raises:
            RunError: it is corrupt.
        """
        file = self._file(name)
        if file is None:
            return None
        try:
            if not lazily:  # torch does not look at the archive's checksums
                with zipfile.ZipFile(file) as archive:
                    if damaged := archive.testzip():
                        raise zipfile.BadZipFile(damaged)
            state = _object(torch.load(file, map_location=device, weights_only=True, mmap=lazily))
        except Exception as error:  # torch raises many kinds for a broken file
            raise RunError(
                f"{file}: corrupt, does not load ({type(error).__name__}); delete the folder to "
                "train this cell from its start"
            ) from error
        return state


class Reader(RunDirectory):
    """A run directory to all ranks but the first, which writes for all."""

    def write_text(self, name: str, text: str) -> None:
        """Leave it to rank 0."""

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Leave it to rank 0."""


def _text(file: str) -> str:
    with open(file, encoding="utf-8") as stream:  # noqa: PTH123
        return stream.read()


_BROKEN = (ValueError, TypeError, RecursionError, OverflowError)
_EPOCH = {"epoch": int, "train_loss": dict, "val_loss": dict, "val": dict}
"""What every epoch's record has, and of which kind."""


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no JSON object")
    return value


def parse(text: str) -> dict[str, Any]:
    """Return a JSON object of a record.

    Raises:
        ValueError, TypeError, RecursionError, OverflowError: it is none, is nested too deeply, or
            has a key twice, a whole number that is no float, or text that is no Unicode.
    """
    value = _object(json.loads(text, parse_int=_whole, object_pairs_hook=_unique))
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair cannot be written
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} is there twice")
    return found


def _whole(text: str) -> int:
    float(number := int(text))
    return number


def find_runs(roots: list[Path]) -> Iterator[RunDirectory]:
    """Yield every run directory at or below the roots, behind links too, in a stable order.

    Raises:
        RunError: a root does not exist, or a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else somebody has just removed it
            raise RunError(
                f"{error.filename}: cannot be read ({error.strerror}), so cells may be missing: "
                "make it readable, or move it away"
            ) from error

    seen: set[tuple[int, int]] = set()
    for root in roots:
        if not root.is_dir():
            raise RunError(f"{root}: no such folder; give the --out of earlier runs")
        for folder, below, files in os.walk(root, onerror=refuse, followlinks=True):
            # In hidden folders are cells that somebody is still bringing in. lost+found is root's,
            # where the folder is a whole disk.
            below[:] = sorted(n for n in below if not n.startswith(".") and n != "lost+found")
            try:
                place = Path(folder).stat()
            except FileNotFoundError:  # somebody has just removed it
                continue
            if (own := (place.st_dev, place.st_ino)) in seen:  # a link may lead to where it lies
                below.clear()
                continue
            seen.add(own)
            if "spec.json" in files:
                yield RunDirectory(Path(folder))
