"""Running the conformance suite on one method, with a verdict for people."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mtbench.method import Method
from mtbench.testing import BalancerContract, Make


class TestContract(BalancerContract):
    """The suite on the method that `verdicts` was given."""

    @pytest.fixture
    def make(self, method: Method) -> Make:
        """Return the method."""
        return method


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
    """The pytest plugin that hands over the method and takes down what happens."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.verdicts: dict[str, Verdict] = {}

    @pytest.fixture(name="method")
    def _fixture(self) -> Method:
        return self._method

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a report of pytest's."""
        if report.when != "call" and report.passed:
            return
        name, _, case = report.nodeid.rpartition("::")[2].partition("[")
        rule = (inspect.getdoc(getattr(TestContract, name)) or name).splitlines()[0]
        verdict = self.verdicts.setdefault(name, Verdict(rule))
        setattr(verdict, report.outcome, getattr(verdict, report.outcome) + 1)
        if not report.passed:
            verdict.reasons.append(f"{case.rstrip(']')} {_why(report)}".strip())


def _why(report: Any) -> str:
    if report.skipped:
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return str(text).strip().splitlines()[0]


def verdicts(method: Method) -> Sequence[Verdict]:
    """Run the suite on a method and return how each rule went, in the suite's order."""
    recorder = _Recorder(method)
    pytest.main(
        [
            str(Path(__file__)), "-p", "no:cacheprovider", "-p", "no:terminal", "--noconftest",
            "-c", os.devnull, "--rootdir", str(Path(__file__).parent), "--import-mode=importlib",
        ],
        plugins=[recorder],
    )  # fmt: skip
    return list(recorder.verdicts.values())
