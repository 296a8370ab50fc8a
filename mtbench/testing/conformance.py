"""Running a conformance suite on one plugin, with a verdict for people."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mtbench.plugins.method import Method
from mtbench.testing import BalancerContract, Make, MakeTask, TaskContract


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
        reasons: per failed or skipped case, its parameters and why.
    """

    rule: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)


class _Recorder:
    """The pytest plugin that hands over what is tested and takes down what happens."""

    def __init__(self, suite: type, subject: object) -> None:
        self._suite, self._subject = suite, subject
        self.verdicts: dict[str, Verdict] = {}

    @pytest.fixture(name="subject")
    def _fixture(self) -> object:
        return self._subject

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a report of pytest's."""
        if report.when != "call" and report.passed:
            return
        name, _, case = report.nodeid.rpartition("::")[2].partition("[")
        rule = (inspect.getdoc(getattr(self._suite, name)) or name).splitlines()[0]
        verdict = self.verdicts.setdefault(name, Verdict(rule))
        setattr(verdict, report.outcome, getattr(verdict, report.outcome) + 1)
        if not report.passed:
            verdict.reasons.append(f"{case.rstrip(']')} {_why(report)}".strip())


def _why(report: Any) -> str:
    if report.skipped:
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return str(text).strip().splitlines()[0].removeprefix("AssertionError: ")


def of_method(method: Method) -> Sequence[Verdict]:
    """Run the suite of methods and return how each rule went, in the suite's order."""
    return _verdicts(TestMethod, method)


def of_task(make: MakeTask) -> Sequence[Verdict]:
    """Run the suite of tasks and return how each rule went, in the suite's order."""
    return _verdicts(TestTask, make)


def _verdicts(suite: type, subject: object) -> Sequence[Verdict]:
    recorder = _Recorder(suite, subject)
    pytest.main(
        [
            f"{Path(__file__)}::{suite.__name__}", "-p", "no:cacheprovider", "-p", "no:terminal",
            "--noconftest", "-c", os.devnull, "--rootdir", str(Path(__file__).parent),
            "--import-mode=importlib",
        ],
        plugins=[recorder],
    )  # fmt: skip
    return list(recorder.verdicts.values())
