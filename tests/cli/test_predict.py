"""Trained models at the command line: packaged, read back, started from, applied to new files."""

import ast
import contextlib
import io
import json
import os
import re
import shutil
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter1d

from mtbench import cli
from mtbench.cli.predict import _append
from mtbench.errors import PluginError
from mtbench.plugins import extras
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.machine.locks import Lock
from mtbench.training.trained import package
from mtbench_tasks._lesion.grid import to_input
from mtbench_tasks.thyroid import Thyroid
from tests.conftest import Mtbench
from tests.refusals import refused

SMALL = ("--cases", 24, "--image-size", 32, "--width", 4, "--epochs", 1, "--threads", 1)


def made(out: Path, *line: object) -> Path:
    """Run a cell; return its directory."""
    words = ["mtbench", "run", *map(str, line), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    assert leaving.value.code == 0
    [result] = out.rglob("result.json")
    return result.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on phantoms; nobody may change it."""
    folder = made(tmp_path_factory.mktemp("thyroid"), "--method", "ew", *SMALL)
    logits, _ = package.load(folder)[1].predictor(to_input(drawn(), 32)[None])
    state = torch.load(folder / "best.pt", weights_only=True)
    [bias] = (key for key in state["model"] if key.endswith("out.conv.conv.bias"))
    state["model"][bias] -= logits.quantile(0.8)  # so short a training would segment nothing
    torch.save(state, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model, with ONNX."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mtbench", "package", str(run), "--to", str(folder), "--onnx"])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    assert leaving.value.code == 0
    assert "onnxruntime differs from torch by at most" in said.getvalue()
    return folder


def drawn() -> Any:
    """Speckle with a dark disk."""
    noise = np.random.default_rng(0).normal(size=(80, 110))
    y, x = np.indices(noise.shape)
    smooth = gaussian_filter1d(noise, 2.0, axis=1)
    grey = 110 + 60 * smooth - 60 * (np.hypot(y - 40, x - 55) < 20)
    return grey.clip(20, 255).astype(np.uint8)


@pytest.fixture
def neck() -> Any:
    """An image as a scan shows a nodule."""
    return drawn()


def files(folder: Path) -> set[str]:
    """What lies in a folder, but its lock."""
    found = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)) for file in found}


def test_a_record_that_json_cannot_hold_is_one_line(tmp_path: Path) -> None:
    said = r"the task's predict returns .*Tensor.*: it must return"
    with pytest.raises(PluginError, match=said):
        _append(tmp_path / "a.json", {"side": torch.zeros(1)}, first=True)


# Packaging


def test_the_card_says_nothing_of_single_cases(run: Path, tmp_path: Path) -> None:
    """It may name patients."""
    copy = Path(shutil.copytree(run, tmp_path / run.name))
    result = json.loads((copy / "result.json").read_text())
    result["notes"] |= {"looks odd": 77, "doubts": ["patients 'Doe, John' and 'DOE^JOHN'"]}
    (copy / "result.json").write_text(json.dumps(result))
    package.write(copy, tmp_path / "p", onnx=False)
    card = (tmp_path / "p" / "README.md").read_text()
    assert "Doe" not in card
    assert '"looks odd": 77' in card


def test_the_package_holds_what_its_card_says(run: Path, packed: Path) -> None:
    assert files(packed) == {"README.md", "model.json", "model.safetensors", "model.onnx"}
    card = (packed / "README.md").read_text()
    spec = json.loads((run / "spec.json").read_text())
    result = json.loads((run / "result.json").read_text())
    for text in (
        run.name[-12:],
        spec["data"],
        "Research use only. Not a medical device.",
        "Licence",
    ):
        assert text in card
    for name, value in result["val"].items():
        test = json.loads((run / "test.json").read_text())["metrics"][name]
        assert f"| {name} | {value:.4g} | {test:.4g} |" in card
    known = json.loads((packed / "model.json").read_text())
    assert known["spec"] == spec
    assert known["fitted"] == json.loads((run / "fitted.json").read_text())
    tensors = load_file(packed / "model.safetensors")
    state = torch.load(run / "best.pt", weights_only=True)["model"]
    assert {f"model.{name}" for name in state} == {n for n in tensors if n.startswith("model.")}
    assert all(torch.equal(tensors[f"model.{name}"], value) for name, value in state.items())


def test_sealed_test_metrics_stay_sealed(
    mtbench: Mtbench, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = run / "test.opened"
    assert opened.exists()  # by the report of `mtbench run`
    opened.rename(tmp_path / "aside")
    try:
        code, _, _ = mtbench("package", run, "--to", tmp_path / "p")
        card = (tmp_path / "p" / "README.md").read_text()
        assert code == 0
        assert not opened.exists()
    finally:
        (tmp_path / "aside").rename(opened)
    assert "| metric | validation |\n" in card
    assert "have not been opened" in card


def test_onnx_is_the_model(run: Path, packed: Path) -> None:
    """In onnxruntime, with any number of images, and by the names the card gives."""
    import onnxruntime

    _, trained = package.load(run)
    session = onnxruntime.InferenceSession(packed / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    assert names == ["segmentation", "risk.logits", "risk.guided", "risk.texture"]
    for count in (1, 2, 7):
        inputs = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(count))
        mask, risk = trained.predictor(inputs)
        found = session.run(names, {"inputs": inputs.numpy()})
        for value, wanted in zip(found, (mask, *risk), strict=True):
            torch.testing.assert_close(torch.from_numpy(value), wanted, atol=1e-4, rtol=1e-4)


def test_the_card_can_be_followed(
    mtbench: Mtbench, packed: Path, neck: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code, run on the ONNX file, gives what `predict` gives, cropped and cut as well."""
    card = (packed / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    needed = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert needed == {"__future__", "numpy", "onnxruntime", "PIL", "scipy"}  # and not mtbench
    screen = np.zeros((160, 260), np.uint8)
    screen[20:140, 10:122] = np.kron(neck, np.ones((2, 2), np.uint8))[20:140, :112]
    single = screen.copy()
    screen[20:140, 130:242] = np.rot90(screen[20:140, 10:122], 2) // 2 + 60
    colours = np.stack([neck, neck // 2 + 60, 255 - neck], 2)
    pictures = {
        "wide": neck, "high": neck.T, "small": neck[20:42, 30:50], "odd": neck[:77, :31],
        "one": single, "two": screen, "colours": colours,
    }  # fmt: skip
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in pictures]
    line = ("--report", "none", "--out", tmp_path / "p")
    assert mtbench("predict", packed, *files, *line)[0] == 0
    space: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), space)
    monkeypatch.chdir(packed)
    records = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert [len(record["views"]) for record in records] == [1, 1, 1, 1, 1, 2, 1]
    assert records[4]["views"][0]["box"] != [0, 0, 260, 160]
    filled = 0
    for file, record in zip(files, records, strict=True):
        drawn = np.asarray(Image.open(record["mask"])) > 0
        for view, found in zip(record["views"], space["read"](file), strict=True):
            (rows, columns), mask, category, chances = found
            left, top, right, bottom = view["box"]
            assert (rows, columns) == (slice(top, bottom), slice(left, right))
            assert chances == pytest.approx(view["probabilities"], abs=1e-4)
            assert category == view["category"]
            assert (mask == drawn[rows, columns]).mean() > 0.999
            filled += int(mask.any())
    assert filled


def test_card_and_record_know_other_sources_parameters(run: Path, packed: Path) -> None:
    card = (packed / "README.md").read_text()
    assert "- epoch: `1 of 1`" in card
    assert '"reader_noise": 1.0' in card
    assert '"frames"' not in card  # AIMI's
    assert json.loads((run / "result.json").read_text())["idle"] == ["frames", "split"]
    other = Thyroid(source="aimi")
    assert {"cases", "reader_noise", "phantom_seed", "split"} <= other.idle
    assert "frames" not in other.idle


def test_a_method_that_turns_the_features_is_part_of_its_model(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    """RotoGrad's rotations lie in the balancer: package and ONNX have them."""
    line = ("--plugin", tiny, "--task", "tiny", "--method", "rotograd", "--threads", 1)
    run = made(tmp_path / "runs", *line)
    to = tmp_path / "model"
    code, _, err = mtbench("package", run, "--to", to, "--onnx", "--plugin", tiny)
    assert (code, err) == (0, "")
    inputs = torch.randn(5, 4)
    (_, one), (_, other) = (package.load(path, [tiny]) for path in (run, to))
    for wanted, found in zip(one.predictor(inputs), other.predictor(inputs), strict=True):
        assert torch.equal(wanted, found)
    rotations = {n for n in load_file(to / "model.safetensors") if n.startswith("balancer.")}
    assert rotations


def test_a_model_of_one_batch_size_is_not_written(
    mtbench: Mtbench, tiny: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "tiny.py"
    bound = "features[0].reshape(len(features[0]), -1)"
    text = tiny.read_text().replace("forward(features[0])", f"forward({bound})")
    assert bound in text
    plugin.write_text(text)
    line = ("--plugin", plugin, "--task", "tiny", "--method", "ew", "--threads", 1)
    run = made(tmp_path / "runs", *line)
    to = tmp_path / "model"
    answer = mtbench("package", run, "--to", to, "--onnx", "--plugin", plugin)
    refused(answer, "takes batches of 2 only", "x.shape[0]")
    assert not to.exists()


def test_a_model_that_onnx_misreads_is_not_written(
    mtbench: Mtbench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("--plugin", tiny, "--task", "tiny", "--method", "ew", "--epochs", 1, "--threads", 1)
    run = made(tmp_path / "runs", *line)
    monkeypatch.setattr(package, "TOLERANCE", -1.0)
    answer = mtbench("package", run, "--to", tmp_path / "p", "--onnx", "--plugin", tiny)
    refused(answer, "differs from torch by", "nothing was written")
    assert [file.name for file in tmp_path.iterdir()] == ["runs"]


def test_bad_words_to_package(
    mtbench: Mtbench, tiny: Path, run: Path, packed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    to = tmp_path / "p"
    refused(mtbench("package", tmp_path / "absent", "--to", to), "no run directory")
    refused(mtbench("package", packed, "--to", to), "is a packaged model already")
    refused(mtbench("package", run, "--to", packed), "exists already")
    refused(mtbench("package", run, "--to", run / "spec.json" / "p"), "cannot be written")
    refused(mtbench("package", run), "--to")
    monkeypatch.setattr(extras, "_is_installed", lambda name: name != "onnxruntime")
    refused(mtbench("package", run, "--to", to, "--onnx"), "pip install 'mtbench-toolkit[onnx]'")
    assert not to.exists()


def test_a_package_that_was_changed_is_refused(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    import shutil

    Image.fromarray(neck).save(tmp_path / "a.png")
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    line = ("predict", copy, tmp_path / "a.png", "--out", tmp_path / "out")
    tensors = load_file(copy / "model.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, copy / "model.safetensors")
    refused(mtbench(*line), "model.safetensors", "is not the file that")
    (copy / "model.safetensors").unlink()
    refused(mtbench(*line), "cannot be read", "model.safetensors")
    (copy / "model.json").write_text("{}")
    refused(mtbench(*line), "model.json", "not of version 1")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_version_says_so(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    Image.fromarray(neck).save(tmp_path / "a.png")
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    known = json.loads((copy / "model.json").read_text())
    known["spec"]["task_params"]["gone"] = 1
    (copy / "model.json").write_text(json.dumps(known))
    said = "copy: was made with another version of 'thyroid' than is installed"
    refused(mtbench("predict", copy, tmp_path / "a.png", "--out", tmp_path / "out"), said, "'gone'")


# Starting from it


@pytest.mark.parametrize("kind", ["run", "package", "safetensors", "encoder"])
def test_training_starts_from_it(
    mtbench: Mtbench, run: Path, packed: Path, tmp_path: Path, kind: str
) -> None:
    state = torch.load(run / "best.pt", weights_only=True)["model"]
    encoder = {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.")}
    torch.save({"state_dict": encoder}, tmp_path / "encoder.pth")
    start, loaded = {
        "run": (run, len(state)),
        "package": (packed, len(state)),
        "safetensors": (packed / "model.safetensors", len(state)),
        "encoder": (tmp_path / "encoder.pth", len(encoder)),
    }[kind]
    line = ("run", "--method", "ew", *SMALL, "--init", start, "--out", tmp_path / "out")
    code, out, err = mtbench(*line)
    assert (code, err) == (0, "")
    assert f"start: {loaded} of the model's {len(state)} tensors are from {start}" in out
    assert ("val images are of patients whom" in out) == (kind in ("run", "package"))  # known data
    [told] = (tmp_path / "out").rglob("init.json")
    record = json.loads(told.read_text())
    assert len(record["loaded"]) == loaded
    assert len(record["missing"]) == len(state) - loaded
    spec = json.loads((told.parent / "spec.json").read_text())
    assert spec["init"] == record["sha256"]


def test_bad_words_to_init(mtbench: Mtbench, tmp_path: Path) -> None:
    line = ("run", "--method", "ew", *SMALL, "--out", tmp_path / "out", "--init")
    refused(mtbench(*line, tmp_path / "absent.pt"), "absent.pt", "no such file or folder")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    refused(mtbench(*line, tmp_path / "other.pt"), "other.pt", "none of its 1 tensors fits")
    assert not list((tmp_path / "out").rglob("spec.json"))


# Reading new files


def test_run_and_package_read_alike(
    mtbench: Mtbench, run: Path, packed: Path, tmp_path: Path, neck: Any
) -> None:
    Image.fromarray(neck).save(tmp_path / "a.png")
    line = (tmp_path / "a.png", "--out", tmp_path / "out", "--report", "both")
    code, out, err = mtbench("predict", run, *line)
    assert (code, err) == (0, "")
    assert mtbench("predict", packed, *line) == (0, out, "")
    [record] = json.loads(out)
    assert record["use"] == "Research use only. Not a medical device."
    assert files(tmp_path / "out") == {
        "a_mask.png", "a_overlay.png", "a_report.html", "a_report.pdf", "predictions.json"
    }  # fmt: skip
    known = json.loads((packed / "model.json").read_text())["fitted"]["calibration"]
    assert record["temperatures"] == [known["temperature"]]
    page = (tmp_path / "out" / "a_report.html").read_text()
    scale = known["temperature"]  # 1 where few readings cannot tell
    assert ("temperature 1)" if scale == 1 else f"temperature {scale:.2f}") in page
    assert (tmp_path / "out" / "a_report.pdf").read_bytes().startswith(b"%PDF")


def test_a_folder_is_read_to_the_bottom(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    """Whatever is no image is counted; a broken one is named, and the others are read."""
    data, out = tmp_path / "data", tmp_path / "data" / "out"
    (data / "sub" / ".hidden").mkdir(parents=True)
    Image.fromarray(neck).save(data / "a.jpg")
    Image.fromarray(neck).save(data / "sub" / "a.jpg")  # of the same name
    Image.fromarray(neck).save(data / "sub" / ".hidden" / "b.jpg")
    volume = sitk.GetImageFromArray(neck)
    volume.SetSpacing((0.08, 0.08))
    for name in ("1.2.840.1", "1.2.840.2"):  # DICOM files often have such names
        sitk.WriteImage(volume, str(data / "x.dcm"))
        (data / "x.dcm").rename(data / name)
    sitk.WriteImage(volume, str(data / "scan.nii.gz"))
    whole = (data / "1.2.840.1").read_bytes()
    (data / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    (data / "text.png").write_text("no picture")
    (data / "notes.txt").write_text("not to be read")
    code, printed, err = mtbench("predict", packed, data, "--out", out)
    assert code == 2
    lines = err.splitlines()
    assert lines[0].startswith(f"error: {data / 'cut.dcm'}: does not decode")
    assert lines[1].startswith(f"error: {data / 'text.png'}: does not decode")
    assert lines[2:] == [
        "passed over: 1 files that are no input of this task",
        "error: 2 of 7 files could not be read: they are named above; what was read of the other 5 "
        f"is in {out}",
    ]
    records = {Path(r["image"]).relative_to(data).as_posix(): r for r in json.loads(printed)}
    good = {"1.2.840.1", "1.2.840.2", "a.jpg", "scan.nii.gz", "sub/a.jpg"}
    assert {name for name, record in records.items() if "error" not in record} == good
    assert set(records) - good == {"cut.dcm", "text.png"}
    for name in good:
        assert Path(records[name]["mask"]).exists()
        metric = name not in ("a.jpg", "sub/a.jpg")
        assert ("long_axis_mm" in records[name]["views"][0]) == metric
    assert {"1.2.840.1_mask.png", "scan_mask.png", "sub/a_mask.png"} <= files(out)
    # What was written there is not read the next time.
    _, again, _ = mtbench("predict", packed, data, "--out", out)
    assert again == printed


def test_16_bit_dicom_that_shows_black_as_white(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    """It is read as the same picture in 8 bits is."""
    deep = sitk.GetImageFromArray(4095 - neck.astype(np.uint16) * 16)
    said = {"0028|0004": "MONOCHROME1", "0028|1050": "2055.5", "0028|1051": "4081"}
    for tag, value in said.items():
        deep.SetMetaData(tag, value)
    sitk.WriteImage(deep, str(tmp_path / "deep.dcm"))
    Image.fromarray(neck).save(tmp_path / "plain.png")
    line = (tmp_path / "deep.dcm", tmp_path / "plain.png", "--out", tmp_path / "out")
    code, out, err = mtbench("predict", packed, *line)
    assert (code, err) == (0, "")
    [one], [other] = (record["views"] for record in json.loads(out))
    for grade, chance in one["probabilities"].items():
        assert chance == pytest.approx(other["probabilities"][grade], abs=0.02)


def test_a_clip_is_read_by_frame(mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any) -> None:
    file = tmp_path / "clip.dcm"
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([neck // k for k in (1, 2, 3)])), str(file))
    line = ("predict", packed, file, "--report", "none", "--out", tmp_path / "out")
    refused(mtbench(*line), "has 3 frames: give --frame N, middle or all")
    refused(mtbench(*line, "--frame", "9"), "has no frame 9: it has 3")
    refused(mtbench(*line, "--frame", "last"), "--frame must be a number, middle or all")
    (other := tmp_path / "other.dcm").write_bytes(file.read_bytes())
    refused(
        mtbench(*line, "--frame", "1", "--second", other),
        f"{other}: has 3 frames, and --second is one image: save the frame",
    )
    code, out, err = mtbench(*line, "--frame", "middle")
    assert (code, err) == (0, "")
    [middle] = json.loads(out)
    assert middle["frame"] == 2
    code, out, err = mtbench(*line, "--frame", "all")
    assert (code, err) == (0, "")
    [record] = json.loads(out)
    assert [found["frame"] for found in record["frames"]] == [1, 2, 3]
    assert record["frames"][1]["views"] == middle["views"]
    assert len({found["mask"] for found in record["frames"]}) == 3


def test_no_file_has_the_place_of_anothers_frame_or_second_view(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    """Its reading would overwrite that frame's mask, to which the first record points."""
    data = tmp_path / "data"
    data.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([neck] * 2)), str(data / "clip.dcm"))
    sitk.WriteImage(sitk.GetImageFromArray(neck), str(data / "clip_frame1.dcm"))
    Image.fromarray(neck).save(data / "clip_frame1_second.png")
    line = ("--report", "none", "--out", tmp_path / "out")
    for words, file, option, other in (
        (("--frame", "all"), "clip_frame1.dcm", "--frame", "clip.dcm"),
        (("--second", data), "clip_frame1_second.png", "--second", "clip_frame1.dcm"),
    ):
        refused(
            mtbench("predict", packed, data, *words, *line),
            f"{data / file} has the name of what {option} writes of {data / other}: rename one",
        )
    assert not (tmp_path / "out").exists()
    stills = (data / "clip_frame1.dcm", data / "clip_frame1_second.png")
    assert mtbench("predict", packed, *stills, *line)[0] == 0


def test_where_the_spacing_is_from(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    image = sitk.GetImageFromArray(neck)
    image.SetSpacing((0.1, 0.1))
    sitk.WriteImage(image, str(tmp_path / "a.dcm"))
    Image.fromarray(neck).save(tmp_path / "b.png")
    files = (tmp_path / "a.dcm", tmp_path / "b.png")
    line = ("predict", packed, *files, "--report", "none", "--out", tmp_path / "out")
    dicom, png = json.loads(mtbench(*line, "--spacing", "0.08")[1])
    assert (dicom["spacing_mm"], dicom["spacing_from"]) == (0.1, "the file's header")
    assert "--spacing 0.08 is not used: the file's header says 0.1 mm per pixel" in dicom["notes"]
    assert (png["spacing_mm"], png["spacing_from"]) == (0.08, "--spacing")
    dicom, png = json.loads(mtbench(*line, "--spacing", "8")[1])
    assert "8 mm per pixel is not what ultrasound has" in " ".join(png["notes"])
    dicom, png = json.loads(mtbench(*line)[1])
    assert (png["spacing_mm"], png["spacing_from"]) == (None, None)


def test_views_are_of_a_screen_and_told(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    screen = np.zeros((120, 260), np.uint8)
    screen[20:100, 20:130], screen[20:100, 130:240] = neck, neck[:, ::-1] // 2
    Image.fromarray(screen).save(tmp_path / "screen.png")
    # No bands: an edge in the middle of an image is anatomy.
    Image.fromarray(screen[20:100, 20:240]).save(tmp_path / "edge.png")
    files = (tmp_path / "edge.png", tmp_path / "screen.png")
    line = ("predict", packed, *files, "--report", "none", "--out", tmp_path / "out")
    edge, cut = json.loads(mtbench(*line)[1])
    assert [len(record["views"]) for record in (edge, cut)] == [1, 2]
    assert any("was cut into 2 views" in note for note in cut["notes"])
    for record in json.loads(mtbench(*line, "--views", "whole")[1]):
        [view] = record["views"]
        assert view["box"][:2] == [0, 0]
        assert not any("was cut" in note or "was cropped" in note for note in record["notes"])


def test_planes_at_the_command_line(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(neck).save(tmp_path / name / "1.png")
    line = ("predict", packed, tmp_path / "a", "--out", tmp_path / "out")
    refused(
        mtbench(*line, "--plane", "sagittal"),
        "--plane must be 'transverse' or 'longitudinal', or several with commas, found 'sagittal'",
    )
    both = ("--second", tmp_path / "b", "--plane", "transverse,longitudinal", "--spacing", "0.1")
    refused(mtbench(*line, "--plane", "transverse,longitudinal"), "names 2, and 1 views are read")
    refused(mtbench(*line, "--second", tmp_path / "absent.png"), "absent.png: no such image")
    refused(mtbench(*line, packed), f"{packed.name}: is a model; models come before the files")
    refused(mtbench(*line, "--second", tmp_path / "a"), "1.png: --second is the same file")
    refused(mtbench(*line, *both[:4], "--dicom"), "--dicom needs a DICOM image")
    assert not files(tmp_path / "out")  # all was refused before anything was written
    code, out, err = mtbench(*line, "--second", tmp_path / "b")
    assert (code, json.loads(out)[0]["volume"]) == (0, None)
    assert any(note.startswith("no volume: ") for note in json.loads(out)[0]["notes"])
    code, out, err = mtbench(*line, *both)
    assert (code, err) == (0, "")
    [found] = json.loads(out)
    Image.fromarray(neck).save(tmp_path / "a" / "2.png")
    refused(mtbench(*line, "--second", tmp_path / "b" / "1.png"), "is one file, and 2 are read")
    assert found["views"][0]["plane"] == "transverse"
    assert found["second"]["views"][0]["plane"] == "longitudinal"
    assert found["second"]["views"][0]["taller_than_wide"] is None
    assert found["second"]["image"] == str(tmp_path / "b" / "1.png")
    if found["views"][0]["category"]:
        [across], [along] = found["views"], found["second"]["views"]
        assert found["volume"]["axes_mm"] == [
            across["long_axis_mm"], across["short_axis_mm"], along["long_axis_mm"]
        ]  # fmt: skip
        assert "mL: pi/6" in Path(found["reports"][0]).read_text()
    assert Path(found["second"]["reports"][0]).name == "1_second_report.html"


def test_a_second_view_of_another_patient_is_told(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    for name, patient in (("a", "SECRET1"), ("b", "SECRET1"), ("c", "SECRET2")):
        image = sitk.GetImageFromArray(neck)
        image.SetMetaData("0010|0020", patient)
        sitk.WriteImage(image, str(tmp_path / f"{name}.dcm"))
    Image.fromarray(neck).save(tmp_path / "d.png")
    for second, told in (("b.dcm", False), ("c.dcm", True), ("d.png", False)):
        line = ("--second", tmp_path / second, "--out", tmp_path / "o")
        code, out, err = mtbench("predict", packed, tmp_path / "a.dcm", *line)
        assert (code, err) == (0, "")
        [record] = json.loads(out)
        assert any("of different patients" in note for note in record["notes"]) == told
        page = Path(record["reports"][0]).read_text()
        assert not any(name in text for name in ("SECRET1", "SECRET2") for text in (out, page))


def test_a_second_view_lies_at_the_same_place(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    for side in ("across", "along"):
        for place in ("p1", "p2"):
            (tmp_path / side / place).mkdir(parents=True)
            Image.fromarray(neck).save(tmp_path / side / place / "1.png")
    line = (tmp_path / "across", "--second", tmp_path / "along", "--out", tmp_path / "out")
    code, out, err = mtbench("predict", packed, *line, "--report", "none")
    assert (code, err) == (0, "")
    seconds = [Path(record["second"]["image"]) for record in json.loads(out)]
    assert seconds == [tmp_path / "along" / place / "1.png" for place in ("p1", "p2")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_what_was_read_outlives_what_comes(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any, monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
) -> None:  # fmt: skip
    """After each file predictions.json is whole; of two words those before are there."""
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.fromarray(neck).save(tmp_path / "a" / f"{i}.png")
    line = ("predict", packed, tmp_path / "a", "--report", "none", "--out", tmp_path / "out")
    code, printed, _ = mtbench(*line)
    written = tmp_path / "out" / "predictions.json"
    assert written.read_text() == printed == json.dumps(json.loads(printed), indent=2) + "\n"
    own, read, stops = Thyroid.predict, list[str](), True

    @wraps(own)
    def until(self: Thyroid, trained: Any, path: Path, *rest: Any, **more: Any) -> Any:
        read.append(path.name)
        if path.name == "2.png" and stops:
            raise stop
        return own(self, trained, path, *rest, **more)

    monkeypatch.setattr(Thyroid, "predict", until)
    if stop is KeyboardInterrupt:
        code, _, err = mtbench(*line)
        assert code == 130
        assert err.startswith(f"the first 2 of 3 files are in {written}; the same command goes on")
    else:
        monkeypatch.setattr(sys, "argv", ["mtbench", *map(str, line)])
        with pytest.raises(MemoryError):
            cli.main()
    assert [Path(r["image"]).name for r in json.loads(written.read_text())] == ["0.png", "1.png"]
    stops, read = False, []
    kept = written.read_bytes()
    assert mtbench(*line) == (0, printed, "goes on: the first 2 of 3 files had been read\n")
    assert read == ["2.png"]
    assert files(tmp_path / "out") == {written.name} | {
        f"{i}_{what}.png" for i in range(3) for what in ("mask", "overlay")
    }
    mtbench(*line)
    assert read == ["2.png", "0.png", "1.png", "2.png"]  # it was whole
    stops = True
    for change in ((), ("--mirror",)):  # another call, or another file, begins again
        with contextlib.suppress(MemoryError):
            mtbench(*line)
        assert written.read_bytes() == kept
        read.clear()
        if not change:
            Image.fromarray(neck[::-1]).save(tmp_path / "a" / "1.png")
        with contextlib.suppress(MemoryError):
            mtbench(*line, *change)
        assert read == ["0.png", "1.png", "2.png"]
        Image.fromarray(neck).save(tmp_path / "a" / "1.png")


def test_only_one_writes_to_a_folder(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    """The records of two calls would lie in one predictions.json."""
    Image.fromarray(neck).save(tmp_path / "a.png")
    out = tmp_path / "out"
    line = ("predict", packed, tmp_path / "a.png", "--report", "none", "--out", out)
    out.mkdir()
    with Lock(out / ".lock").hold("another call"):
        refused(mtbench(*line), f"--out {out}: process {os.getpid()} on ", "works on it; wait")
        assert not files(out)
    assert mtbench(*line)[0] == 0


def test_what_goes_on_names_again_what_was_broken(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where readings lie in the model's folder; of a model that has changed all is read."""
    model, images = shutil.copytree(packed, tmp_path / "model"), tmp_path / "a"
    images.mkdir()
    (images / "0.png").write_text("no image")
    for i in (1, 2):
        Image.fromarray(neck).save(images / f"{i}.png")
    line = ("predict", model, images, "--report", "none", "--out", model / "out")
    own = Thyroid.predict

    @wraps(own)
    def until(self: Thyroid, trained: Any, path: Path, *rest: Any, **more: Any) -> Any:
        if path.name == "2.png":
            raise KeyboardInterrupt
        return own(self, trained, path, *rest, **more)

    for changed in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(Thyroid, "predict", until)
            assert mtbench(*line)[0] == 130
        if changed:  # of the same size, and with the time that an archive gives
            weights = model / "model.safetensors"
            before = weights.stat()
            weights.write_bytes(weights.read_bytes())
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        code, _, err = mtbench(*line)
        assert code == 2
        assert err.startswith("goes on: the first 2 of 3 ") is not changed
        assert err.count(f"error: {images / '0.png'}: ") == 1
        assert "1 of 3 files could not be read: they are named above" in err


def test_a_name_of_a_broken_file_does_not_act_on_the_terminal(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    Image.fromarray(neck).save(tmp_path / "a.png")
    (bad := tmp_path / "b\x1b[2J.png").write_text("no image")
    line = (tmp_path / "a.png", bad, "--report", "none", "--out", tmp_path / "out")
    code, out, err = mtbench("predict", packed, *line)
    assert code == 2
    assert "b\ufffd[2J.png: does not decode" in err
    assert "\x1b" not in out + err


def test_flags_need_no_value(mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any) -> None:
    Image.fromarray(neck).save(tmp_path / "a.png")
    line = ("predict", packed, tmp_path / "a.png", "--report", "none", "--out", tmp_path / "out")
    plain = mtbench(*line)[1]
    turned = mtbench(*line, "--mirror", "--spacing", "0.1")[1]
    assert turned == mtbench(*line, "--spacing", "0.1", "--mirror", "true")[1] != plain
    assert mtbench(*line, "--mirror=no")[1] == plain
    refused(mtbench(*line, "--spacing"), "--spacing must be float or none: its value is missing")
    refused(
        mtbench("predict", packed, "--mirror", tmp_path / "a.png", tmp_path / "a.png"),
        "--mirror must be true or false, found",
    )


def test_the_options_of_a_task_are_listed(mtbench: Mtbench) -> None:
    for command in ("predict", "evaluate"):
        assert "mtbench info thyroid" in mtbench(command, "--help")[1]
    code, listed, err = mtbench("info", "thyroid")
    assert (code, err) == (0, "")
    for option in ("--plane", "--second", "--dicom", "--mirror", "--text", "--truth", "--strict"):
        assert option in listed
    assert "mtbench-toolkit[deidentify]" in listed  # no markup
    method = mtbench("info", "ew")[1]  # which names its file, wherever the checkout is
    assert not any(f"mtbench {command}" in method for command in ("predict", "evaluate", "data"))


def test_an_earlier_readings_files_do_not_stay(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    """Another model's page or segmentation beside this one's mask would be taken for its own."""
    Image.fromarray(neck).save(tmp_path / "a.png")
    out = tmp_path / "out"
    line = ("predict", packed, tmp_path / "a.png", "--out", out)
    assert mtbench(*line)[0] == 0
    (out / "a_seg.dcm").touch()
    (out / "a_notes.txt").touch()
    refused(mtbench(*line, "--plane", "transverse,transverse"), "names 2, and 1 views are read")
    assert "a_report.html" in files(out)
    assert mtbench(*line, "--report", "none")[0] == 0
    assert files(out) == {"a_mask.png", "a_overlay.png", "a_notes.txt", "predictions.json"}


def test_of_a_broken_image_no_earlier_reading_stays(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    """Nor that of a second view or of frames; another image's of such a name does."""
    for name in ("a.png", "b.png", "b_second.png", "l.png"):
        Image.fromarray(neck).save(tmp_path / name)
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([neck] * 2)), str(tmp_path / "c.dcm"))
    out = tmp_path / "out"
    line = ("--report", "none", "--out", out)
    both = ("--second", tmp_path / "l.png")
    everything = {"a_second_mask.png", "b_second_mask.png", "c_frame2_mask.png", "a_mask.png"}
    for words in ((tmp_path / "a.png", *both), (tmp_path / "b_second.png",),
                  (tmp_path / "c.dcm", "--frame", "all")):  # fmt: skip
        assert mtbench("predict", packed, *words, *line)[0] == 0
    assert everything <= files(out)
    assert mtbench("predict", packed, tmp_path / "a.png", *line)[0] == 0
    assert "a_second_mask.png" not in files(out)
    assert mtbench("predict", packed, tmp_path / "b.png", *line)[0] == 0
    assert "b_second_mask.png" in files(out)
    assert mtbench("predict", packed, tmp_path / "c.dcm", "--frame", "middle", *line)[0] == 0
    assert not [name for name in files(out) if name.startswith("c_frame")]
    for name in ("a.png", "c.dcm"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:400])
        assert mtbench("predict", packed, tmp_path / name, *line)[0] == 2
    assert {n[0] for n in files(out) if n != "predictions.json"} == {"b"}


def test_no_warning_of_a_large_image_reaches_the_reader(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns from a number of pixels on; here it is a small one."""
    Image.fromarray(neck).save(tmp_path / "a.png")
    sitk.WriteImage(sitk.GetImageFromArray(neck), str(tmp_path / "a.dcm"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", neck.size - 1)
    out = ("--out", tmp_path / "out")
    assert mtbench("predict", packed, tmp_path / "a.png", *out)[::2] == (0, "")
    assert mtbench("predict", packed, tmp_path / "a.dcm", "--dicom", *out)[::2] == (0, "")


def test_dicom_out_is_of_dicom_only(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    Image.fromarray(neck).save(tmp_path / "a.png")
    sitk.WriteImage(sitk.GetImageFromArray(neck), str(tmp_path / "a.dcm"))
    line = ("--dicom", "true", "--report", "none", "--out", tmp_path / "out")
    refused(
        mtbench("predict", packed, tmp_path / "a.png", *line), "a.png: --dicom needs a DICOM image"
    )
    code, out, err = mtbench("predict", packed, tmp_path / "a.dcm", *line)
    assert (code, err) == (0, "")
    [record] = json.loads(out)
    assert record["dicom"][-1] == str(tmp_path / "out" / "a_sr.dcm")
    assert all(Path(file).is_file() for file in record["dicom"])


def test_a_photograph_and_a_pixel_are_read_with_a_warning(
    mtbench: Mtbench, packed: Path, tmp_path: Path
) -> None:
    y, x = np.mgrid[:90, :120]
    photo = np.stack([2 * x, 255 - 2 * y, (x * y) % 255], 2).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    Image.fromarray(np.full((1, 1), 90, np.uint8)).save(tmp_path / "one.png")
    line = (tmp_path / "photo.jpg", tmp_path / "one.png", "--out", tmp_path / "out")
    code, out, err = mtbench("predict", packed, *line, "--report", "both")
    assert (code, err) == (0, "")
    photo_notes, pixel_notes = (record["notes"] for record in json.loads(out))
    assert re.search(r"\d\d% of the pixels are coloured", photo_notes[0])
    assert "1 x 1 pixels are too few" in pixel_notes[0]
    assert photo_notes[0] in (tmp_path / "out" / "photo_report.html").read_text()


def test_a_name_of_markup_stays_a_name(
    mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any
) -> None:
    name = "<img src=x onerror=alert(1)> $x_1$ & 超"
    Image.fromarray(neck).save(tmp_path / f"{name}.png")
    line = (tmp_path / f"{name}.png", "--out", tmp_path / "out", "--report", "both")
    code, _, err = mtbench("predict", packed, *line)
    assert (code, err) == (0, "")
    page = (tmp_path / "out" / f"{name}_report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; $x_1$ &amp; 超.png" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")  # self-contained


def test_bad_words_to_predict(mtbench: Mtbench, packed: Path, tmp_path: Path, neck: Any) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(neck).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    start, image = ("predict", packed), tmp_path / "a.png"
    out = ("--out", tmp_path / "out")
    refused(mtbench(*start, tmp_path / "absent", *out), "absent: no such file or folder")
    refused(mtbench(*start, tmp_path / "empty", *out), "holds no file that this task reads")
    refused(mtbench(*start, image, tmp_path / "a.jpg", *out), "same files")
    refused(mtbench(*start, image, "--out", tmp_path), "holds", "choose another folder")
    refused(mtbench(*start, image, *out, "--report", "doc"), "--report", "'html'", "'doc'")
    refused(mtbench(*start, image, *out, "--reprot", "pdf"), "did you mean '--report'?")
    refused(mtbench("predict", tmp_path, image, *out), "no run directory", "model.json")
    assert not list((tmp_path / "out").glob("*"))


# Several models


def test_several_models_are_asked_together(
    mtbench: Mtbench, run: Path, neck: Any, tmp_path: Path
) -> None:
    """The probabilities are the mean; the page and the record name both."""
    shutil.copytree(run, tmp_path / "other")
    state = torch.load(run / "best.pt", weights_only=True)
    [bias] = (key for key in state["model"] if key.endswith("grade.bias"))
    state["model"][bias] += torch.arange(5.0)
    spec = RunDirectory(run).spec().model_copy(update={"seed": 1})
    (tmp_path / "other" / "spec.json").write_text(spec.model_dump_json())
    state["cell"] = spec.hash
    torch.save(state, tmp_path / "other" / "best.pt")
    file = tmp_path / "a.png"
    Image.fromarray(neck).save(file)

    def asked(*models: Path) -> Any:
        line = ("predict", *models, file, "--out", tmp_path / "p")
        assert mtbench(*line)[0] == 0
        [record] = json.loads((tmp_path / "p" / "predictions.json").read_text())
        return record

    one, other, both = (asked(*m) for m in ([run], [tmp_path / "other"], [run, tmp_path / "other"]))
    chances = [record["views"][0]["probabilities"] for record in (one, other, both)]
    for grade in chances[0]:
        mean = (chances[0][grade] + chances[1][grade]) / 2
        assert chances[2][grade] == pytest.approx(mean, abs=1e-3)
    assert chances[0] != chances[1]
    assert len(both["models"]) == 2
    [page] = both["reports"]
    assert all(name in Path(page).read_text() for name in both["models"])


def test_a_model_is_not_asked_together_with_itself(
    mtbench: Mtbench, run: Path, packed: Path, neck: Any, tmp_path: Path
) -> None:
    Image.fromarray(neck).save(tmp_path / "a.png")
    for again in (run, packed):
        answer = mtbench("predict", run, again, tmp_path / "a.png")
        refused(answer, f"{again}: is the model of {run} again, thyroid ew seed 0 ")


def test_models_of_different_tasks_are_not_asked_together(
    mtbench: Mtbench, run: Path, tiny: Path, neck: Any, tmp_path: Path
) -> None:
    line = ("--plugin", tiny, "--task", "tiny", "--method", "ew", "--threads", 1)
    other = made(tmp_path / "runs", *line)
    Image.fromarray(neck).save(tmp_path / "a.png")
    answer = mtbench("predict", run, other, tmp_path / "a.png", "--plugin", tiny)
    refused(answer, "cannot be asked together")
