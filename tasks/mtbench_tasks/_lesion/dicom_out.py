"""A reading as DICOM, by highdicom: a segmentation (SEG) and a structured report (SR, TID 1500)."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as Pil

from mtbench.errors import DataError
from mtbench.version import __version__
from mtbench_tasks._lesion import dicom
from mtbench_tasks._lesion.cases import Mask
from mtbench_tasks._lesion.doubts import parts
from mtbench_tasks._lesion.reading import CLEAR, NOTHING, UNCLEAR, USE, beside, headline, mask_of

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from highdicom.sr import (
        CodedConcept,
        Comprehensive3DSR,
        Measurement,
        QualitativeEvaluation,
        SourceImageForRegion,
    )
    from pydicom import DataElement, Dataset

MAKER = "mtbench"
PRIVATE = "99MTBENCH"  # DICOM's prefix of coding schemes that are nobody's standard
NAMED = "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


NAMES = {
    "echogenicity": "DCM.EchoPattern",
    "echo pattern": "DCM.EchoPattern",
    "shape": "SCT.Shape",
    "margin": "DCM.Margins",
    "posterior features": "DCM.PosteriorAcousticFeatures",
    "echogenic halo": "DCM.EchogenicHalo",
}
TERMS = {
    "anechoic": "DCM.Anechoic",
    "hyperechoic": "DCM.Hyperechoic",
    "isoechoic": "DCM.Isoechoic",
    "hypoechoic": "DCM.Hypoechoic",
    "complex cystic/solid": "DCM.Complex",
    "oval": "SCT.OvoidShapeOval",
    "round": "SCT.RoundShape",
    "irregular": "SCT.Irregular",
    "smooth": "SCT.Smooth",
    "circumscribed": "SCT.Circumscribed",
    "not circumscribed": "RADLEX.NonCircumscribedMargin",
    "enhancement": "DCM.PosteriorEnhancement",
    "shadowing": "DCM.PosteriorShadowing",
    "combined": "DCM.CombinedPosteriorEnhancementAndShadowing",
    "in a mass": "DCM.CalcificationsWithinAMass",
    "macrocalcifications": "DCM.Macrocalcifications",
    "none": "SCT.None_",
    "present": "SCT.Present",
}
"""Descriptors and their terms by pydicom's names of codes; what is not here has none of its meaning
(DICOM's are of breast ultrasound, and its calcifications of mammography), and gets one of ours."""


class _Lesion(NamedTuple):
    """A region that was segmented.

    Attributes:
        mask: (H, W) in the image as it is stored.
        view: the record of the view that it lies in.
        measured: that record, or one of its ``others``.
        tracking: names it in both files: a UID and a text.
    """

    mask: Mask
    view: Mapping[str, Any]
    measured: Mapping[str, Any]
    tracking: tuple[str, str]


def source(path: Path) -> "Dataset":
    """Return the header that a reading's files refer to.

    Raises:
        DataError: the file is no DICOM image, or does not say of which study and series it is.
    """
    try:
        with dicom.decoding():
            data = dicom.header(path)
            if absent := [name for name in NAMED if not data.get(name)]:
                raise DataError(f"it has no {absent[0]}")
            _name_characters(data)
            for name in MAY_BE_EMPTY:
                # ACR-NEMA wrote 2004.01.19 and 13:54:38.
                said = str(data.get(name, ""))
                old = {"StudyDate": ".", "StudyTime": ":"}.get(name)
                setattr(data, name, said.replace(old, "") if old else data.get(name, ""))
    except DataError as error:
        raise DataError(f"{path}: --dicom needs a DICOM image to refer to: {error}") from error
    return data


def _name_characters(data: "Dataset") -> None:
    """Name the characters so that highdicom takes them.

    It knows neither ``ISO_IR 6``, which is what holds where nothing is said, nor, among several
    sets, an empty first one, as all of Japan writes it, and Korea's: those become UTF-8.
    """
    known = data.get("SpecificCharacterSet")
    if known == "ISO_IR 6":
        del data.SpecificCharacterSet
    elif isinstance(known, Sequence) and not isinstance(known, str):
        data.decode()
        data.SpecificCharacterSet = "ISO_IR 192"


def write(
    data: "Dataset", record: Mapping[str, Any], model: str, organ: str, to: Path
) -> list[str]:
    """Write ``TO_seg.dcm``, a segment for each lesion, and ``TO_sr.dcm``; return the files.

    Without a lesion there is no SEG, and the SR says so.

    Args:
        data: of `source`.
        record: of `LesionTask.predict`.
        model: which one read it.
        organ: where a lesion lies, by its keyword among DICOM's codes: ``Thyroid``.
        to: folder and first part of the name.

    Raises:
        DataError: the image's header is not one that can be referred to.
    """
    lesions = list(_lesions(data, record))
    written = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the image's header holds
            seg = None
            if lesions:
                seg = _segmentation(data, lesions, record["frame"], model, organ)
            report = _report(data, seg, lesions, record, model, organ)
            for made, ending in ((seg, "_seg.dcm"), (report, "_sr.dcm")):
                if made is not None:
                    written.append(str(beside(to, ending)))
                    made.save_as(written[-1])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{record['image']}: no DICOM can be made for it ({said})") from error
    return written


def _lesions(data: "Dataset", record: Mapping[str, Any]) -> Iterator[_Lesion]:
    """Yield what was segmented, view by view, the largest first."""
    from highdicom import UID

    whole = mask_of(record)
    shown = whole.shape[1], whole.shape[0]
    size = int(data.Columns), int(data.Rows)
    number = 0
    for view in record["views"]:
        left, top, right, bottom = view["box"]
        found = parts(whole[top:bottom, left:right])
        for region, measured in zip(found, (view, *view["others"]), strict=False):
            mask = np.zeros(whole.shape, np.uint8)
            mask[top:bottom, left:right] = region
            if shown != size:  # its pixels were made square
                mask = np.asarray(Pil.fromarray(mask).resize(size, Pil.Resampling.NEAREST))
            if mask.any():
                number += 1
                yield _Lesion(mask > 0, view, measured, (str(UID()), f"Lesion {number}"))


def _segmentation(
    data: "Dataset", lesions: Sequence[_Lesion], frame: int | None, model: str, organ: str
) -> "Segmentation":
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import UltrasoundImageStorage

    algorithm = hd.AlgorithmIdentificationSequence(
        name=model, family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=lesion.tracking[1],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=lesion.tracking[0],
            tracking_id=lesion.tracking[1],
            anatomic_regions=[getattr(codes.SCT, organ)],
        )
        for number, lesion in enumerate(lesions, 1)
    ]
    still = deepcopy(data)
    # highdicom takes no clip, be it of one frame, without functional groups, which these have not.
    still.SOPClassUID = UltrasoundImageStorage
    if "ImagePositionPatient" not in data:  # a frame of reference alone places nothing
        still.pop("FrameOfReferenceUID", None)
    made = hd.seg.Segmentation(
        source_images=[still],
        pixel_array=np.stack([lesion.mask for lesion in lesions], axis=-1)[None],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        content_description=USE,
        content_label="LESION",
        **_instance(1, f"Lesions by {model}"),
    )

    def name(item: "Dataset", element: "DataElement") -> None:
        """Name the file as what it is, and its frame, where the still image is named."""
        if element.keyword == "ReferencedSOPInstanceUID" and element.value == data.SOPInstanceUID:
            item.ReferencedSOPClassUID = data.SOPClassUID
            if frame is not None:
                item.ReferencedFrameNumber = frame

    made.walk(name)
    return made


