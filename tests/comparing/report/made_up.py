"""Finished cells whose numbers are made up: for the page's tests and for timing.

10,000 cells: `python tests/comparing/report/made_up.py OUT --methods 50 --tasks 20 --seeds 10`.
"""

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtbench.training.cell.rundir import Spec

METRICS = {
    "dice": {"objective": "mask", "higher_is_better": True, "primary": True},
    "auroc": {"objective": "grade", "higher_is_better": True, "primary": True},
    "error": {"objective": "grade", "higher_is_better": False, "primary": False},
}
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwAD"
    "hgGAWjR9awAAAABJRU5ErkJggg=="
)


def write(
    out: Path,
    methods: Sequence[str],
    *,
    tasks: int = 1,
    seeds: int = 10,
    trials: int = 0,
    epochs: int = 12,
    picture: bool = False,
    params: dict[str, Any] | None = None,
) -> None:
    """Write cells of every method, better the earlier it is named; `stl` is the reference.

    A suite claims them; its first repetition alone has trials.
    """
    rng = np.random.default_rng(0)
    for task in range(tasks):
        for m, method in enumerate(methods):
            level = np.array([0.8, 0.75]) - 0.06 * m / len(methods)
            for number in range(trials):
                drawn, loss = rng.uniform(0, 1), rng.exponential(0.02)
                values = level + 0.01 - 0.08 * np.array([drawn**2, (1 - drawn) ** 2]) - loss
                own = {"draw": float(drawn)}
                path = _cell(
                    out, f"made_up{task}", method, 1000, own, values, rng, m, epochs, "trial"
                )
                _claim(path, f"made_up{task}", method, 0, number, seeds)
            for seed in range(seeds):
                values = level + rng.normal(0, 0.01) + rng.normal(0, 0.006, 2)
                own = params or {}
                path = _cell(
                    out, f"made_up{task}", method, seed, own, values, rng, m, epochs, "final"
                )
                _claim(path, f"made_up{task}", method, seed, None, seeds)
                if picture and seed == 0:
                    (path / "predictions.png").write_bytes(base64.b64decode(PIXEL))


def _claim(
    path: Path, task: str, method: str, repetition: int, draw: int | None, repetitions: int
) -> None:
    claim = {
        "suite": "made up", "digest": "0123456789ab", "task": task, "label": method,
        "repetition": repetition, "draw": draw, "sampler": "sobol", "places": {}, "trials": 8,
        "repetitions": repetitions, "seeds": 1, "rows": 4, "margin": 2.0, "against": ["ls"],
    }  # fmt: skip
    (path / "suites.json").write_text(json.dumps([claim]))


def _cell(
    out: Path,
    task: str,
    method: str,
    seed: int,
    own: dict[str, Any],
    values: Any,
    rng: np.random.Generator,
    m: int,
    epochs: int,
    stage: Any,
) -> Path:
    recipe = {"epochs": epochs, "batch_size": 8, "lr": 0.01}
    spec = Spec(
        task=task, task_params={"size": 64}, method=method, method_params=own, data=f"of {task}",
        recipe=recipe, seed=seed, stage=stage,
    )  # fmt: skip
    # Not by RunDirectory.at, which waits for the disk: thousands of files.
    path = out / task / method / f"seed{seed}-{spec.hash}"
    path.mkdir(parents=True)
    (path / "spec.json").write_text(json.dumps(spec.model_dump(mode="json")))
    dice, auroc = map(float, values)
    metrics = {"dice": dice, "auroc": auroc, "error": 1 - auroc}
    lines = []
    for epoch in range(epochs):
        rise = 1 - 0.6 * float(np.exp(-4 * epoch / epochs))
        jitter = float(rng.normal(0, 0.005))
        length = 0.2 + m / 4 + jitter if m + epoch else 0.0  # a first step that moved nothing
        lines.append(
            json.dumps(
                {
                    "epoch": epoch,
                    "train_loss": {"mask": 1.1 - rise * dice, "grade": 1.5 - rise * auroc},
                    "val_loss": {"mask": 1.2 - rise * dice + jitter, "grade": 1.6 - rise * auroc},
                    "val": {k: v * rise + jitter for k, v in metrics.items()},
                    "update": {"length": length, "cosine": 1 - 0.03 * m + jitter},
                }
            )
        )
    (path / "epochs.jsonl").write_text("\n".join(lines) + "\n")
    if stage == "final":
        (path / "test.json").write_text(json.dumps({"metrics": metrics}))
    result = {
        "version": 1, "status": "finished", "task": task, "method": method,
        "reference": method == "stl", "seed": seed, "hash": spec.hash, "selection": "best",
        "epochs": epochs, "metrics": METRICS, "notes": {}, "best_epoch": epochs - 1,
        "val": {k: v + 0.01 for k, v in metrics.items()}, "score": (dice + auroc) / 2,
        "cost": {
            "seconds_per_step": 0.1 * (1 + 0.35 * (m * 7 % 11)), "peak_mib": 200.0 + 20 * m,
            "train_seconds": 60.0, "passes": "F + B", "parameters": 9,
        },
        "environment": {"mtbench": "0.1.0", "torch": "2.13.0", "platform": "Linux", "threads": 1},
        "idle": [], "nonfinite": [], "plugins": {}, "times": {},
    }  # fmt: skip
    (path / "result.json").write_text(json.dumps(result))
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    for option, default in (("methods", 50), ("tasks", 20), ("seeds", 10), ("trials", 0)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    names = ["ls", "stl", "ew", *(f"method{i}" for i in range(given.methods - 3))]
    write(given.out, names, tasks=given.tasks, seeds=given.seeds, trials=given.trials)
