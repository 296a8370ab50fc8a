"""Pages made from the code, into docs/generated: methods, commands, the Python interface."""

import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import toy_paths
from sphinx.application import Sphinx

import mtbench
from mtbench import Balancer
from mtbench.plugins import params
from mtbench.plugins.catalogue import family, summary
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


def setup(app: Sphinx) -> dict[str, bool]:
    """Have the pages written before sources are read."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True}


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "generated"
    for name in ("methods", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    methods = entries("method")
    kept = toy_paths.load()
    for name, entry in methods.items():
        drawn = entry.load(Balancer).reference  # K models, and no one point in the plane
        if not drawn:
            _put(
                folder / "methods" / f"{name}.svg",
                toy_paths.draw(kept.get(name) or toy_paths.walk(name)),
            )
        _put(folder / "methods" / f"{name}.rst", "\n".join(_method(name, entry, not drawn)))
    _put(folder / "families.md", "\n".join(_families(methods)))
    _put(folder / "api.rst", "\n".join(_api()))
    _put(folder / "commands.md", _commands())
    for file in sorted(Path(app.srcdir).parent.glob("benchmarks/results/*.md")):
        _put(folder / "results" / file.name, _results(file))


def _docstring(
    _app: Sphinx, _what: str, name: str, _of: object, _options: object, lines: list[str]
) -> None:
    """Change what the site shows of a docstring."""
    if name.startswith("mtbench_baselines.") and "" in lines:  # the page begins with that sentence
        del lines[: lines.index("")]
    for i, line in enumerate(lines):  # "K." would be the eleventh item of a list
        lines[i] = line.replace("num_objectives: K.", "num_objectives: how many, K.")


def _put(file: Path, text: str) -> None:
    """Write a file if it changes, so that Sphinx reads again only what has changed."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def _method(name: str, entry: Entry, drawn: bool) -> Iterator[str]:
    """Yield a method's page, line by line."""
    method = entry.load(Balancer)
    run = toy_paths.runs_as(name)
    says = (inspect.getdoc(method) or "").split("\n\n")[0]
    yield from (name, "=" * len(name), "", *says.splitlines(), "")
    if drawn:
        yield from (
            f".. image:: {name}.svg",
            f"   :alt: The path of {run} over the toy problem",
            "   :class: path",
            "",
        )
    yield f":Works on: {family(method)} (:doc:`what this means </methods>`)"
    if needs := _needs(method):
        yield f":Needs: {'; '.join(needs)}"
    yield f":A step costs: {method.passes}"
    yield f":Paper: {method.paper}"
    if method.checked_against:
        yield f":Checked against: {method.checked_against}"
    yield from (
        "",
        ".. code-block:: sh",
        "",
        f"   mtbench run --task toy --method {run} --seeds 3",
        "",
    )
    if not method.reference:
        yield from (
            ".. code-block:: python",
            "",
            f'   balancer = mtbench.balancer("{run}", num_objectives=2)',
            "",
        )
    if declared := params.declared(method):
        space = search_space(method)
        yield from (".. list-table::", "   :header-rows: 1", "", "   * - parameter", "     - type")
        yield from ("     - default", "     - searched in tuning")
        for key, parameter in declared.items():
            default = params.own_keys({"": parameter.default})[1:]
            yield from (f"   * - ``{key}``", f"     - {params.describe(parameter.annotation)}")
            yield from (f"     - ``{default}``", f"     - {space.get(key, '')}")
        yield ""
    yield from (
        f".. autoclass:: {method.__module__}.{method.__qualname__}",
        "   :no-index-entry:",
        "",
    )


def _needs(method: type[Balancer]) -> list[str]:
    """Return, in words, what a loop has to hand over or to call."""
    declared = {
        "the latent representation: ``balancer.backward(losses, latent=z)``": method.needs_features,
        "to repeat the forward pass: ``balancer.backward(losses, again=...)``": method.needs_again,
        "``balancer.after_step(...)`` after each step": _overrides(method, "after_step"),
        "``balancer.after_epoch()`` after each epoch": _overrides(method, "after_epoch"),
    }
    return [words for words, wanted in declared.items() if wanted]


def _overrides(method: type[Balancer], hook: str) -> bool:
    return bool(getattr(method, hook).__module__ == method.__module__)


def _families(methods: dict[str, Entry]) -> Iterator[str]:
    """Yield the index of methods: a table for each family."""
    found = {name: entry.load(Balancer) for name, entry in methods.items()}
    for word in dict.fromkeys([*FAMILIES, *map(family, found.values())]):
        yield from (
            "",
            f"## {FAMILIES.get(word, word)}",
            "",
            "| method | what it does | a step costs |",
            "|---|---|---|",
        )
        for name, method in found.items():
            if family(method) == word:
                says = summary(method).replace("|", "\\|")
                yield f"| [`{name}`](generated/methods/{name}.rst) | {says} | {method.passes} |"
    yield from ("", "```{toctree}", ":hidden:", ":glob:", "", "generated/methods/*", "```", "")


def _api() -> Iterator[str]:
    """Yield the reference of the public names, one section for each module that defines them."""
    sections: dict[str, list[str]] = {}
    modules: dict[str, ModuleType] = {}
    for name in mtbench.__all__:
        value = pkgutil.resolve_name(f"mtbench.{name}")
        if isinstance(value, ModuleType):
            modules[f"mtbench.{name}"] = value
        else:
            said = f".. autofunction:: mtbench.{name}\n"
            if inspect.isclass(value):
                said = f".. autoclass:: mtbench.{name}\n   :members:\n"
            wing = ".".join(value.__module__.split(".")[:2])
            sections.setdefault(wing, []).append(said)
    yield from ("Python interface", "================", "")
    yield "All names on this page are public. Those of ``mtbench`` itself are loaded on first use."
    for wing, parts in sections.items():
        title = wing.rpartition(".")[2].capitalize()
        says = (inspect.getdoc(sys.modules[wing]) or "").split("\n\n")[0]
        yield from ("", title, "-" * len(title), "", *says.splitlines(), "", *parts)
    for name, module in modules.items():
        yield from ("", name, "-" * len(name), "")
        yield from (f".. automodule:: {module.__name__}", "   :members:", "")


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
