"""Running cells one after another and reporting on them."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from mtbench.balancing.engine import Engine
from mtbench.cli.display import Display
from mtbench.cli.tables import print_boards
from mtbench.cli.terminal import terminal
from mtbench.comparing.judging import leaderboard
from mtbench.errors import writable
from mtbench.training.cell.request import Request, initial_weights
from mtbench.training.cell.rundir import Precision, Reader, RunDirectory
from mtbench.training.machine.device import resolve_device
from mtbench.training.machine.processes import joined
from mtbench.training.task import History
from mtbench.training.trained import figures
from mtbench.training.trained.model import conclude
from mtbench.training.trainer.evaluation import primary_metrics
from mtbench.training.trainer.trainer import Trainer


def run_cells(
    task: str,
    methods: Sequence[str],
    given: dict[str, str],
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
    options: Sequence[str],
) -> list[RunDirectory]:
    """Run every method at every seed, print the table, write the report; return the cells."""
    request = Request.of(task, methods, given, plugins, options)
    where = resolve_device(device)
    primary = primary_metrics(request.task.metrics)
    start, digest, weights = None, None, None
    runs: list[RunDirectory] = []
    pictures: list[Path] = []
    with (
        joined(where) as ranks,
        Display(console := terminal(quiet=ranks.rank > 0), primary) as display,
    ):
        with ranks.in_turn():
            _must_be_writable(out)
        if init is not None:
            start = initial_weights(init, request.task)
            digest, weights = start.digest, start.tensors
            console.print(f"start: {start.summary()}")
        for seed in seeds:
            with ranks.in_turn():  # the others find caches filled
                splits = request.task.setup(seed, display.prepare)
            notes = ", ".join(f"{k} {v}" for k, v in splits.notes.items())
            console.print(f"{task} seed {seed}{f': {notes}' if notes else ''}")
            for choice in request.choices:
                spec = request.spec(choice, splits.fingerprint, seed, precision, where, digest)
                with ranks.in_turn():
                    run = RunDirectory.at(out, spec)
                runs.append(run)
                with nullcontext() if ranks.rank else run.claim():
                    if fresh and not ranks.rank:
                        run.clear()
                    if start is not None and not ranks.rank:
                        run.write_text("init.json", json.dumps(start.record(), indent=2))
                    with ranks.in_turn():
                        finished = run.result() is not None
                    if finished:
                        done = f"{choice.method.name} seed {seed}: already finished, not run"
                        console.print(done)
                    else:
                        own = Reader(run.path) if ranks.rank else run
                        Trainer(
                            spec, request.task, splits, choice.method, own, display,
                            threads=threads, init=weights, engine=engine(), diagnose=diagnose,
                            ranks=ranks,
                        ).run()  # fmt: skip
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
