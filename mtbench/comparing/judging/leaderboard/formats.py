"""A leaderboard as text."""

import json
from collections.abc import Sequence

import pandas as pd

from mtbench.comparing.judging.leaderboard.across import Overall
from mtbench.comparing.judging.leaderboard.board import COST, Board


def readable(board: Board) -> pd.DataFrame:
    """Return the columns that a reader needs as text; one that says nothing is left out."""
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
    for name, higher in board.primary.items():
        title = f"{name} {'↑' if higher else '↓'}"
        shown[title] = [
            _spread(a, b, 3) for a, b in zip(rows[name], rows[f"{name}_sd"], strict=True)
        ]
    shown["Δm % ↓"] = _intervals(rows, "delta_m", 2)
    shown["mean rank ↓"] = [_number(value, 2) for value in rows["mean_rank"]]
    if rows["first"].notna().any():
        shown["P(first)"] = [_number(value, 2) for value in rows["first"]]
    if rows["improvement"].notna().any():
        shown[f"P(beats {board.baseline})"] = _intervals(rows, "improvement", 2)
    if rows["p_holm"].notna().any():
        shown["p (Holm)"] = [_number(value, 3) for value in rows["p_holm"]]
    shown["s/step"] = [_number(value, 3) for value in rows["seconds_per_step"]]
    if rows["cost_ratio"].notna().any():
        shown["cost ×"] = [_number(value, 2) for value in rows["cost_ratio"]]
    shown["peak MiB"] = [_number(value, 0) for value in rows["peak_mib"]]
    return shown


def _number(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def _spread(mean: float, deviation: float, digits: int) -> str:
    spread = "" if pd.isna(deviation) else f" ± {deviation:.{digits}f}"
    return _number(mean, digits) + spread


def _intervals(rows: pd.DataFrame, name: str, digits: int) -> list[str]:
    return [
        _number(v, digits) + ("" if pd.isna(a) else f" [{a:.{digits}f}, {b:.{digits}f}]")
        for v, a, b in zip(rows[name], rows[f"{name}_low"], rows[f"{name}_high"], strict=True)
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
    if (board.rows["seeds"].max()) < 2:
        lines.append("one seed: no spread, and no order can be concluded from it")
    left_out = board.rows[~board.rows["complete"]]
    if len(left_out):
        reasons = "; ".join(
            f"{m}: {r}" for m, r in zip(left_out["method"], left_out["reason"], strict=True)
        )
        lines.append(f"shown, not ranked: {reasons}")
    return lines + board.remarks


LEGEND = (
    "Test split. Mean ± standard deviation over seeds; [95 % paired bootstrap interval over seeds, "
    "the single-task reference resampled too]."
)


def to_markdown(board: Board) -> str:
    """Return the readable table as Markdown, with title and notes."""
    shown = readable(board)
    lines = [f"### {board.title}", ""]
    if not shown.empty:
        lines.append("| " + " | ".join(_cell(column) for column in shown.columns) + " |")
        lines.append("|" + "---|" * len(shown.columns))
        lines += [
            "| " + " | ".join(_cell(str(cell)) for cell in row) + " |"
            for row in shown.itertuples(index=False)
        ]
        lines += ["", LEGEND]
    lines += [f"- {note}" for note in notes(board)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def overall_markdown(overall: Overall) -> str:
    """Return the boards together as Markdown: ranks, and delta-m where it is known."""
    lines = ["### All boards", ""]
    heads = ["method", "mean rank ↓", "mean Δm % ↓", *(f"rank: {b}" for b in overall.boards)]
    lines += ["| " + " | ".join(map(_cell, heads)) + " |", "|" + "---|" * len(heads)]
    for i, method in enumerate(overall.methods):
        numbers = [
            _number(overall.mean_rank[:, i].mean(), 2),
            _number(overall.delta_m[:, i].mean(), 2),
            *(_number(rank, 1) for rank in overall.mean_rank[:, i]),
        ]
        lines.append("| " + " | ".join([_cell(method), *numbers]) + " |")
    return "\n".join([*lines, "", f"- {overall.note}"]) + "\n"


def to_csv(found: Sequence[Board], *, cost: bool = False) -> str:
    """Return every number of every board as CSV, one line a method.

    Without cost, which no two runs have in common, equal results give equal bytes.
    """
    parts = [board.rows.assign(board=board.title) for board in found if not board.rows.empty]
    if not parts:
        return ""
    table = pd.concat(parts)
    text: str = (table if cost else table.drop(columns=list(COST))).to_csv(index=False)
    return text


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
                "places": board.places.tolist(),
                "rows": json.loads(board.rows.to_json(orient="records")),
            }
            for board in found
        ],
        indent=2,
    )


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "Δ": r"$\Delta$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def to_latex(board: Board) -> str:
    """Return the readable table as LaTeX; it needs the package booktabs."""
    shown = readable(board)
    lines = [f"% {board.title}".replace("\n", " ")]
    if not shown.empty:
        lines += [rf"\begin{{tabular}}{{l{'r' * (shown.shape[1] - 1)}}}", r"\toprule"]
        body = [[_tex(str(cell)) for cell in row] for row in shown.itertuples(index=False)]
        lines += [" & ".join(_tex(column) for column in shown.columns) + r" \\", r"\midrule"]
        lines += [" & ".join(row) + r" \\" for row in body]
        lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"% {note}".replace("\n", " ") for note in notes(board)]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    found = "".join(_TEX.get(character, character) for character in text)
    return f"{{{found}}}" if found.startswith("[") else found  # \\[ would be a length
