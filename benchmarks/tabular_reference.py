"""What scikit-learn reaches on the splits of digits, adult, parkinsons and multitarget.

Usage: python benchmarks/tabular_reference.py [--data PATH] [--seed 0] [--seeds 3] TASK

Every model is fitted to the training split of each seed, one for each objective, with the library's
defaults unless said otherwise below, and scored by the task's own meter on the test split.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.svm import SVC

from mtbench.training.cell.request import Request
from mtbench.training.trainer.evaluation import primary_metrics

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("task")
parser.add_argument("--data", type=Path)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--seeds", type=int, default=3)
given = parser.parse_args()

MODELS = {
    "digits": {
        "logistic regression": LogisticRegression(max_iter=2000),
        "random forest": RandomForestClassifier(random_state=0),
        "support vector machine": SVC(C=10.0),
    },
    "adult": {
        "prior": DummyClassifier(strategy="prior"),
        "logistic regression": LogisticRegression(max_iter=2000),
        "random forest": RandomForestClassifier(min_samples_leaf=5, random_state=0),
        "gradient boosting": HistGradientBoostingClassifier(random_state=0),
    },
}
REGRESSION = {
    "mean": DummyRegressor(),
    "ridge": RidgeCV(np.logspace(-2, 4, 25)),
    "random forest": RandomForestRegressor(max_features=0.33, random_state=0),
    "gradient boosting": HistGradientBoostingRegressor(random_state=0),
}


def arrays(split):
    """Return the inputs (N, D) and the labels (N, K) of a split."""
    batch = split.batch(torch.arange(len(split)))
    y = np.stack([batch[name].numpy() for name in task.objectives], axis=1)
    return batch["inputs"].flatten(1).numpy(), y, batch


def outputs(model, x):
    """Return what the task's head would: numbers, logits, or one score a class."""
    if not hasattr(model, "classes_"):
        return model.predict(x)
    if len(model.classes_) > 2:
        return np.eye(len(model.classes_))[model.predict(x)]
    p = model.predict_proba(x)[:, 1].clip(1e-12, 1 - 1e-12)
    return np.log(p / (1 - p))


given_text = {} if given.data is None else {"data": str(given.data)}
request = Request.of(given.task, ["ew"], given_text)
task = request.task
scores = {}
for seed in range(given.seed, given.seed + given.seeds):
    splits = task.setup(seed, lambda *_: None)
    x, y, _ = arrays(splits.train)
    x_test, _, batch = arrays(splits.test)
    for name, model in MODELS.get(given.task, REGRESSION).items():
        made = []
        for column in y.T:
            known = ~np.isnan(column)
            made.append(
                torch.from_numpy(outputs(clone(model).fit(x[known], column[known]), x_test))
            )
        meter = task.meter()
        meter.update(made, batch)
        scores.setdefault(name, []).append(meter.compute())

shown = primary_metrics(task.metrics)
print(f"{given.task} {given.data or ''}: test, mean of {given.seeds} seeds from {given.seed}\n")
print("| model |", " | ".join(shown), "| mean |")
print("|---" * (len(shown) + 2) + "|")
for name, found in scores.items():
    means = [float(np.mean([run[metric] for run in found])) for metric in shown]
    print(f"| {name} |", " | ".join(f"{v:.3f}" for v in [*means, np.mean(means)]), "|")
