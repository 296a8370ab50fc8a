"""Files of data that somebody else made: whatever is in them, a line or a result, and no hang."""

import gzip
import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openpyxl
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pil

from mtbench.errors import DataError
from mtbench_tasks import _faces, _molecules, breast, digits
from mtbench_tasks._dense import folder as dense
from mtbench_tasks._lesion import files, manifest
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks._tabular import read_lines
from mtbench_tasks.multitarget import Multitarget
from mtbench_tasks.thyroid import aimi, ddti, thyroidxl, tn3k
from tests.fuzz.fuzzing import budget, damaged, in_time, scribbled, told

READERS = (files.read_picture, files.read_mask, files.read_geometry, files.frames, files.is_image)


def silent(what: str, done: int, total: int) -> None: ...


def picture(form: str, size: tuple[int, int] = (20, 24)) -> bytes:
    """A noisy image in a format of Pillow's."""
    values = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    stream = io.BytesIO()
    Pil.fromarray(values).save(stream, form)
    return stream.getvalue()


PNG, JPEG = picture("PNG"), picture("JPEG", (80, 100))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n"


def by_itk(ending: str, file: Path) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (20, 24), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values[None] if ending == ".dcm" else values), str(file))
    return file.read_bytes()


def opened(collection: Collection) -> Collection:
    """Read all that a collection promises."""
    for case in collection.cases:
        told(case.pixels)
        for reading in case.readings:
            if reading.contour is not None:
                told(reading.contour)
    return collection


# Images


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp", ".dcm", ".nii", ".nii.gz"])
def test_damaged_images(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"image{ending}"
    forms = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".bmp": "BMP"}
    good = picture(forms[ending]) if ending in forms else by_itk(ending, file)

    @budget(6)
    @given(damaged(good))
    def check(raw: bytes) -> None:
        file.write_bytes(raw)
        for read in READERS:
            told(lambda read=read: read(file))  # type: ignore[misc]

    check()


def cut_off_tiff() -> bytes:
    raw = bytearray(picture("TIFF"))
    start = struct.unpack_from("<I", raw, 4)[0]
    at = next(
        start + 2 + 12 * i
        for i in range(struct.unpack_from("<H", raw, start)[0])
        if struct.unpack_from("<H", raw, start + 2 + 12 * i)[0] == 258  # bits per sample
    )
    struct.pack_into("<I", raw, at + 4, 2**20)
    return bytes(raw)


def test_a_tiff_whose_tags_are_cut_off_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(cut_off_tiff())
    with pytest.raises(DataError, match=r"a\.tif: does not decode"):
        files.read_picture(tmp_path / "a.tif")


