"""Peak memory of a step, each contestant in a process of its own.

``python -m mtbench_speed.memory JSON`` is such a process; it prints MiB above the model.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.engine import Engine
from mtbench.plugins.method import Method
from mtbench.training.machine import numerics
from mtbench.training.machine.device import use_device
from mtbench_speed import peers
from mtbench_speed.contestants import Run, floor, ours, plain
from mtbench_speed.measure import Row, Settings
from mtbench_speed.models import Problem
from mtbench_speed.timing import settled

PARTS = 4
TINY = 8  # width of the model that loads all code before anything is measured
HELD = f"mtbench, {PARTS} parts"
AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}  # memory given back


def memory(settings: Settings) -> Iterator[Row]:
    """Measure plain, floor, and the methods by every implementation."""
    for model in settings.models:
        for K in settings.objectives:
            problem = settings.problem(model, K)
            size, batch = problem.parameters, problem.batch
            del problem
            base = 0.0
            for by, method in _contestants(settings, Problem.of(model, K, "cpu", TINY, 1)):
                settings.say(f"memory: {model}, K = {K}: {by} {method}")
                found = _measured(settings, model, K, by, method)
                if found is None:
                    continue
                if by == "plain":
                    base = found
                yield Row(
                    "memory", model, size, batch, K, method, by,
                    mib=found, mib_over_plain=found - base,
                )  # fmt: skip


def _contestants(settings: Settings, tiny: Problem) -> Iterator[tuple[str, str]]:
    yield "plain", ""
    yield "floor", ""
    for method in settings.methods:
        yield "mtbench", method.name
        if issubclass(method.classes[-1], Weighting):
            yield HELD, method.name
        for by, make in peers.PEERS.items():
            if settings.made(f"memory, {by}", method, partial(make, tiny, method.name)):
                yield by, method.name


def _measured(settings: Settings, model: str, K: int, by: str, method: str) -> float | None:
    """Return MiB; None, and a note, where it raises."""
    job = {
        "by": by, "method": method, "model": model, "objectives": K,
        "device": str(torch.empty(0, device=settings.device).device),  # which of several, too
        "threads": settings.threads, "batched": settings.batched, "width": settings.width,
        "batch": settings.batch, "precision": settings.precision,
    }  # fmt: skip
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", __name__, json.dumps(job)],
        capture_output=True, text=True, check=False, env=os.environ | AT_ONCE,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        settings.notes.append(f"memory, {model}, K = {K}: {by}, {method}: raises {last[:120]}")
        return None
    return float(done.stdout)


def _make(problem: Problem, by: str, method: str, engine: Engine) -> Run:
    if by == "plain":
        return plain(problem)
    if by == "floor":
        return floor(problem)
    peer = peers.PEERS[by](problem, method) if by in peers.PEERS else None
    return peer or ours(problem, Method.find(method), engine)


def _peak(
    by: str, method: str, model: str, objectives: int, device: str, batched: bool | None,
    width: int | None, batch: int | None, precision: str,
) -> float:  # fmt: skip
    _make(Problem.of(model, objectives, device, TINY, batch, precision), by, method, Engine())(0)
    problem = Problem.of(model, objectives, device, width, batch, precision)
    choice = Engine(batched=batched)
    _make(problem, by, method, choice)(0)  # the engine chooses: what that takes is not measured
    engine = Engine(batched=choice.batched, parts=PARTS if by == HELD else 1)
    run = _make(problem, by, method, engine)
    plain(problem)(0)
    gc.collect()
    where = torch.device(device)
    numerics.reset_peak_memory(where)
    base = numerics.peak_memory(where)
    for at in range(2):
        run(at)
    return numerics.peak_memory(where) - base


def _main(job: dict[str, Any]) -> None:
    use_device(job["device"])
    with settled(job.pop("threads")):
        print(_peak(**job))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
