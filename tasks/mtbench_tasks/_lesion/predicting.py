"""From an image file to all that is written of it: each frame, each image of a lesion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mtbench.errors import DataError, UsageError
from mtbench.training.task import Trained
from mtbench_tasks._lesion import dicom_out, files, ood, reading
from mtbench_tasks._lesion import report as page
from mtbench_tasks._lesion.calipers import Plane, volume
from mtbench_tasks._lesion.cases import View
from mtbench_tasks._lesion.ensemble import Ensemble, temperature
from mtbench_tasks._lesion.pixels import Picture
from mtbench_tasks._lesion.source import whole
from mtbench_tasks._names import spelt_alike

if TYPE_CHECKING:
    from pydicom import Dataset

    from mtbench_tasks._lesion.task import LesionTask

NO_VOLUME = (
    "no volume: it needs one transverse and one longitudinal view (--plane) with a lesion, and the "
    "spacing of both"
)

OTHERS = (
    "the two images are of different patients, by their headers (PatientID): are they of one "
    "lesion?"
)


class Look(NamedTuple):
    """An image file that is about to be read: nothing has been written yet."""

    path: Path
    number: int | None
    header: "Dataset | None"
    picture: Picture
    boxes: Sequence[View]


@dataclass(frozen=True)
class Reader:
    """A trained model, what it is set against, and the arguments of `LesionTask.predict`."""

    task: "LesionTask"
    trained: Trained
    reference: reading.Reference
    spacing: float | None
    views: Literal["auto", "whole"]
    plane: tuple[Plane, ...]
    second: Path | None
    mirror: bool
    text: Literal["keep", "find", "blank"]
    report: Literal["html", "pdf", "both", "none"]
    dicom: bool

    def file(self, path: Path, to: Path, frame: str | None) -> dict[str, Any]:
        """Read what is wanted of a file, and return the record."""
        if self.spacing is not None and not 0 < self.spacing < float("inf"):
            raise UsageError(
                f"spacing must be positive (millimetres per pixel), found {self.spacing}"
            )
        with reading.instead(path, to):
            numbers = frames(path, frame)
        if len(numbers) == 1:
            return self._lesion(path, numbers[0], to)
        reading.clean(path, to)
        return {
            "image": str(path),
            "frames": [self._lesion(path, n, to.with_name(f"{to.name}_frame{n}")) for n in numbers],
        }

    def _lesion(self, path: Path, number: int | None, to: Path) -> dict[str, Any]:
        """Read one frame, and the second image of the same lesion if there is one."""
        second = self.second
        if second is not None and second.resolve() == path.resolve():
            raise DataError(f"{path}: --second is the same file: give another image of the lesion")
        looked = [self._look(path, number, to)]
        if second is not None:
            looked.append(self._look(second, None, to))
        first, *more = (len(found.boxes) for found in looked)
        if self.plane and len(self.plane) != first + sum(more):
            raise DataError(
                f"{path}: --plane names {len(self.plane)}, and {first + sum(more)} views are read: "
                "name the plane of each"
            )
        reading.clean(path, to)
        places = to, reading.beside(to, "_second")
        each = zip(looked, (self.plane[:first], self.plane[first:]), places, strict=False)
        written = [self._write(*one) for one in each]
        measured = volume([view for record, _ in written for view in record["views"]])
        for record, rest in written:
            record["volume"] = measured
            named = spelt_alike(found.picture.patient for found in looked if found.picture.patient)
            if len({*named.values()}) > 1:
                record["notes"].append(OTHERS)
            if second is not None and measured is None:
                record["notes"].append(NO_VOLUME)
            rest()
        records = [record for record, _ in written]
        return records[0] | {"second": records[1] if second is not None else None}

    def _look(self, path: Path, number: int | None, to: Path) -> Look:
        header = dicom_out.source(path) if self.dicom else None
        with reading.instead(path, to):
            if number is None and (count := files.frames(path)) > 1:
                raise DataError(
                    f"{path}: has {count} frames, and --second is one image: save the frame that "
                    "is meant as a file"
                )
            picture = files.read_picture(path, number)
        views_of = whole if self.views == "whole" else self.task.origin.views
        return Look(path, number, header, picture, reading.boxes(picture, views_of))

    def _write(
        self, found: Look, planes: Sequence[Plane], to: Path
    ) -> tuple[dict[str, Any], Callable[[], None]]:
        """Return a reading, and what writes its page and its DICOM."""
        task, trained = self.task, self.trained
        meaning = task.meaning()
        record, shown = reading.read(
            Ensemble(trained, self.mirror), found.picture, found.boxes, found.path, to,
            task.image_size, task.grades, self.spacing, self.reference,
            planes, task.lexicon, self.text,
        )  # fmt: skip
        record["frame"] = found.number
        record["models"] = [model.name for model in trained.members]
        record["temperatures"] = [temperature(model) for model in trained.members]
        record["scale"] = task.scale
        if self.reference.ood is None:
            record["notes"].append(ood.UNKNOWN)
        record["thresholds"] = [row._asdict() for row in task.thresholds]
        for view in record["views"]:
            view["means"] = meaning.get(view["category"])
            view["assessment"] = task.assess(view) if view["category"] else None

        def rest() -> None:
            record["reports"] = page.write(self.report, record, shown, trained, to, task.words)
            if found.header is not None:
                record["dicom"] = dicom_out.write(
                    found.header, record, trained.label, task.organ, to
                )

        return record, rest


def frames(path: Path, wanted: str | None) -> Sequence[int | None]:
    """Return which frames of a file are read; None is the only one, which has no number in DICOM.

    Raises:
        UsageError: `wanted` is no frame.
        DataError: the file is absent or broken, or has several where none is named.
    """
    if wanted is not None and wanted not in ("middle", "all") and not wanted.isdecimal():
        raise UsageError(f"--frame must be a number, middle or all, found {wanted!r}")
    count = files.frames(path)
    if wanted is None:
        if count > 1:
            raise DataError(f"{path}: has {count} frames: give --frame N, middle or all")
        return [None]
    chosen: Sequence[int]
    if wanted == "all":
        chosen = range(1, count + 1)  # and no list: a header may say two thousand million
    else:
        chosen = [(count + 1) // 2 if wanted == "middle" else int(wanted)]
    return [None] if count == 1 and 1 in chosen else chosen
