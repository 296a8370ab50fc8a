"""Measurements as tidy CSV and as tables."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mtbench.errors import RunError
from mtbench_speed.measure import Row

OTHERS = {"step": "; others / plain", "aggregation": "; others / products", "memory": ""}
MICROSECONDS = "; microseconds"
ABSENT = Row("", "", 0, None, 0, "", "")


class Table(NamedTuple):
    """A table of text, its first column the names."""

    title: str
    header: list[str]
    cells: list[list[str]]


def write(path: Path, rows: Sequence[Row], environment: Mapping[str, object]) -> None:
    """Write one line per measured contestant; `environment` becomes columns too.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*(f.name for f in fields(Row)), *environment])
            writer.writeheader()
            writer.writerows(asdict(row) | dict(environment) for row in rows)
    except OSError as error:
        raise RunError(f"--out {path}: cannot be written ({error.strerror})") from error


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return one table per measurement, model and K."""

    def key(row: Row) -> tuple[str, str, int, int | None, int]:
        return row.what, row.model, row.parameters, row.batch, row.objectives

    found = []
    for (what, model, size, batch, K), group in groupby(rows, key):
        where = f"{model} ({size / 1e6:.2g} M), batch {batch}, " if model else ""
        if what == "aggregation":
            where = f"d = {size:,}, "
        make = {"step": _steps, "memory": _memory, "aggregation": _aggregations}.get(what, _solvers)
        header, cells = make(list(group))
        found.append(
            Table(f"{what}: {where}K = {K}{OTHERS.get(what, MICROSECONDS)}", header, cells)
        )
    return found


def _number(value: float | None, factor: float = 1.0) -> str:
    if value is None:
        return ""
    value *= factor
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _by_method(rows: Sequence[Row]) -> tuple[dict[str, dict[str, Row]], list[str]]:
    """Return the rows by method and implementation, and the peers that appear."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.method:
            found.setdefault(row.method, {})[row.by] = row
    others = dict.fromkeys(row.by for row in rows if row.method and row.by != "mtbench")
    return found, list(others)


def _of(by: Mapping[str, Row], who: str) -> Row:
    return by.get(who, ABSENT)


def _steps(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    methods, others = _by_method(rows)
    header = ["method", "ms", "/ plain", "/ floor", *others]
    references = {row.by: row for row in rows if not row.method}  # the last heat's
    cells = [
        [by, _number(row.seconds, 1e3), _times(row.over_plain), _times(row.over_floor)]
        + [""] * (len(others) + 1)
        for by, row in references.items()
    ]
    for name, by in methods.items():
        cells.append(
            [
                name,
                _number(_of(by, "mtbench").seconds, 1e3),
                _times(_of(by, "mtbench").over_plain),
                _times(_of(by, "mtbench").over_floor),
                *(_times(_of(by, other).over_plain) for other in others),
                _times(_of(by, "mtbench").over_peer),
            ]
        )
    return [*header, "/ fastest peer"], cells


def _solvers(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    methods, others = _by_method(rows)
    cells = [
        [
            name,
            *(_number(_of(by, who).seconds, 1e6) for who in ("mtbench", *others)),
            _times(_of(by, "mtbench").over_peer),
        ]
        for name, by in methods.items()
    ]
    return ["method", "mtbench", *others, "/ fastest peer"], cells


def _aggregations(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    methods, others = _by_method(rows)
    products = [row for row in rows if not row.method][-1]  # the last heat's
    cells = [[products.by, _number(products.seconds, 1e3), "1.00", *[""] * (len(others) + 1)]]
    for name, by in methods.items():
        cells.append(
            [
                name,
                _number(_of(by, "mtbench").seconds, 1e3),
                _times(_of(by, "mtbench").over_floor),
                *(_times(_of(by, other).over_floor) for other in others),
                _times(_of(by, "mtbench").over_peer),
            ]
        )
    header = ["method", "ms", "/ products", *others]
    return [*header, "/ fastest peer"], cells


def _memory(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    jacobian = rows[0].objectives * rows[0].parameters * 4 / 2**20
    cells = [
        [
            f"{row.method} ({row.by})" if row.method else row.by,
            _number(row.mib),
            _number(row.mib_over_plain),
            _times((row.mib_over_plain or 0) / jacobian),
        ]
        for row in rows
    ]
    return ["contestant", "MiB above the model", "over plain", "over plain / Jacobian"], cells


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.header, rule, *table.cells)]
    return "\n".join([f"### {table.title}", "", *lines, ""])
