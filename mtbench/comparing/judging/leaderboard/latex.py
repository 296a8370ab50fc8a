"""A leaderboard as tables of a paper, none wider than a column or a page."""

import re
from collections.abc import Sequence
from typing import Literal

import pandas as pd

from mtbench import inert
from mtbench.comparing.judging.deciding import ALPHA, VERDICTS
from mtbench.comparing.judging.leaderboard.board import Board
from mtbench.comparing.judging.leaderboard.cells import budgets
from mtbench.comparing.judging.leaderboard.formats import marks, notes, readable, short_titles

Width = Literal["column", "page"]

POINTS: dict[Width, float] = {"column": 234.0, "page": 397.0}
"""The narrowest of what is common: a column of ICML or CVPR, and the text of NeurIPS or ICLR."""

SIZE, GAP = 8.0, 8.0
"""Points of ``\\footnotesize``, and between two columns."""

BOLD = 1.16
"""How much wider bold is."""

_EMS = dict.fromkeys("ilj.,:;|[]'!f ", 0.36) | dict.fromkeys("tr()-", 0.43)
_EMS |= dict.fromkeys("mwMW%@→←↑↓≈×−±Δ", 1.09)

LABEL = 0.4
"""The largest share of the width that names of methods have; longer ones are broken."""

PIECE = 8
"""Characters of a long name that are not parted."""

SHOWN = ("Δm", "−", "rank", "cost")
"""Beside the metrics, what a table has by default, by the beginnings of the columns' names."""

_SIGNS = {"better": "*", "worse": "*", "equivalent": "≈"}


def to_latex(
    found: Sequence[Board], columns: Sequence[str] | None = None, width: Width = "page"
) -> str:
    """Return boards as LaTeX: tasks side by side, if there are several, and each of them.

    It needs the package booktabs.

    Args:
        found: the boards.
        columns: which, by the beginnings of their names; the method always.
        width: what each table fits.
    """
    shown = [board for board in found if not board.rows.empty]
    parts = [_side_by_side(shown, width)] if len(shown) > 1 else []
    for number, board in enumerate(found):
        said = [f"% {inert.plain(note)}" for note in (board.title, *notes(board))]
        table = [] if board.rows.empty else [_board(board, number, columns, width)]
        parts.append("\n".join([*said, *table]) + "\n")
    return "\n".join(parts)


def text_width(text: str) -> float:
    r"""Return how wide a text is at most, in points, in Computer Modern's ``\footnotesize``.

    >>> 55 < text_width("0.744 ± 0.010") < 65
    True
    """
    return SIZE * sum(
        _EMS.get(c, 0.83 if c.isupper() else 0.6 if c.isalpha() else 0.55) for c in text
    )


def _cell_width(plain: str, typeset: str) -> float:
    return text_width(plain) * (BOLD if typeset.startswith(r"\textbf") else 1)


def _board(board: Board, number: int, columns: Sequence[str] | None, width: Width) -> str:
    shown = readable(board, columns)
    if columns is None:
        kept = ["method", *(c for c in shown.columns if c in board.heads or c.startswith(SHOWN))]
        shown = shown[kept]
    best = {column: marks(board, column) for column in shown.columns}
    base = f"− {board.baseline} ↓"
    told = board.rows["told"]
    if base in shown:
        signs = [_SIGNS.get(word, "") for word in told]
        shown = shown.assign(**{base: shown[base] + pd.Series(signs, index=shown.index)})
    order = sorted(range(len(shown)), key=lambda i: shown["method"].iloc[i] != board.reference)
    apart = 1 if board.reference is not None else 0
    texts = {column: list(map(str, shown[column])) for column in shown.columns}
    rows = [[_cell(t[i], best[c][i], c == "method") for c, t in texts.items()] for i in order]
    plain = [[t[i] if c == "method" else _signed(t[i]) for c, t in texts.items()] for i in order]
    label = re.sub(r"\W+", "-", board.title.split(" ")[0])
    return _tables(
        list(map(str, shown.columns)), rows, plain, apart, _caption(board, base in shown),
        f"tab:{label}-{number}", width,
    )  # fmt: skip


def _caption(board: Board, compared: bool) -> str:
    specs = {name: cells[0].spec for name, cells in board.cells.items()}
    task = next(iter(specs.values())).task
    usual, others = budgets(specs)
    ranked = board.rows["units"][board.rows["complete"]]
    units = board.rows["units"] if ranked.empty else ranked
    least, most = int(units.min()), int(units.max())
    planned = 0 if board.suite is None else board.suite.planned
    count = f"{most}" if least == most else f"{least} to {most}"
    count += f" of {planned}" if planned > most else ""
    trials = board.suite.trials if board.suite is not None else int(board.rows["trials"].max())
    seeds = board.suite.seeds if board.suite is not None and board.suite.study_is_unit else 1
    over, runs = (" over runs", f" of {seeds} runs") if seeds > 1 else ("", "")
    said = [
        f"{task}: test split, mean ± standard deviation{over}, {count} {board.unit}"
        f"{'s' * (count != '1')}{runs}; {trials or 'no'} trial{'s' * (trials != 1)} each, "
        f"{_budget(*usual)}"
    ]
    if others:
        named = (f"{name} ({_budget(*own)})" for name, own in others.items())
        said.append(f"Of another budget: {', '.join(named)}")
    without = board.rows["method"][board.rows["trials"] == 0]
    if trials and len(without):
        said.append(f"Without trials: {', '.join(without)}")
    lost = board.rows[board.rows["diverged"] > 0]
    if len(lost):
        named = (f"{n} ({d})" for n, d in zip(lost["method"], lost["diverged"], strict=True))
        said.append(
            f"Runs that diverged, the worst in Δm and left out of metrics: {', '.join(named)}"
        )
    if board.reference is not None:
        said.append(f"Δm against {board.reference} with 95 % bootstrap intervals, lower is better")
    if compared and (board.rows["told"].isin(VERDICTS)).any():
        said.append(
            f"* differs from {board.baseline}, ≈ is equivalent within {board.margin:g} % of Δm "
            f"(paired t-tests, {100 * ALPHA:g} % for all comparisons together)"
        )
    said.append("Best in bold, second underlined")
    return ". ".join(said) + "."


