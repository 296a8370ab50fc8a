"""What the plugins are, found out from their classes."""

import inspect
import re
from collections.abc import Mapping

from mtbench import inert
from mtbench.balancing.balancer import Aggregator, Balancer, Scalarizer, Weighting
from mtbench.balancing.wrapper import WeightingWrapper, Wrapper
from mtbench.plugins import params
from mtbench.plugins.registry import Entry
from mtbench.plugins.search import search_space

_FAMILIES = {  # the first that fits
    WeightingWrapper: "wrapper of weightings",
    Wrapper: "wrapper",
    Scalarizer: "losses",
    Weighting: "Gramian",
    Aggregator: "Jacobian",
    Balancer: "anything",
}


def family(method: type[Balancer]) -> str:
    """Return what a method works on, in a word."""
    return next(word for base, word in _FAMILIES.items() if issubclass(method, base))


def needs(method: type[Balancer]) -> list[str]:
    """Return what a loop does for a method beside ``balancer.backward(losses)``."""
    found = {
        "the latent representation: ``balancer.backward(losses, latent=z)``": method.needs_features,
        "a model for each loss: train ``balancer.wrap(model)``": (
            method.reference and method._does("wrap")
        ),
        "heads that see it by ``balancer.view((z,), k)``": method._does("view"),
        "to repeat the forward pass: ``balancer.backward(losses, again=...)``": method.needs_again,
        "a second batch: ``balancer.backward(losses, validation=...)``": method.needs_validation,
        "what the losses square: ``balancer.backward(losses, residuals=...)``": (
            method.needs_residuals
        ),
        "``balancer.after_step(...)`` after each step": method._does("after_step"),
        "``balancer.after_epoch()`` after each epoch": method._does("after_epoch"),
        "``balancer.after_evaluation(...)`` after each validation": method._does(
            "after_evaluation"
        ),
    }
    return [words for words, wanted in found.items() if wanted]


def summary(method: type[Balancer]) -> str:
    """Return the first sentence of a method's docstring."""
    return _markdown((inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " "))


def deviations(method: type[Balancer]) -> str:
    """Return what a method's docstring says of its deviations, as one Markdown text."""
    text = inspect.getdoc(method) or ""
    found = re.search(r"^Deviations?:(.*?)(?=\n\n\S|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    if found is None:
        return ""
    points = re.split(r"^\s*- ", found[1], flags=re.MULTILINE)
    joined = [" ".join(point.split()) for point in points if point.strip()]
    return _markdown("; ".join(point.rstrip(".;") for point in joined) + ".")


def _markdown(text: str) -> str:
    return re.sub(r":math:`(.*?)`", r"$\1$", text).replace("``", "`")


def markdown(methods: Mapping[str, Entry]) -> str:
    """Return the methods as a Markdown table, and their deviations as a list."""
    heads = ["method", "what it does", "works on", "a step costs", "parameters (search space)"]
    heads += ["paper", "checked against"]
    rows, notes = [], []
    for name, entry in methods.items():
        method = entry.load(Balancer)
        space = search_space(method)
        declared = params.declared(method)
        own = [
            f"`{key}={params.text(p.default)}`" + f" {space.get(key, '')}".rstrip()
            for key, p in declared.items()
        ]
        # What is drawn may make a parameter, such as weight_0 and weight_1 all of weights.
        own += [f"drawn: {key} {drawn}" for key, drawn in space.items() if key not in declared]
        needs = [
            word
            for word, wanted in (
                ("features", method.needs_features),
                ("reruns", method.needs_again),
                ("validation", method.needs_validation),
                ("residuals", method.needs_residuals),
            )
            if wanted
        ]
        cells = (
            f"`{name}`",
            summary(method),
            ", ".join([family(method), *needs]),
            method.passes,
            "<br>".join(own),
            method.paper,
            method.checked_against,
        )
        rows.append([cell.replace("|", "\\|") for cell in cells])
        if said := deviations(method):
            notes.append(f"- `{name}`: {said}")
    lines = [*inert.table(heads, rows), "", "## Deviations from the papers", "", *notes, ""]
    return "\n".join(lines)
