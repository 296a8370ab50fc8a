import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import typer

import mtbench
from mtbench.cli import app
from mtbench.plugins.registry import entries

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = re.compile(r"^```sh\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
import toy_paths  # noqa: E402 - it lies beside the site's sources


class Loaded(HTMLParser):
    """What a browser fetches with a page, without a click."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href") or "")
        elif tag != "a":
            self.found += [given.get(key) or "" for key in ("src", "srcset", "data", "poster")]


def test_the_site_builds_without_a_warning_and_asks_nothing_of_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    stale = ROOT / "docs" / "generated" / "tasks" / "no_longer_there.rst"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_text("a page of nothing")
    built = subprocess.run(
        [*command, "-d", tmp_path / "trees", ROOT / "docs", tmp_path / "site"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert not stale.exists()
    site = tmp_path / "site"
    for page in site.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert any(loaded.found)
        assert not [url for url in loaded.found if "//" in url], page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), sheet

    for name in entries("method"):
        page = (site / "generated" / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert ("<img" in page) == (name not in ("stl", "ntk_weights")), name
    task = (site / "generated" / "tasks" / "thyroid.html").read_text(encoding="utf-8")
    assert "risk_loss" in task  # a parameter of its base's
    interface = (site / "generated" / "api.html").read_text(encoding="utf-8")
    assert not [name for name in mtbench.__all__ if f"mtbench.{name}" not in interface]
    assert (site / "searchindex.js").stat().st_size > 100_000


@pytest.mark.parametrize("name", sorted({*toy_paths.load()} & {*entries("method")}))
def test_the_kept_path_of_a_method_is_the_methods(name: str) -> None:
    kept = toy_paths.load()[name]
    for path, again in zip(kept, toy_paths.walk(name, steps=toy_paths.EVERY), strict=True):
        assert again == [pytest.approx(point, abs=0.011) for point in path[:2]]


def test_the_code_of_the_guides_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder, grade, size = (torch.nn.Linear(3, 3) for _ in range(3))
    images = torch.randn(4, 3)
    known = {
        "torch": torch, "mtbench": mtbench, "encoder": encoder, "grade": grade, "size": size,
        "model": torch.nn.ModuleList([encoder, grade, size]), "images": images, "batch": images,
        "loader": [images, images], "parts": [images, images], "held_out_batch": lambda: images,
        "scaler": torch.amp.GradScaler("cpu"),
        "grade_loss": lambda out: out.square().mean(), "size_loss": lambda out: out.exp().mean(),
        "compute_losses": lambda model, batch: [
            model[1](model[0](batch)).square().mean(), model[2](model[0](batch)).exp().mean()
        ],
    }  # fmt: skip
    own_loop, method = (
        re.findall(
            r"^```python\n((?!>>>).*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
        )
        for page in ("docs/own-loop.md", "docs/write-a-method.md")
    )
    for block in own_loop:
        known["losses"] = known["compute_losses"](known["model"], images)
        exec(block, known)
    assert (tmp_path / "checkpoint.pt").exists()
    exec(method[0], known)
    known["Mine"](2).backward(known["compute_losses"](known["model"], images))


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name)
def test_links_of_texts_outside_of_the_site_lead_somewhere(text: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)[)#]", text.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (ROOT / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_pages_exist_with_their_options(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        command = typer.main.get_command(app)
        while hasattr(command, "get_command") and not words[0].startswith("-"):
            command = command.get_command(None, words.pop(0))
            assert command is not None, line
        known = {name for parameter in command.params for name in parameter.opts}
        known |= {"--help", "-h", *(s for p in command.params for s in p.secondary_opts)}
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert command.ignore_unknown_options or given <= known, line


def commands(text: str) -> list[str]:
    """Return what follows `mtbench` in the lines of a page's shell blocks."""
    lines = "\n".join(SHELL.findall(text)).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"[;]|&&", line)]
    return [part.removeprefix("mtbench ") for part in parts if part.startswith("mtbench ")]
