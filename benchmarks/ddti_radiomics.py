"""How much of DDTI's low/high category the radiomics of the readers' own contours hold.

A ridge-penalised logistic regression on the training split's standardised radiomics, test AUROC of
each of five folds.
"""

import argparse

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.functional.classification import binary_auroc

from mtbench.training.cell.request import Request
from mtbench.training.machine.cache import cache_dir
from mtbench_tasks._lesion.radiomics import Standardiser, extract_all


def features(split):
    images = [case.image for case in split.cases]
    masks = [
        np.zeros(image.shape, dtype=bool) if reading.mask is None else reading.mask
        for image, reading in zip(images, split.readings, strict=True)
    ]  # four contours break off
    return extract_all(images, masks, cache=cache_dir())


parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
parser.add_argument("data", help="the folder of DDTI")
given = {"source": "ddti", "data": parser.parse_args().data, "target": "low-high"}
for fold in ("1/5", "2/5", "3/5", "4/5", "5/5"):
    splits = Request.of("thyroid", ["ew"], given | {"fold": fold}).task.setup(0, lambda *_: None)
    standardise = Standardiser.fit(features(splits.train))
    rows = {}
    for name in ("train", "test"):
        split = getattr(splits, name)
        x = torch.from_numpy(standardise(features(split))).float()
        known = (split.category >= 0) & ~x.isnan().any(1)
        rows[name] = x[known], split.category[known].float()
    w = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100)
    x, y = rows["train"]

    def closure(x=x, y=y, w=w, optimizer=optimizer):
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(x @ w[1:] + w[0], y) + 0.02 * w[1:].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    x, y = rows["test"]
    print(f"fold {fold}: AUROC {binary_auroc((x @ w[1:]).detach(), y.long()):.3f}, {len(y)} views")
