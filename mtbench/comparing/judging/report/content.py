"""What the page shows of a board, as plain values: undefined numbers are None."""

import base64
import io
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from mtbench.comparing.judging import statistics
from mtbench.comparing.judging.leaderboard import Board, Recorded, notes
from mtbench.comparing.judging.leaderboard.along import along
from mtbench.comparing.judging.leaderboard.formats import records
from mtbench.training.cell.rundir import parse

EPOCHS = 60  # of a curve at most
CURVES = 24  # rows with curves at most: as many as can be told apart, several times over
PICTURE = 300_000  # bytes that a picture may have as it is; a larger one is made smaller
DIAGNOSTICS = ("update", "weights", "shared gradients", "features gradients", "notes")
LARGEST = 50_000_000  # pixels of a picture
_PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = 8_000_000  # bytes of a board's at most


@dataclass(frozen=True)
class Section:
    """One board's part of the page.

    Attributes:
        board: what is shown.
        summary: its size, in words.
        notes: what a reader must know.
        rows: the table's rows, with what is in their cells.
        bars: where each row's interval of delta-m lies on the common scale, in percent.
        both: how many units each row shares with the baseline.
        charts: what the script draws.
        pictures: of the cells: caption and data URI.
        cards: where each row comes from.
        left_out: how many pictures are not there, for they would be too much.
    """

    board: Board
    summary: str
    notes: list[str]
    rows: list[dict[str, Any]]
    bars: dict[str, dict[str, float] | None]
    both: dict[str, int]
    charts: dict[str, Any]
    pictures: list[tuple[str, str]]
    cards: list[dict[str, Any]]
    left_out: int


def section(board: Board) -> Section:
    """Return everything that the page shows of a board."""
    rows = records(board.rows)
    cells = sum(map(len, board.cells.values()))
    trials = {c.run.path for row in board.trials.values() for c in row.values()}
    seeds = max((row["seeds"] for row in rows), default=0)
    counts = {"row": len(rows), "cell": cells, "seed": seeds, "tuning trial": len(trials)}
    summary = " · ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items())
    pictures, left_out = _pictures(board)
    span = _span(rows)
    both = {
        pair["method"]: pair["units"]
        for pair in board.pairs.to_dict("records")
        if pair["against"] == board.baseline
    }
    return Section(
        board=board,
        summary=summary,
        notes=[note for note in notes(board) if note != board.verdict],
        rows=rows,
        bars={row["method"]: _bar(row, span) for row in rows},
        both=both,
        charts=_charts(board, rows),
        pictures=pictures,
        cards=[_card(board, name) for name in board.cells],
        left_out=left_out,
    )


def finite(value: Any) -> Any:
    """Return a plain value, None for a number that is not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(values: ArrayLike) -> list[float | None]:
    """Return numbers as JSON has them, with no more digits than a picture can show."""
    array = np.asarray(values, float).ravel()
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in array]


def _span(rows: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """Return the values between which delta-m's bars are drawn; zero is among them."""
    values = [r[k] for r in rows for k in ("delta_m", "delta_m_low", "delta_m_high")]
    known = [v for v in values if v is not None]
    if not known:
        return None
    low, high = min(*known, 0.0), max(*known, 0.0)
    return (low, high) if high > low else None


def _bar(row: dict[str, Any], span: tuple[float, float] | None) -> dict[str, float] | None:
    """Return where a row's interval lies on the common scale, in percent of its width."""
    if span is None or row["delta_m"] is None:
        return None

    def place(value: float) -> float:
        return round(100 * (value - span[0]) / (span[1] - span[0]), 2)

    low = row["delta_m"] if row["delta_m_low"] is None else row["delta_m_low"]
    high = row["delta_m"] if row["delta_m_high"] is None else row["delta_m_high"]
    return {
        "left": place(low),
        "width": round(place(high) - place(low), 2),
        "dot": place(row["delta_m"]),
        "zero": place(0.0),
    }


