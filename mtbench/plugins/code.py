"""What code a plugin is: a digest of its sources, and the package that they come from."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from traceback import walk_tb

from mtbench.plugins.extras import TOOLKIT

PACKAGE = "mtbench_plugin"
"""The package, of that name only, in which plugin files are modules."""

CORE = ("balancing", "plugins", "training", "errors.py", "seeding.py")
"""What of mtbench makes a cell's numbers; the rest runs, compares and shows."""


def digest_of(files: Iterable[tuple[str, Path]]) -> str:
    """Return the sha256 of named files."""
    found = hashlib.sha256()
    for name, file in sorted(files):
        found.update(f"{name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


@cache
def core_digest() -> str:
    """Return the digest of what of mtbench makes a cell's numbers."""
    root = Path(__file__).parents[1]
    return digest_of(found for part in CORE for found in _sources(root, part))


@cache
def module_digest(path: Path, module: str) -> str:
    """Return the digest of a plugin in a package, and of what it imports from that package.

    Args:
        path: its file; ``__init__.py`` of a folder, all of which it is.
        module: its name, such as ``mtbench_baselines.pcgrad``.
    """
    package, _, name = module.rpartition(".")
    root = path.parents[1] if path.name == "__init__.py" else path.parent
    wanted, known = [name], dict[str, list[tuple[str, Path]]]()
    while wanted:
        part = wanted.pop()
        if part in known:
            continue
        known[part] = list(_sources(root, part)) or list(_sources(root, f"{part}.py"))
        for _, file in known[part]:
            wanted += _imported(file, root, package)
    return digest_of(found for files in known.values() for found in files)


def _sources(root: Path, part: str) -> Iterator[tuple[str, Path]]:
    """Yield the Python files of a folder, or the file itself, by their place below `root`."""
    path = root / part
    for file in path.rglob("*.py") if path.is_dir() else [path] if path.is_file() else []:
        yield file.relative_to(root).as_posix(), file


def _imported(file: Path, root: Path, package: str) -> Iterator[str]:
    """Yield the modules and folders of a package that a file of it imports."""
    own = [*package.split("."), *file.relative_to(root).parent.parts]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(own[: len(own) - node.level + 1]) if node.level else ""
            start = ".".join(filter(None, (above, node.module)))
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(f"{package}."):
                yield name.removeprefix(f"{package}.").partition(".")[0]


def origin(plugin: type) -> str:
    """Return where a method's or a task's class comes from: a package with its version, or a file.

    >>> from mtbench_baselines.ew import EqualWeights
    >>> origin(EqualWeights).split()[0]
    'mtbench-toolkit'
    """
    package, _, name = plugin.__module__.partition(".")
    if package == PACKAGE:
        return f"{name}.py"
    return " ".join(_distributions().get(package, (package,)))


def place_of(error: BaseException) -> str:
    """Return the line of somebody's plugin that raised an error, or that led to it, if any."""
    lines = [
        f"{frame.f_code.co_filename}, line {number}, in {frame.f_code.co_name}"
        for frame, number in walk_tb(error.__traceback__)
        if is_foreign(str(frame.f_globals.get("__name__")))
    ]
    return lines[-1] if lines else ""


def is_foreign(module: str) -> bool:
    """Return whether a module is of a plugin that we have not written."""
    package = module.partition(".")[0]
    return package == PACKAGE or _distributions().get(package, (TOOLKIT,))[0] != TOOLKIT


@cache
def _distributions() -> dict[str, tuple[str, ...]]:
    """Return the name and version of who announces plugins, by the package that holds them.

    Each of the two parses all that the distribution's metadata says.
    """
    return {
        point.value.partition(".")[0]: (point.dist.name, point.dist.version)
        for kind in ("methods", "tasks")
        for point in entry_points(group=f"mtbench.{kind}")
        if point.dist is not None
    }
