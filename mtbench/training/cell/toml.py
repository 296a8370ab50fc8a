"""TOML files that somebody else may have written."""

import errno
import tomllib
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LARGEST = 2**20  # bytes


def shipped(below: str = "") -> dict[str, Path]:
    """Return by name the files of packages that are announced in the group ``mtbench.suites``.

    Args:
        below: the folder of each package that is looked into, by default the package itself.
    """
    found: dict[str, Path] = {}
    for point in entry_points(group="mtbench.suites"):
        spec = find_spec(point.value)
        for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
            found |= {file.stem: file for file in sorted((folder / below).glob("*.toml"))}
    return found


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
