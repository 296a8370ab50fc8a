"""TOML files that somebody else may have written."""

import tomllib
from pathlib import Path
from typing import Any

from mtbench.errors import UsageError

LARGEST = 2**20  # bytes


def load(file: Path) -> dict[str, Any]:
    """Return what a TOML file says.

    Raises:
        UsageError: it cannot be read, is no TOML, no UTF-8, larger than `LARGEST`, or nested too
            deeply.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for, a device has no end
            raise UsageError(f"{file}: cannot be read (it is no regular file)")
        with file.open("rb") as stream:
            raw = stream.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ValueError(f"larger than {LARGEST >> 20} MiB")
        return tomllib.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    except RecursionError:
        raise UsageError(f"{file}: is no TOML: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{file}: is no TOML: {error}") from error
