"""Where Optuna keeps studies, and what is said of it."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import IntegrityError, ProgrammingError

from mtbench.errors import UsageError
from mtbench.inert import without_password, without_secrets

CONNECT = 10
"""Seconds in which a database server must answer."""

OPENINGS = 5
"""How often an empty database is opened, where others make Optuna's tables at the same time."""


def open_storage(text: str) -> optuna.storages.BaseStorage:
    """Return the storage of a database URL, ``journal:PATH`` or ``PATH.log``.

    Raises:
        UsageError: the text is none of these.
        Exception: whatever SQLAlchemy, the driver or Optuna raise of one that does not open.
    """
    kind = text.partition("://")
    if kind[2]:
        # A server may close what was idle during an epoch: each connection is tried before use.
        engine: dict[str, Any] = {"pool_pre_ping": True}
        if kind[0].startswith("postgresql"):
            engine["connect_args"] = {"connect_timeout": CONNECT}
        for _ in range(OPENINGS - 1):
            with suppress(IntegrityError, ProgrammingError):  # another makes the tables just now
                return optuna.storages.RDBStorage(text, engine_kwargs=engine)
            time.sleep(1)
        return optuna.storages.RDBStorage(text, engine_kwargs=engine)
    if text.startswith("journal:") or text.endswith(".log"):
        backend = JournalFileBackend(text.removeprefix("journal:"))
        return optuna.storages.JournalStorage(backend)
    raise UsageError(
        "--storage must be a database URL such as sqlite:///tune.db, journal:PATH or PATH.log, "
        f"found {without_password(text)!r}"
    )


def reason(error: BaseException, url: str) -> str:
    """Return an error's first line, that of what lies below where Optuna hides it; no password."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        error = error.__cause__
    return without_secrets(str(error).partition("\n")[0].rstrip("."), url)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from telling on stderr what is told here, and of what is experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
