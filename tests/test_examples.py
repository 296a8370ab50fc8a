"""The examples run, and learn."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_loop():
    source = EXAMPLES / "own_loop.py"
    assert len(source.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, source],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    numbers = re.findall(r"epoch \d+: grade (\S+), size (\S+)\n", done.stdout)
    (grade_first, size_first), (grade_last, size_last) = (
        map(float, numbers[0]),
        map(float, numbers[-1]),
    )
    assert len(numbers) == 20
    assert grade_last < 0.7 * grade_first
    assert size_last < 0.5 * size_first
