"""Suites, and published results, that installed packages bring."""

from pathlib import Path

from mtbench.errors import PluginError
from mtbench.plugins.registry import announced


def shipped(below: str = "") -> dict[str, Path]:
    """Return by name the files of packages that are announced in the group ``mtbench.suites``.

    Args:
        below: the folder of each package that is looked into, by default the package itself.

    Raises:
        PluginError: a package is announced that is not there, or two files share a name.
    """
    found: dict[str, Path] = {}
    for _, _, folder in announced("suite", "TOML files"):
        for file in sorted((folder / below).glob("*.toml")):
            if (other := found.setdefault(file.stem, file)) != file:
                raise PluginError(
                    f"two files are called {file.name!r}: {other} and {file}; rename one"
                )
    return found
