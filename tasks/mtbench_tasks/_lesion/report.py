"""A reading as a page for a person: HTML, PDF."""

import base64
import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image as Pil

from mtbench.training.task import Trained
from mtbench_tasks._lesion.calipers import draw
from mtbench_tasks._lesion.card import calibrated, described, judged
from mtbench_tasks._lesion.cases import Image
from mtbench_tasks._lesion.conformal import LENGTHS
from mtbench_tasks._lesion.page import BAR, INK, QUIET, WARNING, any_name, fill
from mtbench_tasks._lesion.radiomics import CLIP, FEATURES
from mtbench_tasks._lesion.reading import (
    CLEAR,
    USE,
    beside,
    headline,
    mask_of,
    outlined,
)  # fmt: skip

TITLE = "Reading by a trained model"
EXPLAINED = (
    "Radiomics are measured within the outline that the model drew, and compared with the training "
    "images' outlines: z is the distance from their mean in standard deviations."
)
HEADS = ("Level", "Biopsy from", "Follow-up from")  # –: at no size
GUIDANCE = "This is what a guideline says of what the model read: for research, not for a patient."
TALLER = "told of transverse views only"
NO_TEXTURE = "None: nothing was segmented whose texture can be measured."
ENDS = (f"−{CLIP:g}", f"+{CLIP:g}")  # of the scale of z
WIDTH, HEIGHT = 8.27, 11.69  # inches: A4
CHARACTERS, ROOM = 92, 28  # characters of a line, and how many such fit above a view
TOP = 0.915  # where a page's own begins, in heights
PITCH = 0.019  # of the radiomics' rows, in heights of the page


Level = tuple[str, str, str]
"""Its name, and from which sizes on it asks for a biopsy and for follow-up."""


@dataclass(frozen=True)
class Row:
    """One feature: its name, its value, its z and where z ends on the scale, from -1 to 1."""

    name: str
    value: str
    z: str
    share: float


@dataclass(frozen=True)
class Section:
    """What is said of one view."""

    picture: Pil.Image
    headline: str
    measurements: list[tuple[str, str]]
    chances: list[tuple[str, float]]
    radiomics: list[tuple[str, list[Row]]]
    terms: list[tuple[str, str, str]]
    by_points: str
    assessed: list[str]


@dataclass(frozen=True)
class Page:
    """What is said of one image."""

    name: str
    facts: list[tuple[str, str]]
    notes: list[str]
    judged: str
    described: str
    scale: str
    thresholds: list[tuple[str, str, list[Level]]]
    sections: list[Section]


def write(
    kind: Literal["html", "pdf", "both", "none"],
    record: Mapping[str, Any],
    image: Image,
    trained: Trained,
    to: Path,
    words: Mapping[str, str],
) -> list[str]:
    """Write ``TO_report.html``, ``TO_report.pdf``, both or none; return the files.

    Args:
        kind: which of them.
        record: of `reading.read`, with ``notes``.
        image: what was read.
        trained: the model.
        to: folder and first part of the name.
        words: of the radiomics' descriptors those that are called otherwise here.
    """
    if kind == "none":
        return []
    page = compose(record, image, trained, words)
    written = []
    if kind in ("html", "both"):
        file = beside(to, "_report.html")
        file.write_text(html(page), encoding="utf-8")
        written.append(str(file))
    if kind in ("pdf", "both"):
        file = beside(to, "_report.pdf")
        pdf(page, file)
        written.append(str(file))
    return written


def compose(
    record: Mapping[str, Any], image: Image, trained: Trained, words: Mapping[str, str]
) -> Page:
    """Return the words and pictures of a reading."""
    whole, fewer = outlined(image, mask_of(record))
    draw(whole, record["views"], record["pixel"], fewer)
    spacing = record["spacing_mm"]
    facts = [
        ("Image", _text(Path(record["image"]).name)),
        ("Size", f"{image.shape[1]} x {image.shape[0]} pixels"),
        (
            "Spacing",
            "unknown: lengths are in pixels"
            if spacing is None
            else f"{spacing:g} mm/pixel ({record['spacing_from']})",
        ),
        *_volume(record.get("volume")),
        ("Model", trained.label),
        ("Calibration", calibrated(trained.fitted)),
    ]
    sections = [
        Section(
            picture=_cropped(whole, view["box"], fewer),
            headline=headline(view),
            measurements=_measurements(view, record["spacing_from"]),
            chances=list(view["probabilities"].items()),
            radiomics=_radiomics(view["radiomics"], words),
            terms=[_term(*entry) for entry in (view["descriptors"] or {}).items()],
            by_points=_by_points(view.get("assessment")),
            assessed=_assessed(view.get("assessment")),
        )
        for view in record["views"]
    ]
    guided = record.get("thresholds", ()) if any(s.assessed for s in sections) else ()
    return Page(
        facts[0][1], facts, record["notes"], judged(trained.fitted),
        described(trained.fitted), record["scale"], _thresholds(guided), sections,
    )  # fmt: skip


