"""What is told of a trained model once, on the images that it was trained and chosen on."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtbench.training.task import Meter, Predictor
from mtbench_tasks._lesion import conformal, descriptors, ood, radiomics
from mtbench_tasks._lesion.calibration import calibration_error, temperature
from mtbench_tasks._lesion.descriptors import Lexicon
from mtbench_tasks._lesion.grid import Placement
from mtbench_tasks._lesion.ood import OutOfDistribution, features
from mtbench_tasks._lesion.operating import points
from mtbench_tasks._lesion.splits import CaseSplit

BATCH = 32
"""Images that are read at once."""


def fit(
    predictor: Predictor,
    train: CaseSplit,
    val: CaseSplit,
    meter: Meter,
    size: int,
    high: int,
    lexicon: Lexicon,
) -> dict[str, Any]:
    """Return what a reading is set against, as `LesionTask.fit` says.

    Args:
        predictor: of the trained model.
        train: the training cases.
        val: the validation cases.
        meter: a fresh one.
        size: side of the network's grid.
        high: the first category that counts as high risk.
        lexicon: the descriptors that are learnt.
    """
    assert train.standardise is not None
    drawn = torch.isfinite(train.radiomics).all(1)
    spaced = [radiomics.usable(spacing) for spacing in train.spacing[drawn].tolist()]
    seen = list[NDArray[np.float64]]()
    for positions in torch.split(torch.arange(len(train)), BATCH):
        inputs = train.images(positions)
        seen += map(features, inputs[:, 0], predictor(inputs)[1].texture)
    others, outputs, terms = list[NDArray[np.float64]](), [], []
    patients = np.array([case.patient for case in val.cases])
    pairs: list[tuple[str, dict[str, float], dict[str, float]]] = []
    for positions in torch.split(torch.arange(len(val)), BATCH):
        batch = val.batch(positions)
        found = predictor(batch["inputs"])
        others += map(features, batch["inputs"][:, 0], found[1].texture)
        meter.update(found, batch)
        planes = found[0][:, 0].float().cpu()
        pairs += _lengths(patients[positions.numpy()], planes, batch["masks"], size)
        outputs.append(found[1].logits.float().cpu())
        if lexicon:
            terms.append(found[1].descriptors.float().cpu())
    measured = {k: None if math.isnan(v) else v for k, v in meter.compute().items()}
    graded = val.category >= 0
    logits, category = torch.cat(outputs)[graded], val.category[graded]
    owners = patients[graded.numpy()].tolist()
    scale = temperature(logits, category, owners)
    chances = (logits / scale).softmax(1).double().numpy()
    errors = [calibration_error(z, category) for z in (logits, logits / scale)]
    before, after = (None if math.isnan(error) else error for error in errors)
    described = dict[str, Any]()
    if lexicon:
        known = descriptors.labels(val.cases, lexicon)
        described["descriptors"] = descriptors.judge(torch.cat(terms), known, lexicon)
    return {
        **described,
        "calibration": {
            "temperature": scale,
            "readings": len(category),
            "error_before": before,
            "error_after": after,
        },
        "validation": {
            "auroc": measured["auroc"],
            "dice": measured["dice"],
            "graded": len(category),
            "outlined": int(val.has_mask.sum()),
        },
        "operating": points(chances[:, high:].sum(1), (category >= high).numpy()),
        "spread": conformal.fit(pairs, chances, category.numpy(), owners),
        "seen": train.hashes() + val.hashes(),
        ood.KEY: OutOfDistribution.fit(np.array(seen), np.array(others)).to_json(),
        "radiomics": {
            "features": [feature.name for feature in radiomics.FEATURES],
            "outlines": len(spaced),
            "of known spacing": sum(spaced),
            "mean": train.standardise.mean.tolist(),
            "scale": train.standardise.scale.tolist(),
        },
    }


def _lengths(
    patients: Iterable[str], logits: torch.Tensor, masks: Sequence[torch.Tensor], size: int
) -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """Return whose a lesion is, its lengths as said and as drawn, where both have an outline."""
    pairs = []
    for patient, plane, drawn in zip(patients, logits, masks, strict=True):
        if (known := conformal.lengths(drawn.numpy())) is None:
            continue
        shown = Placement((drawn.shape[0], drawn.shape[1]), size)
        if said := conformal.lengths(shown.from_grid(plane).numpy() > 0):
            pairs.append((patient, said, known))
    return pairs
