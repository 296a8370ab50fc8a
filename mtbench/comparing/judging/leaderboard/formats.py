"""A leaderboard as text."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from mtbench import inert
from mtbench.comparing.judging.leaderboard.across import Overall
from mtbench.comparing.judging.leaderboard.board import COST, Board
from mtbench.errors import UsageError


def readable(board: Board, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the columns that a reader needs as text; one that says nothing is left out.

    Args:
        board: what is shown.
        columns: which of those that are there, by the beginnings of their names; all by default,
            the method always.
    """
    shown = _readable(board)
    if columns is None or shown.empty:
        return shown
    found = [name for wanted in columns for name in shown.columns if name.startswith(wanted)]
    return shown[list(dict.fromkeys(["method", *found]))]


_GIVEN_BY = {
    "− ": "`− ROW` is there where a row of that name has finished (--baseline ROW)",
    "verdict": "`verdict` is there beside `− ROW`, unless parameters were chosen once",
    "trials": "`trials` is there where some chose the parameters",
    "P(first)": "`P(first)` takes two seeds or repetitions that the ranked rows share",
    "cost ×": "`cost ×` is there where the plain sum was run (--plain ROW)",
}
"""Columns that not every board has."""


def check_columns(found: Sequence[Board], columns: Sequence[str]) -> None:
    """Check that each is a column of a board, by the beginnings of their names.

    Raises:
        UsageError: one is of none.
    """
    known = list(dict.fromkeys(name for board in found for name in _readable(board).columns))
    for wanted in columns:
        if not any(name.startswith(wanted) for name in known):
            hints = [
                said
                for start, said in _GIVEN_BY.items()
                if start.startswith(wanted) or wanted.startswith(start)
            ]
            told = "; ".join([f"there are {', '.join(known)}", *hints])
            raise UsageError(f"--columns: unknown column {wanted!r}: {told}")


def _readable(board: Board) -> pd.DataFrame:
    rows = board.rows
    if rows.empty:
        return rows
    seeds = [
        f"{count} (+{lost} diverged)" if lost > 0 else str(count)
        for count, lost in zip(rows["seeds"], rows["diverged"], strict=True)
    ]
    shown = pd.DataFrame({"method": rows["method"], "seeds": seeds}, index=rows.index)
    if rows["trials"].any():
        shown["trials"] = rows["trials"].astype(str)
    for title, name in board.heads.items():
        shown[title] = [
            _spread(a, b, 3) for a, b in zip(rows[name], rows[f"{name}_sd"], strict=True)
        ]
    shown["Δm % ↓"] = _intervals(rows, "delta_m", 2)
    if rows["difference"].notna().any():
        shown[f"− {board.baseline} ↓"] = _intervals(rows, "difference", 2)
        if (rows["told"] != "").any():
            shown["verdict"] = rows["told"]
    shown["rank ↓"] = [_number(value, 2) for value in rows["mean_rank"]]
    if rows["first"].notna().any():
        shown["P(first)"] = [_number(value, 2) for value in rows["first"]]
    shown["s/step"] = [_number(value, 3) for value in rows["seconds_per_step"]]
    if rows["cost_ratio"].notna().any():
        shown["cost ×"] = [_number(value, 2) for value in rows["cost_ratio"]]
    shown["peak MiB"] = [_number(value, 0) for value in rows["peak_mib"]]
    return shown


def compact(board: Board, shown: pd.DataFrame) -> pd.DataFrame:
    """Return a readable table with each row's three worst metrics in the place of all.

    They are worst against the single-task row, or else the first row, in percent.
    """
    rows = board.rows.to_dict("records")
    [reference] = [row for row in rows if row["method"] == (board.reference or rows[0]["method"])]
    worst = []
    for row in rows:
        losses = {
            name: (row[name] - reference[name]) / abs(reference[name]) * (-100 if higher else 100)
            for name, higher in board.primary.items()
            if reference[name] != 0 and math.isfinite(row[name]) and math.isfinite(reference[name])
        }
        largest = sorted(losses, key=lambda name: -losses[name])[:3] if row is not reference else ()
        worst.append(", ".join(f"{name} {losses[name]:+.1f}" for name in largest))
    kept = [name for name in shown.columns if name not in board.heads]
    return shown[kept].assign(**{"worst metrics, % worse": worst})


def _number(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:z.{digits}f}"


