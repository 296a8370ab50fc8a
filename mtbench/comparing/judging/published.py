"""Results that papers report: what packages ship of them, and how a run compares.

A package announced in the group ``mtbench.suites`` may have a folder ``published`` with one
``TASK.toml`` per task: the boards (tables) that papers print of it, with their sources.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtbench import inert
from mtbench.comparing.judging import leaderboard
from mtbench.comparing.judging.leaderboard.board import headed
from mtbench.comparing.shipped import shipped as packaged
from mtbench.errors import UsageError, did_you_mean, first_fault
from mtbench.plugins import params
from mtbench.training.cell import toml
from mtbench.training.task import Recipe, is_texts

DELTA_M, MEAN_RANK = "delta_m", "mean_rank"
_HEADS = {DELTA_M: "Δm % ↓", MEAN_RANK: "mean rank ↓"}


INTRODUCTION = """# Published results

These tables show what papers report of the tasks in mtbench. `mtbench reproduce` prints them beside
a run of yours:

```sh
mtbench reproduce TASK --method METHOD --data PATH
```

It trains the method and the single-task reference with the task's recipe. It prints both beside the
paper's row, and says what differs from the paper. A method that no paper reports, such as your own
(`--plugin mine.py --method mine`), becomes a row of their tables.

Rows have the names of our methods, with a setting where it is not our default. What papers call LS
is `ew` here. Δm is in percent against each paper's own single-task models. A mean rank is among the
rows of its own table. So compare neither with another table's, nor with ours unless you follow the
paper's protocol. A dash is a number that the source does not print.

"""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PaperBoard(_Strict):
    """One table of a paper.

    Attributes:
        title: what sets it apart from the task's other boards.
        source: where it is printed.
        seeds: over which its numbers are means; 0 where that is not known.
        recipe: what of the recipe is known, in the words of `mtbench.Recipe`.
        protocol: what else was done, where it may differ from here.
        columns: metrics of the task, ``delta_m`` and ``mean_rank``.
        rows: by method and settings, as a leaderboard's rows are called; NaN where nothing is
            printed.
    """

    title: str
    source: str
    seeds: int = 0
    recipe: dict[str, Any] = {}
    protocol: list[str] = []
    columns: list[str] = Field(min_length=1)
    rows: dict[str, list[float]] = Field(min_length=1)

    @model_validator(mode="after")
    def _rectangular(self) -> "PaperBoard":
        for label, row in self.rows.items():
            if len(row) != len(self.columns):
                raise ValueError(f"{label!r} has {len(row)} values for {len(self.columns)} columns")
        return self

    def label(self, method: str, settings: Mapping[str, Any]) -> str | None:
        """Return the row of a method whose settings fit best, None if none fits.

        A row that names no settings fits whatever the method's are.
        """
        fitting = []
        for label in self.rows:
            name, *named = label.split()
            pairs = (text.partition("=") for text in named)
            if name == method and all(params.text(settings.get(k)) == v for k, _, v in pairs):
                fitting.append(label)
        return max(fitting, key=len, default=None)

    def by_delta_m(self) -> list[str]:
        """Return the rows, best first; what delta-m is measured against has none, and leads."""
        deltas = {label: self.value(label, DELTA_M) for label in self.rows}
        return sorted(deltas, key=lambda r: -math.inf if math.isnan(deltas[r]) else deltas[r])

    def value(self, label: str | None, column: str) -> float:
        """Return a number, NaN where none is printed."""
        if label not in self.rows or column not in self.columns:
            return math.nan
        return self.rows[label][self.columns.index(column)]


class Published(_Strict):
    """What papers report of a task.

    Attributes:
        version: of this format.
        metrics: of the task, with whether higher is better.
        boards: the papers' tables.
    """

    version: Literal[1]
    metrics: dict[str, bool]
    boards: list[PaperBoard] = Field(min_length=1)

    @model_validator(mode="after")
    def _columns_are_known(self) -> "Published":
        for board in self.boards:
            for column in board.columns:
                if column not in self.metrics and column not in _HEADS:
                    raise ValueError(f"column {column!r} of {board.title!r} is none of metrics")
        return self

    def markdown(self, task: str) -> str:
        """Return the boards as a leaderboard's Markdown, best delta-m first."""
        return "\n".join(self._board(task, board) for board in self.boards)

    def _board(self, task: str, board: PaperBoard) -> str:
        heads = ["method", *(self.head(column) for column in board.columns)]
        body = [
            [label, *(_number(board.value(label, column), column) for column in board.columns)]
            for label in board.by_delta_m()
        ]
        known = ", ".join(f"{key} {value}" for key, value in board.recipe.items())
        said = [
            f"source: {board.source}",
            f"means over {board.seeds} seeds" if board.seeds else "",
            f"recipe: {known}" if known else "",
            *board.protocol,
        ]
        return _section(f"{task}: {board.title}", heads, body, filter(None, said))

    def head(self, column: str) -> str:
        """Return what a column is called in a table."""
        return _HEADS.get(column) or headed(column, self.metrics[column])


