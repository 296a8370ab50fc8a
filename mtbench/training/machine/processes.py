"""Several processes that train one cell: how they are started, and how they find each other."""

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from mtbench.balancing.distributed import ALONE, GRACE, Group, LostError, Ranks
from mtbench.errors import MtbenchError, RunError, UsageError


def started() -> bool:
    """Return whether this process is one of several that ``torchrun`` or `launch` started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes started with this one, by gloo on the CPU and by NCCL between GPUs.

    Args:
        device: where this cell trains: ``cpu``, or ``cuda`` for one GPU per process.

    Raises:
        UsageError: the device cannot be shared out.
    """
    if not started():
        yield ALONE
        return
    from torch import distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: several processes train on cpu or cuda, one GPU each")
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"--device cuda: {torch.cuda.device_count()} GPUs cannot be shared out to more "
                "processes; start fewer, or use --device cpu"
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    ranks = Group()
    try:
        yield ranks
    except MtbenchError as error:
        if ranks.rank or isinstance(error, LostError):
            time.sleep(GRACE)
        raise
    finally:
        distributed.destroy_process_group()


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run ``mtbench ARGUMENTS`` in several processes of this machine; rank 0 talks for all.

    Raises:
        RunError: one of them was killed, or failed where rank 0 did not.
        SystemExit: rank 0 failed, and has said why.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # it says all at length
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="mtbench",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(folder, dict.fromkeys(range(1, processes), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "mtbench", *arguments)
        except SignalException as error:  # Ctrl-C, or SIGTERM, which it has handed on
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            failures = error.failures
            told = failures.get(0)
            if told is not None and told.exitcode > 0:
                sys.exit(told.exitcode)
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                reason = f"was killed by {name}; the same command goes on from the last checkpoint"
            else:
                logs = sorted(Path(folder).rglob(f"{rank}/stderr.log"))
                lines = logs[-1].read_text().splitlines() if logs else []
                reason = f"failed: {lines[-1] if lines else f'exit code {failure.exitcode}'}"
            raise RunError(f"process {rank} of {processes} {reason}") from error
