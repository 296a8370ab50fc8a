"""TOML files that somebody else may have written."""

import errno
import tomllib
from pathlib import Path
from typing import Any

LARGEST = 2**20  # bytes


def load(file: Path) -> dict[str, Any]:
    """Return what a TOML file says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no TOML, no UTF-8, larger than `LARGEST`, or nested too deeply.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for, a device has no end
        raise OSError(errno.EINVAL, "it is no regular file")
    with file.open("rb") as stream:
        raw = stream.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