def _report(
    data: "Dataset",
    seg: "Segmentation | None",
    lesions: Sequence[_Lesion],
    record: Mapping[str, Any],
    model: str,
    organ: str,
) -> "Comprehensive3DSR":
    """Return TID 1500 with two groups for each lesion: its region, and its lengths.

    A region's measurements (TID 1410) have no coordinates of their own, so that calipers stand in
    a group without one (TID 1501); both have the lesion's tracking identifier.
    """
    import highdicom as hd
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    device = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[MAKER, model]),
            name=MAKER,
            manufacturer_name=MAKER,
            model_name=model,
        ),
    )
    frames = None if record["frame"] is None else [record["frame"]]
    image = data.SOPClassUID, data.SOPInstanceUID, frames

    def about(tracking: tuple[str, str]) -> dict[str, Any]:
        return {
            "tracking_identifier": sr.TrackingIdentifier(*tracking),
            "algorithm_id": sr.AlgorithmIdentification(model, __version__, parameters=[USE]),
            "finding_sites": [sr.FindingSite(getattr(codes.SCT, organ))],
        }

    groups: list[Any] = []
    for number, lesion in enumerate(lesions, 1):
        assert seg is not None
        largest = lesion.measured is lesion.view
        region = sr.ReferencedSegmentationFrame(
            seg.SOPClassUID,
            seg.SOPInstanceUID,
            frame_number=number,  # each segment has one
            segment_number=number,
            source_image=sr.SourceImageForSegmentation(*image),
        )
        groups += [
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                **about(lesion.tracking),
                referenced_segment=region,
                finding_type=codes.SCT.Lesion,
                measurements=[*_chances(lesion.view)] if largest else None,
                qualitative_evaluations=[*_evaluations(lesion)] or None,
            ),
            sr.MeasurementsAndQualitativeEvaluations(
                **about(lesion.tracking),
                finding_type=codes.SCT.Lesion,
                measurements=[*_lengths(lesion, sr.SourceImageForRegion(*image), record["volume"])],
            ),
        ]
    if not lesions:
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                **about((str(hd.UID()), "Image")),
                finding_type=_own("nothing", NOTHING),
                source_images=[sr.SourceImageForMeasurementGroup(*image)],
            )
        )
    return sr.Comprehensive3DSR(
        evidence=[data] if seg is None else [data, seg],
        content=sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=device),
            procedure_reported=codes.SCT.Ultrasonography,
            title=codes.DCM.ImagingMeasurementReport,
            imaging_measurements=groups,
        ),
        **_instance(2, f"Measurements by {model}"),
    )