def html(page: Page) -> str:
    """Return a page that needs no other file."""
    return fill(
        "report.html",
        page=page,
        title=TITLE,
        use=USE,
        explained=EXPLAINED,
        ends=ENDS,
        no_texture=NO_TEXTURE,
        embedded=_embedded,
        guidance=GUIDANCE,
        heads=HEADS,
    )


def pdf(page: Page, file: Path) -> None:
    """Write an A4 page for each view, or two or three; equal readings give equal files."""
    about = {"Title": TITLE, "Subject": USE, "CreationDate": None}
    with PdfPages(file, metadata=about) as pages, any_name():
        for number, section in enumerate(page.sections, 1):
            of = f", view {number} of {len(page.sections)}" if len(page.sections) > 1 else ""
            for sheet in _sheets(page, section, of):
                pages.savefig(sheet)
            if section.terms or section.assessed:
                pages.savefig(_guidance(page, section, of))


def _cropped(whole: Pil.Image, box: Sequence[int], fewer: int) -> Pil.Image:
    left, top, right, bottom = (side // fewer for side in box)
    return whole.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _text(name: str) -> str:
    """Return a file's name as what can be written: it need not be Unicode."""
    return name.encode("utf-8", "replace").decode()


def _volume(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    sides = " x ".join(f"{side:g}" for side in found["axes_mm"])
    return [("Volume", f"{found['ml']:g} mL: {found['from']}, {sides} mm")]


def _measurements(view: Mapping[str, Any], spacing_from: str | None) -> list[tuple[str, str]]:
    if view["category"] is None:
        return [("Segmented", "nothing")]
    unit = "mm" if "long_axis_mm" in view else "px"
    plane, taller = view["plane"], view["taller_than_wide"]
    long, short, height, width = (
        _length(view[f"{name}_{unit}"], unit) for name in (*LENGTHS, "height", "width")
    )
    return [
        *_sure(view),
        ("Plane", f"{plane} (--plane)" if plane else "not given"),
        ("Unit", "pixels" if spacing_from is None else f"mm, by {spacing_from}"),
        ("1 Long axis", f"{long} {unit}{_range(view, 'long_axis', unit)}"),
        ("2 Short axis", f"{short} {unit}{_range(view, 'short_axis', unit)}"),
        ("Depth x width", f"{height} x {width} {unit}"),
        ("Taller than wide", TALLER if taller is None else "yes" if taller else "no"),
        *(
            (
                f"Region {number}",
                " x ".join(_length(other[f"{name}_{unit}"], unit) for name in LENGTHS) + f" {unit}",
            )
            for number, other in enumerate(view["others"], 2)
        ),
    ]


def _length(value: float, unit: str) -> str:
    """Return a length as it can be measured: to 0.1 mm, or to the pixel.

    Guidelines ask about 5, 10, ... mm: one that is not reached is not printed.

    >>> _length(9.94, "mm"), _length(9.96, "mm"), _length(10.04, "mm"), _length(9.96, "px")
    ('9.9', '9.96', '10.0', '10')
    """
    text = f"{value:.{int(unit == 'mm')}f}"
    below = unit == "mm" and value < float(text) and float(text) % 5 == 0
    return f"{value:.2f}" if below else text


def _range(view: Mapping[str, Any], name: str, unit: str) -> str:
    """Return the interval of a length, in brackets; nothing where none is known."""
    found = view["interval"] or {}
    if not (ends := found.get(f"{name}_{unit}")):
        return ""
    low, high = (_length(end, unit) for end in ends)
    return f" ({100 * found['level']:g} %: {low} to {high})"


def _sure(view: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the interval of the category; nothing if none is known."""
    if found := view["interval"]:
        ends = found["categories"] or ["not known"]
        which = " to ".join(dict.fromkeys((ends[0], ends[-1])))
        yield f"Category ({100 * found['level']:g} %)", which


def _term(name: str, found: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return a descriptor, its term, and how likely that is."""
    sure, term = found["probability"], found["term"]
    return name, term if sure >= CLEAR else f"unclear ({term}?)", f"{100 * sure:.0f} %"


def _assessed(assessment: Mapping[str, Any] | None) -> list[str]:
    """Return what a guideline says, a line each."""
    if assessment is None:
        return []
    return [f"{assessment['system']}, {line}" for line in assessment["says"]]


def _by_points(found: Mapping[str, Any] | None) -> str:
    """Return points and level, to stand beside the category."""
    if found is None or found["points"] is None:
        return ""
    low, high = found["points"]
    levels = " or ".join(found["levels"])
    if low == high:
        return f"By points: {levels} ({low})"
    return f"By points: {levels} ({low} or {high}: shape unknown)"


def _thresholds(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[Level]]]:
    """Return each guideline, its source, and its levels as they are printed."""

    def size(row: Mapping[str, Any], what: str) -> str:
        if row[what] is None:
            return "–"
        if what == "biopsy" and row["most"] is not None:
            return f"more than {row[what]:g} to {row['most']:g} mm, as chosen"
        return f"{'more than ' * row['above']}{row[what]:g} mm"

    return [
        (system, source, [(r["level"], size(r, "biopsy"), size(r, "follow_up")) for r in of])
        for (system, source), of in groupby(rows, lambda row: (row["system"], row["source"]))
    ]


def _radiomics(
    found: Mapping[str, Any] | None, words: Mapping[str, str]
) -> list[tuple[str, list[Row]]]:
    if found is None:
        return []
    return [
        (
            words.get(descriptor, descriptor),
            [_row(feature.name, **found[feature.name]) for feature in features],
        )
        for descriptor, features in groupby(FEATURES, lambda feature: feature.descriptor)
    ]


def _row(name: str, value: float, z: float | None) -> Row:
    shown = "" if z is None else f"{z:+z.1f}"
    if z is not None and abs(z) >= CLIP:
        shown = f"{'≥' if z > 0 else '≤'} {z:+.0f}"
    share = 0.0 if z is None else z / CLIP
    return Row(name.replace("_", " "), _minus(f"{value:.4g}"), _minus(shown), share)


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _embedded(picture: Pil.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _sheets(page: Page, section: Section, of: str) -> list[Figure]:
    """Return one view as figures of A4's size: where notes leave no room, radiomics have one."""
    first, write = _blank(of)
    y = TOP
    for label, lines in _head(page):
        colour = WARNING if label == "Note" else INK
        write(0.08, y, label, colour=QUIET)
        write(0.2, y, "\n".join(lines), colour=colour)
        y -= 0.0155 * len(lines)
    high = min(0.31, max(0.2, y - 0.41))  # notes may leave less
    _picture(first, section.picture, (0.08, y - high - 0.01, 0.48, high))
    write(0.6, y - 0.012, section.headline, 15, weight="bold")
    write(0.6, y - 0.036, section.by_points, 8, QUIET)
    _chances(first, section.chances, page.scale, (0.7, y - 0.147, 0.22, 0.08))
    write(0.6, y - 0.155, "\n".join(textwrap.wrap(page.judged, 48)), 8, QUIET)
    below = y - 0.187
    for label, value in section.measurements:
        lines = textwrap.wrap(value, 26)
        write(0.6, below, label, colour=QUIET)
        write(0.74, below, "\n".join(lines))
        below -= 0.0165 * len(lines)
    y = min(y - high - 0.04, below - 0.015)
    rows = sum(len(rows) for _, rows in section.radiomics)
    if y >= 0.13 + PITCH * rows:
        _table(first, write, section, y)
        return [first]
    second, write = _blank(of)
    write(0.08, TOP, page.name)
    _table(second, write, section, TOP - 0.03)
    return [first, second]


def _blank(of: str) -> tuple[Figure, Callable[..., None]]:
    """Return a figure with what each has above and below, and what writes into it."""
    figure = Figure(figsize=(WIDTH, HEIGHT))

    def write(
        x: float, y: float, text: str, size: float = 9, colour: str = INK, **more: Any
    ) -> None:
        figure.text(x, y, text, fontsize=size, color=colour, va="top", parse_math=False, **more)

    write(0.08, 0.965, TITLE + of, 15, weight="bold")
    write(0.08, 0.938, USE, 10, WARNING, weight="bold")
    write(0.08, 0.035, USE, 8, QUIET)
    return figure, write


def _table(figure: Figure, write: Callable[..., None], section: Section, y: float) -> None:
    """Draw a view's radiomics from a height on."""
    write(0.08, y, "Radiomics by descriptor", 12, weight="bold")
    write(0.08, y - 0.022, "\n".join(textwrap.wrap(EXPLAINED, 105)), 8, QUIET)
    y -= 0.08
    if not section.radiomics:
        write(0.08, y, NO_TEXTURE)
        return
    heads = ((0.08, "Descriptor"), (0.23, "Feature"), (0.5, "Value"), (0.58, "z"), (0.62, ENDS[0]),
             (0.92, ENDS[1]))  # fmt: skip
    for x, head in heads:
        side = "right" if x in (0.5, 0.58, 0.92) else "left"
        write(x, y + 0.022, head, 8, QUIET, ha=side)
    rows = sum(len(rows) for _, rows in section.radiomics)
    axes = figure.add_axes((0.62, y - PITCH * rows, 0.3, PITCH * rows))
    axes.set(xlim=(-1, 1), ylim=(rows, 0))
    axes.set_axis_off()
    line = 0
    for descriptor, group in section.radiomics:
        write(0.08, y - PITCH * line, descriptor, weight="bold")
        for row in group:
            at = y - PITCH * line
            write(0.23, at, row.name)
            write(0.5, at, row.value, ha="right")
            write(0.58, at, row.z, ha="right")
            axes.add_patch(Rectangle((0, line), row.share, 0.6, color=BAR))
            line += 1
    axes.axvline(0, color=QUIET, linewidth=0.8)


def _head(page: Page) -> Iterator[tuple[str, list[str]]]:
    """Yield what stands above a view, in lines: notes as far as there is room, then how many more.

    A file's name is all that may be longer than three lines.
    """
    facts = [(label, textwrap.wrap(value, CHARACTERS)[:3] or [""]) for label, value in page.facts]
    yield from facts
    room = ROOM - sum(len(lines) for _, lines in facts)
    for number, note in enumerate(page.notes):
        lines = textwrap.wrap(note, CHARACTERS)
        room -= len(lines)
        if room < (number + 1 < len(page.notes)):
            yield "Note", [f"and {len(page.notes) - number} more: predictions.json has them all"]
            return
        yield "Note", lines


def _guidance(page: Page, section: Section, of: str) -> Figure:
    """Return a view's descriptors and what guidelines say of it as a figure of A4's size."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    y = 0.965

    def write(*cells: str, size: float = 9, colour: str = INK, **more: Any) -> None:
        nonlocal y
        for x, cell in zip((0.08, 0.26, 0.36, 0.64), cells, strict=False):
            more = {"va": "top", "parse_math": False, **more}
            figure.text(x, y, cell, fontsize=size, color=colour, **more)
        y -= 0.019 * (1 + cells[0].count("\n")) * max(1, size / 10)

    write(TITLE + of, size=15, weight="bold")
    write(USE, size=10, colour=WARNING, weight="bold")
    write(page.name)
    write("Descriptors", size=12, weight="bold")
    for name, term, chance in section.terms:
        write(name, term, "", chance)
    for line in (page.described, section.by_points, *section.assessed):
        if line:
            write("\n".join(textwrap.wrap(line, 105)))
    if page.thresholds:
        write(GUIDANCE, colour=WARNING)
        write("Thresholds of guidelines", size=12, weight="bold")
        write("Guideline", *HEADS, colour=QUIET)
        for system, source, levels in page.thresholds:
            for number, level in enumerate(levels):
                write("" if number else system, *level)
            write(source, size=8, colour=QUIET)
    return figure


def _picture(figure: Figure, picture: Pil.Image, box: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(box)
    axes.imshow(np.asarray(picture), interpolation="nearest")
    axes.set_anchor("NW")
    axes.set_axis_off()


def _chances(
    figure: Figure,
    chances: Sequence[tuple[str, float]],
    scale: str,
    box: tuple[float, float, float, float],
) -> None:
    axes: Axes = figure.add_axes(box)
    axes.barh(range(len(chances)), [chance for _, chance in chances], color=BAR, height=0.6)
    axes.set(xlim=(0, 1.25), ylim=(len(chances) - 0.4, -0.6), xticks=[])
    axes.set_yticks(range(len(chances)), [grade for grade, _ in chances], parse_math=False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_title(scale, loc="left", fontsize=8, color=QUIET, parse_math=False)
    for place, (_, chance) in enumerate(chances):
        axes.text(chance + 0.03, place, f"{chance:.0%}", va="center", fontsize=8, color=INK)