def _budget(epochs: int, batch: int) -> str:
    return f"{epochs} epoch{'s' * (epochs != 1)} of batches of {batch}"


def _side_by_side(boards: Sequence[Board], width: Width) -> str:
    """Return delta-m of each row on each task."""
    references = {board.reference for board in boards}
    names = {str(name) for board in boards for name in board.rows["method"][board.rows["complete"]]}
    order = sorted(names, key=lambda name: (name not in references, name))
    heads = ["method", *short_titles([board.title for board in boards])]
    rows, plain = [[_cell(name, "", True)] for name in order], [[name] for name in order]
    for board in boards:
        table = board.rows.assign(mark=marks(board, "Δm % ↓")).set_index("method")
        known = table[table["complete"] & table["delta_m"].notna()].to_dict("index")
        for i, name in enumerate(order):
            row = known.get(name)
            text = _signed(f"{row['delta_m']:z.2f}{_SIGNS.get(row['told'], '')}") if row else "–"
            plain[i].append(text)
            rows[i].append(_cell(text, row["mark"] if row else "", False))
    bases = ", ".join(dict.fromkeys(board.baseline for board in boards if board.baseline))
    margins = ", ".join(dict.fromkeys(f"{board.margin:g}" for board in boards))
    caption = "Δm % on each task, lower is better. "
    if bases:
        caption += f"* differs from {bases}, ≈ is equivalent within {margins} %. "
    apart = sum(name in references for name in order)
    caption += "Best in bold, second underlined."
    return _tables(heads, rows, plain, apart, caption, "tab:tasks", width)


def _cell(text: str, mark: str, is_name: bool) -> str:
    """Return what is typeset."""
    found = inert.tex(text if is_name else _signed(text))
    command = {"best": r"\textbf", "second": r"\underline"}.get(mark)
    return f"{command}{{{found}}}" if command else found


def _signed(text: str) -> str:
    """Return numbers with a minus that is none of a word, and a dash where there is none."""
    return "–" if text == "-" else re.sub(r"-(?=\d)", "−", text)


def _broken(text: str) -> str:
    """Return text that may be broken anywhere, about."""
    parts = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    return r"\raggedright " + r"\allowbreak{}".join(map(inert.tex, parts))


def _tables(
    heads: list[str], rows: list[list[str]], plain: list[list[str]], apart: int, caption: str,
    label: str, width: Width,
) -> str:  # fmt: skip
    """Return as many tables as it takes for each to fit; the first column stands in all.

    Args:
        heads: of the columns.
        rows: as LaTeX.
        plain: as text, to be measured.
        apart: how many rows stand above a line of their own.
        caption: as text.
        label: to refer to.
        width: what each fits.
    """
    room = POINTS[width]
    widths = [
        GAP
        + max(
            text_width(head),
            *(_cell_width(text[c], row[c]) for text, row in zip(plain, rows, strict=True)),
        )
        for c, head in enumerate(heads)
    ]
    first, name = "l", widths[0]
    if name > LABEL * room:
        name = LABEL * room
        first = rf"p{{{name - GAP:.0f}pt}}"
        rows = [[_broken(text[0]), *row[1:]] for text, row in zip(plain, rows, strict=True)]
    typeset = list(map(inert.tex, heads))
    for c in range(1, len(heads)):
        if name + widths[c] > room:
            widths[c] = room - name - 1  # TeX rounds
            typeset[c] = rf"\parbox{{{widths[c] - GAP:.0f}pt}}{{{_broken(heads[c])}}}"
    groups: list[list[int]] = [[]]
    for c in range(1, len(heads)):
        if groups[-1] and name + sum(widths[i] for i in groups[-1]) + widths[c] > room:
            groups.append([])
        groups[-1].append(c)
    environment = "table" if width == "column" else "table*"
    lines = []
    for part, group in enumerate(groups):
        said = inert.tex(caption)
        if part:
            said = rf"Table~\ref{{{label}}}, continued."
        body = [" & ".join(row[c] for c in (0, *group)) + r" \\" for row in rows]
        if 0 < apart < len(body):
            body.insert(apart, r"\midrule")
        lines += [
            rf"\begin{{{environment}}}", r"\centering\footnotesize",
            rf"\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}\setlength{{\belowcaptionskip}}{{4pt}}",
            rf"\caption{{{said}}}",
            rf"\label{{{label}{f'-{part + 1}' if part else ''}}}",
            rf"\begin{{tabular}}{{{first}{'r' * len(group)}}}", r"\toprule",
            " & ".join(typeset[c] for c in (0, *group)) + r" \\", r"\midrule",
            *body, r"\bottomrule", r"\end{tabular}", rf"\end{{{environment}}}",
        ]  # fmt: skip
    return "\n".join(lines)
