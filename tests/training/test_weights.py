"""Starting from somebody else's weights: what is found, renamed, left out, refused."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from mtbench.balancing.model import MultitaskModel
from mtbench.errors import RunError
from mtbench.training.cell.weights import fit


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8))


def model(outputs: int = 3) -> MultitaskModel:
    return MultitaskModel.single_feature(encoder(), [nn.Linear(8, 1), nn.Linear(8, outputs)])


def renamed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "a.b."])
def test_a_whole_model_is_found_whatever_its_names_begin_with(
    tmp_path: Path, suffix: str, prefix: str
) -> None:
    other = model()
    file = tmp_path / f"x{suffix}"
    state = renamed(other.state_dict(), prefix)
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    found = fit(file, model())
    assert found.tensors.keys() == other.state_dict().keys()
    for name, value in other.state_dict().items():
        assert torch.equal(found.tensors[name], value)
    assert (found.prefixes, found.missing, found.unused) == ((prefix, ""), {}, [])
    assert found.digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_bare_encoder_goes_to_the_encoder(tmp_path: Path) -> None:
    """And a detector's backbone, whose other tensors are not wanted."""
    other = encoder().state_dict()
    boxes = {"boxes.weight": torch.zeros(5, 5)}
    for prefix, more in (("", {}), ("backbone.", boxes)):
        torch.save(renamed(other, prefix) | more, tmp_path / "x.pt")
        found = fit(tmp_path / "x.pt", model())
        assert found.prefixes == (prefix, "encoder.body.")
        assert set(found.tensors) == {f"encoder.body.{name}" for name in other}
        assert found.unused == list(more)
        assert set(found.missing.values()) == {"not in the file"}
        assert len(found.missing) == 4
        assert "9 of the model's 13 tensors" in found.summary()
        assert "4 not in the file" in found.summary()


def test_other_shapes_are_left_out_and_told(tmp_path: Path) -> None:
    torch.save(model(outputs=5).state_dict(), tmp_path / "x.pt")
    found = fit(tmp_path / "x.pt", model(outputs=3))
    assert found.missing == {
        "heads.1.body.weight": "of another shape: 5x8, needed 3x8",
        "heads.1.body.bias": "of another shape: 5, needed 3",
    }
    assert found.unused == list(found.missing)
    assert len(found.tensors) + 2 == found.total == len(model().state_dict())
    assert "begin fresh: 2 of another shape" in found.summary()
    assert found.record()["missing"] == found.missing


@pytest.mark.parametrize("path", [["state_dict"], ["model"], ["a", "b"]])
def test_a_state_dict_is_found_inside_a_checkpoint(tmp_path: Path, path: list[str]) -> None:
    value: Any = model().state_dict()
    for key in reversed(path):
        value = {"epoch": 3, "optimizer": {"lr": torch.zeros(())}, key: value}
    torch.save(value, tmp_path / "x.ckpt")
    assert fit(tmp_path / "x.ckpt", model()).missing == {}


@given(st.lists(st.sampled_from(["a", "b", "body", "encoder", "weight", "0"]), max_size=3))
def test_equal_names_win_and_any_prefix_is_undone(parts: list[str]) -> None:
    from tempfile import TemporaryDirectory

    prefix = "".join(f"{part}." for part in parts)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "x.safetensors"
        save_file(renamed(model().state_dict(), prefix), file)
        assert fit(file, model()).prefixes == (prefix, "")


def test_what_fits_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"conv.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(RunError, match=r"none of its 1 tensors fits .* conv\.weight 3x3"):
        fit(file, model())
    # One bias of the right length in another layer is no evidence.
    torch.save({"head.bias": torch.zeros(8)}, file)
    with pytest.raises(RunError, match="none of its 1 tensors fits"):
        fit(file, model())


@pytest.mark.parametrize("value", [{}, {"epoch": 3}, torch.zeros(3), [model().state_dict()]])
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(RunError, match=r"x\.pt: holds no dictionary of tensors"):
        fit(tmp_path / "x.pt", model())


def test_foreign_files_run_no_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (trace,)

    torch.save({"a": torch.zeros(1), "b": Trap()}, tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("x.pt", "y.pt"):
        with pytest.raises(RunError, match="only tensors in dictionaries are read"):
            fit(tmp_path / name, model())
    assert not trace.exists()


def test_broken_and_absent_files_are_refused(tmp_path: Path) -> None:
    for name in ("x.pt", "x.safetensors"):
        (tmp_path / name).write_bytes(b"\x08\0\0\0\0\0\0\0broken")
        with pytest.raises(RunError, match=f"{name}: does not load as"):
            fit(tmp_path / name, model())
    with pytest.raises(RunError, match=r"absent\.pt: no such file or folder; give a run"):
        fit(tmp_path / "absent.pt", model())
    with pytest.raises(RunError, match="no run directory"):
        fit(tmp_path, model())