def _charts(board: Board, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    fields = (
        "delta_m", "delta_m_low", "delta_m_high", "mean_rank", "complete", "reason",
        "seconds_per_step", "cost_ratio", "hypervolume", "difference", "difference_low",
        "difference_high", "told",
    )  # fmt: skip
    names = list(board.cells)
    drawn = _drawn(board)
    return {
        "title": board.title,
        "names": names,
        "baseline": board.baseline,
        "reference": board.reference,
        "rows": [{key: row[key] for key in fields} for row in rows],
        "primary": board.primary,
        "places": [_short(row) for row in board.places],
        "margin": board.margin,
        "unit": board.unit,
        "budget": _budget(board),
        "front": _front(board),
        "histories": {name: _history(board.cells[name], board.primary) for name in drawn},
        "drawn": drawn,
        "along": [
            {
                "method": one.method,
                "parameter": one.parameter,
                "values": one.values,
                "rows": one.rows,
                "logarithmic": one.logarithmic,
                "panels": [
                    {
                        "title": panel.title,
                        "points": [_short(point) for point in panel.points],
                        "baseline": finite(panel.baseline),
                    }
                    for panel in one.panels
                ],
            }
            for one in along(board)
        ],
    }


def _drawn(board: Board) -> list[str]:
    """Return the rows that curves are drawn of: the best ones, and what they are compared with."""
    first = [name for name in (board.baseline, board.reference) if name is not None]
    return list(dict.fromkeys([*first, *board.cells]))[:CURVES]


def _budget(board: Board) -> dict[str, Any]:
    """Return the best validation score of the first n trials, by row.

    Trials are quasi-random points in a fixed order, so it is the mean over repetitions of the whole
    search, with the least and the greatest; a trial that diverged is as good as the worst.
    """
    found = {}
    for name, trials in board.trials.items():
        known = [t.score for t in trials.values() if math.isfinite(t.score)]
        if not board.suite or len(trials) < 2 or not known:
            continue
        searches: dict[int, list[float]] = {}
        for (repetition, _), trial in sorted(trials.items()):
            score = trial.score if math.isfinite(trial.score) else min(known)
            searches.setdefault(repetition, []).append(score)
        most = max(map(len, searches.values()))
        whole = [scores for scores in searches.values() if len(scores) == most]
        curves = np.maximum.accumulate(np.array(whole), axis=1)
        found[name] = [_short(f(axis=0)) for f in (curves.mean, curves.min, curves.max)]
    return found


def _front(board: Board) -> dict[str, Any] | None:
    """Return the two primary metrics on validation: rows, trials, and the baseline's front."""
    if len(board.primary) != 2:
        return None
    points = {}
    for name, cells in board.cells.items():
        known = _values(cells, board.primary)
        if len(known):
            points[name] = _short(known.mean(axis=0))
    trials = {}
    for name in _drawn(board):
        known = _values(board.trials[name].values(), board.primary)
        if len(known):
            trials[name] = [_short(point) for point in known]
    front = np.empty((0, 2))
    if board.baseline is not None:
        known = _values(board.trials[board.baseline].values(), board.primary)
        signs = np.where(list(board.primary.values()), -1.0, 1.0)
        front = known[statistics.pareto_mask(known * signs)] if len(known) else known
        front = front[np.argsort(front[:, 0], kind="stable")]
    return {"points": points, "trials": trials, "front": [_short(point) for point in front]}


def _values(cells: Iterable[Recorded], primary: dict[str, bool]) -> Any:
    table = [[cell.val.get(name, math.nan) for name in primary] for cell in cells]
    array = np.array(table, dtype=float).reshape(-1, len(primary))
    return array[np.isfinite(array).all(axis=1)]


def _history(cells: Sequence[Recorded], primary: Iterable[str]) -> dict[str, Any]:
    """Return curves by quantity: epochs, mean over seeds, and the least and greatest seed's."""
    wanted = set(primary)
    kinds: dict[str, dict[int, list[float]]] = {}
    for cell in cells:
        for record in _records(cell):
            values = [
                *((f"loss {k} (training)", v) for k, v in _part(record, "train_loss")),
                *((f"loss {k} (validation)", v) for k, v in _part(record, "val_loss")),
                *((f"{k} (validation)", v) for k, v in _part(record, "val") if k in wanted),
                *((f"{kind}: {k}", v) for kind in DIAGNOSTICS for k, v in _part(record, kind)),
            ]
            for quantity, value in values:
                if isinstance(value, int | float) and math.isfinite(value):
                    kinds.setdefault(quantity, {}).setdefault(record["epoch"], []).append(value)
    return {
        quantity: {
            "x": [epoch + 1 for epoch in sorted(by_epoch)],
            "mean": _short([fmean(by_epoch[e]) for e in sorted(by_epoch)]),
            "low": _short([min(by_epoch[e]) for e in sorted(by_epoch)]),
            "high": _short([max(by_epoch[e]) for e in sorted(by_epoch)]),
        }
        for quantity, by_epoch in kinds.items()
    }


def _records(cell: Recorded) -> list[dict[str, Any]]:
    """Return a cell's epochs, thinned before they are parsed; a broken line ends them."""
    file = cell.run.path / "epochs.jsonl"
    try:
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    except (OSError, ValueError):
        return []
    # Of one that diverged the same epochs as of the others, with which it is averaged.
    E = max(len(lines), cell.spec.recipe["epochs"])
    chosen = np.unique(np.linspace(0, E - 1, min(E, EPOCHS)).astype(int))
    found = []
    for i in chosen[chosen < len(lines)]:
        try:
            record = parse(lines[i])
        except (ValueError, TypeError, RecursionError, OverflowError):
            break
        if isinstance(record.get("epoch"), int):
            found.append(record)
    return found


def _part(record: dict[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    part = record.get(name)
    return part.items() if isinstance(part, dict) else ()


def _pictures(board: Board) -> tuple[list[tuple[str, str]], int]:
    """Return the pictures of each row's first seed as data URIs, and how many are left out."""
    found, total, left_out = [], 0, 0
    for name, cells in board.cells.items():
        cell = min(cells, key=lambda c: c.spec.seed)
        for file in cell.run.pictures():
            if file.is_symlink() or not file.is_file():
                continue  # a link in a folder from elsewhere would put any file on the page
            data, kind = file.read_bytes(), "png"
            if not data.startswith(_PNG):
                data = b""
            if len(data) > PICTURE:
                data, kind = _smaller(data), "jpeg"
            if not data or total + len(data) > PICTURES:
                left_out += 1
                continue
            total += len(data)
            uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
            found.append((f"{name}, seed {cell.spec.seed}: {file.stem}", uri))
    return found, left_out


def _smaller(data: bytes) -> bytes:
    """Return a picture as a small JPEG, nothing if it is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=["PNG"])
        with picture:
            if picture.width * picture.height > LARGEST:
                return b""
            small = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return b""
    small.thumbnail((1100, 1100))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return stream.getvalue()


def _card(board: Board, name: str) -> dict[str, Any]:
    """Return what it takes to make a row again, and what it was made with."""
    cells = sorted(board.cells[name], key=lambda c: c.spec.seed)
    spec, differing = _shared([c.spec.model_dump(mode="json", exclude={"seed"}) for c in cells])
    environment: dict[str, list[str]] = {}
    for cell in cells:
        for key, value in cell.done.environment.items():
            seen = environment.setdefault(key, [])
            if str(value) not in seen:
                seen.append(str(value))
    trials = int(board.rows.set_index("method")["trials"][name])
    facts = {
        "data": ", ".join(dict.fromkeys(str(cell.spec.data) for cell in cells)),
        "selected by": cells[0].done.selection,
        "tuning trials": str(trials),
        "device": cells[0].spec.device,
        **{key: ", ".join(values) for key, values in environment.items()},
    }
    if differing:
        facts["cells differ in"] = f"{', '.join(differing)} (leaderboard --raw has each one's)"
    return {
        "name": name,
        "facts": facts,
        "seeds": [(c.spec.seed, c.spec.hash, c.done.status) for c in cells],
        "spec": json.dumps(spec, indent=2, sort_keys=True),
    }


def _shared(specs: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return what all say alike, and the names of what they do not.

    >>> _shared([{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}])
    ({'a': 1, 'b': {}}, ['b.c'])
    """
    common: dict[str, Any] = {}
    differing = []
    for key in dict.fromkeys(key for spec in specs for key in spec):
        values = [spec.get(key) for spec in specs]
        parts = [value for value in values if isinstance(value, dict)]
        if len(parts) == len(values):
            common[key], inner = _shared(parts)
            differing += [f"{key}.{name}" for name in inner]
        elif values.count(values[0]) == len(values):
            common[key] = values[0]
        else:
            differing.append(key)
    return common, differing
