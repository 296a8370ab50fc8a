"""Running cells one after another and reporting on them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from mtbench import inert
from mtbench.balancing.engine import Engine
from mtbench.cli.display import Display
from mtbench.cli.tables import print_boards
from mtbench.cli.terminal import terminal
from mtbench.comparing.judging import leaderboard
from mtbench.errors import UsageError, writable
from mtbench.training.cell.config import Chosen
from mtbench.training.cell.request import Request, initial_weights
from mtbench.training.cell.rundir import Precision, Reader, RunDirectory
from mtbench.training.machine.device import device_type, use_device
from mtbench.training.machine.processes import joined
from mtbench.training.task import History, is_texts
from mtbench.training.trained import figures
from mtbench.training.trained.model import conclude
from mtbench.training.trained.package import fitted
from mtbench.training.trainer.evaluation import primary_metrics
from mtbench.training.trainer.trainer import Trainer

_SHOWN = 10
"""Texts of one note that are printed; the record has all."""


def run_cells(
    request: Request,
    seeds: Sequence[int],
    device: str,
    precision: Precision,
    out: Path,
    *,
    fresh: bool,
    threads: int | None,
    engine: Callable[[], Engine],
    init: Path | None,
    diagnose: bool,
    plugins: Sequence[Path],
    chosen: Mapping[str, Chosen] = MappingProxyType({}),
    one_table: bool = False,
) -> list[RunDirectory]:
    """Run every method at every seed, print the table, write the report; return the cells.

    What is `chosen` of a method, how its parameters were tuned, is noted beside its cells.

    Raises:
        UsageError: for `one_table`, where seeds have data of their own, before any is trained.
    """
    request.recipe.refuse_precision(precision)
    task, where = request.entry.name, device_type(device)
    primary = primary_metrics(request.task.metrics)
    start, digest, weights = None, None, None
    runs: list[RunDirectory] = []
    pictures: list[Path] = []
    with (
        # A number names one GPU, and each process has one of its own.
        joined(where if device == "auto" else device) as ranks,
        Display(console := terminal(quiet=ranks.rank > 0), primary) as display,
    ):
        use_device(device)
        with ranks.in_turn():
            _must_be_writable(out)
        if init is not None:
            start = initial_weights(init, request.task)
            digest, weights = start.digest, start.tensors
            request.task.begin(fitted(init, task))
            console.print(f"start: {start.summary()}")
        last = None
        if one_table and len(seeds) > 1:
            with ranks.in_turn():
                last = request.task.setup(seeds[-1], display.prepare).fingerprint
        for seed in seeds:
            with ranks.in_turn():  # the others find caches filled
                splits = request.task.setup(seed, display.prepare)
            if last not in (None, splits.fingerprint):
                raise UsageError(
                    f"the data of {task} is another for each seed, so what is trained makes no one "
                    "table: say --seeds 1"
                )
            for line in _said(f"{task} seed {seed}", splits.notes):
                console.print(inert.plain(line), soft_wrap=True)
            for choice in request.choices:
                spec = request.spec(choice, splits.fingerprint, seed, precision, where, digest)
                with ranks.in_turn():
                    run = RunDirectory.at(out, spec)
                runs.append(run)
                with nullcontext() if ranks.rank else run.claim():
                    if fresh and not ranks.rank:
                        run.clear()
                    if choice.method.name in chosen and not ranks.rank:
                        chosen[choice.method.name].write(run)
                    if start is not None and not ranks.rank:
                        run.write_text("init.json", json.dumps(start.record(), indent=2))
                    with ranks.in_turn():
                        finished = run.result() is not None
                    if finished:
                        done = f"{choice.method.name} seed {seed}: already finished, not run"
                        console.print(done)
                    else:
                        own = Reader(run.path) if ranks.rank else run
                        made = Trainer(
                            spec, request.task, splits, choice.method, own, display,
                            threads=threads, init=weights, engine=engine(), diagnose=diagnose,
                            ranks=ranks,
                        ).run()  # fmt: skip
                        # Alike for all that are trained now: another number adds in another order.
                        threads = threads or made["environment"]["threads"]
                    # A finished cell that was killed before this gets it now.
                    if not ranks.rank:
                        run.drop_checkpoint()
                        pictures += conclude(run, request.task, splits, choice.method)
    if ranks.rank:
        return runs
    cells = [History(run.spec().method, run.spec().seed, run.history()) for run in runs]
    overview = request.task.overview(cells, out / task)
    pictures = [*overview, *pictures]
    _report(console, runs, pictures, primary, out / task, plugins)
    return runs


def _said(head: str, notes: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line of what is short in a task's notes, and a line for each longer thought."""
    short = ", ".join(f"{key} {value}" for key, value in notes.items() if not is_texts(value))
    yield f"{head}: {short}" if short else head
    for key, texts in notes.items():
        if is_texts(texts):
            yield from (f"{key}: {text}" for text in texts[:_SHOWN])
            if left := texts[_SHOWN:]:
                yield f"{key}: and {len(left)} more"


def _must_be_writable(out: Path) -> None:
    with writable(f"--out {out}", "choose another folder"):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()


def _report(
    console: Console,
    runs: Sequence[RunDirectory],
    pictures: Sequence[Path],
    primary: Sequence[str],
    folder: Path,
    plugins: Sequence[Path],
) -> None:
    """Print the table; write report.md with the table and every picture."""
    boards = leaderboard.boards(runs)
    curves = figures.curves(runs, primary, folder / "curves.png")
    text = ["# mtbench report", ""]
    print_boards(console, boards, plugins=plugins)
    text += map(leaderboard.to_markdown, boards)
    for picture in [*([curves] if curves else []), *pictures]:
        name = picture.relative_to(folder)
        text += [f"![{name}]({name})", "", f"*{name}*", ""]
    (folder / "report.md").write_text("\n".join(text), encoding="utf-8")
    console.print(f"report: {folder / 'report.md'}", soft_wrap=True)
    for run in runs:
        console.print(f"run:    {run.path}", soft_wrap=True)
    for picture in [*([curves] if curves else []), *pictures]:
        console.print(f"figure: {picture}", soft_wrap=True)