def _spread(mean: float, deviation: float, digits: int) -> str:
    spread = "" if pd.isna(deviation) else f" ± {deviation:.{digits}f}"
    return _number(mean, digits) + spread


def _intervals(rows: pd.DataFrame, name: str, digits: int) -> list[str]:
    table = rows[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)
    return [
        _number(v, digits) + (f" [{a:z.{digits}f}, {b:z.{digits}f}]" if math.isfinite(a) else "")
        for v, a, b in table
    ]


def notes(board: Board) -> list[str]:
    """Return what a reader must know of the table."""
    lines = []
    if board.pending:
        lines.append(f"unfinished, not in the table: {', '.join(sorted(board.pending))}")
    if board.rows.empty:
        return lines
    if board.verdict:
        lines.append(board.verdict)
    if board.rows["seeds"].max() == 1:
        lines.append("one seed: no spread, and no order can be concluded from it")
    left_out = board.rows[~board.rows["complete"]]
    if len(left_out):
        reasons = "; ".join(
            f"{m}: {r}" for m, r in zip(left_out["method"], left_out["reason"], strict=True)
        )
        lines.append(f"shown, not ranked: {reasons}")
    return lines + board.remarks


LEGEND = {
    "Δm": "Δm: by how many percent a row is worse than a model for each objective alone, the mean "
    "over metrics [95 % paired bootstrap interval, that reference resampled too].",
    "− ": "− ROW: Δm minus that row's, over what both were run on, in points [interval at the "
    "level of its verdict].",
    "rank": "Rank: the mean over metrics.",
    "P(first)": "P(first): how often the row would stand first here, were seeds or repetitions "
    "drawn anew from those that were run.",
    "cost ×": "Cost ×: the time of all training steps, as a multiple of the plain sum's.",
}
"""What columns say that are no metrics, by the beginnings of their names."""


def legend(columns: Iterable[str]) -> str:
    """Return what a reader must know of a table with these columns.

    >>> legend(["method", "rank ↓"])
    'Test split, mean ± standard deviation over seeds. Rank: the mean over metrics.'
    """
    begun = tuple(columns)
    said = [text for start, text in LEGEND.items() if any(c.startswith(start) for c in begun)]
    return " ".join(["Test split, mean ± standard deviation over seeds.", *said])


def marks(board: Board, column: str) -> list[str]:
    """Return which rows of a readable column are ``best`` and ``second``, as printed.

    The single-task reference takes no part, nor does what is not ranked, nor the metrics of a row
    of which some diverged. No metric is marked where rows do not have the same units.
    """
    sources = {title: (name, board.primary[name], 3) for title, name in board.heads.items()}
    sources |= {"Δm % ↓": ("delta_m", False, 2), "rank ↓": ("mean_rank", False, 2)}
    found = [""] * len(board.rows)
    if column not in sources:
        return found
    key, higher, digits = sources[column]
    taking_part = board.rows["complete"] & (board.rows["method"] != board.reference)
    if key in board.primary:  # a mean over other seeds is another quantity
        if not board.alike:
            return found
        taking_part &= board.rows["diverged"] == 0
    # Of 0.7125, which is printed as 0.713, `round` makes 0.712.
    values = [float(f"{value:.{digits}f}") for value in board.rows[key].where(taking_part)]
    order = sorted({value for value in values if not math.isnan(value)}, reverse=higher)
    for place, mark in enumerate(("best", "second")):
        if place < len(order):
            found = [mark if v == order[place] else m for v, m in zip(values, found, strict=True)]
    return found


_MARKED = {"best": "**{}**", "second": "*{}*", "": "{}"}


def to_markdown(board: Board, columns: Sequence[str] | None = None) -> str:
    """Return the readable table as Markdown, with title and notes."""
    shown = readable(board, columns)
    lines = [f"### {inert.markdown(board.title)}", ""]
    if not shown.empty:
        texts = [
            [
                _MARKED[mark].format(inert.markdown(str(text)))
                for text, mark in zip(shown[column], marks(board, column), strict=True)
            ]
            for column in shown.columns
        ]
        heads = [inert.markdown(column) for column in shown.columns]
        lines += inert.table(heads, zip(*texts, strict=True))
        apart = f"; {board.reference} takes no part" if board.reference in board.cells else ""
        lines += [
            "",
            f"{legend(map(str, shown))} Best in bold, second in italics{inert.markdown(apart)}.",
        ]
    lines += [f"- {inert.markdown(note)}" for note in notes(board)]
    return "\n".join(lines) + "\n"


