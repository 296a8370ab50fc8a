"""Tables that people open in a spreadsheet."""

from pathlib import Path
from typing import Any

import pandas as pd

from mtbench import inert


def write(table: pd.DataFrame, file: Path, decimals: str | None = None) -> None:
    """Write a table as CSV in which no text of others is a formula.

    Args:
        table: its index is left out.
        file: what is written.
        decimals: the format of numbers, such as ``%.4f``; in full where None.
    """

    def cell(found: Any) -> Any:
        return inert.spreadsheet(found) if isinstance(found, str) else found

    table.map(cell).to_csv(file, index=False, float_format=decimals)
