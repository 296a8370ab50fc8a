"""A board's charts as files, for a paper: the same numbers as the page's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtbench.comparing import inert
from mtbench.comparing.judging.leaderboard.board import Board
from mtbench.errors import RunError

FORMATS = ("pdf", "svg")
POINT, BAND = "tab:blue", "0.9"


def draw(found: Sequence[Board], folder: Path) -> list[Path]:
    """Write each board's charts as PDF and SVG; return the files.

    Raises:
        RunError: the folder cannot be written.
    """
    written = []
    for number, board in enumerate(found):
        if board.rows.empty:
            continue
        charts = {
            "delta_m": _intervals(board, "delta_m", "Δm % (lower is better)", 0.0),
            "difference": _intervals(
                board, "difference", f"Δm − Δm of {board.baseline}, points", board.margin
            ),
            "cost": _cost(board),
        }
        task = next(iter(board.cells.values()))[0].spec.task
        for name, chart in charts.items():
            for form in FORMATS if chart is not None else ():
                file = folder / f"{number}-{task}-{name}.{form}"
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    # Without the date, equal results give equal bytes.
                    chart.savefig(  # type: ignore[union-attr]
                        file, metadata={"CreationDate" if form == "pdf" else "Date": None}
                    )
                except OSError as error:
                    raise RunError(f"--figures {folder}: cannot be written: {error}") from error
                written.append(file)
    return written


def _intervals(board: Board, key: str, label: str, band: float) -> Figure | None:
    """Return estimates with their intervals, best on top; None where there is none."""
    rows = board.rows[board.rows[key].notna()].sort_values(key, ascending=False)
    if rows.empty:
        return None
    figure = Figure(figsize=(5.0, 0.8 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    value = rows[key].to_numpy(float)
    limits = rows[[f"{key}_low", f"{key}_high"]].to_numpy(float)
    limits = np.where(np.isfinite(limits), limits, value[:, None])
    spread = np.abs(limits - value[:, None]).T
    places = np.arange(len(rows))
    if band:
        axes.axvspan(-band, band, color=BAND)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.errorbar(value, places, xerr=spread, fmt="o", color=POINT, markersize=4, elinewidth=1.2)
    axes.set_yticks(places, [_label(name) for name in rows["method"]], fontsize=8)
    axes.set_xlabel(_label(label), fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(y=0.6 / len(rows))
    return figure


def _cost(board: Board) -> Figure | None:
    """Return quality against cost; None where they are not known."""
    rows = board.rows[board.rows["delta_m"].notna() & pd.notna(board.rows["cost_ratio"])]
    if rows.empty:
        return None
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    x, y = rows["cost_ratio"].to_numpy(float), rows["delta_m"].to_numpy(float)
    axes.plot(x, y, "o", color=POINT, markersize=4)
    for name, a, b in zip(rows["method"], x, y, strict=True):
        axes.annotate(_label(name), (a, b), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("cost of a step, × the plain method's", fontsize=9)
    axes.set_ylabel("Δm % (lower is better)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    return figure


def _label(text: str) -> str:
    return inert.plain(text).replace("$", r"\$")  # matplotlib would read a formula