def shipped() -> dict[str, Path]:
    """Return the files of published results, by task."""
    return dict(sorted(packaged("published").items()))


def page() -> str:
    """Return everything that is shipped as one Markdown page."""
    return INTRODUCTION + "\n".join(load(task).markdown(task) for task in shipped())


def load(task: str, file: Path | None = None) -> Published:
    """Return what is published of a task.

    Args:
        task: its name.
        file: instead of what is shipped.

    Raises:
        UsageError: there is nothing, or the file is not of this format.
    """
    if file is None:
        known = shipped()
        if task not in known:
            raise UsageError(
                f"no published results of task {task!r}: {did_you_mean(task, known)} (or give a "
                "file with --published)"
            )
        file = known[task]
    try:
        return Published.model_validate(toml.load(file))
    except ValidationError as error:
        raise UsageError(
            f"{file}: no published results of version 1: {first_fault(error)}"
        ) from error


@dataclass(frozen=True)
class Comparison:
    """A run beside a paper's row.

    Attributes:
        title: of the paper's board and row.
        heads: of the columns.
        rows: one a metric, or of `wide` ones a method.
        notes: the source, and what was done otherwise.
        wide: whether metrics are columns.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]
    wide: bool

    def markdown(self) -> str:
        """Return it as Markdown."""
        return _section(self.title, self.heads, self.rows, self.notes)


def _section(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str]
) -> str:
    """Return a table under its title as Markdown, the notes below; all texts are made inert."""
    safe = inert.markdown
    table = inert.table([*map(safe, heads)], ([*map(safe, row)] for row in rows))
    lines = [f"### {safe(title)}", "", *table, "", *(f"- {safe(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def compare(
    published: Published, board: leaderboard.Board, reference: str, method: str
) -> list[Comparison]:
    """Return finished cells of a method and the reference beside every row that papers have of it.

    A paper's row that names no settings is the method's at any, and notes say what they are here.
    A method without such a row becomes a row of each paper's table.

    Args:
        published: what papers report of the task.
        board: the cells, which all have the same recipe.
        reference: the single-task method.
        method: the method, with one row on the board.

    Raises:
        UsageError: one of them has several rows.
    """
    settings = board.cells[_only(board, method)][0].spec.method_params
    labels = [paper.label(method, settings) for paper in published.boards]
    found = []
    for paper, label in zip(published.boards, labels, strict=True):
        notes = _differences(paper, board, method)
        if label is not None:
            heads, body = _beside_row(published, paper, board, (reference, method), label)
            title = f"{label} beside the paper's: {paper.title}"
        elif not any(labels):
            heads, body = _as_row(published, paper, board, (reference, method))
            title = f"{method} beside the rows of: {paper.title}"
            notes = [
                f"no paper reports {method} with these settings",
                notes[0],
                "theirs: as the paper prints it, by its protocol; ours: trained here. Each Δm is "
                "against its own single-task row",
                *notes[1:],
            ]
        else:
            continue
        found.append(Comparison(title, heads, body, notes, wide=label is None))
    return found


_Table = tuple[list[str], list[list[str]]]


def _as_row(
    published: Published, paper: PaperBoard, board: leaderboard.Board, ours: tuple[str, str]
) -> _Table:
    """Return a paper's table, with the rows of the reference and a method below."""
    body = [
        [label, "theirs", *(_number(paper.value(label, c), c) for c in paper.columns)]
        for label in paper.by_delta_m()
    ]
    for name, row in dict(zip(ours, _rows_of(board, ours), strict=True)).items():
        # A mean rank is one among the rows of its own table.
        own = ["-" if c == MEAN_RANK else _here(row, c) for c in paper.columns]
        body.append([name, "ours", *own])
    return ["method", "protocol", *(published.head(column) for column in paper.columns)], body


