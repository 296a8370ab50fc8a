"""How far readers agree with each other, and a model with each of them."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import pandas as pd
import torch
from monai.metrics.meandice import compute_dice

from mtbench.training.task import Predictor
from mtbench_tasks._lesion.scores import kappa
from mtbench_tasks._lesion.splits import TRUTH, CaseSplit, Opinion

MODEL = "this model"
BATCH = 32


def opinions(predictor: Predictor, split: CaseSplit) -> Iterator[dict[str, Opinion]]:
    """Yield what readers, model and truth say of each case of a split, by name.

    Once, also where the split holds a case for each of its readings.
    """
    first: dict[int, int] = {}
    for position, case in enumerate(split.cases):
        first.setdefault(id(case), position)
    for positions in torch.split(torch.tensor(list(first.values())), BATCH):
        logits, risk = predictor(split.images(positions))
        found = zip((logits > 0).cpu(), risk.logits.argmax(1).tolist(), strict=True)
        for position, (mask, category) in zip(positions.tolist(), found, strict=True):
            yield split.opinions(position) | {MODEL: Opinion(category, mask)}


def agreement(cases: Iterable[Mapping[str, Opinion]], grades: int) -> pd.DataFrame:
    r"""Return how far each two raters agree, over the cases that both have read.

    Of categories, Cohen's kappa with quadratic weights,
    :math:`\kappa = 1 - \sum_{ij} w_{ij} O_{ij} / \sum_{ij} w_{ij} E_{ij}`,
    :math:`w_{ij} = (i - j)^2`, O the joint frequencies of both raters' categories and E the product
    of their own; it is NaN where both give one and the same category only. Of masks, the mean of
    Dice, :math:`2 |A \cap B| / (|A| + |B|)`.

    Args:
        cases: for each case the raters' opinions.
        grades: the number of categories.

    Returns:
        A row per pair: ``rater``, ``other``, ``kappa``, ``graded`` (cases behind it), ``dice``,
        ``drawn``. Readers come first, by name, then the model, then the truth.
    """
    said: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    dice: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    raters: set[str] = set()
    for case in cases:
        raters |= case.keys()
        for (a, first), (b, second) in itertools.permutations(case.items(), 2):
            if min(first.category, second.category) >= 0:
                said[a, b].append((first.category, second.category))
        drawn = [(name, opinion.mask) for name, opinion in case.items() if opinion.mask is not None]
        pairs = list(itertools.combinations(drawn, 2))
        if pairs:
            left, right = (torch.stack([pair[side][1] for pair in pairs]) for side in (0, 1))
            values = compute_dice(left, right, ignore_empty=False).flatten().tolist()
            for ((a, _), (b, _)), value in zip(pairs, values, strict=True):
                dice[a, b].append(value)
                dice[b, a].append(value)
    order = sorted(raters, key=lambda name: (name == TRUTH, name == MODEL, name))
    rows = [
        (
            *pair,
            kappa(torch.tensor(said[pair]).reshape(-1, 2), grades),
            len(said[pair]),
            math.fsum(dice[pair]) / len(dice[pair]) if dice[pair] else math.nan,
            len(dice[pair]),
        )
        for pair in itertools.combinations(order, 2)
    ]
    return pd.DataFrame(rows, columns=["rater", "other", "kappa", "graded", "dice", "drawn"])
