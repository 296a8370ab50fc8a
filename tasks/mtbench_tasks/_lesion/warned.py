"""What libraries warn of while a file is read, by several threads at once."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_LOCK = threading.Lock()
_HERE = threading.local()
_outside = ExitStack()
_within = 0  # threads, or levels of one


@contextmanager
def heard() -> Iterator[list[str]]:
    """Yield a list that gets what is warned of in this thread; nothing is printed.

    `warnings.catch_warnings` is of the whole process: of several threads one would get another's
    warnings, and the last to leave would put back what another one had put in. So the first thread
    enters it for all, and the last one leaves it. Meanwhile no warning of the process is shown, of
    whatever thread.

    >>> with heard() as said:
    ...     warnings.warn("tag 258 is cut off", stacklevel=1)
    >>> said
    ['tag 258 is cut off']
    """
    global _within
    said: list[str] = []
    with _LOCK:
        if not _within:
            _outside.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            warnings.showwarning = _hear
        _within += 1
    before, _HERE.said = getattr(_HERE, "said", []), said
    try:
        yield said
    finally:
        _HERE.said = before
        with _LOCK:
            _within -= 1
            if not _within:
                _outside.close()


def _hear(message: Warning | str, *_: Any, **__: Any) -> None:
    """Stand in for `warnings.showwarning`."""
    getattr(_HERE, "said", []).append(str(message))
