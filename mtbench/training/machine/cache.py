"""Where computed things are kept between runs, and how files and folders are written whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from uuid import uuid4

from platformdirs import user_cache_dir

from mtbench.errors import RunError, UsageError, writable

_STAGED = ".mtbench-"
"""How the names of temporary files and folders begin."""

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
    for left in file.parent.glob(f"{_STAGED}{'[0-9a-f]' * 32}*"):
        with suppress(OSError):  # another process has removed it, or may alone
            if time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    temporary = file.with_name(f"{_STAGED}{uuid4().hex}{file.suffix}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path, option: str) -> Iterator[Path]:
    """Yield a folder to write to, all of which then goes to `folder`, or on failure nothing.

    It is a hidden one in `folder`, for a mount and a working directory cannot be replaced; on
    failure it alone is removed, for another process may fill `folder` meanwhile. A folder that has
    content already is yielded itself.

    Args:
        folder: to be made, if it is not there.
        option: that asked for it.

    Raises:
        RunError: it cannot be made, or something has come into it meanwhile.
    """

    def content() -> list[Path]:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(_STAGED))

    with writable(f"{option} {folder}"):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        staged = None if content() else TemporaryDirectory(prefix=_STAGED, dir=folder)
    if staged is None:
        yield folder
        return
    place = Path(staged.name)
    try:
        with staged:
            yield place
            with writable(f"{option} {folder}"):
                if found := content():
                    raise RunError(
                        f"{option} {folder}: {found[0].name} has come into it meanwhile; choose "
                        "another folder"
                    )
                for path in list(place.iterdir()):
                    path.rename(folder / path.name)
    except BaseException as error:
        if made:
            with suppress(OSError):  # another process has something in it
                folder.rmdir()
        if isinstance(error, OSError) and place in Path(str(error.filename)).parents:
            error.filename = str(folder / Path(error.filename).relative_to(place))
        raise
