"""Suites, and published results, that installed packages bring."""

from pathlib import Path

from mtbench.plugins.registry import announced


def shipped(below: str = "") -> dict[str, Path]:
    """Return by name the files of packages that are announced in the group ``mtbench.suites``.

    Args:
        below: the folder of each package that is looked into, by default the package itself.

    Raises:
        PluginError: a package is announced that is not there.
    """
    found: dict[str, Path] = {}
    for _, _, folder in announced("suite", "TOML files"):
        found |= {file.stem: file for file in sorted((folder / below).glob("*.toml"))}
    return found
