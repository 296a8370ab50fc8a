"""`mtbench tune`, then `mtbench run --config best.toml`, on every task there is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mtbench.plugins.registry import entries
from mtbench.training.trained import figures
from tests.tasks import test_breast, test_celeba, test_dense, test_office, test_qm9, test_tabular

Mtbench = Callable[..., tuple[int, str, str]]


def molecules(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    return test_qm9.write(folder, [test_qm9.chain(rng) for _ in range(60)], [])


IMAGES = {"image_size": 32, "width": 2}
SMALL: dict[str, dict[str, object]] = {
    "breast": IMAGES,
    "celeba": {"image_size": 8, "width": 2, "recipe.batch_size": 12},
    "gradnorm_toy": {"samples": 64},
    "nyuv2": {"width": 2, "recipe.batch_size": 4},
    "office": IMAGES,
    "pinn": {"samples": 64, "width": 8, "depth": 2},
    "qm9": {"held_out": 9, "width": 8},
    "thyroid": {"cases": 24, "test_cases": 12, **IMAGES},
}
"""What a task takes to train in a moment."""

DATA: dict[str, Callable[[Path], Path]] = {
    "adult": test_tabular.write_adult,
    "breast": lambda folder: test_breast.write(folder / "images"),
    "celeba": lambda folder: test_celeba.published(folder / "faces"),
    "multitarget": test_tabular.write_arff,
    "nyuv2": lambda folder: test_dense.write(folder, "nyuv2"),
    "office": lambda folder: test_office.write(folder, "office31"),
    "parkinsons": test_tabular.write_parkinsons,
    "qm9": molecules,
}
"""Small files in the published formats, for tasks that take some."""

ALIKE = {"cityscapes", "dtlz2", "quadratic", "vlmop2", "zdt2", "zdt3"}
"""Tasks that are to the command line what another is: `nyuv2`, `zdt1`."""


@pytest.mark.parametrize("task", sorted(entries("task").keys() - ALIKE))
def test_what_was_chosen_can_be_run(
    mtbench: Mtbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    # They are the same for any task, and CelebA's have 80 panels: the tasks' own tests draw them.
    monkeypatch.setattr(figures, "curves", lambda *_: None)
    given = [f"--set={key}={value}" for key, value in SMALL.get(task, {}).items()]
    data = ("--data", DATA[task](tmp_path / "data")) if task in DATA else ()
    common = ("--threads", 1, "--out", tmp_path / "out", *data)
    code, _, err = mtbench(
        "tune", "--task", task, "-m", "ls", "--trials", 1, "--epochs", 1, *given, *common
    )
    assert (code, err) == (0, "")
    [best] = tmp_path.glob(f"out/{task}/ls/tune-*/best.toml")
    code, _, err = mtbench("run", "--config", best, *common)
    assert (code, err) == (0, "")
    specs = [json.loads(file.read_text()) for file in tmp_path.glob(f"out/{task}/ls/*/spec.json")]
    final = next(spec for spec in specs if spec["stage"] == "final")
    own = ("task_params", "method_params", "recipe")
    assert [final[key] for key in own] in [
        [spec[key] for key in own] for spec in specs if spec["stage"] == "trial"
    ]
