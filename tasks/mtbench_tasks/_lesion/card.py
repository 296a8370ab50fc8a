"""What a trained model's card says of a lesion task."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtbench_tasks._lesion.reading import USE


def card(size: int, grades: Sequence[str], fitted: Mapping[str, Any]) -> str:
    """Return the card's sections.

    Args:
        size: side of the network's grid.
        grades: the categories.
        fitted: what `LesionTask.fit` returned.
    """
    return f"""## What it does

It marks one lesion in a grey-scale ultrasound image and gives its risk category:
{", ".join(grades)}.

- In: `inputs`, (batch, 1, {size}, {size}), grey values from 0 to 1. The image is scaled by its
  longer side and padded with zeros; nothing else is normalised.
- Out: `segmentation`, logits of the mask on the same grid; `risk.logits`, one per category;
  `risk.guided`, an estimate of the standardised radiomics.
- {calibrated(fitted)} Probabilities are softmax(`risk.logits` / temperature).
- {" ".join(filter(None, (judged(fitted), described(fitted))))}

## What it is for

**{USE}** It is meant for comparing training methods, and for studies in which no patient's care
depends on it. It is not meant for diagnosis, for triage, or for choosing who gets a biopsy.

## Limits

- It knows the scanners, the people and the readers of its training data only; on others it has to
  be tested first.
- It reads single images. `risk.logits` are of a lesion, if there is one: where the mask is empty,
  they mean nothing.
- The metrics below are against readers' opinions, unless the notes on the data say otherwise.
"""


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
            f"The probabilities are not calibrated (temperature 1): on {found['readings']} "
            "validation readings no temperature gains more than its standard error."
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