def test_threads_hear_each_its_own_warnings_and_leave_none(tmp_path: Path) -> None:
    (tmp_path / "cut.tif").write_bytes(cut_off_tiff())
    (tmp_path / "whole.tif").write_bytes(picture("TIFF"))
    before = warnings.filters[:], warnings.showwarning

    def broken(name: str) -> bool:
        try:
            files.read_picture(tmp_path / name)
        except DataError:
            return True
        return False

    names = ["cut.tif", "whole.tif"] * 200
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(broken, names)) == [True, False] * 200
    assert (warnings.filters, warnings.showwarning) == before


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_bombs_and_other_formats_are_no_images(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 2**30, 2**30, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    stream = io.BytesIO()
    Pil.new("1", (10_500, 10_500)).save(stream, "PNG")  # below what Pillow refuses by itself
    for name, raw in {"vast": bomb, "large": stream.getvalue(), "eps": EPS, "none": b""}.items():
        file = tmp_path / f"{name}.png"
        file.write_bytes(raw)
        for read in (files.read_picture, files.read_mask):
            with pytest.raises(DataError, match=f"{name}.png: does not decode"):
                read(file)


# DDTI


def ddti_folder(at: Path, xml: str | bytes, image: bytes = JPEG) -> Path:
    at.mkdir(exist_ok=True)
    (at / "1.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode("utf-8", "replace"))
    (at / "1_1.jpg").write_bytes(image)
    (at / "2.xml").write_text("<case><tirads>2</tirads></case>")
    (at / "2_1.jpg").write_bytes(picture("JPEG", (60, 90)))
    return at


def marked(svg: str) -> str:
    return f"<case><tirads>4a</tirads><mark><image>1</image><svg>{svg}</svg></mark></case>"


SVG = '[{"points":[{"x":9,"y":9},{"x":60,"y":9},{"x":60,"y":60}],"regionType":"freehand"}]'


@budget(30)
@given(st.one_of(scribbled(marked(SVG)), scribbled(SVG).map(marked)))
def test_scribbled_ddti(tmp_path_factory: pytest.TempPathFactory, xml: str) -> None:
    found = told(lambda: opened(ddti.load(ddti_folder(tmp_path_factory.getbasetemp() / "d", xml))))
    assert isinstance(found, Collection)  # the other case is whole
    assert [case.name for case in found.cases if case.patient == "2"] == ["2_1"]


@pytest.mark.parametrize("x", ["1e999", "NaN", "-Infinity", "9" * 400, "9" * 5000, "[" * 100_000])
def test_a_contour_without_coordinates_is_none(x: str, tmp_path: Path) -> None:
    found = ddti.load(ddti_folder(tmp_path / "d", marked(SVG.replace('"x":9', f'"x":{x}'))))
    counts = {what: count for count, what, _ in found.report}
    assert counts["marks unreadable"] == 1
    assert counts["contours used"] == 0


LAUGHS = "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
)  # fmt: skip


@pytest.mark.parametrize(
    "xml",
    [
        f'<!DOCTYPE c [<!ENTITY a "haha">{LAUGHS}]><case><tirads>&j;</tirads></case>',
        '<!DOCTYPE c [<!ENTITY a SYSTEM "file:///etc/passwd">]><case><tirads>&a;</tirads></case>',
        '<?xml version="1.0" encoding="base64"?><case/>',
        '<?xml version="1.0" encoding="no-such"?><case/>',
    ],
)
def test_xml_bombs_entities_and_encodings_are_problems(xml: str, tmp_path: Path) -> None:
    with in_time():
        found = ddti.load(ddti_folder(tmp_path / "d", xml))
    assert len(found.problems) == 1
    assert "1.xml is no well-formed XML" in found.problems[0]
    assert [case.name for case in found.cases] == ["2_1"]


def test_a_ddti_zip_cannot_burst_or_leave_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../1.xml", marked(SVG))
        archive.writestr("/tmp/1_1.jpg", JPEG)
    before = sorted(tmp_path.rglob("*"))
    opened(ddti.load(place / "d.zip"))
    assert sorted(tmp_path.rglob("*")) == before  # read in memory, nothing is unpacked
    monkeypatch.setattr(files, "UNPACKED", 2**20)
    with zipfile.ZipFile(place / "d.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("2.xml", b" " * 2**21)
    with pytest.raises(DataError, match="unpacks to 2 MiB"):
        ddti.load(place / "d.zip")


@budget(13)
@given(st.data())
def test_a_damaged_ddti_zip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.xml", marked(SVG))
        archive.writestr("1_1.jpg", picture("JPEG", (12, 12)))
    file = tmp_path_factory.getbasetemp() / "d.zip"
    file.write_bytes(data.draw(damaged(stream.getvalue())))
    told(lambda: opened(ddti.load(file)))


# Tables


HEADER = (
    "@relation 'r s'\n% c\n@attribute 'x a' numeric\n@attribute n {a,'b c'}\n"
    "@attribute y real\n@data\n"
)
ROWS = "".join(f"{i},a,{i * i}\n" for i in range(30))


@pytest.mark.parametrize("name", ["t.arff", "t.csv"])
def test_scribbled_tables(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    head = HEADER if name == "t.arff" else "x a,n,y\n"

    @budget(20)
    @given(scribbled(head), scribbled(ROWS[:60]))
    def check(header: str, rows: str) -> None:
        file.write_text(header + rows + ROWS, encoding="utf-8", newline="")
        told(lambda: Multitarget(data=file, targets=("y",)).setup(0, silent))

    check()


def test_a_number_whose_square_is_infinite_is_a_broken_row(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("x,n,y\n" + ROWS + "1e200,a,1\n1,a,-1e308\n")
    splits = Multitarget(data=file, targets=("y",)).setup(0, silent)
    assert splits.notes["left_out"] == 2


MANIFEST = "image,mask,category,patient,spacing\na.png,a.png,TR4,p,0.1\na.png,,TR3,p,\n"


@budget(25)
@given(scribbled(MANIFEST))
def test_scribbled_manifests(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "a.png").write_bytes(PNG)
    (folder / "m.csv").write_text(text, encoding="utf-8", newline="")
    graded = manifest.SOURCE.graded
    assert graded is not None
    told(lambda: graded(folder / "m.csv", None))
    told(lambda: manifest.load(folder / "m.csv", silent))


# Folders as published


def idx(folder: Path, images: bytes, *, zipped: bool = False) -> None:
    for part in ("train", "t10k"):
        name = f"{part}-images-idx3-ubyte" + ".gz" * zipped
        (folder / name).write_bytes(gzip.compress(images) if zipped else images)
        labels = b"\0\0\x08\1" + struct.pack(">I", 9) + bytes(9)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def test_damaged_and_bursting_idx_files(tmp_path: Path) -> None:
    good = b"\0\0\x08\3" + struct.pack(">III", 9, 28, 28) + bytes(9 * 784)

    @budget(13)
    @given(damaged(good, head=16))
    def check(raw: bytes) -> None:
        idx(tmp_path, raw)
        told(lambda: digits.load("idx", tmp_path, 0, 0))

    check()
    for file in tmp_path.iterdir():
        file.unlink()
    idx(tmp_path, good + bytes(2**25), zipped=True)
    with pytest.raises(DataError, match="found more"):
        digits.load("idx", tmp_path, 0, 0)


def clips(file: Path, **parts: Any) -> None:
    made = {
        "image": np.zeros((6, 20, 20), np.uint8), "mask": np.full((6, 20, 20), 255, np.uint8),
        "annot_id": np.array([b"1_"] * 6), "frame_num": np.arange(6),
    }  # fmt: skip
    with h5py.File(file, "w") as store:
        for name, part in (made | parts).items():
            if part is None:
                store.create_group(name)
            elif isinstance(part, tuple):  # promised, never written
                store.create_dataset(name, part, "u1", chunks=True)
            else:
                store[name] = part


def test_clips_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "dataset.hdf5"
    (tmp_path / "metadata.csv").write_text("x,annot_id,ti-rads_level\na,1_,4\nb\n")
    clips(file)
    assert len(aimi.load(tmp_path, silent).cases) == 4
    for parts in (
        {"image": None}, {"annot_id": None}, {"annot_id": np.arange(6)},
        {"annot_id": np.array([[b"a", b"b"]] * 6)}, {"annot_id": np.array([b"\xff"] * 6)},
        {"frame_num": np.zeros((6, 3))}, {"frame_num": np.full(6, np.nan)},
        {"frame_num": np.zeros(6, [("a", "i4")])}, {"image": h5py.SoftLink("/image")},
        {"image": h5py.ExternalLink("/etc/passwd", "/x")},
        {"image": (6, 2**20, 2**20), "mask": (6, 2**20, 2**20)},
        {"image": (2**40, 9, 9), "mask": (2**40, 9, 9),
         "annot_id": (2**40,), "frame_num": (2**40,)},
    ):  # fmt: skip
        clips(file, **parts)
        with in_time(), pytest.raises(DataError, match=r"dataset\.hdf5: (must|annot_id|cannot)"):
            aimi.load(tmp_path, silent)


def test_damaged_clips(tmp_path: Path) -> None:
    clips(tmp_path / "good.hdf5")
    (tmp_path / "metadata.csv").write_text("annot_id,ti-rads_level\n1_,4\n")

    @budget(20)
    @given(damaged((tmp_path / "good.hdf5").read_bytes(), head=3000))
    def check(raw: bytes) -> None:
        (tmp_path / "dataset.hdf5").write_bytes(raw)
        told(lambda: opened(aimi.load(tmp_path, silent)))

    check()


def spreadsheet(folder: Path, change: Callable[[str, bytes], bytes]) -> Path:
    book = openpyxl.Workbook()
    book.active.append(list(breast.NEEDED))
    book.active.append(["c.png", "t.png", "0.01", "4a", "malignant", *["x"] * 6])
    stream = io.BytesIO()
    book.save(stream)
    for name in ("c.png", "t.png"):
        (folder / name).write_bytes(PNG)
    with zipfile.ZipFile(stream) as good, zipfile.ZipFile(folder / "t.xlsx", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, change(name, good.read(name)))
    return folder


def test_spreadsheets_that_are_traps(tmp_path: Path) -> None:
    laughs = f'<!DOCTYPE c [<!ENTITY a "haha">{LAUGHS}]>'.encode()

    def load(change: Callable[[str, bytes], bytes]) -> Collection:
        return breast.load(spreadsheet(tmp_path, change), silent, "BIRADS")

    assert len(load(lambda _, raw: raw).cases) == 1
    for part in ("xl/workbook.xml", "xl/styles.xml", "xl/worksheets/sheet1.xml"):
        with in_time(), pytest.raises(DataError, match="cannot be read as a spreadsheet"):
            load(lambda name, raw, part=part: laughs + raw if name == part else raw)  # type: ignore[misc]
    with in_time(), pytest.raises(DataError, match="none of its 0 rows"):
        load(lambda _, raw: raw.replace(b'r="2"', b'r="999999999"').replace(b"A2", b"A999999999"))


RECORDS = '{"1":{"nodule_1":{"TIRADS":4},"images":["1_a_1.png"]}}'


@budget(20)
@given(scribbled(RECORDS))
def test_scribbled_thyroidxl(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.getbasetemp() / "xl"
    for part in thyroidxl.PARTS:
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True, exist_ok=True)
            (root / part / kind / "1_a_1.png").write_bytes(PNG)
    (root / "stats").mkdir(exist_ok=True)
    (root / "stats" / "id2info_eng.json").write_text(text, encoding="utf-8")
    told(lambda: thyroidxl.load(root, silent))


@budget(13)
@given(scribbled("1\n" + " ".join(_faces.ATTRIBUTES) + "\n1.jpg" + " 1" * 40 + "\n"), st.booleans())
def test_scribbled_celeba(
    tmp_path_factory: pytest.TempPathFactory, text: str, linked: bool
) -> None:
    root = tmp_path_factory.getbasetemp() / "celeba"
    (root / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    (root / "img_align_celeba" / "1.jpg").write_bytes(JPEG)
    link = root / "img_align_celeba" / "2.jpg"
    if linked and not link.is_symlink():
        link.symlink_to("/nowhere")
    (root / "list_attr_celeba.txt").write_text(text, encoding="utf-8")
    (root / "list_eval_partition.txt").write_text("1.jpg 0\n")
    told(lambda: _faces.load(root, 8, False, silent))


NPY = "{'descr':'<f8','fortran_order':False,'shape':(8,8,3)}"


@budget(30)
@given(
    st.one_of(scribbled(NPY), st.sampled_from(["(" * 9000, "-" * 9000 + "1", "{[]:1}", "9" * 4000]))
)
def test_scribbled_npy_headers(tmp_path_factory: pytest.TempPathFactory, header: str) -> None:
    file = tmp_path_factory.getbasetemp() / "0.npy"
    raw = header.encode("latin-1", "replace")
    file.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw + bytes(8 * 8 * 8 * 3))
    with in_time():
        found = dense._examine(file, "image", 5)
    assert found.problem or found.shape


def test_molecules_whose_parts_do_not_fit_are_dropped(tmp_path: Path) -> None:
    good = {
        "edge_index": torch.tensor([[0, 1], [1, 0]]), "edge_attr": torch.eye(4)[:2],
        "y": torch.zeros(1, 19), "x": torch.full((2, 11), 6.0), "pos": torch.eye(2, 3),
    }  # fmt: skip
    bad = (
        {"pos": torch.zeros(1, 3)}, {"pos": torch.zeros(2, 3)},
        {"pos": torch.full((2, 3), torch.nan)},
        {"pos": torch.full((2, 3), 1e300, dtype=torch.float64)},
        {"edge_index": torch.tensor([[0, 900], [7, 0]])}, {"edge_attr": torch.zeros(0)},
        {"x": torch.full((2, 11), torch.nan)},
    )  # fmt: skip
    torch.save([good, *(good | part for part in bad), 5], tmp_path / "qm9_v3.pt")
    found = _molecules.load(tmp_path, False, silent)
    assert (len(found), len(found.broken)) == (1, len(bad) + 1)


# Code, pipes, devices, loops


class Trap:
    """What writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def test_data_executes_no_code(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    file = tmp_path / "qm9_v3.pt"
    torch.save([Trap(sprung)], file)
    with pytest.raises(DataError, match="is not torch-geometric's list"):
        _molecules.load(tmp_path, False, silent)
    np.save(tmp_path / "0.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    assert dense._examine(tmp_path / "0.npy", "image", 5).problem
    (tmp_path / "a.png").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError):
        files.read_picture(tmp_path / "a.png")
    assert not sprung.exists()


LOADS: dict[str, Callable[[Path], object]] = {
    "ddti": ddti.load,
    "manifest": lambda path: manifest.load(path, silent),
    "table": read_lines,
    "image": files.read_picture,
    "thyroidxl": lambda path: thyroidxl.load(path, silent),
    "tn3k": lambda path: tn3k.load(path, silent),
    "aimi": lambda path: aimi.load(path, silent),
    "breast": lambda path: breast.load(path, silent, "BIRADS"),
    "digits": lambda path: digits.load("idx", path, 0, 0),
    "celeba": lambda path: _faces.load(path, 8, False, silent),
    "qm9": lambda path: _molecules.load(path, False, silent),
}


@pytest.mark.parametrize("task", LOADS)
def test_data_is_no_pipe_device_or_loop(task: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").write_bytes(b"")
    places = [tmp_path / "pipe", tmp_path / "loop", tmp_path / "empty", Path("/dev/zero")]
    for place in places:
        assert isinstance(told(lambda place=place: LOADS[task](place)), str)  # type: ignore[misc]


def test_pipes_within_a_folder_are_no_data(tmp_path: Path) -> None:
    folder = ddti_folder(tmp_path / "d", marked(SVG))
    os.mkfifo(folder / "3.xml")
    (folder / "self").symlink_to(folder)
    with in_time():
        assert len(ddti.load(folder).cases) == 2
        os.mkfifo(tmp_path / "a.png")
        assert files.fingerprint([], [tmp_path / "a.png"], silent)
        assert not files.is_image(tmp_path / "nothing")
