"""Where computed things are kept between runs, and how a file of any kind is written whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from platformdirs import user_cache_dir

from mtbench.errors import UsageError


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

    Each writer has its own, for other processes may make the same file meanwhile.
    """
    temporary = file.with_name(f".{uuid4().hex}{file.suffix}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
