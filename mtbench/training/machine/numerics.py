"""Numerical environment of a training process: threads, denormals, determinism, memory."""

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from joblib import cpu_count


@contextmanager
def deterministic() -> Iterator[None]:
    """Fix torch's numerics for one cell and give the caller's settings back afterwards.

    Denormals are flushed (they double a step on a CPU) and algorithms are deterministic where torch
    has a deterministic one.
    """
    threads = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()
    benchmark = torch.backends.cudnn.benchmark
    torch.set_flush_denormal(True)
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_flush_denormal(False)


def fastest_threads(work: Callable[[], object]) -> int:
    """Return the number of threads with which `work` runs fastest, and set it.

    One thread and all cores are timed in turns, best of three; more than one must win by 15 %,
    since a busy machine punishes waiting threads.
    """
    times: dict[int, float] = {1: float("inf"), cpu_count(): float("inf")}
    for _ in range(3 if len(times) > 1 else 0):
        for threads in times:
            torch.set_num_threads(threads)
            work()  # the first call after a change pays for starting the pool
            begin = time.perf_counter()
            work()
            times[threads] = min(times[threads], time.perf_counter() - begin)
    best = min(times, key=lambda threads: times[threads] * (1.15 if threads > 1 else 1))
    torch.set_num_threads(best)
    return best


def fair_threads() -> int:
    """Return this process's share of the machine's cores, where several were started together."""
    return max(1, int(cpu_count()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # Linux only: makes VmHWM start from the present size
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Return the peak since the reset in MiB: allocated on a GPU, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
    scale = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def hardware(device: torch.device) -> str:
    """Return the name of the processor that a device is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError, StopIteration):  # Linux; elsewhere the architecture
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return platform.processor() or platform.machine()
