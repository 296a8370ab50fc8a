import importlib
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import mtbench
from mtbench.balancing.balancer import Balancer
from mtbench.errors import PluginError, UsageError
from mtbench.plugins.registry import Entry, _from_file, entries, find, kind_of
from mtbench.training.task import Task

METHOD = """
from mtbench import Weighting
class Mine(Weighting):
    paper = "none"
    def weights(self, gramian, losses):
        return gramian.diagonal().rsqrt()
"""


def test_in_tree_plugins_are_found_by_file_name() -> None:
    assert {"ew", "ls", "stl", "uw", "gradnorm", "pcgrad", "cagrad", "mgda", "rlar"} <= set(
        entries("method")
    )
    assert "thyroid" in entries("task")
    assert find("method", "ew").load(Balancer).__name__ == "EqualWeights"
    assert find("task", "thyroid").load(Task).objectives == ("segmentation", "risk")


def test_listing_imports_neither_torch_nor_the_packages() -> None:
    code = (
        "import sys; from mtbench.plugins.registry import entries;"
        "entries('method'); entries('task');"
        "assert not {'torch', 'mtbench_baselines', 'mtbench_tasks'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", ["nowhere.methods", "nowhere", "json.decoder", "json:loads"])
def test_an_entry_point_that_is_no_package_is_told(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("theirs", value, "mtbench.methods")
    points = [(point, "their-methods")]
    monkeypatch.setattr("mtbench.plugins.registry._points", lambda *_: points)
    with pytest.raises(
        PluginError, match=f"their-methods: announces methods in '{value}', which .* be a package"
    ):
        entries("method")


def test_a_file_becomes_a_method(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(METHOD)
    entry = find("method", "mine", [file])
    assert entry.load(Balancer).__name__ == "Mine"
    assert len(entry.digest()) == 64


@pytest.mark.parametrize("name", ["méthode", ".hidden", "a" * 101])
def test_a_file_that_no_folder_of_runs_could_be_called_by_is_refused(
    tmp_path: Path, name: str
) -> None:
    """Its results could not be exported or merged."""
    (file := tmp_path / f"{name}.py").write_text(METHOD)
    with pytest.raises(PluginError, match=rf"{name}\.py: .* Latin letters.*found '{name}'; rename"):
        find("method", name, [file])


def test_every_function_takes_plugin_files(tmp_path: Path) -> None:
    (file := tmp_path / "mine.py").write_text(METHOD)
    rows = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    for plugins in ([file], (str(file),)):
        assert mtbench.balancer("mine", 2, plugins=plugins).paper == "none"
        assert mtbench.combine("mine", rows, plugins=plugins).tolist() == [1.0, 1.0]
        assert mtbench.find("method", "mine", plugins).path == file
        assert mtbench.Method.find("mine", plugins).name == "mine"


@pytest.mark.parametrize("wrong", ["mine.py", Path("mine.py"), None])
def test_plugin_files_come_in_a_list(wrong: Any) -> None:
    said = f"plugins must be a list of files, as in plugins=['mine.py'], found {wrong!r}"
    rows = torch.eye(2)
    for call in (
        lambda: mtbench.balancer("ew", 2, plugins=wrong),
        lambda: mtbench.combine("ew", rows, plugins=wrong),
        lambda: mtbench.find("method", "ew", wrong),
        lambda: mtbench.Method.find("ew", wrong),
        lambda: kind_of("ew", wrong),
    ):
        with pytest.raises(UsageError) as refused:
            call()
        assert str(refused.value) == said


def test_an_unknown_name_is_explained() -> None:
    with pytest.raises(UsageError, match=r"unknown method 'cagard': did you mean 'cagrad'\?"):
        find("method", "cagard")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mine", r"add --plugin mine\.py \(in Python plugins=\['mine\.py'\]\)$"),
        ("mine.py", r"add --plugin mine\.py .*, and call it 'mine'$"),
        ("sub/other", r"add --plugin sub/other\.py .*, and call it 'other'$"),
        ("cagrad.py", r"did you mean 'cagrad'\?$"),
    ],
)
def test_a_file_that_nobody_named_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for file in ("mine.py", "sub/other.py"):
        (tmp_path / file).write_text(METHOD)
    with pytest.raises(UsageError, match=rf"^unknown method '{name}': .*{hint}"):
        find("method", name)
    with pytest.raises(UsageError, match=rf"^no method or task '{name}': .*{hint}"):
        kind_of(name)


def test_a_file_that_is_a_plugin_already_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METHOD)
    assert find("method", "mine", ["mine.py"]).name == "mine"
    with pytest.raises(UsageError, match=r"^unknown method 'mine\.py': call it 'mine'$"):
        find("method", "mine.py", ["mine.py"])


def test_a_duplicate_name_names_both_files(tmp_path: Path) -> None:
    file = tmp_path / "ew.py"
    file.write_text(METHOD)
    with pytest.raises(PluginError, match=r"two methods are called 'ew': .*ew\.py and .*ew\.py"):
        entries("method", [file])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "found none"),
        (METHOD + METHOD.replace("Mine", "Yours"), "found Mine, Yours"),
        ("def broken(:\n", r"line 1: does not import: SyntaxError"),
        ("import nothing_of_that_name", "does not import: ModuleNotFoundError"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(PluginError, match=message):
        find("method", "bad", [file]).load(Balancer)


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        (b'EXTRA = "thyroid"\n', "thyroid"),
        (b"EXTRA='thyroid'  # pydicom\r\nx = 1\r\n", "thyroid"),
        (b'EXTRA = "thyroid"\r\n', "thyroid"),
        (b'    EXTRA = "thyroid"\n', None),
        (b'EXTRA = "thyroid".upper()\n', None),
    ],
)
def test_a_plugin_says_its_extra_in_a_line(tmp_path: Path, line: bytes, extra: str | None) -> None:
    file = tmp_path / "mine.py"
    file.write_bytes(b"import this\r\n" + line)
    assert Entry("mine", file, "package.mine", "distribution").extra() == extra


def test_a_plugin_must_be_a_python_file(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"an existing Python file"):
        entries("method", [tmp_path / "absent.py"])


def test_what_a_plugin_file_defines_can_be_pickled_and_imported(tmp_path: Path) -> None:
    file = tmp_path / "mine_alone.py"
    file.write_text(METHOD)
    found = _from_file(file).load(Balancer)
    # The slow twin in Python imports the module by its name, and so its package.
    for dumps in (pickle.dumps, pickle._dumps):  # type: ignore[attr-defined]
        assert pickle.loads(dumps(found)) is found
    assert importlib.import_module(found.__module__).__name__ == "mtbench_plugin.mine_alone"
