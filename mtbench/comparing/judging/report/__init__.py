"""One self-contained page about leaderboards: no network, no server, works from file://."""

from mtbench.comparing.judging.report.page import render, write

__all__ = ["render", "write"]