def _instance(number: int, description: str) -> dict[str, Any]:
    """Return who made an instance, in a series of its own."""
    import highdicom as hd

    return {
        "series_instance_uid": hd.UID(),
        "series_number": 9000 + number,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": __version__,
        "device_serial_number": "none",
        "series_description": description[:64],
        "content_qualification": hd.ContentQualificationValues.RESEARCH,
    }


def _own(value: str, meaning: str) -> "CodedConcept":
    from highdicom.sr import CodedConcept

    return CodedConcept(value, PRIVATE, meaning[:64])


def _code(word: str, known: Mapping[str, str]) -> Any:
    """Return a word's code, ours where DICOM has none."""
    from pydicom.sr.codedict import codes

    if word not in known:
        return _own(word.replace(" ", "-"), word.capitalize())
    scheme, name = known[word].split(".")
    return getattr(getattr(codes, scheme), name)


def _number(name: Any, value: float, unit: str, **more: Any) -> "Measurement":
    from highdicom.sr import CodedConcept, Measurement

    meaning = {"1": "no units", "{pixels}": "pixels"}.get(unit, unit)
    return Measurement(name, value, CodedConcept(unit, "UCUM", meaning), **more)


def _lengths(
    lesion: _Lesion, image: "SourceImageForRegion", volume: Mapping[str, Any] | None
) -> Iterator["Measurement"]:
    """Yield the calipers, each with its two end points on the image, and the volume."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    measured = lesion.measured
    unit, written = ("mm", "mm") if "long_axis_mm" in measured else ("px", "{pixels}")
    names = {
        "long_axis": codes.SCT.LongAxis,
        "short_axis": codes.SCT.ShortAxis,
        "height": codes.SCT.Depth,
        "width": codes.SCT.Width,
    }
    for key, name in names.items():
        ends = sr.CoordinatesForMeasurement(
            graphic_type=sr.GraphicTypeValues.POLYLINE,
            graphic_data=np.array(measured["calipers"][key]["px"]),
            source_image=image,
        )
        yield _number(name, measured[f"{key}_{unit}"], written, referenced_coordinates=[ends])
    if volume is not None and measured is lesion.view and lesion.view["plane"] == "transverse":
        yield _number(codes.SCT.Volume, volume["ml"], "ml")


def _chances(view: Mapping[str, Any]) -> Iterator["Measurement"]:
    """Yield the probabilities of the categories, and of each descriptor's likeliest term."""
    for grade, chance in view["probabilities"].items():
        yield _number(_own(f"probability-{grade}", f"Probability of {grade}"), chance, "1")
    for name, said in (view["descriptors"] or {}).items():
        what = _own(f"probability-{name}", f"Probability of {name}: {said['term']}")
        yield _number(what, said["probability"], "1")


def _evaluations(lesion: _Lesion) -> Iterator["QualitativeEvaluation"]:
    """Yield the category of a view's largest lesion and its descriptors, plane, and uprightness."""
    from highdicom.sr import QualitativeEvaluation
    from pydicom.sr.codedict import codes

    if lesion.measured is lesion.view:
        said = lesion.view["category"] if headline(lesion.view) != UNCLEAR else None
        value = _own(said, lesion.view["means"]) if said else _own("unclear", UNCLEAR)
        yield QualitativeEvaluation(_own("category", "Category"), value)
        for name, found in (lesion.view["descriptors"] or {}).items():
            clear = found["probability"] >= CLEAR
            term = _code(found["term"], TERMS) if clear else _own("unclear", "Unclear")
            yield QualitativeEvaluation(_code(name, NAMES), term)
    if plane := lesion.view["plane"]:
        yield QualitativeEvaluation(codes.DCM.ImageView, getattr(codes.SCT, plane.capitalize()))
    if (taller := lesion.measured["taller_than_wide"]) is not None:
        answer = codes.SCT.Yes if taller else codes.SCT.No
        yield QualitativeEvaluation(_own("taller-than-wide", "Taller than wide"), answer)
