"""Where computed things are kept between runs."""

import os
from pathlib import Path

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
