"""Where computed things are kept between runs, and how files and folders are written whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from uuid import uuid4

from platformdirs import user_cache_dir

from mtbench.errors import UsageError, writable

_ABANDONED = 24 * 3600.0
"""Seconds since its last change after which nobody writes a temporary file any more."""


def cache_dir() -> Path:
    """Return the cache folder, made if need be: ``$MTBENCH_CACHE``, or the user's own.

    Raises:
        UsageError: it cannot be made.
    """
    path = Path(os.environ.get("MTBENCH_CACHE") or user_cache_dir("mtbench", appauthor=False))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cache folder {path}: cannot be made ({error.strerror}); set MTBENCH_CACHE to a "
            "folder that can be written"
        ) from error
    return path


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """Yield a path to write to, which then takes the file's place: readers see all of it or none.

    Each writer has its own, for other processes may make the same file meanwhile. What killed ones
    have left in the folder for a day is removed.
    """
    for left in file.parent.glob(f".mtbench-{'[0-9a-f]' * 32}*"):
        with suppress(OSError):  # another process has removed it, or may alone
            if time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    temporary = file.with_name(f".mtbench-{uuid4().hex}{file.suffix}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path, option: str) -> Iterator[None]:
    """Make a folder for what this context writes; where that fails, a new one is removed again.

    One that was there and empty is left empty.

    Args:
        folder: to be made, if it is not there.
        option: that asked for it.

    Raises:
        RunError: it cannot be made.
    """
    with writable(f"{option} {folder}"):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        fresh = not any(folder.iterdir())
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for left in folder.iterdir() if fresh else ():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            if made:
                folder.rmdir()
        raise
