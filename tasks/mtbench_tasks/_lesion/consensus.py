"""What several readers of one image come to together."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mtbench.errors import DataError
from mtbench_tasks._lesion.cases import Case, Mask, Reading, read


def with_consensus(case: Case) -> Case:
    """Return a case that also holds the consensus of its readers; one reader's is unchanged.

    The mask is `staple` of the contours there are, the category `majority` of the categories.
    """
    if len(case.readings) < 2:
        return case
    drawn = [r.contour for r in case.readings if r.contour is not None]
    contour = partial(staple, case.name, drawn) if len(drawn) > 1 else next(iter(drawn), None)
    category = majority([r.category for r in case.readings if r.category is not None])
    return replace(case, consensus=Reading("consensus", contour, category))


def majority(categories: Sequence[int]) -> int | None:
    """Return the most frequent category; of equally frequent ones the most suspicious.

    >>> majority([1, 3, 1]), majority([1, 3]), majority([])
    (1, 3, None)
    """
    count = Counter(categories)
    return max(count, key=lambda category: (count[category], category), default=None)


def staple(name: str, contours: Sequence[Mask | Callable[[], Mask]]) -> Mask:
    """Return where the lesion is with a probability above 1/2, (H, W), by SimpleITK's STAPLE.

    STAPLE (Warfield et al. 2004) estimates each reader's sensitivity and specificity together with
    the probability of each pixel, by expectation maximisation. Its prior is the mean share of the
    image that readers mark, so two readers who mark little come to the intersection. Where no two
    masks meet, readers outlined different lesions, and all of them are it, as of one reader's.

    Args:
        name: of the case, for the message.
        contours: (H, W) masks, or what reads them.

    Raises:
        DataError: the masks differ in size, or some meet and yet no pixel reaches 1/2.
    """
    import SimpleITK as sitk  # noqa: N813

    masks = [read(contour) for contour in contours]
    if len({mask.shape for mask in masks}) > 1:
        raise DataError(f"{name}: its readers' masks differ in size: {[m.shape for m in masks]}")
    union: Mask = np.logical_or.reduce(masks)
    if np.count_nonzero(union) == sum(map(np.count_nonzero, masks)):
        return union
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    found: Mask = sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)) > 0.5
    if not found.any():
        raise DataError(f"{name}: its readers' masks have no consensus (STAPLE leaves no pixel)")
    return found
