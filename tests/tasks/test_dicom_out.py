"""What goes out as DICOM, read back: onto which pixels, of which study, which numbers."""

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import UltrasoundImageStorage, UltrasoundMultiFrameImageStorage, generate_uid
from torch import Tensor

from mtbench.errors import DataError
from mtbench.training.task import Trained
from mtbench_tasks import breast
from mtbench_tasks._lesion import dicom_out, predicting, reading
from mtbench_tasks._lesion.calipers import volume
from mtbench_tasks._lesion.ensemble import Ensemble
from mtbench_tasks._lesion.files import read_picture
from mtbench_tasks._lesion.source import whole
from mtbench_tasks.thyroid import acr
from tests.tasks.test_reading import GRADES, nothing, predictor, tissue

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")  # of old scanners' files


def two(grid: Tensor) -> None:
    """A larger lesion to the left of a smaller one."""
    grid[35:60, 20:50] = 5.0
    grid[40:55, 65:80] = 5.0


def scan(file: Path, **more: Any) -> Path:
    """A grey DICOM of 80 x 120 pixels."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = UltrasoundImageStorage
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(data, name, generate_uid())
    data.PatientID, data.StudyDate = "P07", "20260102"
    data.Rows, data.Columns = 80, 120
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = tissue().tobytes()
    data.update(more)
    data.save_as(file, enforce_file_format=True)
    return file


def written(
    source: Path, folder: Path, draw: Any = two, frame: int | None = None, **more: Any
) -> tuple[dict[str, Any], list[Any]]:
    """Read a file and write its DICOM; return the record, and the files read back."""
    header = dicom_out.source(source)
    picture = read_picture(source, frame)
    record, _ = reading.read(
        Ensemble(Trained(predictor(draw), "model", {})), picture, reading.boxes(picture, whole),
        source, folder / "a", 96, GRADES, None, reading.Reference(), ("transverse",),
    )  # fmt: skip
    record["frame"], record["volume"] = frame, more.get("volume")
    for view in record["views"]:
        view["means"] = "BI-RADS 4a or more"
        view["descriptors"] = more.get("descriptors")
    files = dicom_out.write(header, record, "thyroid ew seed 0", "Thyroid", folder / "a")
    return record, [pydicom.dcmread(file) for file in files]


def shipped(name: str) -> Path:
    file = get_testdata_file(name)
    if file is None:
        pytest.skip("another release of pydicom ships it")
    return Path(str(file))


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("examples_rgb_color.dcm", None),
        ("examples_jpeg2k.dcm", None),
        ("ExplVR_BigEnd.dcm", None),  # ACR-NEMA's date and time
        ("examples_ybr_color.dcm", 15),
    ],
)
def test_a_scanners_file_comes_back(tmp_path: Path, name: str, frame: int | None) -> None:
    source = shipped(name)
    record, [seg, sr] = written(source, tmp_path, frame=frame)
    of = pydicom.dcmread(source)
    for made in (seg, sr):
        assert made.StudyInstanceUID == of.StudyInstanceUID
        assert made.get("PatientID", "") == of.get("PatientID", "")
        assert made.SeriesInstanceUID != of.SeriesInstanceUID
    assert (seg.Modality, sr.Modality) == ("SEG", "SR")
    # The mask, pixel by pixel: a segment for each lesion, that of the view's largest first.
    assert len(seg.SegmentSequence) == 2
    with Image.open(record["mask"]) as picture:
        mask = np.asarray(picture) > 0
    planes = seg.pixel_array.astype(bool)
    assert planes.shape == (2, of.Rows, of.Columns)
    np.testing.assert_array_equal(planes.any(axis=0), mask)
    assert planes[0].sum() > planes[1].sum() > 0
    # What it refers to.
    series = seg.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == of.SeriesInstanceUID
    [instance] = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == of.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == of.SOPClassUID
    assert instance.get("ReferencedFrameNumber") == frame
    referred = {
        (found.SeriesInstanceUID, item.ReferencedSOPInstanceUID)
        for study in sr.CurrentRequestedProcedureEvidenceSequence
        for found in study.ReferencedSeriesSequence
        for item in found.ReferencedSOPSequence
    }
    assert referred == {
        (of.SeriesInstanceUID, of.SOPInstanceUID), (seg.SeriesInstanceUID, seg.SOPInstanceUID)
    }  # fmt: skip


def test_a_clip_of_one_frame_is_a_still(tmp_path: Path) -> None:
    clip = UltrasoundMultiFrameImageStorage
    source = scan(tmp_path / "a.dcm", SOPClassUID=clip, NumberOfFrames=1)
    [seg, _] = written(source, tmp_path)[1]
    [instance] = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPClassUID == clip
    assert "ReferencedFrameNumber" not in instance


@pytest.mark.parametrize("wanted", [None, "all", "middle", "1"])
def test_a_still_has_no_frames_number(tmp_path: Path, wanted: str | None) -> None:
    """ReferencedFrameNumber is of multi-frame images only (PS3.3, type 1C)."""
    still = scan(tmp_path / "a.dcm")
    assert predicting.frames(still, wanted) == [None]
    assert predicting.frames(still, "2") == [2]  # which is refused, when it is read


@pytest.mark.parametrize(
    ("characters", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["ISO 2022 IR 6", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["ISO_IR 100", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞"),
        ("ISO_IR 6", "Doe^Jane"),
        ("ISO_IR 192", "Müller^Jö"),
    ],
)
def test_names_survive_in_every_character_set(tmp_path: Path, characters: Any, name: str) -> None:
    source = scan(tmp_path / "a.dcm", SpecificCharacterSet=characters, PatientName=name)
    for made in written(source, tmp_path)[1]:
        assert made.PatientName == name


def test_the_report_has_the_measurements_and_the_finding(tmp_path: Path) -> None:
    source = scan(tmp_path / "a.dcm", PixelSpacing=[0.1, 0.1])
    along = {"plane": "longitudinal", "long_axis_mm": 4.0}
    across = {"plane": "transverse", "long_axis_mm": 3.0, "short_axis_mm": 2.0}
    record, _ = written(source, tmp_path, volume=volume([along, across]))
    content = hd.sr.srread(tmp_path / "a_sr.dcm").content
    seg = pydicom.dcmread(tmp_path / "a_seg.dcm")
    regions = content.get_planar_roi_measurement_groups()
    lengths = content.get_image_measurement_groups()
    assert len(regions) == len(lengths) == 2
    [view] = record["views"]
    for number, measured in enumerate((view, *view["others"])):
        region, group = regions[number], lengths[number]
        segment = seg.SegmentSequence[number]
        assert region.tracking_uid == group.tracking_uid == segment.TrackingUID
        assert region.reference_type == hd.sr.CodedConcept("121214", "DCM", "")
        assert region.finding_sites[0].topographical_modifier is None
        assert region.finding_sites[0].value.meaning == "Thyroid"
        found = {m.name.meaning: m for m in group.get_measurements()}
        for name, key in (
            ("Long axis", "long_axis"), ("Short axis", "short_axis"), ("Depth", "height"),
            ("Width", "width"),
        ):  # fmt: skip
            assert found[name].value == measured[f"{key}_mm"]
            assert found[name].unit.value == "mm"
            [ends] = found[name].referenced_coordinates
            np.testing.assert_allclose(ends.value, measured["calipers"][key]["px"], atol=1e-4)
    said = {e.name.meaning: e.value.meaning for e in regions[0].get_qualitative_evaluations()}
    assert said == {
        "Category": "BI-RADS 4a or more", "Image View": "Transverse", "Taller than wide": "No",
    }  # fmt: skip
    chances = {m.name.meaning: m.value for m in regions[0].get_measurements()}
    assert chances == {"Probability of low": 0.25, "Probability of high": 0.75}
    assert "Category" not in {e.name.meaning for e in regions[1].get_qualitative_evaluations()}
    volumes = [m.value for m in lengths[0].get_measurements() if m.name.meaning == "Volume"]
    assert volumes == [record["volume"]["ml"]]


def test_descriptors_are_reported_by_dicoms_codes_or_ours(tmp_path: Path) -> None:
    said = {
        "echogenicity": ("hypoechoic", 0.75), "composition": ("mixed", 0.5),
        "margin": ("irregular", 0.25),
    }  # fmt: skip
    found = {name: {"term": term, "probability": p} for name, (term, p) in said.items()}
    written(scan(tmp_path / "a.dcm"), tmp_path, descriptors=found)
    [first, second] = hd.sr.srread(
        tmp_path / "a_sr.dcm"
    ).content.get_planar_roi_measurement_groups()
    told = {
        (e.name.scheme_designator, e.name.value): (e.value.scheme_designator, e.value.value)
        for e in first.get_qualitative_evaluations()
    }
    assert told["DCM", "111360"] == ("DCM", "111364")  # echo pattern: hypoechoic
    assert told["99MTBENCH", "composition"] == ("99MTBENCH", "mixed")
    assert told["DCM", "111037"] == ("99MTBENCH", "unclear")  # less likely than not
    chances = {m.name.meaning: m.value for m in first.get_measurements()}
    assert chances["Probability of margin: irregular"] == 0.25
    assert not {e.name.value for e in second.get_qualitative_evaluations()} & {"111360", "111037"}


def test_every_code_of_a_descriptor_is_dicoms() -> None:
    lexicon = acr.LEXICON + breast.LEXICON
    assert dicom_out.NAMES.keys() <= {descriptor.name for descriptor in lexicon}
    assert dicom_out.TERMS.keys() <= {term for d in lexicon for term in d.terms}
    for known in (dicom_out.NAMES, dicom_out.TERMS):
        for word in known:
            assert dicom_out._code(word, known).scheme_designator != dicom_out.PRIVATE


def test_the_mask_is_on_the_stored_pixels(tmp_path: Path) -> None:
    """Rows of 0.2 mm are shown twice, and stored once."""
    source = scan(tmp_path / "a.dcm", PixelSpacing=[0.2, 0.1])
    record, [seg, _] = written(source, tmp_path)
    with Image.open(record["mask"]) as picture:
        shown = np.asarray(picture) > 0
    assert shown.shape == (160, 120)
    stored = seg.pixel_array.any(axis=0)
    assert stored.shape == (80, 120)
    assert np.mean(stored.repeat(2, axis=0) != shown) < 0.01


def test_no_lesion_is_reported_and_segments_nothing(tmp_path: Path) -> None:
    _, [sr] = written(scan(tmp_path / "a.dcm"), tmp_path, nothing)
    assert sr.Modality == "SR"
    [group] = hd.sr.srread(tmp_path / "a_sr.dcm").content.get_image_measurement_groups()
    assert group.finding_type.meaning == reading.NOTHING


def test_what_cannot_be_referred_to_is_refused(tmp_path: Path) -> None:
    Image.fromarray(tissue()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: --dicom needs a DICOM image to refer to"):
        dicom_out.source(tmp_path / "a.png")
    file = scan(tmp_path / "a.dcm")
    data = pydicom.dcmread(file)
    del data.SeriesInstanceUID
    data.save_as(file)
    with pytest.raises(DataError, match="it has no SeriesInstanceUID"):
        dicom_out.source(file)