def short_titles(titles: Sequence[str]) -> list[str]:
    """Return titles by their first word, and what sets those apart that begin alike.

    >>> short_titles(["digits a=1 suite=x", "qm9 b=2 suite=x"])
    ['digits', 'qm9']
    >>> short_titles(["us noise=0 suite=x", "us noise=1 suite=x"])
    ['us noise=0', 'us noise=1']
    >>> short_titles(["us a=1", "us a=1 noise=1", "qm9 b=2"])
    ['us', 'us noise=1', 'qm9']
    """
    words = [title.split() for title in titles]
    alike: dict[str, list[set[str]]] = {}
    for own in words:
        alike.setdefault(own[0], []).append(set(own))
    common = {first: set.intersection(*others) for first, others in alike.items()}
    return [
        " ".join([own[0], *(word for word in own[1:] if word not in common[own[0]])])
        for own in words
    ]


def overall_markdown(overall: Overall) -> str:
    """Return the boards together as Markdown: ranks, and delta-m where it is known."""
    lines = ["### All boards", "", f"Ranks by {overall.ranked_by} among these methods.", ""]
    heads = ["method", "rank ↓", "mean Δm % ↓", *short_titles(overall.boards)]
    rows = [
        [
            inert.markdown(method),
            _number(overall.rank[:, i].mean(), 2),
            _number(overall.delta_m[:, i].mean(), 2),
            *(_number(rank, 1) for rank in overall.rank[:, i]),
        ]
        for i, method in enumerate(overall.methods)
    ]
    lines += inert.table([*map(inert.markdown, heads)], rows)
    notes = [f"- {inert.markdown(note)}" for note in (overall.note, *overall.remarks)]
    return "\n".join([*lines, "", *notes]) + "\n"


def to_csv(found: Sequence[Board], *, cost: bool = False) -> str:
    """Return every number of every board as CSV, one line a method.

    Without cost, which no two runs have in common, equal results give equal bytes.
    """
    parts = [board.rows.assign(board=board.title) for board in found if not board.rows.empty]
    if not parts:
        return ""
    table = pd.concat(parts)
    return _csv(table if cost else table.drop(columns=list(COST)))


def _csv(table: pd.DataFrame) -> str:
    """Return a table as CSV in which no text is a formula."""
    shown = table.map(lambda value: inert.spreadsheet(value) if isinstance(value, str) else value)
    text: str = shown.rename(columns=inert.spreadsheet).to_csv(index=False)
    return text


def to_raw(found: Sequence[Board]) -> str:
    """Return every metric of every final cell as tidy CSV: a line each.

    A cell that diverged has a line without a value for each metric that is compared.
    """
    lines = [
        {
            "board": board.title, "task": cell.spec.task, "row": row, "method": cell.spec.method,
            "parameters": json.dumps(cell.spec.method_params, sort_keys=True), "lr":
            cell.spec.recipe.get("lr"), "repetition": claim and claim.repetition, "seed":
            cell.spec.seed, "status": cell.done.status, "split": split, "metric": metric,
            "value": value,
        }
        for board in found
        for row, cells in board.cells.items()
        for cell in cells
        for claim in [next(iter(cell.claimed(board.suite, row)), None)]
        for split, values in (("validation", cell.val), ("test", cell.test))
        for metric, value in (dict.fromkeys(board.primary) if cell.diverged else values).items()
    ]  # fmt: skip
    return _csv(pd.DataFrame(lines).astype({"repetition": "Int64"})) if lines else ""


def to_json(found: Sequence[Board]) -> str:
    """Return every number of every board as JSON; undefined ones are null."""
    return json.dumps(
        [
            {
                "title": board.title,
                "primary": board.primary,
                "pending": board.pending,
                "notes": notes(board),
                "baseline": board.baseline,
                "reference": board.reference,
                "margin": board.margin,
                "unit": board.unit,
                "places": board.places.tolist(),
                "pairs": records(board.pairs),
                "rows": records(board.rows),
            }
            for board in found
        ],
        indent=2,
    )


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON has them, with all digits; pandas' own writer keeps ten decimals."""
    return [
        {
            str(key): None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        for row in table.to_dict("records")
    ]
