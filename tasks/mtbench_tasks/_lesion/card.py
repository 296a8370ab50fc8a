"""What a trained model's card says of a lesion task."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtbench_tasks._lesion import screen
from mtbench_tasks._lesion.cases import Image, View
from mtbench_tasks._lesion.categories import and_above
from mtbench_tasks._lesion.descriptors import Lexicon
from mtbench_tasks._lesion.ensemble import LESSER
from mtbench_tasks._lesion.reading import USE


def card(
    size: int,
    grades: Sequence[str],
    high: int,
    views: Callable[[Image], Sequence[View]],
    lexicon: Lexicon,
    fitted: Mapping[str, Any],
) -> str:
    """Return the card's sections.

    Args:
        size: side of the network's grid.
        grades: the categories.
        high: the first of them that counts as high risk.
        views: finds the views of an image.
        lexicon: the descriptors that the model has learnt.
        fitted: what `LesionTask.fit` returned.
    """
    terms = "; ".join(f"{d.name}: {', '.join(d.terms)}" for d in lexicon)
    return f"""## What it does

It marks one lesion in a grey-scale ultrasound image and gives its risk category:
{", ".join(grades)}. High risk is {and_above(grades, high)}.

- In: `inputs`, (batch, 1, {size}, {size}), grey values from 0 to 1. The image is scaled by its
  longer side and padded with zeros; nothing else is normalised.
- Out: `segmentation`, logits of the mask on the same grid; `risk.logits`, one per category;
  `risk.guided`, an estimate of the standardised radiomics; `risk.texture`, the means of
  the encoder's second level, third by third, by which mtbench tells images of another kind{
        f"; `risk.descriptors`, logits of the terms of descriptors, one after the other ({terms})"
        if terms
        else ""
    }.
- {calibrated(fitted)} Probabilities are softmax(`risk.logits` / temperature).
- {" ".join(filter(None, (judged(fitted), described(fitted))))}{decided(fitted)}

## How to read an image with it

1. Take the image upright and grey, values 0 to 255: colours become ITU-R 601 luma. Pixels must be
   square. Of a DICOM file, take the 2-D ultrasound regions.
2. Cut it into views, as below: in training it was.
3. Scale a view so that its longer side has {size} pixels, by bilinear interpolation with a filter
   as wide as the reduction (antialiasing); centre it on a black square; divide by 255.
4. Scale the mask's logits back, by plain bilinear interpolation; what is above 0 is segmented.
   Regions of less than {LESSER:g} of the largest one are left out.

The same as code, for PNG, JPEG, TIFF and BMP files of 8 bits; `mtbench predict` does this, and
reads other files too. It needs the ONNX file, numpy, onnxruntime, Pillow and SciPy.

```python
{code(size, grades, views, fitted)}```

## What it is for

**{USE}** It is meant for comparing training methods, and for studies in which no patient's care
depends on it. It is not meant for diagnosis, for triage, or for choosing who gets a biopsy.

## Limits

- It knows the scanners, the people and the readers of its training data only; on others it has to
  be tested first: `mtbench evaluate FOLDER --data cases.csv`.
- It reads single images. `risk.logits` are of a lesion, if there is one: where the mask is empty,
  they mean nothing.
