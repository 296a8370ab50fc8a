"""A plugin's digest follows what it is made of, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from mtbench import Task
from mtbench.balancing.balancer import Balancer
from mtbench.plugins.code import _distributions, core_digest, module_digest, origin, place_of
from mtbench.plugins.registry import find
from mtbench.version import __version__

PACKAGE = {
    "mine.py": "from pack._shared import tool\nimport torch\n",
    "relative.py": "from . import _folder\n",
    "other.py": "x = 1\n",
    "_shared.py": "from pack import _deep\nfrom pack._shared import tool\n",
    "_deep.py": "y = 1\n",
    "_folder/__init__.py": "from .part import z\nfrom .._deep import y\n",
    "_folder/part.py": "z = 1\n",
    "large/__init__.py": "import pack.other\n",
    "large/notes.txt": "no code",
}
NEEDS = {
    "mine": {"mine.py", "_shared.py", "_deep.py"},
    "relative": {"relative.py", "_folder/__init__.py", "_folder/part.py", "_deep.py"},
    "other": {"other.py"},
    "large": {"large/__init__.py", "other.py"},
}


def test_the_line_of_an_installed_plugin_is_found_and_no_line_of_ours(monkeypatch):
    def place(module):
        scope = {"__name__": module}
        exec(compile("def weigh():\n    return 1 / 0\n", "there.py", "exec"), scope)
        with pytest.raises(ZeroDivisionError) as error:
            scope["weigh"]()
        return place_of(error.value)

    assert place("mtbench_mine.mine") == ""
    monkeypatch.setitem(_distributions(), "mtbench_mine", ("mtbench-mine", "1.0"))
    assert place("mtbench_mine.mine") == "there.py, line 2, in weigh"
    assert place("mtbench_baselines.ew") == ""


def digest(root: Path, name: str) -> str:
    folder = root / "pack" / name
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    module_digest.cache_clear()
    return module_digest(file, f"pack.{name}")


@pytest.mark.parametrize("name", NEEDS)
def test_a_digest_follows_what_a_plugin_imports_of_its_package(tmp_path: Path, name: str) -> None:
    for place, text in PACKAGE.items():
        file = tmp_path / "pack" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    before = digest(tmp_path, name)
    for place, text in PACKAGE.items():
        file = tmp_path / "pack" / place
        file.write_text(f"{text}# changed\n")
        assert (digest(tmp_path, name) != before) == (place in NEEDS[name]), place
        file.write_text(text)
    assert digest(tmp_path, name) == before
    (tmp_path / "pack").rename(tmp_path / "elsewhere")
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "there" / "pack")
    assert digest(tmp_path / "there", name) == before


def test_a_plugin_file_is_the_same_code_in_a_package(tiny: Path, tmp_path: Path) -> None:
    packed = tmp_path / "pack" / tiny.name
    packed.parent.mkdir()
    packed.write_bytes(tiny.read_bytes())
    assert find("task", "tiny", [tiny]).digest() == digest(tmp_path, "tiny")
    packed.write_text(f"{packed.read_text()}# changed\n")
    assert find("task", "tiny", [tiny]).digest() != digest(tmp_path, "tiny")


def test_every_plugin_in_the_tree_has_a_digest_of_its_own() -> None:
    found = [find("method", name).digest() for name in ("ew", "uw", "samo")]
    found += [find("task", name).digest() for name in ("digits", "thyroid", "zdt1", "zdt2")]
    assert len(set(found)) == len(found)


def test_a_digest_imports_nothing() -> None:
    code = (
        "import sys; from mtbench.plugins.registry import find; find('task', 'thyroid').digest();"
        "assert not {'torch', 'mtbench_tasks'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_a_plugin_comes_from(tiny: Path) -> None:
    assert origin(find("task", "tiny", [tiny]).load(Task)) == "tiny.py"
    assert origin(find("method", "ew").load(Balancer)) == f"mtbench-toolkit {__version__}"
    assert origin(Path) == "pathlib"
    assert len(core_digest()) == 64
