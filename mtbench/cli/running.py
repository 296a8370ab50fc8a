"""Running cells one after another and reporting on them."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mtbench import figures, leaderboard
from mtbench.cell import Request, initial_weights
from mtbench.cli.tables import print_board
from mtbench.engine import Engine
from mtbench.errors import RunError
from mtbench.progress import Display
from mtbench.rundir import RunDirectory
from mtbench.task import History
from mtbench.trainer import Trainer, draw, primary_metrics, resolve_device


def run_cells(
    task: str,
    methods: Sequence[str],
    given: dict[str, str],
    seeds: Sequence[int],
    device: str,
    precision: str,
    out: Path,
    *,
    fresh: bool,
    threads: int | None,
    engine: Callable[[], Engine],
    init: Path | None,
    diagnose: bool,
    plugins: Sequence[Path],
    options: Sequence[str],
) -> None:
    """Run every method at every seed, then print the table and write the report."""
    console = Console()
    request = Request.of(task, methods, given, plugins, options)
    where = resolve_device(device)
    _must_be_writable(out)
    digest, weights = None, None
    if init is not None:
        digest, weights = initial_weights(RunDirectory(init), request.task)
        console.print(f"start: {len(weights)} tensors of {init}", highlight=False)
    primary = primary_metrics(dict(request.task.metrics))
    runs: list[RunDirectory] = []
    pictures: list[Path] = []
    with Display(console, primary) as display:
        for seed in seeds:
            splits = request.task.setup(seed, display.prepare)
            notes = ", ".join(f"{k} {v}" for k, v in splits.notes.items())
            console.print(f"{task} seed {seed}: {notes}", highlight=False)
            for choice in request.choices:
                spec = request.spec(choice, splits, seed, precision, where, digest)
                if fresh:
                    shutil.rmtree(RunDirectory.at(out, spec).path)
                run = RunDirectory.at(out, spec)
                runs.append(run)
                if run.result() is None:
                    Trainer(
                        spec, request.task, splits, choice.method, run, display, threads,
                        weights, engine(), diagnose,
                    ).run()  # fmt: skip
                else:
                    console.print(f"{choice.method.name} seed {seed}: already finished, not run")
                # A finished cell that was killed before its figures gets them now.
                pictures += draw(run, request.task, splits, choice.method)
    cells = [History(run.spec().method, run.spec().seed, run.history()) for run in runs]
    overview = request.task.overview(cells, out / task)
    pictures = [*overview, *pictures]
    _report(console, runs, pictures, primary, out / task)


def _must_be_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"--out {out}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def _report(
    console: Console,
    runs: Sequence[RunDirectory],
    pictures: Sequence[Path],
    primary: Sequence[str],
    folder: Path,
) -> None:
    """Print the table; write report.md with the table and every picture."""
    boards = leaderboard.boards(runs)
    curves = figures.curves(runs, primary, folder / "curves.png")
    text = ["# mtbench report", ""]
    for board in boards:
        print_board(console, board)
        text.append(leaderboard.to_markdown(board))
    for picture in [*([curves] if curves else []), *pictures]:
        name = picture.relative_to(folder)
        text += [f"![{name}]({name})", "", f"*{name}*", ""]
    (folder / "report.md").write_text("\n".join(text), encoding="utf-8")
    console.print(f"report: {folder / 'report.md'}", soft_wrap=True, highlight=False)
    for run in runs:
        console.print(f"run:    {run.path}", soft_wrap=True, highlight=False)
    for picture in [*([curves] if curves else []), *pictures]:
        console.print(f"figure: {picture}", soft_wrap=True, highlight=False)
