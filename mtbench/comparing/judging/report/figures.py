"""The page's charts as files, for a paper: drawn from the same numbers."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from mtbench import inert
from mtbench.comparing.judging.leaderboard import Board, short_titles
from mtbench.comparing.judging.leaderboard.board import headed
from mtbench.comparing.judging.report.content import DIAGNOSTICS, section
from mtbench.errors import writable

FORMATS = ("pdf", "svg")
COLUMN = 3.4
"""Inches: the column of a page with two; other charts are as wide as such a page."""
PAGE = 6.9
CURVES = 6  # methods with curves of their own; more cannot be told apart
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
POINT, BAND, QUIET = "tab:blue", "0.9", "0.4"
SMALL, TEXT = 7, 8  # points
LONGEST = 100  # bytes of a part of a file's name, which may have 255

Chart = dict[str, Any]


def draw(found: Sequence[Board], folder: Path) -> list[Path]:
    """Write each board's charts as PDF and SVG; return the files.

    Raises:
        RunError: the folder cannot be written.
    """
    written = []
    with writable(f"--figures {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        titles = short_titles([board.title for board in found])
        for number, (board, title) in enumerate(zip(found, titles, strict=True)):
            if board.rows.empty:
                continue
            for name, chart in _all_of(section(board).charts):
                # Names come from records, which may be anybody's.
                parts = f"{number}-{_short(title)}-{_short(name)}"
                stem = re.sub(r"[^\w.-]+", "_", parts).replace("..", "_")
                for form in FORMATS:
                    file = folder / f"{stem}.{form}"
                    # Without the date, equal results give equal bytes.
                    date = {"CreationDate" if form == "pdf" else "Date": None}
                    chart.savefig(file, metadata=date)
                    written.append(file)
    return written


def _short(text: str) -> str:
    return text.encode()[:LONGEST].decode(errors="ignore")


def _all_of(chart: Chart) -> Iterator[tuple[str, Figure]]:
    """Yield what there is to draw of a board, by what it shows."""
    rows = [{**row, "name": name} for row, name in zip(chart["rows"], chart["names"], strict=True)]
    margin, base = chart["margin"], chart["baseline"]
    drawn = chart["drawn"][:CURVES]
    several: list[tuple[str, Callable[[], Figure | None]]] = [
        ("delta_m", lambda: _intervals(rows, "delta_m", "Δm % (lower is better)", 0.0)),
        ("difference", lambda: _intervals(
            rows, "difference", f"Δm − Δm of {base}, points (lower is better)", margin)),
        ("cost", lambda: _cost(rows)),
        ("places", lambda: _places(chart["places"], [r["name"] for r in rows if r["complete"]])),
        ("front", lambda: _front(chart, drawn)),
        ("budget", lambda: _budget(chart["budget"], drawn)),
        ("training", lambda: _curves(chart["histories"], drawn, diagnostics=False)),
        ("diagnostics", lambda: _curves(chart["histories"], drawn, diagnostics=True)),
        *(
            (f"{number}-{one['method']}-{one['parameter']}", lambda one=one: _along(one, base))
            for number, one in enumerate(chart["along"], 1)
        ),
    ]  # fmt: skip
    for name, make in several:
        if (figure := make()) is not None:
            yield name, figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _plain(figure.add_subplot())


def _plain(axes: Axes) -> Axes:
    axes.tick_params(labelsize=SMALL, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _intervals(rows: Sequence[Chart], key: str, label: str, band: float) -> Figure | None:
    """Return estimates with their intervals, best on top; None where there is none."""
    known = sorted((r for r in rows if r[key] is not None), key=lambda r: r[key], reverse=True)
    if not known:
        return None
    figure, axes = _axes(COLUMN, 0.6 + 0.17 * len(known))
    value = np.array([r[key] for r in known], float)
    limits = np.array([[r[f"{key}_low"], r[f"{key}_high"]] for r in known], float)
    limits = np.where(np.isfinite(limits), limits, value[:, None])
    if band:
        axes.axvspan(-band, band, color=BAND, linewidth=0)
    axes.axvline(0, color=QUIET, linewidth=0.8)
    for y, (row, x, ends) in enumerate(zip(known, value, limits, strict=True)):
        axes.plot(ends, [y, y], color=POINT, linewidth=1.3)
        fill = POINT if row["complete"] else "white"
        axes.plot(x, y, "o", color=POINT, markerfacecolor=fill, markersize=3.5)
    axes.set_yticks(range(len(known)), [_label(r["name"]) for r in known], fontsize=TEXT)
    axes.set_ylim(-0.6, len(known) - 0.4)
    axes.set_xlabel(_label(label), fontsize=TEXT)
    return figure


def _cost(rows: Sequence[Chart]) -> Figure | None:
    """Return quality against cost, and which rows no other beats in both."""
    known = [r for r in rows if r["delta_m"] is not None and r["cost_ratio"] is not None]
    if not known:
        return None
    figure, axes = _axes(COLUMN, 2.7)
    axes.set_xscale("log")
    best = np.inf
    front = []
    for row in sorted(known, key=lambda r: (r["cost_ratio"], r["delta_m"])):
        if row["complete"] and row["delta_m"] < best:
            best = row["delta_m"]
            front.append((row["cost_ratio"], best))
    for row in known:
        fill = POINT if row["complete"] else "white"
        axes.plot(row["cost_ratio"], row["delta_m"], "o", color=POINT, markerfacecolor=fill,
                  markersize=3.5)  # fmt: skip
    axes.margins(x=0.15, y=0.12)
    if front:
        x, y = np.array(front).T
        ends = axes.get_xlim()[1], axes.get_ylim()[1]
        axes.step([x[0], *x, ends[0]], [ends[1], *y, y[-1]], where="post", color=QUIET,
                  linewidth=0.8, linestyle="--", zorder=0)  # fmt: skip
        axes.set_xlim(right=ends[0])
        axes.set_ylim(top=ends[1])
    axes.set_xlabel("cost of training, × the plain sum's", fontsize=TEXT)
    axes.set_ylabel("Δm % (lower is better)", fontsize=TEXT)
    _name(axes, [(r["cost_ratio"], r["delta_m"], r["name"]) for r in known])
    ticks = [
        t for t in (0.5, 1, 2, 3, 5, 10, 20, 50) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks], minor=False)
    axes.set_xticks([], minor=True)
    return figure


def _name(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points, where they hide neither points nor other names."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]  # places are known after that
    box = axes.get_window_extent()
    at = [axes.transData.transform((x, y)) for x, y, _ in points]
    unit = figure.dpi / 72
    taken = [(x - 3 * unit, y - 3 * unit, x + 3 * unit, y + 3 * unit) for x, y in at]
    for (x, y), (a, b, name) in zip(at, points, strict=True):
        width, height = 0.56 * SMALL * len(name) * unit, SMALL * unit
        for dx, dy in ((5, -2.5), (-5 - width / unit, -2.5), (-width / unit / 2, 5),
                       (-width / unit / 2, -5 - SMALL)):  # fmt: skip
            left, low = x + dx * unit, y + dy * unit
            own = (left, low, left + width, low + height)
            inside = own[0] >= box.x0 and own[2] <= box.x1 and own[1] >= box.y0 and own[3] <= box.y1
            if inside and not any(
                own[0] < t[2] and t[0] < own[2] and own[1] < t[3] and t[1] < own[3] for t in taken
            ):
                taken.append(own)
                text = axes.annotate(_label(name), (a, b), xytext=(dx, dy),
                                     textcoords="offset points", fontsize=SMALL)  # fmt: skip
                text.set_path_effects([withStroke(linewidth=2, foreground="white")])
                break


def _places(places: Sequence[Sequence[float]], names: Sequence[str]) -> Figure | None:
    """Return how often each row takes each place."""
    if len(places) < 2:
        return None
    count = len(places)
    figure, axes = _axes(COLUMN, 0.6 + 0.19 * count)
    axes.imshow(np.array(places, float), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(places):
        for r, share in enumerate(row):
            if share >= 0.05 and count <= 12:
                axes.text(r, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=SMALL - 1,
                          color="white" if share > 0.55 else "black")  # fmt: skip
    axes.set_yticks(range(count), [_label(name) for name in names], fontsize=TEXT)
    every = -(-count // 12)
    axes.set_xticks(range(0, count, every), [str(r + 1) for r in range(0, count, every)])
    axes.set_xlabel("place; how often, % of resamples", fontsize=TEXT)
    return figure


def _front(chart: Chart, drawn: Sequence[str]) -> Figure | None:
    """Return the two primary metrics on validation."""
    data = chart["front"]
    if data is None or not data["points"]:
        return None
    figure, axes = _axes(COLUMN, 2.8)
    points = [(x, y, name) for name, (x, y) in data["points"].items()]
    for i, name in enumerate(drawn):
        if data["trials"].get(name):
            x, y = np.array(data["trials"][name], float).T
            axes.plot(x, y, ".", color=f"C{i}", markersize=2, alpha=0.5)
    for x, y, name in points:
        color = f"C{drawn.index(name)}" if name in drawn else QUIET
        axes.plot(x, y, "o", color=color, markersize=4)
    (first, second), (higher, also) = chart["primary"].keys(), chart["primary"].values()
    if len(data["front"]) > 1:  # between two of its points nothing has been reached
        axes.step(*np.array(data["front"]).T, where="pre" if higher else "post", color=QUIET,
                  linestyle="--", linewidth=0.9)  # fmt: skip
    near = np.array([(x, y) for x, y, _ in points] + data["front"], float)
    low, high = near.min(axis=0), near.max(axis=0)
    reach = np.where(high > low, 0.4 * (high - low), 0.1 * np.abs(high) + 1e-9)
    axes.set_xlim(low[0] - reach[0], high[0] + reach[0])  # far-off trials would squeeze the rest
    axes.set_ylim(low[1] - reach[1], high[1] + reach[1])
    axes.set_xlabel(_label(f"{first} {'→ better' if higher else '← better'} (validation)"),
                    fontsize=TEXT)  # fmt: skip
    axes.set_ylabel(_label(headed(second, also)), fontsize=TEXT)
    _name(axes, points)
    return figure


def _budget(curves: Chart, drawn: Sequence[str]) -> Figure | None:
    """Return the best validation score of the first n trials."""
    names = [name for name in drawn if name in curves]
    if not names:
        return None
    figure, axes = _axes(COLUMN, 2.4)
    for name in names:
        i, mean = drawn.index(name), np.array(curves[name][0], float)
        axes.plot(np.arange(1, len(mean) + 1), mean, color=f"C{i}", linestyle=STYLES[i],
                  linewidth=1.2, label=_label(name))  # fmt: skip
    axes.set_xlabel("trials", fontsize=TEXT)
    axes.set_ylabel("selection score, mean ↑", fontsize=TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, names, [drawn.index(name) for name in names], styles=True)
    return figure


def _curves(histories: Chart, drawn: Sequence[str], *, diagnostics: bool) -> Figure | None:
    """Return small charts of what was recorded at each epoch, one a quantity."""
    panels: dict[str, list[tuple[int, bool, Chart]]] = {}
    for i, name in enumerate(drawn):
        for quantity, curve in histories.get(name, {}).items():
            if quantity.startswith(tuple(f"{kind}: " for kind in DIAGNOSTICS)) == diagnostics:
                key = re.sub(r" \((training|validation)\)$", "", quantity)
                dotted = quantity.endswith("(training)")
                panels.setdefault(key, []).append((i, dotted, curve))
    if not panels:
        return None
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(PAGE, 0.3 + 1.6 * down), layout="constrained")
    for place, (key, series) in enumerate(panels.items()):
        axes = _plain(figure.add_subplot(down, across, place + 1))
        for i, dotted, curve in series:
            mean = np.array(curve["mean"], float)
            axes.plot(curve["x"], mean, color=f"C{i}", linewidth=0.8 if dotted else 1.2,
                      linestyle=":" if dotted else "-",
                      marker="o" if len(mean) == 1 else "", markersize=2.5)  # fmt: skip
        axes.set_title(_label(key), fontsize=TEXT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if key == "update: length":
            axes.set_yscale("log")
        axes.set_xlabel("epoch" if diagnostics else "epoch (dotted: training)", fontsize=SMALL)
    used = sorted({i for series in panels.values() for i, _, _ in series})
    _legend(figure, [drawn[i] for i in used], used, styles=False)
    return figure


def _legend(figure: Figure, names: Sequence[str], slots: Sequence[int], *, styles: bool) -> None:
    """Write below everything which line is whose."""
    lines = [
        Line2D([], [], color=f"C{i}", linewidth=1.2, linestyle=STYLES[i] if styles else "-")
        for i in slots
    ]
    across = 3 if figure.get_figwidth() < PAGE else len(names)
    figure.legend(lines, [_label(name) for name in names], loc="outside lower center",
                  ncols=across, fontsize=SMALL, frameon=False)  # fmt: skip


def _along(one: Chart, baseline: str | None) -> Figure:
    """Return what a parameter does: a panel a quantity."""
    panels = one["panels"]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    width = max(COLUMN, min(PAGE, 2.3 * across))
    figure = Figure(figsize=(width, 0.4 + 1.9 * down), layout="constrained")
    figure.suptitle(_label(f"{one['rows'][0]} to {one['rows'][-1]}"), fontsize=TEXT)
    for place, panel in enumerate(panels):
        axes = _plain(figure.add_subplot(down, across, place + 1))
        points = np.array(panel["points"], float)  # None is NaN
        spread = np.nan_to_num(np.abs(points[:, 1:] - points[:, :1])).T
        axes.errorbar(one["values"], points[:, 0], yerr=spread, fmt="o-", color=POINT,
                      markersize=3.5, linewidth=1.0, elinewidth=1.2)  # fmt: skip
        if panel["baseline"] is not None:
            axes.axhline(panel["baseline"], color=QUIET, linewidth=0.9, linestyle="--")
            axes.annotate(_label(str(baseline)), (1, panel["baseline"]), xytext=(0, 2),
                          xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", fontsize=SMALL, color=QUIET)  # fmt: skip
        if one["logarithmic"]:
            axes.set_xscale("log")
        axes.set_title(_label(panel["title"]), fontsize=TEXT)
        axes.set_xlabel(_label(f"{one['parameter']} of {one['method']}"), fontsize=TEXT)
    return figure


def _label(text: str) -> str:
    return inert.plain(text).replace("$", r"\$")  # matplotlib would read a formula
