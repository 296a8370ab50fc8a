"""Processes of their own for tests, forked from one server: torch is imported once, not by each."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

from mtbench.cli import main
from mtbench.comparing.running.executors import PRELOADED

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([*PRELOADED, "mtbench.cli.tuning", "mtbench.cli.running"])


class Command:
    """The command line in a session of its own; asked as a `subprocess.Popen` is."""

    def __init__(self, *line: object) -> None:
        self._folder = Path(tempfile.mkdtemp())  # stays where a test fails before the end is asked
        self._process = PROCESSES.Process(target=_command, args=(self._folder, [*map(str, line)]))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.kill = self._process.kill

    @property
    def returncode(self) -> int | None:
        """Return how it has ended; less than 0 is by a signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return how it has ended, None where it has not."""
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; return its output and errors."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it does not end"
        found = [(self._folder / name).read_text() for name in ("out", "err")]
        shutil.rmtree(self._folder)
        return found[0], found[1]


def _command(folder: Path, line: list[str]) -> None:
    os.setsid()
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with (folder / name).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("error", UserWarning)
    os.environ["COLUMNS"] = "160"
    sys.argv = ["mtbench", *line]
    main()
