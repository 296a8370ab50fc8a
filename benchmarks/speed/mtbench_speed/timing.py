"""The clock: everybody runs once a round, in an order drawn anew."""

import gc
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from mtbench_speed.contestants import Contestant

Key = TypeVar("Key")
WARM_UP = 2


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """Fix the number of threads, flush denormals (they double a step), and undo both afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


def now(device: str) -> float:
    """Return the time, after all that the device has been given to do.

    Where a single CPU thread works it is processor time: what other programs take does not count.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def race(
    contestants: Sequence[Contestant], rounds: int, device: str, left_out: list[str]
) -> dict[Contestant, list[float]]:
    """Return the seconds of every contestant in every round.

    Args:
        contestants: who runs; those that raise while warming up are left out.
        rounds: how many.
        device: whose work is waited for.
        left_out: is told who is left out, and why.
    """
    seconds: dict[Contestant, list[float]] = {}
    for contestant in contestants:
        try:
            for at in range(WARM_UP):
                contestant.run(at)
        except Exception as error:  # a peer's that raises is a finding, no end of the measurement
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            left_out.append(f"{contestant.by}, {contestant.method}: raises {reason}")
        else:
            seconds[contestant] = []
    order, draw = list(seconds), random.Random(0)  # noqa: S311 - no secret
    gc.disable()
    try:
        for at in range(rounds):
            gc.collect()
            draw.shuffle(order)
            for contestant in order:
                begin = now(device)
                contestant.run(at)
                seconds[contestant].append(now(device) - begin)
    finally:
        gc.enable()
    return seconds


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median over rounds of the ratio of two contestants' times."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))
