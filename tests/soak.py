"""Kill training at random moments, go on, and compare with runs that nobody disturbed.

Every file must be the same bit for bit, but for what was timed. From the checkout's root:

    python -m tests.soak --kills 50
"""

import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from mtbench.balancing.engine import Engine
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.trainer.observer import Silent
from mtbench.training.trainer.trainer import Trainer
from tests.conftest import TINY
from tests.methods import METHODS
from tests.processes import PROCESSES

TASKS = {
    "tiny": {"epochs": "3", "missing": "true"},
    "digits": {"epochs": "2", "batch_size": "256"},
    "thyroid": {"epochs": "2", "cases": "24", "image_size": "32", "width": "4"},
    "dtlz2": {"epochs": "3"},
}
PER_CELL = 3


@dataclass(frozen=True)
class Cell:
    """What is trained, and where."""

    task: str
    method: str
    out: Path

    def train(self) -> None:
        """Start, or go on, with a checkpoint after every step."""
        plugins = [TINY] if self.task == "tiny" else []
        request = Request.of(self.task, [self.method], TASKS[self.task], plugins)
        splits = request.task.setup(0, lambda *_: None)
        spec = request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")
        run = RunDirectory.at(self.out, spec)
        with run.claim():
            Trainer(
                spec, request.task, splits, request.choices[0].method, run, Silent(), 1, None,
                Engine(batched=False), checkpoint_seconds=0.0,
            ).run()  # fmt: skip

    def run(self, kill_after: float | None = None) -> bool:
        """Train in a process of its own; return whether it was killed."""
        process = PROCESSES.Process(target=self.train)
        process.start()
        process.join(kill_after)
        killed = process.is_alive()
        process.kill()
        process.join()
        if not killed and process.exitcode:
            raise RuntimeError(f"{self}: ended with exit code {process.exitcode}")
        return killed

    @property
    def directory(self) -> Path:
        """The cell's run directory."""
        [spec] = self.out.rglob("spec.json")
        return spec.parent


def differences(one: Path, two: Path) -> Iterator[str]:
    """Yield the parts of two run directories that are not the same."""
    for name in ("test.json", "epochs.jsonl", "steps.csv"):
        if (one / name).read_bytes() != (two / name).read_bytes():
            yield name
    results = [json.loads((path / "result.json").read_text()) for path in (one, two)]
    for result in results:
        del result["cost"], result["times"]
    if repr(results[0]) != repr(results[1]):  # NaN equals itself
        yield "result.json"
    for name in ("best.pt", "checkpoint.pt"):
        left, right = (RunDirectory(path).load(name) or {} for path in (one, two))
        for state in (left, right):
            state.pop("step_seconds", None)
            for timed in ("seconds", "peak_mib", "started"):
                state.get("progress", {}).pop(timed, None)
        if not same(left, right):
            yield name


def same(one: Any, two: Any) -> bool:
    """Return whether two states agree in every bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(_bits(one), _bits(two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.flatten()


def main(
    kills: Annotated[int, typer.Option(help="How often to kill, at least.")] = 50,
    method: Annotated[list[str] | None, typer.Option(help="All by default.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="All by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill runs, and fail if one ends otherwise than its undisturbed twin."""
    moments = random.Random(seed)
    wanted = [(t, m) for t in task or TASKS for m in method or METHODS]
    moments.shuffle(wanted)
    made, cells, failed = 0, 0, 0
    for name, each in wanted:
        with tempfile.TemporaryDirectory() as folder:
            whole, broken = Cell(name, each, Path(folder, "a")), Cell(name, each, Path(folder, "b"))
            begin = time.monotonic()
            whole.run()
            length = time.monotonic() - begin
            here = 0
            while here < PER_CELL:
                if broken.run(moments.uniform(0, length)):
                    here += 1
                elif here:
                    break
                else:  # was faster than its twin
                    shutil.rmtree(broken.out)
                    length /= 2
            broken.run()
            found = list(differences(whole.directory, broken.directory))
        typer.echo(f"{name} {each}: {here} kills, {', '.join(found) or 'bit-identical'}")
        made, cells, failed = made + here, cells + 1, failed + bool(found)
        if made >= kills:
            break
    typer.echo(f"{made} kills in {cells} cells, {failed} of them with differences")
    raise typer.Exit(int(failed > 0 or made < kills))


if __name__ == "__main__":
    typer.run(main)
