"""Suites, and published results, that installed packages bring."""

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path


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