def _beside_row(
    published: Published,
    paper: PaperBoard,
    board: leaderboard.Board,
    methods: tuple[str, str],
    label: str,
) -> _Table:
    """Return each metric of the reference and a method, by a paper's row and here."""
    reference, _ = methods
    single, ours = _rows_of(board, methods)
    body = []
    for name in [*(column for column in paper.columns if column in published.metrics), DELTA_M]:
        theirs = paper.value(label, name)
        body.append(
            [
                published.head(name),
                _number(paper.value(reference, name), name),
                _here(single, name),
                _number(theirs, name),
                _here(ours, name),
                _number(ours[name] - theirs, name, sign="+"),
            ]
        )
    who = [f"{name}, {where}" for name in (reference, label) for where in ("paper", "here")]
    return ["", *who, "difference"], body


def _rows_of(board: leaderboard.Board, methods: Sequence[str]) -> list[Any]:
    """Return what the board says of methods that have one row each."""
    rows = board.rows.set_index("method")
    return [rows.loc[_only(board, name)] for name in methods]


def _only(board: leaderboard.Board, method: str) -> str:
    found = [name for name, cells in board.cells.items() if cells[0].spec.method == method]
    if len(found) != 1:
        raise UsageError(
            f"{method} must have one row here, found {', '.join(found)}, as where a suite has some "
            "of its cells: choose another --out"
        )
    return found[0]


def _differences(paper: PaperBoard, board: leaderboard.Board, method: str) -> list[str]:
    """Return where this run and the paper part."""
    cell = board.cells[_only(board, method)][0]
    recipe, seeds = vars(Recipe(**cell.spec.recipe)), int(board.rows["seeds"].max())
    notes = [f"source: {paper.source}"]
    notes += [
        f"{key}: paper {value}, here {recipe.get(key)}"
        for key, value in paper.recipe.items()
        if recipe.get(key) != value
    ]
    if paper.seeds != seeds:
        notes.append(f"seeds: paper {paper.seeds or 'unknown'}, here {seeds}")
    notes += [f"paper: {line}" for line in paper.protocol]
    given = {k: v for k, v in cell.setting.items() if v is not None}
    made = {k: len(v) if is_texts(v) else v for k, v in cell.done.notes.items() if k not in given}
    for what in (recipe, given | made, cell.spec.method_params):
        if what:
            notes.append(f"here: {params.own_keys(what)}")
    return notes


def _number(value: float, column: str, *, sign: str = "") -> str:
    digits = ".2f" if column in _HEADS else ".4g"
    return "-" if math.isnan(value) else f"{value:{sign}{digits}}"


def _here(row: Any, name: str) -> str:
    """Return a mean with its standard deviation, delta-m with its interval."""
    text, low = _number(row[name], name), row.get(f"{name}_low", math.nan)
    if not math.isnan(low):
        return f"{text} [{_number(low, name)}, {_number(row[f'{name}_high'], name)}]"
    deviation = row.get(f"{name}_sd", math.nan)
    return text if math.isnan(deviation) else f"{text} ± {_number(deviation, name)}"
