"""Fixtures that several test modules share."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mtbench import cli

TINY = Path(__file__).parent / "tiny.py"
"""The plugin file of the tiny task."""

# A first call imports and sets up, and a busy machine is slow: pytest-timeout watches for hangs.
settings.register_profile("mtbench", deadline=None, max_examples=50)
settings.load_profile("mtbench")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a parameter of bytes by its length: gzip's bytes hold the time, and ids must repeat."""
    return f"{len(val)}bytes" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_process() -> Iterator[None]:
    """Make phantoms and radiomics here: a process of theirs imports for longer than it works.

    Threads are one, too, but where a test sets another number.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def _every_epoch_written() -> Iterator[None]:
    """Let tests find on disk what an epoch's end leaves there, however short the epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtbench.training.trainer.trainer.EPOCH_SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _without_waiting_for_the_disk() -> Iterator[None]:
    """Do not wait until the disk has what is written: tests kill processes, and no machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


Mtbench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mtbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mtbench:
    """Run the command line in this process; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mtbench", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        captured = capsys.readouterr()
        return int(leaving.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def tiny() -> Path:
    """The plugin file of the tiny task."""
    return TINY
