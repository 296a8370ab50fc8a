"""The page: a template filled with boards."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mtbench import inert
from mtbench.comparing.judging.leaderboard import LEGEND, Board, legend, overall, short_titles
from mtbench.comparing.judging.report.content import finite, section
from mtbench.errors import writable
from mtbench.version import __version__

_HERE = files("mtbench.comparing.judging.report")


def render(boards: Sequence[Board]) -> str:
    """Return the page's HTML."""
    sections = [section(board) for board in boards]
    return _template().render(
        boards=sections,
        overall=_together(boards),
        data=_embedded([one.charts for one in sections]),
        style=Markup((_HERE / "page.css").read_text("utf-8")),  # noqa: S704  # our own files
        script=Markup((_HERE / "page.js").read_text("utf-8")),  # noqa: S704
        version=__version__,
        legend=legend(LEGEND),  # the page has all columns
    )


@cache
def _template() -> jinja2.Template:
    """Return the template; to compile it takes longer than to fill it in."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_inert,
    )  # fmt: skip
    environment.filters |= {"number": _number, "hours": _hours}
    return environment.from_string((_HERE / "page.html").read_text("utf-8"))


def write(boards: Sequence[Board], folder: Path) -> Path:
    """Write ``index.html`` into a folder and return its path.

    Raises:
        RunError: it cannot be written.
    """
    file = folder / "index.html"
    text = render(boards)
    with writable(f"--html {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return file


def _together(boards: Sequence[Board]) -> dict[str, Any] | None:
    """Return the table over all boards: a heading for each, a row for each method."""
    found = overall(boards)
    if found is None:
        return None
    ranks = found.rank.T
    return {
        "boards": found.boards,
        "heads": short_titles(found.boards),
        "note": found.note,
        "remarks": found.remarks,
        "ranked_by": found.ranked_by,
        "rows": [
            {
                "method": method,
                "rank": finite(ranks[i].mean()),
                "delta": finite(found.delta_m[:, i].mean()),
                "cells": [
                    (finite(rank), finite(delta), (rank - 1) / max(1, len(ranks) - 1))
                    for rank, delta in zip(ranks[i], found.delta_m[:, i], strict=True)
                ],
            }
            for i, method in enumerate(found.methods)
        ],
    }


def _inert(value: Any) -> Any:
    """Return what a template shows: text that is not ours cannot hide or turn anything."""
    return inert.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _embedded(value: Any) -> Markup:
    """Return JSON that nothing in it can end the script element of."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    text = inert.plain(text)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  # escaped above


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:z.{digits}f}"


def _hours(value: float | None) -> str:
    """Return hours as text; few of them keep two digits.

    >>> _hours(12.3456), _hours(0.00118), _hours(None)
    ('12.35', '0.0012', '–')
    """
    return _number(value, 2) if value is None or value >= 0.1 else f"{value:.2g}"
