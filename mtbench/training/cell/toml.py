"""TOML files that somebody else may have written."""

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
    with file.open("rb") as stream:
        raw = stream.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
