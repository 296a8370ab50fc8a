"""Locks on files: the kernel releases one when its holder ends, however it ends."""

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtbench.errors import RunError

ATTEMPTS = 3
"""How often a lock is tried: who looks for its holder has it for some microseconds."""

PAUSE = 0.005
"""Seconds between two attempts."""


class HeldError(RunError):
    """Another process holds the lock."""


class Lock:
    """A lock that one process, and one thread of it, can hold.

    It is BSD's ``flock``: unlike POSIX's ``lockf`` it is not lost when the process closes another
    descriptor of the file. Linux makes it the server's business on NFS, so it holds across
    machines; when a machine dies there, the server frees it after its lease time.

    Args:
        file: is made when it is absent, and never removed: who holds a file that others no longer
            find holds nothing.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def hold(self, what: str, *, wait: bool = False) -> Iterator[None]:
        """Hold the lock.

        Args:
            what: that is locked, for the error's text.
            wait: for it to become free.

        Raises:
            HeldError: another holds it, and `wait` is not set.
            RunError: the file cannot be written, or its file system has no locks.
        """
        try:
            # Not buffered: a disk that is full must not keep the lock from being held.
            stream = self.file.open("a+b", buffering=0)
        except OSError as error:
            raise RunError(
                f"{self.file}: cannot be written ({error.strerror}); choose another --out"
            ) from error
        with stream:
            if not self._take(stream.fileno(), wait):
                raise HeldError(
                    f"{what}: {self.holder() or 'another process'} works on it; wait for that, or "
                    "end it"
                )
            with suppress(OSError):
                stream.truncate(0)
                stream.write(f"process {os.getpid()} on {platform.node()}".encode())
            yield

    def _take(self, descriptor: int, wait: bool) -> bool:
        try:
            if wait:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                return True
            for attempt in range(ATTEMPTS):
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                if attempt < ATTEMPTS - 1:
                    time.sleep(PAUSE)
        except OSError as error:
            raise RunError(
                f"{self.file}: its file system has no locks ({error.strerror}); choose an --out on "
                "one that has"
            ) from error
        return False

    def holder(self) -> str | None:
        """Return who holds the lock; None if nobody does, or can, for there may be no locks."""
        with suppress(OSError), self.file.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return stream.read().decode(errors="replace") or "another process"
        return None
