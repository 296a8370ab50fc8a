"""Processes of their own for tests, forked from one server: torch is imported once, not by each."""

import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from mtbench.cli import main
from mtbench.comparing.running.executors import PRELOADED

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([*PRELOADED, "mtbench.cli.tuning", "mtbench.cli.running"])


class Command:
    """The command line in a session of its own; asked as a `subprocess.Popen` is.

    Args:
        line: its words.
        program: what is called with them, such as pytest's.
        forks: whether the server of a sweep is forked too, and not a fresh Python.
    """

    def __init__(
        self, *line: object, program: Callable[[], object] = main, forks: bool = True
    ) -> None:
        self._folder = Path(tempfile.mkdtemp())  # stays where a test fails before the end is asked
        words = [*map(str, line)]
        self._process = PROCESSES.Process(
            target=_command, args=(self._folder, words, program, forks)
        )
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


def _command(folder: Path, line: list[str], program: Callable[[], object], forks: bool) -> None:
    os.setsid()
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with (folder / name).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("error", UserWarning)
    if forks:
        multiprocessing.util.spawnv_passfds = _forked  # type: ignore[assignment]
    os.environ["COLUMNS"] = "160"
    sys.argv = ["mtbench", *line]
    code = program()
    assert isinstance(code, int)
    sys.exit(code)


def _forked(_path: str, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Start a sweep's fork server: what a fresh Python takes five seconds to import is here.

    What is pinned before torch is imported, and what a plugin file left in the parent, is tested by
    sweeps in the tests' own process, which start a fresh one.
    """
    if child := os.fork():
        return child
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for fd, following in pairwise(sorted({2, *passed, os.sysconf("SC_OPEN_MAX")})):
        os.closerange(fd + 1, following)  # as a new program has them
    try:
        exec(arguments[-1])
    except Exception:
        traceback.print_exc()
        os._exit(1)
    finally:  # SystemExit is how it ends, and Ctrl-C reaches it, too
        os._exit(0)
