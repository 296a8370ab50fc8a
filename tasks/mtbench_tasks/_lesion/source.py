"""Where the cases of a lesion task may come from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mtbench.errors import DataError, UsageError
from mtbench.training.task import Progress, Recipe
from mtbench_tasks._lesion.cases import Collection, Image, View
from mtbench_tasks._lesion.descriptors import Lexicon


def whole(image: Image) -> list[View]:
    """Return the one view of an image that is no scanner's screen."""
    return [(slice(0, image.shape[0]), slice(0, image.shape[1]))]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's cases may come from, and what suits them.

    Attributes:
        load: reads the cases at the path that ``--data`` names; an embedded source ignores it.
        grades: the categories from benign to malignant.
        high: the index of the first grade that counts as high risk.
        recipe: the optimisation by default, of a pretrained encoder. From random weights the rate
            of all parameters is twice that of the heads, for twice the epochs.
        image_size: side of the network's grid by default.
        augmentation: its default strength.
        dropout: the risk head's by default.
        guide: the guidance's default weight.
        what: what ``--data`` is to name; None for an embedded source.
        system: what the categories are of, such as ACR TI-RADS; empty where they say it themselves.
        lexicon: the descriptors that its cases have, and how it words them.
        views: finds an image's views, when a new one is read.
        tested: whether it says who is tested; otherwise the task's folds do.
        graded: makes it with these grades, or, if there are none, with those of the data at that
            path: the first of the scales given after them that fits, else a known one. None where
            the grades are fixed.
    """

    load: Callable[[Path, Progress], Collection]
    grades: tuple[str, ...]
    high: int
    recipe: Recipe
    image_size: int = 96
    augmentation: float = 1.0
    dropout: float = 0.5
    guide: float = 1.0
    what: str | None = None
    system: str = ""
    lexicon: Lexicon = ()
    views: Callable[[Image], list[View]] = whole
    tested: bool = False
    graded: "Callable[..., Source] | None" = None


def held_back(epochs: int, batch_size: int) -> Recipe:
    """Return the optimisation for real images, which are few: a slow encoder, strong decay."""
    return Recipe(
        epochs=epochs, batch_size=batch_size, lr=1e-3, encoder_lr=0.3, weight_decay=0.05,
        select="last",
    )  # fmt: skip


def load(
    name: str, source: Source, data: Path | None, progress: Progress, option: str = "--data"
) -> Collection:
    """Return the cases of a source, with a doubt where they hold nothing to learn.

    Raises:
        DataError: its data is not said, absent or broken.
        UsageError: data is said of a source that reads none.
    """
    if data is not None:
        must_read(name, source, option)
    elif source.what is not None:
        raise DataError(f"source {name} needs {option} PATH: {source.what}")
    found = source.load(data or Path(), progress)
    return replace(found, doubts=(*found.doubts, *_unsaid(data or name, found)))


def _unsaid(where: Path | str, collection: Collection) -> Iterator[str]:
    """Yield that no case has a category, or a mask, or that all have one category."""
    readings = [reading for case in collection.cases for reading in case.readings]
    used = {reading.category for reading in readings if reading.category is not None}
    right = "are columns and files called as they should be?"
    if readings and not used:
        yield f"{where}: no case has a category: {right}"
    elif len(used) == 1 and len(collection.cases) > 1:
        grade = collection.grades[used.pop()]
        yield f"{where}: all categories are {grade}: there is nothing to tell apart"
    if readings and all(reading.contour is None for reading in readings):
        yield f"{where}: no case has a mask: {right}"


def must_read(name: str, source: Source, option: str = "--data") -> None:
    """Check that a source, for which data is given, is not one that reads none.

    Raises:
        UsageError: it would not be looked at.
    """
    if source.what is None:
        to = option.replace("data", "source")
        raise UsageError(
            f"{option}: source {name} makes its own data and reads none: leave it out, or say "
            f"what the data is of, such as {to} manifest"
        )


def graded(name: str, source: Source, data: Path | None, grades: tuple[str, ...] | None) -> Source:
    """Return a source with the grades that are given; without any, with those of its data.

    Raises:
        UsageError: they are fixed.
    """
    if source.graded is not None:
        return source.graded(data, grades)
    if grades is not None:
        raise UsageError(f"the grades of source {name} are fixed: leave out --grades")
    return source
