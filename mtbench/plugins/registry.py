"""Finding methods and tasks: a plugin's name is its module's name.

Packages announce themselves by an entry point in the group ``mtbench.methods`` or
``mtbench.tasks`` that names the package; each of its public modules is one plugin. Single files
join with ``--plugin``. Listing reads directory listings and imports nothing.

A plugin that needs an extra of its distribution says so by a line of its module,
``EXTRA = "thyroid"``, which is read without importing it.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

from mtbench.errors import PluginError, UsageError, did_you_mean
from mtbench.plugins import extras
from mtbench.plugins.code import PACKAGE, digest_of, module_digest

Kind = Literal["method", "task"]
Plugin = TypeVar("Plugin")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+-]{0,99}")
"""What may be called so in a path; results of anything else could not be given away."""

_EXTRA = rb"""^EXTRA *= *["']([\w-]+)["'] *(?:#.*)?\r?$"""


@dataclass(frozen=True)
class Entry:
    """One plugin.

    Attributes:
        name: as in ``--method NAME``.
        path: the file it lives in.
        module: what to import; None for a file.
        owner: the distribution that it is installed by; None for a file.
    """

    name: str
    path: Path
    module: str | None
    owner: str | None = None

    def extra(self) -> str | None:
        """Return the extra that the plugin says it needs."""
        said = re.search(_EXTRA, self.path.read_bytes(), re.MULTILINE)
        return said[1].decode() if said and self.owner else None

    def missing(self) -> list[str]:
        """Return the packages that the plugin needs and that are not installed."""
        extra = self.extra()
        return extras.missing(extra, self.owner or "") if extra else []

    def load(self, base: type[Plugin]) -> type[Plugin]:
        """Import the plugin and return the one subclass of `base` that it defines.

        Raises:
            UsageError: an extra that it needs is not installed.
            PluginError: the module does not import, or defines none or several.
        """
        public = self._public(base)
        own = [item for item in public if not inspect.isabstract(item)]
        if len(own) != 1:
            found = ", ".join(sorted(item.__name__ for item in own)) or "none"
            for item in public if not own else ():
                lacks = ", ".join(sorted(item.__abstractmethods__))  # type: ignore[attr-defined]
                found += f"; {item.__name__} does not define {lacks}"
            raise PluginError(
                f"{self.path}: a plugin file defines exactly one concrete, public subclass of "
                f"mtbench.{base.__name__}, found {found}"
            )
        return own[0]

    def defines(self, base: type) -> bool:
        """Return whether the plugin has a class of a kind, a whole one or not.

        Raises:
            UsageError: an extra that it needs is not installed.
            PluginError: the module does not import.
        """
        return bool(self._public(base))

    def _public(self, base: type[Plugin]) -> list[type[Plugin]]:
        if extra := self.extra():
            extras.need(extra, self.name, self.owner or "")
        module = self._import()
        return [
            item
            for item in vars(module).values()
            if inspect.isclass(item)
            and issubclass(item, base)
            and item.__module__ == module.__name__
            and not item.__name__.startswith("_")
        ]

    def digest(self) -> str:
        """Return the digest of all that a plugin is made of: alike for a file and its package."""
        if self.module is None:
            return digest_of([(self.path.name, self.path)])
        return module_digest(self.path, self.module)

    def _import(self) -> ModuleType:
        try:
            if self.module is not None:
                return import_module(self.module)
            return _import_file(self.path)
        except (Exception, SystemExit) as error:
            line = error.lineno if isinstance(error, SyntaxError) else None
            where = f", line {line}" if line else ""
            raise PluginError(
                f"{self.path}{where}: does not import: {type(error).__name__}: {error}"
            ) from error


@cache
def _import_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"{PACKAGE}.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path}: a plugin is a Python file (.py)")
    # So that classes defined there can be looked up and pickled. The package holds no files: a
    # plugin file that imported another would be more than its digest knows.
    package = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    package.__path__ = []
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def entries(kind: Kind, plugins: Sequence[Path | str] = ()) -> dict[str, Entry]:
    """Return all plugins of a kind by name, sorted; plugin files count as both kinds.

    Raises:
        PluginError: two plugins share a name, one has none that a folder may have anywhere, or a
            plugin file does not exist.
        UsageError: `plugins` is no list or tuple: of a text, each letter would be a file.
    """
    if not isinstance(plugins, list | tuple):
        named = str(plugins) if isinstance(plugins, str | Path) else "mine.py"
        raise UsageError(
            f"plugins must be a list of files, as in plugins=[{named!r}], found {plugins!r}"
        )
    found: dict[str, Entry] = {}
    for entry in [*_installed(kind), *map(_from_file, plugins)]:
        if not NAME.fullmatch(entry.name):
            raise PluginError(
                f"{entry.path}: the file's name is the plugin's and a folder's, so Latin letters, "
                f"digits, and within it spaces and . + - only, found {entry.name!r}; rename it"
            )
        if entry.name in found and found[entry.name].path != entry.path:
            raise PluginError(
                f"two {kind}s are called {entry.name!r}: {found[entry.name].path} and "
                f"{entry.path}; rename one file"
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def find(kind: Kind, name: str, plugins: Sequence[Path | str] = ()) -> Entry:
    """Return one plugin.

    Raises:
        UsageError: no such name; the message suggests one.
    """
    known = entries(kind, plugins)
    if name not in known:
        hint = _unknown(name, known, f"mtbench list {kind}s")
        raise UsageError(f"unknown {kind} {name!r}: {hint}")
    return known[name]


def parts(method: str, plugins: Sequence[Path | str] = ()) -> list[Entry]:
    """Return the plugins that a method's name names, wrappers before their base.

    Raises:
        UsageError: no such name, or none beside a ``+``; the message suggests one.
    """
    names = method.split("+")
    if "" in names and names[1:]:
        missing = "a method" if not names[-1] else "a wrapper"
        raise UsageError(
            f"method {method!r}: {missing} is missing beside +: name it, as in WRAPPER+METHOD"
        )
    return [find("method", name, plugins) for name in names]


def kind_of(name: str, plugins: Sequence[Path | str] = ()) -> Kind:
    """Return whether a name is a method's or a task's.

    Raises:
        UsageError: it is neither's; the message suggests one.
    """
    methods, tasks = entries("method", plugins), entries("task", plugins)
    if name not in methods and name not in tasks:
        lists = "mtbench list methods` or `mtbench list tasks"
        hint = _unknown(name, {*methods, *tasks}, lists)
        raise UsageError(f"no method or task {name!r}: {hint}")
    if name not in methods or name not in tasks:
        return "method" if name in methods else "task"
    from mtbench.balancing.balancer import Balancer  # torch: only a plugin file is listed as both

    return "method" if methods[name].defines(Balancer) else "task"


def _unknown(name: str, known: Iterable[str], listed: str) -> str:
    """Return a hint for a name that no plugin has: it may be a file's, which nobody has named."""
    file = Path(name if name.endswith(".py") else f"{name}.py")
    if not file.is_file():
        return did_you_mean(name, known, listed=listed)
    if file.stem in known:
        return f"call it {file.stem!r}"
    called = f", and call it {file.stem!r}" * (file.stem != name)
    return f"to use this file, add --plugin {file} (in Python plugins=[{str(file)!r}]){called}"


def announced(kind: str, content: str) -> Iterator[tuple[str, str | None, Path]]:
    """Yield the packages that are announced in the group of a kind: name, distribution, folder.

    Args:
        kind: the group's, without its plural.
        content: what such a package holds, in words.

    Raises:
        PluginError: one is announced that is not there.
    """
    for point, owner in _points(f"mtbench.{kind}s", tuple(sys.path)):
        told = f"{owner}: announces {kind}s in {point.value!r}, "
        remedy = f"a package, each of whose {content} is a {kind}; else uninstall {owner}"
        try:
            spec = find_spec(point.value)
        except ImportError as error:
            raise PluginError(f"{told}which fails ({error}): it must be {remedy}") from error
        if spec is None or spec.submodule_search_locations is None:
            raise PluginError(f"{told}which is none that is there: it must be {remedy}")
        for folder in map(Path, spec.submodule_search_locations):
            yield point.value, owner, folder


def _installed(kind: Kind) -> list[Entry]:
    found = []
    for package, owner, folder in announced(kind, "modules"):
        for path in sorted(folder.iterdir()):
            if path.name.startswith(("_", ".")):
                continue
            file = path if path.suffix == ".py" else path / "__init__.py"
            if file is path or file.is_file():
                found.append(Entry(path.stem, file, f"{package}.{path.stem}", owner))
    return found


@cache
def _points(group: str, _path: tuple[str, ...]) -> list[tuple[EntryPoint, str | None]]:
    """Read the metadata of all that is installed once: it takes as long as a training step.

    Beside each entry point stands its distribution's name, for which all metadata is parsed.
    """
    return [(point, point.dist.name if point.dist else None) for point in entry_points(group=group)]


def _from_file(path: Path | str) -> Entry:
    try:
        path = Path(path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise PluginError(f"--plugin {path}: cannot be found ({error})") from error
    if path.suffix != ".py" or not path.is_file():
        raise PluginError(f"--plugin {path}: a plugin is an existing Python file (.py)")
    return Entry(path.stem, path, None)
