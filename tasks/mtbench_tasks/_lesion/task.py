"""A task of two objectives: a lesion's mask and its risk category, from one image."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError, UsageError, did_you_mean
from mtbench.training.machine.cache import cache_dir
from mtbench.training.task import (
    Batch,
    Evaluation,
    Meter,
    Predictor,
    Progress,
    Splits,
    Task,
    Trained,
    Verdict,
)
from mtbench_tasks._bounds import at_least, check_dropout
from mtbench_tasks._lesion import descriptors, manifest, nnunet, radiomics
from mtbench_tasks._lesion.calipers import Plane
from mtbench_tasks._lesion.cases import PARTS, Case, Collection
from mtbench_tasks._lesion.categories import place
from mtbench_tasks._lesion.consensus import with_consensus
from mtbench_tasks._lesion.descriptors import Threshold
from mtbench_tasks._lesion.doubts import alike, halved, survey
from mtbench_tasks._lesion.grid import Prepared, prepare
from mtbench_tasks._lesion.source import Source, graded, load, must_read
from mtbench_tasks._lesion.splits import (
    FOLDS,
    CaseSplit,
    Sample,
    authority,
    join_patients,
    radiomics_of,
    read_fold,
    split_patients,
    with_test_of,
)

WIDTH = 16
"""Channels of the first level of encoder ``unet``."""

LEVELS = 4
"""Of encoder ``unet``; each has half the resolution and twice the width of the one before."""

SHOWN = 10
"""Problems of the data that are recorded in words."""


class LesionTask(Task):
    """Lesion mask and risk category, learnt from readers who differ.

    Two objectives on one encoder. ``segmentation``: Dice plus cross-entropy of the mask.
    ``risk``: cross-entropy of the category (or the squared earth mover's distance, which knows that
    grades are ordered), plus ``guide`` times the squared error between the embedding's guided part
    e_r and the standardised radiomics of the training contour. A case that lacks a label trains the
    other objective. `labels` says whose labels train and validate; test labels are the ground truth
    where there is one, else the readers' consensus, a single reader's own.

    A subclass names its `sources`, its `organ`, by DICOM's keyword, and `words`, by which it calls
    the radiomics' ACR descriptors, and may add parameters of its own.

    Args:
        source: where the cases come from; by default the first.
        data: where the source's data lies; an embedded one needs none.
        target: ``grades``, or ``low-high``, divided where the source says.
        image_size: side of the network's grid, divisible by 32, or by 16 with encoder ``unet``; by
            default what suits the source.
        encoder: ``efficientnet_lite0``, pretrained on ImageNet, the default; ``timm:NAME``
            or ``monai:NAME``, with the weights that timm or MONAI publishes; or ``unet``, from
            random weights.
        weights: a file with the pretrained encoder's weights, instead of the published ones.
        width: channels of the first level of encoder ``unet``, by default 16; where it is given,
            this is the encoder.
        augmentation: its strength, 0 (mirroring only) to 1; by default what suits the source.
        dropout: of the risk head's pooled features; by default what suits the source.
        guide: weight of the radiomics guidance within the risk loss; by default what suits the
            source.
        descriptors: weight of the descriptors' cross-entropy within the risk loss, read from the
            guided embedding; 0: they are not learnt. Only some sources have them.
        risk_loss: ``ce``, or ``emd``: the squared earth mover's distance (Hou et al. 2016).
        strict: stop at what is broken in the data, or looks odd, instead of leaving it out, or
            using it.
        labels: of a case with several readers, ``reader``: those of one, drawn by the seed;
            ``all``: each reading is a sample; ``consensus``: STAPLE of the masks and the majority
            of the categories, of equally frequent ones the most suspicious.
        grades: the categories from benign to malignant, where the source's are not fixed.
        fold: k/K: the test is the k-th of K parts of the patients, which no seed changes; by
            default 1/5, and no choice where the source says who is tested.
        test_source: test on all of another source, such as another centre's, instead: ``manifest``,
            or one of the task's. Its grades are this one's, or `target` is ``low-high``.
        test_data: where its data lies.
    """

    objectives = ("segmentation", "risk")
    apart = ("frame", "second")
    sources: ClassVar[Mapping[str, Source]]
    organ: ClassVar[str]
    thresholds: ClassVar[Sequence[Threshold]] = ()
    words: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        *,
        source: str | None = None,
        data: Path | None = None,
        target: Literal["grades", "low-high"] = "grades",
        image_size: int | None = None,
        encoder: str | None = None,
        weights: Path | None = None,
        width: int | None = None,
        augmentation: float | None = None,
        dropout: float | None = None,
        guide: float | None = None,
        descriptors: float = 0.0,
        risk_loss: Literal["ce", "emd"] = "ce",
        strict: bool = False,
        labels: Literal["reader", "all", "consensus"] = "reader",
        grades: tuple[str, ...] | None = None,
        fold: str | None = None,
        test_source: str | None = None,
        test_data: Path | None = None,
    ) -> None:
        self.source = next(iter(self.sources)) if source is None else self._known(source)
        self.origin = graded(self.source, self._origin(self.source), data, grades)
        given: dict[str, Any] = {
            "image_size": image_size, "augmentation": augmentation, "dropout": dropout,
            "guide": guide,
        }  # fmt: skip
        chosen = {k: getattr(self.origin, k) if v is None else v for k, v in given.items()}
        size, self.augmentation, self.dropout, self.guide = chosen.values()
        found = {"grades": self.origin.grades} if self.origin.graded is not None else {}
        self.elsewhere = self._elsewhere(test_source, test_data, target)
        named = test_source or (self.source if self.origin.tested else None)
        if named and fold is not None:
            raise UsageError(f"who is tested is fixed by source {named}: leave out --fold")
        self.fold = FOLDS if fold is None else fold
        read_fold(self.fold)
        used = {} if named else {"fold": self.fold}
        self._choose_encoder(encoder, weights, width, size)
        self.dependent = {
            "source": self.source, "encoder": self.encoder, "width": self.width,
            **chosen, **found, **used,
        }  # fmt: skip
        if not 0 <= self.augmentation <= 1:
            raise UsageError(f"augmentation must be between 0 and 1, found {augmentation}")
        check_dropout(self.dropout)
        if not 0 <= self.guide < float("inf"):
            raise UsageError(f"guide must not be negative, found {guide}")
        if not 0 <= descriptors < float("inf"):
            raise UsageError(f"descriptors must not be negative, found {descriptors}")
        if descriptors and not self.origin.lexicon:
            raise UsageError(f"source {self.source} has no descriptors: leave out --descriptors")
        self.descriptors = descriptors
        self.lexicon = self.origin.lexicon if descriptors else ()
        if data is not None:
            must_read(self.source, self.origin)
        self.data, self.target, self.strict, self.labels = data, target, strict, labels
        self._seen: Sequence[str] = ()  # by what training starts from
        self.risk_loss = risk_loss
        self.recipe = self.origin.recipe
        if self.pretrained is None:
            self.recipe = replace(
                self.recipe, epochs=2 * self.recipe.epochs, lr=2 * self.recipe.lr, encoder_lr=1.0
            )
        self.grades = ("low", "high") if target == "low-high" else self.origin.grades
        self.high = 1 if target == "low-high" else self.origin.high
        from mtbench_tasks._lesion.scores import metrics  # MONAI takes seconds to import

        self.metrics = metrics(self.grades)

    def _choose_encoder(
        self, encoder: str | None, weights: Path | None, width: int | None, image_size: int
    ) -> None:
        from mtbench_tasks._lesion import encoders  # MONAI takes seconds to import

        self.encoder = encoder or (encoders.DEFAULT if width is None else encoders.OWN)
        self.pretrained = encoders.kind(self.encoder)
        if self.pretrained is None and weights is not None:
            raise UsageError(
                f"encoder {encoders.OWN} has no pretrained weights: leave out --weights"
            )
        if self.pretrained is not None and width is not None:
            raise UsageError(f"encoder {self.encoder} has its own widths: leave out --width")
        at_least(1, width=width)
        step = 2**LEVELS if self.pretrained is None else encoders.DEEPEST
        if image_size < 32 or image_size % step:
            raise UsageError(
                f"image_size must be a multiple of {step} from 32 on, found {image_size}"
            )
        self.image_size, self.weights = image_size, weights
        self._start: Mapping[str, Tensor] | None = None  # the encoder's weights
        self._started = ""  # the digest of those of a model that exists
        self.width = WIDTH if self.pretrained is None and width is None else width

    def _origin(self, source: str) -> Source:
        """Return a source; a subclass's parameters may change it."""
        return self.sources[source]

    def anywhere(self, source: str) -> Source:
        """Return a source of this task, or the manifest, which may be any task's.

        Raises:
            UsageError: there is no such source.
        """
        self._known(source, "manifest")
        return self._origin(source) if source in self.sources else manifest.SOURCE

    def _elsewhere(
        self, source: str | None, data: Path | None, target: str
    ) -> tuple[str, Source, Path | None] | None:
        """Return the source that is tested on, where it is not the one that is trained on."""
        if source is None:
            if data is not None:
                raise UsageError("--test-data is where the data of --test-source lies: give both")
            return None
        origin = self.anywhere(source)
        if data is not None:
            must_read(source, origin, "--test-data")
        if origin.graded is not None:
            own = self.origin.grades
            origin = origin.graded(data, own if data is None else None, own)
        if origin.grades != self.origin.grades and target != "low-high":
            also = " and --test-data PATH" if data is None and origin.what is not None else ""
            raise UsageError(
                f"the grades of source {source} are {', '.join(origin.grades)}, those of "
                f"{self.source} {', '.join(self.origin.grades)}: give --target low-high{also}"
            )
        return source, replace(origin, high=self.divide(origin)), data

    def divide(self, origin: Source) -> int:
        """Return the first grade of a source, which may be another organ's, that is high risk here.

        That is the one at which this task's source divides its own, or else another of its sources,
        whatever further grades there are; the source's own where they have none such.
        """
        if origin.grades == self.origin.grades:
            return self.origin.high
        known = [one for one in (self.origin, *self.sources.values()) if one.grades]
        places = (place(one.grades[one.high], origin.grades) for one in known)
        return next((at for at in places if at), origin.high)

    def collection(self, progress: Progress) -> Collection:
        """Return the cases.

        Raises:
            DataError: the data is absent or broken.
        """
        own = load(self.source, self.origin, self.data, progress)
        if self.elsewhere is None:
            return own
        name, origin, data = self.elsewhere
        return with_test_of(
            own, self.origin.high, name, load(name, origin, data, progress, "--test-data"), origin
        )

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Load the source, split it by patient, and fit the radiomics target on training."""
        collection = self.collection(progress)
        known = self.with_consensus(collection)
        prepared, cases = prepare(known, self.image_size, cache_dir(), progress), list(known.cases)
        problems = [*collection.problems, *prepared.broken.values()]
        doubts = [*collection.doubts, *itertools.chain(*prepared.doubts.values())]
        doubts += alike(cases, prepared.hashes)
        if self.labels == "reader":
            doubts += halved(cases)
        usable = [i for i in range(len(cases)) if i not in prepared.broken]
        self._must_keep_parts(cases, prepared.broken, problems)
        rng = np.random.default_rng(seeding.derive(seed, "split"))
        joined = join_patients([cases[i] for i in usable], [prepared.images[i] for i in usable])
        for i, case in zip(usable, joined, strict=True):
            cases[i] = case
        if self.elsewhere is not None:  # the test is the other source's alone
            tested = {case.patient for case in joined if case.part == "test"}
            both = [i for i in usable if cases[i].part != "test" and cases[i].patient in tested]
            if both:
                problems.insert(
                    0,
                    f"{self.source}: {len(both)} images, the first {cases[both[0]].name}, do not "
                    f"train: their patients have an image that test source {self.elsewhere[0]} has "
                    "too",
                )
                usable = sorted({*usable} - {*both})
                joined = [cases[i] for i in usable]
        parts = split_patients(joined, rng, self.fold)
        hashes = {p: prepared.hashes[i] for p, i in enumerate(usable)}
        doubts = [*self._met(joined, hashes, parts), *doubts]
        if self.strict and (wrong := problems + doubts):
            raise DataError(f"{wrong[0]} (of {len(wrong)} such; --strict stops at them)")
        if min(map(len, parts)) == 0:
            why = f"; the first of {len(problems)} left out: {problems[0]}" if problems else ""
            raise DataError(
                f"{self.source}: {len(usable)} cases are too few to be split in three{why}"
            )
        reader = rng.integers(0, 2**31, len(usable))
        samples = [
            [
                (usable[p], number)
                for p in part
                for number in self._labelled(cases[usable[p]], int(reader[p]))
            ]
            for part in parts[:2]
        ]
        # What is best known comes last: the truth, else the consensus, else the one reading.
        samples.append([(usable[p], len(cases[usable[p]].said) - 1) for p in parts[2]])
        train, val, test = self._splits(cases, prepared, samples, progress)
        notes = self._notes((train, val, test), collection, problems, doubts)
        fingerprint = collection.fingerprint + self._load_encoder()
        return Splits(train, val, test, fingerprint=fingerprint, notes=notes)

    def _splits(
        self,
        cases: Sequence[Case],
        prepared: Prepared,
        samples: Sequence[Sequence[Sample]],
        progress: Progress,
    ) -> list[CaseSplit]:
        """Return training, validation and test; only the first two have radiomics to learn from."""
        train, val, test = samples
        targets = radiomics_of(cases, prepared, [*train, *val], cache_dir(), progress)
        standardise = radiomics.Standardiser.fit(targets[: len(train)])
        unknown = np.full((len(test), len(radiomics.FEATURES)), np.nan)
        rows = np.split(np.concatenate([standardise(targets), unknown]), [len(train), len(targets)])
        high = self.origin.high if self.target == "low-high" else None
        return [
            CaseSplit(
                cases,
                prepared,
                own,
                part,
                high,
                self.augmentation,
                standardise,
                self.lexicon,
                keep=own is val,  # each epoch's end asks for its masks
            )
            for own, part in zip(samples, rows, strict=True)
        ]

    def _must_keep_parts(
        self, cases: Sequence[Case], broken: Mapping[int, str], problems: Sequence[str]
    ) -> None:
        """Refuse data of which no case of a part can be used: others would be dealt in its place.

        Raises:
            DataError: there is such a part.
        """
        tested = self.elsewhere is not None or self.origin.tested
        for part in PARTS[1:]:  # what is of no part trains
            meant = [i for i, case in enumerate(cases) if case.part == part]
            if not broken.keys() >= set(meant) or not (meant or (part == "test" and tested)):
                continue
            source = self.elsewhere[0] if self.elsewhere and part == "test" else self.source
            first = (
                [broken[i] for i in meant]
                or problems
                or ["there is none with a mask or a category"]
            )
            raise DataError(
                f"{source}: of the cases for {part} none can be used, and no others are put in "
                f"their place: mend them; the first of {len(first)}: {first[0]}"
            )

    def begin(self, fitted: Mapping[str, Any]) -> None:
        """Take note of the images that what training starts from was trained or chosen on."""
        self._seen = fitted.get("seen", ())

    def _met(
        self, cases: Sequence[Case], hashes: Mapping[int, Sequence[str]], parts: Sequence[list[int]]
    ) -> Iterator[str]:
        """Yield what of validation and test has been seen by what training starts from."""
        if not self._seen:
            return
        from mtbench_tasks._lesion.evaluation_numbers import unseen  # which takes seconds to import

        new = set(unseen(cases, hashes, self._seen))
        for part, positions in (("test", parts[2]), ("val", parts[1])):
            if met := sum(p not in new for p in positions):
                yield (
                    f"{met} of {len(positions)} {part} images are of patients whom what it starts "
                    "from (--init) was trained or chosen on: its scores there are too good; start "
                    "from a model that has not seen them"
                )

    def _notes(
        self,
        made: Sequence[CaseSplit],
        collection: Collection,
        problems: Sequence[str],
        doubts: Sequence[str],
    ) -> dict[str, Any]:
        """Return what the splits are made of, for the record."""
        notes: dict[str, Any] = {
            "source": self.source,
            **({"test source": self.elsewhere[0]} if self.elsewhere else {}),
            "images": [len({case.name for case in split.cases}) for split in made],
            "patients": [len({case.patient for case in split.cases}) for split in made],
            "with_mask": [int(split.has_mask.sum()) for split in made],
            "with_category": [int((split.category >= 0).sum()) for split in made],
        }
        if any(len(case.readings) > 1 for case in collection.cases):
            notes["readers"] = len({r.reader for case in collection.cases for r in case.readings})
            notes["labels"] = self.labels
            notes["test labels"] = authority(made[2].cases)
        if collection.remarks:
            notes["remarks"] = list(collection.remarks)
        if problems:
            notes["left out"] = len(problems)
            notes["problems"] = problems[:SHOWN]
        if doubts:
            notes["looks odd"] = len(doubts)
            notes["doubts"] = doubts[:SHOWN]
        return notes

    def recall(self, fingerprint: str) -> None:
        """Take the digest of a pretrained encoder's weights from where `setup` has put it."""
        self._started = fingerprint.rpartition(" ")[2]

    def _load_encoder(self) -> str:
        """Load a pretrained encoder's weights; return what they add to the fingerprint."""
        from mtbench_tasks._lesion import encoders

        if self.pretrained is None:
            return ""
        if self._started:
            return f" {self._started}"
        self._start = self.pretrained.weights(self.weights)
        return f" {encoders.digest(self._start)}"

    def with_consensus(self, collection: Collection) -> Collection:
        """Return a collection with a consensus where one is learnt from or tested against."""
        wanted = self.labels == "consensus"
        cases = tuple(
            with_consensus(case) if wanted or not case.truth else case for case in collection.cases
        )
        count = sum(case.consensus is not None for case in cases)
        fingerprint = f"{collection.fingerprint} {count} with consensus"
        return replace(collection, cases=cases, fingerprint=fingerprint)

    def _labelled(self, case: Case, drawn: int) -> Sequence[int]:
        """Return which of `Case.said` a case trains or validates with."""
        count = len(case.readings)
        if self.labels == "all":
            return range(count)
        return [count if self.labels == "consensus" and case.consensus else drawn % count]

    def model(self) -> MultitaskModel:
        """Return the network; a pretrained encoder has its weights after `setup` alone."""
        from mtbench_tasks._lesion import encoders, network

        encoder: encoders.Encoder
        if self.pretrained is not None:
            encoder = self.pretrained.build(self.image_size, self._start)
        else:
            assert self.width is not None
            encoder = encoders.Contracting(tuple(self.width * 2**i for i in range(LEVELS)))
        return network.build(
            encoder,
            len(self.grades),
            len(radiomics.FEATURES),
            dropout=self.dropout,
            terms=sum(len(descriptor.terms) for descriptor in self.lexicon),
        )

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return the segmentation and the risk loss."""
        from mtbench_tasks._lesion import losses

        logits, risk = outputs
        guidance = losses.guidance_loss(risk.guided, batch["radiomics"])
        graded = losses.grade_loss(risk.logits, batch["category"], self.risk_loss)
        graded = graded + self.guide * guidance
        if self.lexicon:
            said = batch["descriptors"]
            graded = graded + self.descriptors * descriptors.loss(
                risk.descriptors, said, self.lexicon
            )
        return [losses.segmentation_loss(logits, batch["mask"], batch["has_mask"]), graded]

    def meter(self) -> Meter:
        """Return a fresh meter of both objectives' metrics."""
        from mtbench_tasks._lesion.scores import LesionMeter

        return LesionMeter(self.grades, self.high)

    def figures(self, predictor: Predictor, splits: Splits, folder: Path) -> list[Path]:
        """Draw test cases with contours and prediction, and how far raters agree on validation.

        Where cases have several readers, ``agreement.csv`` has `agreement`'s table. It is of the
        validation split: numbers on the test split are sealed.
        """
        from mtbench_tasks._lesion import agreement, pictures, sheets

        test, val = splits.test, splits.val
        assert isinstance(test, CaseSplit)
        assert isinstance(val, CaseSplit)
        drawn = [pictures.panel(predictor, test, self.grades, folder / "predictions.png")]
        if any(len(case.readings) > 1 for case in val.cases):
            opinions = agreement.opinions(predictor, val)
            table = agreement.agreement(opinions, len(self.grades))
            sheets.write(table, folder / "agreement.csv", "%.4f")
            drawn.append(pictures.agreement(table, folder / "agreement.png"))
        return drawn

    def fit(self, predictor: Predictor, splits: Splits) -> dict[str, Any]:
        """Return what a reading is set against.

        The temperature that calibrates the categories, fitted on the validation readings, where its
        effect is told too; how good the model is there; the thresholds from which on a risk counts
        as high; by what images are recognised that it was trained or chosen on; what the training's
        images are like, and their radiomics; how good it is at descriptors, if it has learnt any.
        """
        from mtbench_tasks._lesion.fitting import fit

        assert isinstance(splits.train, CaseSplit)
        assert isinstance(splits.val, CaseSplit)
        return fit(
            predictor, splits.train, splits.val, self.meter(), self.image_size, self.high,
            self.lexicon,
        )  # fmt: skip

    def predict(
        self,
        trained: Trained,
        path: Path,
        to: Path,
        *,
        spacing: float | None = None,
        views: Literal["auto", "whole"] = "auto",
        frame: str | None = None,
        plane: tuple[Plane, ...] = (),
        second: Path | None = None,
        mirror: bool = False,
        text: Literal["keep", "find", "blank"] = "keep",
        report: Literal["html", "pdf", "both", "none"] = "html",
        dicom: bool = False,
    ) -> dict[str, Any]:
        """Segment, grade and measure what an image shows.

        Args:
            trained: the model.
            path: an image file.
            to: where mask, overlay and report go, and how their names begin.
            spacing: millimetres per pixel, where the file's header (DICOM, NIfTI) says none.
                Lengths are given in pixels where neither does.
            views: ``auto`` crops an image to what was scanned and cuts a split screen in two, as in
                training; ``whole`` reads it as it is.
            frame: of a file of several, the number of one, from 1, ``middle``, or ``all``: then
                the record's ``frames`` has one of each.
            plane: ``transverse`` or ``longitudinal``; of several views, one each, from the left,
                those of `second` last. "Taller than wide" is said of transverse views only.
            second: another image of the same lesion; of several that are read, a folder with one
                at the same place for each. A transverse and a longitudinal view of known spacing
                give the volume.
            mirror: ask each model of the mirror image too, and take the mean.
            text: what is done about text that is burnt into the image, and may name the patient, in
                overlay and page: it is kept; or found and told; or blackened, with all that lies
                outside of what was scanned. The last two need ``mtbench-toolkit[deidentify]``.
            report: which kind of page is written of each image.
            dicom: write a segmentation and a structured report beside it, which refer to the
                image's study and series; the image must be DICOM then.
        """
        from mtbench_tasks._lesion.predicting import Reader
        from mtbench_tasks._lesion.reading import Reference

        reader = Reader(
            self, trained, Reference.of(trained.fitted), spacing, views, plane, second, mirror,
            text, report, dicom,
        )  # fmt: skip
        return reader.file(path, to, frame)

    @classmethod
    def assess(cls, view: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return what a guideline says of a view with a lesion; None where there is none."""
        return None

    def evaluate(
        self,
        trained: Trained,
        data: Path | None,
        to: Path,
        *,
        source: str = "manifest",
        grades: tuple[str, ...] | None = None,
        high: str | None = None,
        truth: str | None = None,
        by: tuple[str, ...] | None = None,
        mirror: bool = False,
    ) -> Evaluation:
        """Judge a model on cases of which it has seen none.

        Patients with an image that it was trained or chosen on are left out; patients who share an
        image count as one. Where the data's grades are not the model's, both are reduced to low and
        high.

        Args:
            trained: the model.
            data: where the source's data lies.
            to: the folder for page, JSON and CSV.
            source: where the cases come from: ``manifest``, a CSV, or a source of this task.
            grades: the data's categories from benign to malignant, where they are not fixed.
            high: the first of the data's grades that counts as high risk.
            truth: the reader whose word is the truth, such as pathology; without one it is the
                source's truth, else the readers' consensus, a single reader's own.
            by: the columns of the manifest that subgroups are made of; by default scanner, site,
                sex, age and size, where they are there.
            mirror: whether the model is asked of each mirror image too, and the mean taken.
        """
        from mtbench_tasks._lesion.evaluate import evaluate

        return evaluate(self, trained, data, to, source, grades, high, truth, by, mirror)

    def joins(self, other: Task) -> bool:
        """Return whether both see the same grid and mean the same by the same grades."""
        assert isinstance(other, LesionTask)
        mine, its = (
            (t.image_size, t.grades, t.high, t.lexicon, t.origin.grades[t.origin.high])
            for t in (self, other)
        )
        return mine == its

    def meaning(self) -> dict[str, str]:
        """Return what each category is of, in words."""
        if self.target == "grades":
            return {grade: f"{self.origin.system} {grade}".strip() for grade in self.grades}
        sides = self.origin.grades[: self.origin.high], self.origin.grades[self.origin.high :]
        return {
            name: f"{self.origin.system} {' or '.join(side)}".strip()
            for name, side in zip(self.grades, sides, strict=True)
        }

    @property
    def scale(self) -> str:
        """What the categories are of, in a line; empty where they say it themselves."""
        if self.target == "low-high":
            return f"high: {self.meaning()['high']}"
        return self.origin.system and f"{self.origin.system} category"

    @classmethod
    def reads(cls, path: Path) -> bool:
        """Return whether a file is an image."""
        from mtbench_tasks._lesion import files

        return files.is_image(path)

    def card(self, fitted: Mapping[str, Any]) -> str:
        """Return what goes in and comes out, what the model is for, and where its limits are."""
        from mtbench_tasks._lesion.card import card

        return card(
            self.image_size, self.grades, self.high, self.origin.views, self.lexicon, fitted
        )

    @classmethod
    def inspect(
        cls, source: str, data: Path | None, *, grades: tuple[str, ...] | None = None
    ) -> list[tuple[str, str, str]]:
        """Return what of a source is used, repaired and dropped, and what looks odd.

        Args:
            source: of this task.
            data: where its data lies.
            grades: the categories from benign to malignant, where they are not fixed.
        """
        collection = cls._collection(source, data, grades)
        if not collection.cases and collection.problems:
            raise DataError(
                f"{data or source}: none of its cases can be used; the first of "
                f"{len(collection.problems)} problems: {collection.problems[0]}"
            )
        problems, doubts, broken = survey(collection)
        rows = [(str(count), what, why) for count, what, why in collection.report]
        if broken:
            why = "a file of theirs is broken or does not fit; the numbers above count them"
            rows.append((str(broken), "images that `run` leaves out", why))
        for lines, what, why in (
            (problems, "problems", "left out, or what `run` stops at"),
            (doubts, "things that look odd", "used"),
        ):
            if lines:
                said = f"{why}; the first: {lines[0]}; `mtbench data verify` lists all"
                rows.append((str(len(lines)), what, said))
        return rows + [("", "note", remark) for remark in collection.remarks]

    @classmethod
    def preview(cls, source: str, data: Path | None, picture: Path) -> None:
        """Draw cases of a source with their contours and grades."""
        from mtbench_tasks._lesion import pictures

        pictures.preview(cls._collection(source, data, None), picture)

    @classmethod
    def export(
        cls, source: str, data: Path | None, to: Path, *, grades: tuple[str, ...] | None = None
    ) -> Verdict:
        """Write images and masks in nnU-Net's layout, and the rest in a CSV beside them.

        Args:
            source: of this task.
            data: where its data lies.
            to: the folder.
            grades: the categories from benign to malignant, where they are not fixed.
        """
        collection = cls._collection(source, data, grades)
        written, problems = nnunet.write(collection.cases, collection.grades, to)
        if not written:
            problems = [*collection.problems, *problems]
            why = f"; the first problem: {problems[0]}" if problems else ""
            raise DataError(f"{data or source}: has no case with a mask to write{why}")
        return Verdict(written, [*collection.problems, *problems], [])

    @classmethod
    def template(cls) -> str:
        """Return a CSV that source ``manifest`` reads, to be filled in."""
        return manifest.template() if "manifest" in cls.sources else super().template()

    @classmethod
    def verify(
        cls,
        source: str,
        data: Path | None,
        *,
        grades: tuple[str, ...] | None = None,
        strict: bool = False,
    ) -> Verdict:
        """Read all of a source; return what is broken, would be refused, or looks odd.

        Args:
            source: of this task.
            data: where its data lies.
            grades: the categories from benign to malignant, where they are not fixed.
            strict: what looks odd is a problem too, as it is to a strict run.
        """
        collection = cls._collection(source, data, grades)
        problems, doubts, _ = survey(collection)
        parts = split_patients(collection.cases, np.random.default_rng(0))
        if collection.cases and min(map(len, parts)) == 0:
            count = len({case.patient for case in collection.cases})
            of = f"{len(collection.cases)} cases of {count} patient{'s' * (count > 1)}"
            problems.append(f"{source}: {of} are too few to be split in three")
        if strict:
            problems, doubts = [*problems, *(f"looks odd: {doubt}" for doubt in doubts)], []
        return Verdict(len(collection.cases), problems, doubts)

    @classmethod
    def _collection(
        cls, source: str, data: Path | None, grades: tuple[str, ...] | None
    ) -> Collection:
        origin = cls.sources[cls._known(source)]
        if grades is not None:
            origin = graded(source, origin, data, grades)
        return load(source, origin, data, lambda *_: None)

    @classmethod
    def _known(cls, source: str, *more: str) -> str:
        known = [*cls.sources, *more]
        if source not in known:
            raise UsageError(f"there is no source {source!r}: {did_you_mean(source, known)}")
        return source
