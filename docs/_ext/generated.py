"""Pages made from the code, into docs/generated: methods, tasks, commands, the Python interface."""

import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import toy_paths
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sphinx.application import Sphinx

import mtbench
from mtbench import Balancer, Recipe, Task
from mtbench.plugins import params
from mtbench.plugins.catalogue import family, needs, summary
from mtbench.plugins.registry import Entry, entries
from mtbench.plugins.search import search_space

FAMILIES = {
    "losses": "Methods on losses",
    "Gramian": "Methods on the Gramian",
    "Jacobian": "Methods on the Jacobian",
    "anything": "Methods on anything",
    "wrapper of weightings": "Wrappers of methods on the Gramian",
    "wrapper": "Wrappers of any method",
}
_CONTENTS: dict[str, Callable[..., str]] = {}
"""What writes the tree of contents, by folder: links lead from there."""

DOCS = Path(__file__).parents[1]
GENERATED = DOCS / "generated"
TEMPLATES = Environment(  # noqa: S701 - what is written is no HTML
    loader=FileSystemLoader(DOCS / "_ext" / "pages"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


def setup(app: Sphinx) -> dict[str, bool]:
    """Have the pages written before sources are read."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon
    app.connect("html-page-context", _contents, priority=400)  # before the theme
    return {"parallel_read_safe": True}


def _contents(
    _app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: object
) -> None:
    """Have one tree of contents for all pages of source in a folder: each takes a while."""
    folder, _, _ = page.rpartition("/")
    if page.startswith("_modules/"):  # they are not in the tree themselves
        context["toctree"] = _CONTENTS.setdefault(folder, cache(context["toctree"]))


def _write(_app: Sphinx) -> None:
    """Write all pages, and remove those of what is no longer there."""
    _CONTENTS.clear()
    before = {path for path in GENERATED.rglob("*") if path.is_file()}
    for stale in before - set(_pages()):
        stale.unlink()


def _pages() -> Iterator[Path]:
    """Write each page, and yield its file."""
    methods = {name: entry.load(Balancer) for name, entry in entries("method").items()}
    paths = toy_paths.load()
    for name, method in methods.items():
        yield _put(f"methods/{name}.rst", _render("method.rst", **_method(name, method)))
        if toy_paths.is_drawn(method):
            path = paths.get(name) or toy_paths.walk(name)
            yield _put(f"methods/{name}.svg", toy_paths.draw(path))
    for name, entry in entries("task").items():
        yield _put(f"tasks/{name}.rst", _render("task.rst", **_task(name, entry)))
    yield _put("families.md", _render("families.md", families=_families(methods)))
    yield _put("api.rst", _render("api.rst", **_interface()))
    yield _put("commands.md", _commands())
    for file in sorted(DOCS.parent.glob("benchmarks/results/*.md")):
        yield _put(f"results/{file.name}", _results(file))


def _put(name: str, text: str) -> Path:
    """Write a file if it changes, so that Sphinx reads again only what has changed; return it."""
    file = GENERATED / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")
    return file


def _render(template: str, **values: Any) -> str:
    return TEMPLATES.get_template(template).render(values)


def _docstring(
    _app: Sphinx, _what: str, name: str, of: object, _options: object, lines: list[str]
) -> None:
    """Change what the site shows of a docstring."""
    if name.startswith("mtbench_tasks.") and isinstance(of, type):
        lines[:] = params.documented(of).splitlines()  # a base's parameters are its own
    if name.startswith(("mtbench_baselines.", "mtbench_tasks.")) and "" in lines:
        del lines[: lines.index("")]  # a plugin's page begins with that sentence
    for i, line in enumerate(lines):  # "K." would be the eleventh item of a list
        lines[i] = line.replace("num_objectives: K.", "num_objectives: how many, K.")


def _plugin(name: str, cls: type[Balancer] | type[Task]) -> dict[str, Any]:
    """Return what the page of a method and of a task say alike."""
    return {"name": name, "cls": cls, "says": (inspect.getdoc(cls) or "").split("\n\n")[0]}


def _method(name: str, method: type[Balancer]) -> dict[str, Any]:
    return _plugin(name, method) | {
        "run": toy_paths.runs_as(name),
        "drawn": toy_paths.is_drawn(method),
        "task": "pinn" if method.needs_residuals else "toy",
        "family": family(method),
        "needs": needs(method),
        "parameters": {
            key: (
                params.describe(parameter.annotation),
                params.text(parameter.default),
                search_space(method).get(key, ""),
            )
            for key, parameter in params.declared(method).items()
        },
    }


def _task(name: str, entry: Entry) -> dict[str, Any]:
    task = entry.load(Task)
    recipe = [f"{field.name} {getattr(task.recipe, field.name)}" for field in fields(Recipe)]
    fixed = task.recipe is not Task.recipe  # else it depends on the task's parameters
    return _plugin(name, task) | {"recipe": recipe if fixed else []}


def _families(methods: dict[str, type[Balancer]]) -> dict[str, list[tuple[str, str, str]]]:
    """Return, by the family's title, its methods: name, first sentence, cost."""
    found: dict[str, list[tuple[str, str, str]]] = {title: [] for title in FAMILIES.values()}
    for name, method in methods.items():
        says = summary(method).replace("|", "\\|")
        found[FAMILIES[family(method)]].append((name, says, method.passes))
    return found


def _interface() -> dict[str, Any]:
    """Return the public names, by the wing that they come from."""
    wings: dict[str, tuple[str, dict[str, bool]]] = {}
    modules: dict[str, str] = {}
    for name in mtbench.__all__:
        value = pkgutil.resolve_name(f"mtbench.{name}")
        if isinstance(value, ModuleType):
            modules[f"mtbench.{name}"] = value.__name__
            continue
        wing = ".".join(value.__module__.split(".")[:2])
        says = (inspect.getdoc(sys.modules[wing]) or "").split("\n\n")[0]
        _, names = wings.setdefault(wing.rpartition(".")[2].capitalize(), (says, {}))
        names[name] = inspect.isclass(value)
    return {"wings": wings, "modules": modules}


def _results(file: Path) -> str:
    """Return a leaderboard's tables as a page."""
    text = file.read_text(encoding="utf-8").replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    text = re.sub(r"^#+ (\w+) (.*)$", r"## \1\n\n`\2`", text, flags=re.MULTILINE)
    return f"# Results: {file.stem.replace('_', ' ')}\n\n{text}"


def _commands() -> str:
    """Return the reference of the command line, as typer writes it."""
    command = [sys.executable, "-m", "typer", "mtbench.cli", "utils", "docs", "--name", "mtbench"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    text = re.sub(r"<span[^>]*>(.*?)</span>", r"`\1`", text)
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # cut off; the headings have them
    prose_and_code = re.split(r"(`[^`]*`)", text)  # two dashes in prose become one long one
    prose_and_code[::2] = [re.sub(r"--[a-z-]+", r"`\g<0>`", part) for part in prose_and_code[::2]]
    return "".join(prose_and_code).replace("# `mtbench`", "# Command line", 1)
