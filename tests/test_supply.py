"""What is published beside the code is there and agrees with it."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import mtbench

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
SCRIPTS = ROOT / ".ci"
in_checkout = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="an sdist has no .ci")


def test_the_citation_agrees_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()  # what the format requires
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    assert citation["version"] == mtbench.__version__
    assert citation["license"] == PROJECT["license"]


def test_the_licence_is_the_one_declared():
    (name,) = PROJECT["license-files"]
    text = (ROOT / name).read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0" in text


@in_checkout
def test_every_package_is_typed():
    for package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").is_file(), package


def test_every_dependency_has_a_lower_bound_and_no_upper_one():
    for wanted in [*PROJECT["dependencies"], *(w for e in EXTRAS.values() for w in e)]:
        if not wanted.startswith(("mtbench-toolkit[", "pyradiomics==")):
            assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+", wanted), wanted


def test_all_is_all_extras():
    (everything,) = EXTRAS["all"]
    listed = re.fullmatch(r"mtbench-toolkit\[(.*)\]", everything)
    assert listed is not None
    assert set(listed[1].split(",")) == EXTRAS.keys() - {"all"}


def test_every_extra_that_a_message_names_exists():
    named = {
        extra
        for package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        for file in (ROOT / package).rglob("*.py")
        for extra in re.findall(
            r"""(?:pip install 'mtbench-toolkit\[|extras\.need\(\s*"|^EXTRA = ")([\w,]+)""",
            file.read_text(),
            re.MULTILINE,
        )
    }
    assert named <= EXTRAS.keys()
    assert named or not (ROOT / "mtbench").is_dir()


@in_checkout
def test_torch_is_pinned_once():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    assert pins == PYPROJECT["tool"]["uv"]["constraint-dependencies"]
    # Older releases have no CPU wheel to test, so a lower bound would be a guess.
    [bound] = (wanted for wanted in PROJECT["dependencies"] if wanted.startswith("torch>="))
    assert [f"{bound.replace('>=', '==')}.0"] == pins


@in_checkout
@pytest.mark.parametrize("name", ["run", "minimum", "wheel", "door"])
def test_ci_scripts_parse(name):
    script = SCRIPTS / name
    assert script.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", script], check=True)


@in_checkout
def test_ci_tells_all_when_the_linters_fail(tmp_path):
    """What it runs is replaced."""
    stubs = {
        "bin/make": '[ "$1" != lint ]',
        **dict.fromkeys(["bin/apt-get", "bin/chromium", "bin/pdflatex"], ""),
        ".ci/minimum": 'mkdir -p "$1"; touch "$1/installed"',
        **dict.fromkeys([".ci/door", ".ci/wheel"], ""),
    }
    for name, does in stubs.items():
        stub = tmp_path / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f'#!/bin/sh\necho said by {name} "$*"\n{does}\n')
        stub.chmod(0o755)
    shutil.copy(SCRIPTS / "run", tmp_path / ".ci")
    path = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == ""
    for name in (".ci/minimum", ".ci/door", "bin/make -o lint test", ".ci/wheel"):
        assert f"said by {name}" in done.stdout


@in_checkout
def test_pre_commit_runs_what_make_lint_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["entry"] for repo in config["repos"] for hook in repo["hooks"]}
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    commands = re.findall(r"\$\(BIN\)/(.*)", recipe[1])
    wanted = {re.sub(r" --check| \.$", "", command).strip() for command in commands}
    assert hooks == {f".venv/bin/{re.sub(r' [.]$', '', command)}" for command in wanted}
