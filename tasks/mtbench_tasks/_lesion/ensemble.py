"""Asking a trained model, or several, once or of the mirror image too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtbench.training.task import Trained
from mtbench_tasks._lesion.cases import Mask
from mtbench_tasks._lesion.doubts import parts
from mtbench_tasks._lesion.grid import Placement

LESSER = 0.25  # of the largest region: a smaller one is taken for noise


class Answer(NamedTuple):
    """What a model says of B images on the grid.

    Attributes:
        logits: (B, S, S), of the mask.
        chances: (B, G), the calibrated probabilities of the categories.
        terms: (B, T), the logits of the descriptors' terms; T is 0 where none were learnt.
        texture: (B, 3 C), of `network.Risk`.
        spread: how far it was off on validation, of `conformal.fit`; None where that is not known.
    """

    logits: Tensor
    chances: Tensor
    terms: Tensor
    texture: Tensor
    spread: Mapping[str, Any] | None = None


Ask = Callable[[Tensor], list[Answer]]
"""Returns one answer of each model, and of each way to look, to inputs (B, 1, S, S)."""


@dataclass(frozen=True)
class Ensemble:
    """One model or several, each asked of the image, and of its mirror image if that is wanted.

    Attributes:
        trained: the model, with the others.
        mirror: whether each is asked of the mirror image too; left and right mean nothing in
            ultrasound, and training mirrors as well.
    """

    trained: Trained
    mirror: bool = False

    def __call__(self, inputs: Tensor) -> list[Answer]:
        """Return the answers: of each model, as is first."""
        found = []
        for model in self.trained.members:
            scale = temperature(model) or 1.0
            for turned in (False, True)[: 1 + self.mirror]:
                logits, risk = model.predictor(inputs.flip(-1) if turned else inputs)
                plane = logits[:, 0].float().cpu()
                chances = (risk.logits.float().cpu() / scale).softmax(1)
                plane = plane.flip(-1) if turned else plane
                terms = getattr(risk, "descriptors", risk.logits[:, :0]).float().cpu()
                texture, spread = risk.texture.float().cpu(), model.fitted.get("spread")
                found.append(Answer(plane, chances, terms, texture, spread))
        return found


def temperature(model: Trained) -> float | None:
    """Return what a model's logits are divided by; None where it is not calibrated."""
    found = model.fitted.get("calibration")
    return found["temperature"] if found and found["readings"] else None


def together(answers: Sequence[Answer]) -> Answer:
    """Return the mean of the logits and of the probabilities, and the first one's texture."""
    if len(answers) == 1:
        return answers[0]
    return Answer(
        torch.stack([answer.logits for answer in answers]).mean(0),
        torch.stack([answer.chances for answer in answers]).mean(0),
        torch.stack([answer.terms for answer in answers]).mean(0),
        answers[0].texture,
    )


def regions_of(logits: Tensor, shape: tuple[int, ...]) -> list[Mask]:
    """Return what an image's logits, (S, S), segment of it, (H, W), largest first."""
    plane = Placement((shape[0], shape[1]), logits.shape[-1]).from_grid(logits)
    drawn = plane.numpy() > 0
    del plane  # of a large image, most of the memory
    regions = parts(drawn)
    return [region for region in regions if region.sum() >= LESSER * regions[0].sum()]


def united(regions: Sequence[Mask], shape: tuple[int, ...]) -> Mask:
    """Return the mask, (H, W), that is handed out: all regions of `regions_of`."""
    mask: Mask = np.logical_or.reduce([np.zeros(shape, dtype=bool), *regions])
    return mask
