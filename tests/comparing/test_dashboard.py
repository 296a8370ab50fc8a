"""The real optuna-dashboard on what `mtbench tune` leaves behind."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.cli.test_sweep import wait_for

pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")

Mtbench = Callable[..., tuple[int, str, str]]


def fetch(address: str) -> Any:
    """Return what the server says, None while it does not listen yet."""
    try:
        with urlopen(address, timeout=10) as answer:
            return json.load(answer)
    except URLError:
        return None


def test_the_dashboard_shows_a_study(mtbench: Mtbench, tiny: Path, tmp_path: Path) -> None:
    line = ["tune", "--plugin", tiny, "-t", "tiny", "-m", "dwa", "--trials", 3, "--epochs", 1]
    code, _, err = mtbench(*line, "--device", "cpu", "--threads", 1, "--out", tmp_path)
    assert (code, err) == (0, "")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [program, "--host", "127.0.0.1", "--port", str(port), f"sqlite:///{tmp_path / 'tune.db'}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}/api/studies"
        listed = wait_for(lambda: fetch(address))
        [study] = listed["study_summaries"]
        assert study["study_name"].startswith("tiny/dwa/official-")
        trials = fetch(f"{address}/{study['study_id']}")["trials"]
    finally:
        server.terminate()
        server.wait()
    assert [trial["state"] for trial in trials] == ["Complete"] * 3
    assert trials[0]["params"] == []  # the defaults, which nobody drew
    for trial in trials[1:]:
        assert {"recipe.lr", "recipe.weight_decay"} < {p["name"] for p in trial["params"]}
        shown = {attribute["key"] for attribute in trial["user_attrs"]}
        assert {"cell", "draw", "score", "val"} <= shown