- The metrics below are against readers' opinions, unless the notes on the data say otherwise.
"""


def code(
    size: int,
    grades: Sequence[str],
    views: Callable[[Image], Sequence[View]],
    fitted: Mapping[str, Any],
) -> str:
    """Return a program that reads images with the ONNX file as `reading.read` does.

    How views are found is our own code: `screen`, or the function, where it stands elsewhere.
    """
    found = inspect.getmodule(views)
    own = inspect.getsource(screen if found is screen else views)
    own = re.sub(r'\A"""[^"]*"""\n|^(?:from|import) [^\n]*\n', "", own, flags=re.MULTILINE)
    known = fitted.get("calibration")
    scale = known["temperature"] if known and known["readings"] else 1.0
    return f"""\
from __future__ import annotations

import numpy as np
import onnxruntime
from PIL import Image as Pil, ImageOps
from scipy.ndimage import label

SIZE, TEMPERATURE = {size}, {scale!r}
GRADES = {tuple(grades)!r}


{own.strip()}


def read(file, model="model.onnx"):
    session = onnxruntime.InferenceSession(model)
    image = np.asarray(ImageOps.exif_transpose(Pil.open(file)).convert("L"))
    found = []
    for box in {views.__name__}(image):
        view = image[box]
        height, width = view.shape
        h, w = (max(1, round(side * SIZE / max(view.shape))) for side in view.shape)
        top, left = (SIZE - h) // 2, (SIZE - w) // 2
        small = Pil.fromarray(view.astype(np.float32) / 255).resize((w, h), Pil.Resampling.BILINEAR)
        grid = np.zeros((1, 1, SIZE, SIZE), np.float32)
        grid[0, 0, top : top + h, left : left + w] = small
        names = ["segmentation", "risk.logits"]
        mask, risk = session.run(names, {{"inputs": grid}})
        plane = mask[0, 0, top : top + h, left : left + w]
        down, across = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in ((height, h), (width, w)))
        plane = np.array([np.interp(across, np.arange(w), row) for row in plane])
        plane = np.array([np.interp(down, np.arange(h), column) for column in plane.T]).T
        regions, count = label(plane > 0, np.ones((3, 3)))
        sizes = np.bincount(regions.ravel(), minlength=2)[1:]
        kept = np.flatnonzero(sizes >= {LESSER!r} * sizes.max()) + 1 if count else []
        chances = np.exp(risk[0] / TEMPERATURE - (risk[0] / TEMPERATURE).max())
        chances = dict(zip(GRADES, (chances / chances.sum()).tolist()))
        category = max(chances, key=chances.get) if count else None
        found.append((box, np.isin(regions, kept), category, chances))
    return found
"""


def decided(fitted: Mapping[str, Any]) -> str:
    """Return the thresholds that were fixed on validation, as items of a list.

    >>> point = {"rule": "Youden's index", "threshold": 0.4, "sensitivity": 0.8, "specificity": 0.7}
    >>> decided({"operating": [point]}).strip()
    "- By Youden's index on validation, a risk is called high from a probability of 0.4 on (there: sensitivity 0.80, specificity 0.70)."
    """  # noqa: E501
    return "".join(
        f"\n- By {p['rule']} on validation, a risk is called high from a probability of "
        f"{p['threshold']:.4g} on (there: sensitivity {p['sensitivity']:.2f}, specificity "
        f"{p['specificity']:.2f})."
        for p in fitted.get("operating") or ()
    )


def calibrated(fitted: Mapping[str, Any]) -> str:
    """Return whether the probabilities are calibrated, and what that changed, in a sentence.

    >>> calibrated({})
    'The probabilities are not calibrated (temperature 1).'
    """
    found = fitted.get("calibration")
    if not found or not found["readings"]:
        return "The probabilities are not calibrated (temperature 1)."
    if found["temperature"] == 1:
        return (
            f"The probabilities are not calibrated (temperature 1): the {found['readings']} "
            "validation readings do not tell a temperature."
        )
    return (
        f"The probabilities are calibrated on {found['readings']} validation readings: "
        f"temperature {found['temperature']:.2f}; expected calibration error "
        f"{found['error_before']:.3f} before, {found['error_after']:.3f} after, on these same "
        "readings."
    )


def judged(fitted: Mapping[str, Any]) -> str:
    """Return how good the model is on validation, in a sentence: it stands beside what it says.

    >>> judged({"validation": {"auroc": 0.613, "dice": 0.704, "graded": 41, "outlined": 58}})
    'On validation: AUROC 0.61 (41 graded readings), Dice 0.70 (58 outlines).'
    >>> judged({})
    'How good the model is on validation is not known.'
    """
    found = fitted.get("validation")
    if not found:
        return "How good the model is on validation is not known."
    auroc, dice = ("none" if found[k] is None else f"{found[k]:.2f}" for k in ("auroc", "dice"))
    return (
        f"On validation: AUROC {auroc} ({found['graded']} graded readings), Dice {dice} "
        f"({found['outlined']} outlines)."
    )


def described(fitted: Mapping[str, Any]) -> str:
    """Return how good a model is at descriptors on validation, in a sentence; empty if at none.

    >>> described({"descriptors": {"margin": {"known": 9, "right": 7, "most_frequent": 5}}})
    'Right on validation (the most frequent term would be): margin 7 of 9 (5).'
    """
    found = fitted.get("descriptors")
    if not found:
        return ""
    each = ", ".join(
        f"{name} {entry['right']} of {entry['known']} ({entry['most_frequent']})"
        for name, entry in found.items()
    )
    return f"Right on validation (the most frequent term would be): {each}."
