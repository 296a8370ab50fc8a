"""Rows that are one method along one of its parameters: a dose, and what it does."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mtbench.comparing.judging.leaderboard.board import Board, headed
from mtbench.comparing.judging.leaderboard.cells import BUDGET, LARGEST, Recorded, is_number

FEWEST = 3
"""Values of a parameter that make a curve."""

DECADE = 10.0
"""From so large a ratio on, values are drawn on a logarithmic scale."""


@dataclass(frozen=True)
class Panel:
    """One quantity along the values.

    Attributes:
        title: what it is, with an arrow to where it is better.
        points: (values, 3), a mean and its 95 % interval, NaN where there is none.
        baseline: the baseline's mean, NaN without one.
    """

    title: str
    points: NDArray[np.float64]
    baseline: float


@dataclass(frozen=True)
class Along:
    """A method's variants.

    Attributes:
        method: its name.
        parameter: in which they differ, and in nothing else that is fixed.
        values: of it, ascending.
        rows: what the variants are called.
        panels: delta-m where it is known, and each primary metric.
    """

    method: str
    parameter: str
    values: list[float]
    rows: list[str]
    panels: list[Panel]

    @property
    def logarithmic(self) -> bool:
        """Whether the values are to be drawn so."""
        return self.values[0] > 0 and self.values[-1] >= DECADE * self.values[0]


def along(board: Board) -> list[Along]:
    """Return the curves of a board: rows of one method that differ in one number alone.

    Of a suite it is what the suite fixes (``set``): other parameters are tuned in each row. A row
    may be on several curves, one for each parameter.
    """
    families: dict[tuple[str, ...], dict[str, float]] = {}
    for name, cells in board.cells.items():
        spec, fixed = cells[0].spec, _fixed(board, name, cells)
        for parameter, value in fixed.items():
            rest = json.dumps([{**fixed, parameter: None}, {k: spec.recipe[k] for k in BUDGET}],
                              sort_keys=True)  # fmt: skip
            if is_number(value) and abs(value) < LARGEST:
                families.setdefault((spec.method, parameter, rest), {})[name] = float(value)
    found = []
    for (method, parameter, _), rows in families.items():
        if len(rows) >= FEWEST and len({*rows.values()}) == len(rows):
            names = sorted(rows, key=lambda name: rows[name])
            values = [rows[name] for name in names]
            found.append(Along(method, parameter, values, names, _panels(board, names)))
    return found


def _fixed(board: Board, name: str, cells: list[Recorded]) -> Mapping[str, Any]:
    """Return the parameters that a row has in all its cells, by what is on record."""
    if board.suite is None:
        spec = cells[0].spec
        rest = spec.model_dump(include={"init", "device", "plugins"})
        recipe = {f"recipe.{k}": v for k, v in spec.recipe.items()}
        return spec.method_params | recipe | {"cell.": rest}
    claims = cells[0].claimed(board.suite, name)
    return claims[0].fixed if claims else {}


def _panels(board: Board, names: list[str]) -> list[Panel]:
    table = board.rows.set_index("method")
    base = {} if board.baseline is None else table.loc[board.baseline].to_dict()
    panels = []
    if table.loc[names, "delta_m"].notna().all():
        points = table.loc[names, ["delta_m", "delta_m_low", "delta_m_high"]].to_numpy(float)
        panels.append(Panel("Δm % ↓", points, base.get("delta_m", math.nan)))
    resplit = 0.0 if board.suite is None else board.suite.resplit or 0.0
    for metric, higher in board.primary.items():
        mean, sd = (table.loc[names, key].to_numpy(float) for key in (metric, f"{metric}_sd"))
        # Cells of one unit share its choice of parameters, or its data.
        n = table.loc[names, ["seeds", "units"]].min(axis=1).to_numpy(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = stats.t.isf(0.025, n - 1) * sd * np.sqrt(1 / n + resplit)
        points = np.stack([mean, mean - reach, mean + reach], axis=1)
        panels.append(Panel(headed(metric, higher), points, base.get(metric, math.nan)))
    return panels
