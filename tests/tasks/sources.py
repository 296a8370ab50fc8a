"""What the tests of the data sources have in common."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtbench_tasks._lesion.cases import Collection

Mtbench = Callable[..., tuple[int, str, str]]
SMALL = ("--image-size", 32, "--width", 2, "--epochs", 1, "--threads", 1, "--set", "batch_size=16")
METHODS = ("ew", "rlar")
"""One on losses, one on features too: a source is another data, not another network."""
ALL_KINDS = ("ew", "uw", "cagrad", "rlar")
"""What one source trains, for all that have this network."""


def silent(what: str, done: int, total: int) -> None: ...


def count(collection: Collection, what: str) -> int:
    """Return the number that a source's report gives."""
    return next(n for n, said, _ in collection.report if said == what)


def trained(
    mtbench: Mtbench, out: Path, *line: Any, methods: Sequence[str] = METHODS
) -> list[dict[str, Any]]:
    """Train at the smallest size; return the results."""
    chosen = (word for method in methods for word in ("-m", method))
    code, _, err = mtbench("run", *line, *SMALL, *chosen, "--out", out)
    assert (code, err) == (0, "")
    results: list[dict[str, Any]] = [json.loads(f.read_text()) for f in out.rglob("result.json")]
    assert {result["method"] for result in results} == set(methods)
    assert {result["status"] for result in results} == {"finished"}
    return results


def shown(mtbench: Mtbench, picture: Path, source: str, *line: Any) -> str:
    """Draw a source; return what `inspect` prints of it."""
    code, out, err = mtbench("data", "inspect", source, *line)
    assert (code, err) == (0, "")
    assert mtbench("data", "preview", source, *line, "--to", picture)[0] == 0
    assert picture.stat().st_size > 10_000
    return out
