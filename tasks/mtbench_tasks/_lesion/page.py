"""What the pages for a person have in common: one style, light, dark and printed."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

INK, QUIET, BAR, WARNING, LINE = "#1c2430", "#5d6875", "#2f6f9f", "#9b2c2c", "#d5dae0"
_HERE = files("mtbench_tasks._lesion")
_VARIABLES = {INK: "ink", QUIET: "quiet", BAR: "bar", WARNING: "warn", LINE: "line"}


def fill(template: str, **content: Any) -> str:
    """Return a template of this folder filled in: a page that needs no other file."""
    return _compiled(template).render(
        style=Markup((_HERE / "page.css").read_text("utf-8")),  # noqa: S704  # our own file
        **content,
    )


@cache
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string((_HERE / template).read_text("utf-8"))


@contextmanager
def any_name() -> Iterator[None]:
    """Draw names as they are: a ``$`` begins no formula, a letter that the font lacks is a box."""
    with warnings.catch_warnings(), mpl.rc_context({"text.parse_math": False}):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def svg(figure: Figure, name: str) -> Markup:
    """Return a figure as part of a page, in the page's colours.

    Args:
        figure: its texts must be plain.
        name: unique on the page.
    """
    stream = io.StringIO()
    with any_name(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text)  # noqa: S704  # matplotlib escapes what it writes
