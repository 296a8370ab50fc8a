"""What the fuzz tests share: a budget, a time limit, damage to bytes, and the property.

`MTBENCH_FUZZ=long pytest tests/fuzz` draws a hundred times as many examples, at random.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mtbench.errors import MtbenchError

LONG = os.environ.get("MTBENCH_FUZZ") == "long"
SECONDS = 20  # an example takes milliseconds; the machine may be busy

Found = TypeVar("Found")


def budget(examples: int) -> settings:
    """Return settings that draw the same examples each time, unless the long profile is wanted."""
    return settings(
        max_examples=examples * (100 if LONG else 1),
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def in_time() -> Iterator[None]:
    """Fail what hangs, such as a pipe that nobody writes to."""

    def late(*_: object) -> None:
        raise AssertionError(f"still not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def told(call: Callable[[], Found]) -> Found | str:
    """Return what a call returns, or what it tells the user; anything else is raised."""
    with in_time():
        try:
            return call()
        except MtbenchError as error:
            text = " ".join(str(error).split())
            assert text
            return text


@st.composite
def damaged(draw: st.DrawFn, good: bytes, head: int = 200) -> bytes:
    """Draw a file that was cut off, or of which a few bytes are others, mostly near its head."""
    raw = bytearray(good)
    if draw(st.integers(0, 3)) == 0:
        raw = raw[: draw(st.integers(0, len(raw)))]
    for _ in range(draw(st.integers(0, 5))):
        if raw:
            last = min(len(raw), head if draw(st.booleans()) else len(raw)) - 1
            raw[draw(st.integers(0, last))] = draw(st.integers(0, 255))
    return bytes(raw)


@st.composite
def scribbled(draw: st.DrawFn, good: str) -> str:
    """Draw a text in which a few characters were inserted, replaced or lost."""
    text = list(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(text) - 1)))
        text[at : at + draw(st.integers(0, 2))] = draw(
            st.text(alphabet="{}[]\"'%,;:@=# \t\n\r\0019é<>&/\\-.", max_size=2)
        )
    return "".join(text)
