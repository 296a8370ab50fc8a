"""Running a conformance suite on one plugin, with a verdict for people."""

import inspect
import os
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench.testing import BalancerContract, Make, MakeTask, TaskContract
from mtbench.testing.promises import Promises

_ANSWERS = ("weights", "direction", "objective", "balance", "backward")
_ABOUT = {
    "test_can_be_constructed": "__init__",
    "test_declares_paper_and_cost": "__init__",
    "test_search_space_is_drawn": "suggest",
}
"""What a rule is about, where a failure has no line of the plugin's own."""


class TestMethod(BalancerContract):
    """The suite on the method that `of_method` was given."""

    @pytest.fixture
    def make(self, subject: Method) -> Make:
        """Return the method."""
        return subject


class TestTask(TaskContract):
    """The suite on the task that `of_task` was given."""

    @pytest.fixture
    def make(self, subject: MakeTask) -> MakeTask:
        """Return the task."""
        return subject


@dataclass
class Verdict:
    """How one rule of the contract went.

    Attributes:
        rule: what it says.
        passed: how many of its cases passed; `failed` and `skipped` likewise.
        reasons: why cases failed or were skipped, each cause once.
    """

    rule: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)


class _Recorder:
    """The pytest plugin that hands over what is tested and takes down what happens.

    It stops at the first rule that the others build on, and tells a cause once.
    """

    def __init__(self, suite: type, subject: object, first: type) -> None:
        self._suite, self._subject, self._first = suite, subject, first
        self._files = {
            str(file): file.name for file in map(Path, map(inspect.getfile, _classes(subject)))
        }
        self._told: set[str] = set()
        self.verdicts: dict[str, Verdict] = {}

    @pytest.fixture(name="subject")
    def _fixture(self) -> object:
        return self._subject

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember what to stop."""
        self._session = session

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Generator[None, Any, Any]:
        """Find the line of the plugin's file that a failure is about."""
        report = yield
        if call.excinfo is not None:
            report.where = self._line(item.originalname, call.excinfo)
        return report

    def _line(self, rule: str, failure: Any) -> str:
        for entry in reversed(failure.traceback):
            if name := self._files.get(str(entry.path)):
                return f" ({name}:{entry.lineno + 1})"
        for method in _classes(self._subject):
            for name in (_ABOUT.get(rule, ""), *_ANSWERS):
                if name in vars(method):
                    line = inspect.getsourcelines(vars(method)[name])[1]
                    return f" ({Path(inspect.getfile(method)).name}:{line})"
        return ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a report of pytest's."""
        if report.when != "call" and report.passed:
            return
        name, _, case = report.nodeid.rpartition("::")[2].partition("[")
        rule = (inspect.getdoc(getattr(self._suite, name)) or name).splitlines()[0]
        verdict = self.verdicts.setdefault(name, Verdict(rule))
        setattr(verdict, report.outcome, getattr(verdict, report.outcome) + 1)
        if report.failed and name in vars(self._first):
            self._session.shouldfail = f"{name} failed, and others build on it"
        cause = "" if report.passed else _why(report)
        if cause and cause not in self._told:
            self._told.add(cause)
            place = report.where if report.failed else ""
            verdict.reasons.append(f"{case.rstrip(']')} {cause}{place}".strip())


def _why(report: Any) -> str:
    if report.skipped:
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return re.sub(
        r"^(AssertionError|mtbench\.errors\.\w+): ", "", str(text).strip().splitlines()[0]
    )


def of_method(method: Method) -> Sequence[Verdict]:
    """Run the suite of methods and return how each rule went, in the suite's order.

    Raises:
        UsageError: pytest did not run it.
    """
    return _verdicts(TestMethod, method, Promises)


def of_task(make: MakeTask) -> Sequence[Verdict]:
    """Run the suite of tasks and return how each rule went, in the suite's order.

    Raises:
        UsageError: pytest did not run it.
    """
    return _verdicts(TestTask, make, object)


def _classes(subject: object) -> Sequence[type]:
    """Return the classes of a method's parts, or of a task."""
    if isinstance(subject, Method):
        return subject.classes
    found = subject.func if isinstance(subject, partial) else subject
    return [found] if isinstance(found, type) else []


def _verdicts(suite: type, subject: object, first: type) -> Sequence[Verdict]:
    recorder = _Recorder(suite, subject, first)
    with pytest.MonkeyPatch.context() as patch:
        # They are of the user's own tests, and might leave out rules of ours.
        for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
            patch.delenv(name, raising=False)
        ended = pytest.main(
            [
                f"{Path(__file__)}::{suite.__name__}", "-p", "no:cacheprovider",
                "-p", "no:terminal", "--noconftest", "-c", os.devnull,
                "--rootdir", str(Path(__file__).parent), "--import-mode=importlib",
            ],
            plugins=[recorder],
        )  # fmt: skip
    if ended == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise UsageError(
            f"the rules could not be tried: pytest ends with {ended!r}; does a plugin of pytest's "
            "that is installed here prevent it?"
        )
    return list(recorder.verdicts.values())
