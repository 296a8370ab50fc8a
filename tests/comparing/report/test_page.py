"""The page: its content, then its behaviour in a headless Chromium."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtbench.comparing.judging import leaderboard, report
from mtbench.comparing.judging.leaderboard import Board
from mtbench.comparing.judging.report import content
from mtbench.training.cell.rundir import RunDirectory, Spec, find_runs
from tests.comparing.report.made_up import METRICS, write
from tests.comparing.test_leaderboard import cell

METHODS = ("cagrad", "rlar", "ls", "mgda", "stl", "uw", "ew")
HOSTILE = "</script><img src=x onerror=alert(1)>'\"{{7*7}}&amp;${1}"


def boards(out: Path) -> list[Board]:
    return leaderboard.boards(list(find_runs([out])), "ls", "ew")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    write(out, METHODS, tasks=2, seeds=10, trials=8, epochs=5, picture=True)
    for seed in range(2, 10):
        shutil.rmtree(next((out / "made_up0" / "uw").glob(f"seed{seed}-*")))
    return out


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(boards(runs), tmp_path_factory.mktemp("site") / "new")


def embedded(text: str) -> list[dict[str, Any]]:
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    found: list[dict[str, Any]] = json.loads(data)
    return found


def test_the_page_is_one_file_without_addresses(page: Path) -> None:
    text = page.read_text()
    assert [file.name for file in page.parent.iterdir()] == ["index.html"]
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a namespace, not fetched
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)


def test_wins_are_of_the_units_that_both_have(tmp_path: Path) -> None:
    write(tmp_path, ("rlar", "ls", "stl", "ew"), seeds=10)
    for seed in range(6, 10):
        shutil.rmtree(next((tmp_path / "made_up0" / "ls").glob(f"seed{seed}-*")))
    for file in tmp_path.rglob("*.json"):  # metrics may have the page's own words
        text = file.read_text().replace('"dice"', '"both"').replace('"auroc"', '"bar"')
        file.write_text(text)
    wins = re.findall(r'<td class="wins"[^>]*>([^<]*)<', report.render(boards(tmp_path)))
    assert sorted(text.rpartition(" / ")[2] for text in wins) == ["", "6", "6", "6"]


def test_the_page_of_the_same_cells_is_the_same(runs: Path, page: Path) -> None:
    assert report.render(boards(runs)) == page.read_text()


def test_what_the_charts_are_drawn_from(runs: Path) -> None:
    one, _ = boards(runs)
    charts = content.section(one).charts
    assert charts["baseline"] == "ls"
    assert charts["reference"] == "stl"
    assert charts["names"] == one.rows["method"].tolist()
    assert [row["delta_m"] for row in charts["rows"]] == one.rows["delta_m"].tolist()
    assert len(charts["places"]) == 6  # uw lacks repetitions
    assert charts["rows"][0]["difference"] == one.rows["difference"].iloc[0]
    assert (charts["margin"], charts["unit"]) == (2.0, "repetition")
    mean, low, high = charts["budget"]["ls"]
    assert len(mean) == 8
    scores = [trial.score for _, trial in sorted(one.trials["ls"].items())]
    assert mean == pytest.approx([max(scores[: n + 1]) for n in range(8)], rel=1e-4)
    assert low == mean == high  # one search
    front = charts["front"]["front"]
    assert front == sorted(front)
    assert [y for _, y in front] == sorted((y for _, y in front), reverse=True)
    curve = charts["histories"]["rlar"]["dice (validation)"]
    assert curve["x"] == [1, 2, 3, 4, 5]
    assert all(a <= b for a, b in zip(curve["low"], curve["mean"], strict=True))


def test_long_histories_are_thinned_and_broken_ones_end(tmp_path: Path) -> None:
    write(tmp_path, ["ls", "stl"], seeds=2, epochs=500)
    [one] = boards(tmp_path)
    x = content.section(one).charts["histories"]["ls"]["update: length"]["x"]
    assert len(x) == content.EPOCHS
    assert (x[0], x[-1]) == (1, 500)
    # A cell that diverged half-way is averaged with the others at the same epochs.
    file = next(tmp_path.rglob("ls/*/epochs.jsonl"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:277]))
    curves = content.section(one).charts["histories"]
    assert curves["ls"]["update: length"]["x"] == curves["stl"]["update: length"]["x"] == x
    for file in tmp_path.rglob("epochs.jsonl"):
        file.write_text('{"epoch": 0, "val": {"dice": NaN}}\n{"epo')
    assert content.section(one).charts["histories"]["ls"] == {}


def test_pictures_are_embedded_up_to_a_size(
    runs: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = boards(runs)
    picture = next(runs.rglob("predictions.png")).read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    shown = content.section(one)
    assert shown.pictures[0] == (f"{one.rows['method'].iloc[0]}, seed 0: predictions", uri)
    assert (len(shown.pictures), shown.left_out) == (len(METHODS), 0)
    assert page.read_text().count(uri) == 2 * len(METHODS)
    monkeypatch.setattr(content, "PICTURES", 2 * len(picture))
    shown = content.section(one)
    assert (len(shown.pictures), shown.left_out) == (2, len(METHODS) - 2)


def test_a_large_picture_is_made_smaller_and_a_broken_one_left_out(tmp_path: Path) -> None:
    write(tmp_path, ["ls", "stl"], seeds=1, epochs=1, picture=True)
    noise = np.random.default_rng(0).integers(0, 255, (400, 1400, 3), dtype=np.uint8)
    large, broken = sorted(tmp_path.rglob("predictions.png"))
    Image.fromarray(noise).save(large)
    broken.write_bytes(large.read_bytes()[:400_000])
    [one] = boards(tmp_path)
    shown = content.section(one)
    [(_, uri)] = shown.pictures
    assert shown.left_out == 1
    kind, data = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (1100, 314)


def test_a_card_says_what_made_the_row(page: Path, runs: Path) -> None:
    one, _ = boards(runs)
    [card] = [card for card in content.section(one).cards if card["name"] == "rlar"]
    assert card["facts"]["torch"] == "2.13.0"
    assert card["facts"]["tuning trials"] == "8"
    spec = json.loads(card["spec"])
    assert spec["method"] == "rlar"
    seed, digest, status = card["seeds"][2]
    assert (seed, status) == (2, "finished")
    assert Spec(**spec, seed=2).hash == digest
    assert digest in page.read_text()


def test_a_card_has_no_parameters_of_one_cell_alone(tmp_path: Path) -> None:
    for seed, w in enumerate((0.1, 0.2)):
        cell(tmp_path, "ls", seed, method_params={"w": w, "v": 1})
    [one] = boards(tmp_path)  # without a suite each is a row: here they are made one
    joined = replace(one, cells={"ls": [c for cells in one.cells.values() for c in cells]})
    joined = replace(joined, trials={"ls": {}}, rows=one.rows.iloc[:1].assign(method="ls"))
    [card] = content.section(joined).cards
    assert json.loads(card["spec"])["method_params"] == {"v": 1}
    assert card["facts"]["cells differ in"].startswith("method_params.w (leaderboard --raw")


def test_a_board_without_results_is_a_page(tmp_path: Path) -> None:
    spec = Spec(
        task="t", task_params={}, method="ew", method_params={}, data="d", seed=0,
        recipe={"epochs": 1, "batch_size": 1},
    )  # fmt: skip
    RunDirectory.at(tmp_path, spec)
    assert "unfinished, not in the table: ew seed0-" in report.render(boards(tmp_path))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of cells in which every text is an attack."""
    out = tmp_path_factory.mktemp("hostile")
    write(out, [HOSTILE, "stl", "ls"], seeds=3, trials=2, epochs=2, params={HOSTILE: HOSTILE})
    write(out, ["ls"], seeds=2, epochs=2, params={"c": HOSTILE})
    for file in out.rglob("result.json"):
        result = json.loads(file.read_text())
        metrics = {HOSTILE: METRICS["dice"], "auroc": METRICS["auroc"]}
        result |= {"metrics": metrics, "environment": {HOSTILE: HOSTILE}, "selection": HOSTILE}
        result["val"] = {HOSTILE: result["val"]["dice"], "auroc": result["val"]["auroc"]}
        result["cost"]["passes"] = HOSTILE
        file.write_text(json.dumps(result))
        if (test := file.with_name("test.json")).exists():
            found = json.loads(test.read_text())["metrics"]
            named = {HOSTILE: found["dice"], "auroc": found["auroc"]}
            test.write_text(json.dumps({"metrics": named}))
    return report.write(boards(out), out / "site")


def test_every_value_is_escaped(hostile: Path) -> None:
    text = hostile.read_text()
    assert "<img src=x" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert "{{7*7}}" in text  # not evaluated
    assert any(HOSTILE in name for name in embedded(text)[0]["names"])


# In a browser


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
)


class Browser:
    """A headless Chromium with what it complained of and asked for."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
            options.add_argument(f"--{argument}")
        logs = {"browser": "ALL", "performance": "ALL"}
        options.set_capability("goog:loggingPrefs", logs)
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def open(
        self, file: Path, width: int = 1300, *, dark: bool = False, board: str = "board0"
    ) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.log("browser"), self.log("performance")
        self.driver.get(file.as_uri())
        if board:
            self.pick(board)

    def pick(self, board: str) -> None:
        """Choose a board, where there are several."""
        chosen = f"pick.value = {board!r}; pick.dispatchEvent(new Event('change'))"
        self.js(f"const pick = document.getElementById('pick'); if (pick) {{ {chosen} }}")

    def log(self, kind: str) -> list[str]:
        entries: Any = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries]

    def requests(self) -> list[str]:
        events = [json.loads(entry)["message"] for entry in self.log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)  # type: ignore[no-untyped-call]

    def names(self) -> list[str]:
        """Return the visible rows of the visible board."""
        found: list[str] = self.js(
            "return [...document.querySelectorAll('section.board:not([hidden]) tbody tr')]"
            ".filter(r => !r.hidden).map(r => r.dataset.name)"
        )
        return found

    def press(self, key: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(key).perform()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    pytest.importorskip("selenium")
    made = Browser()
    yield made
    made.driver.quit()


def click(browser: Browser, selector: str) -> None:
    browser.js(f"document.querySelector({selector!r}).click()")


@needs_browser
@pytest.mark.parametrize("width", [1300, 380])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_asked_for_and_nothing_complains(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark=dark)
    assert browser.log("browser") == []
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data"}
    assert browser.js("return document.documentElement.scrollWidth") <= width
    titles = browser.js(
        "return [...document.querySelectorAll('.charts h2')].map(h => h.textContent)"
    )
    assert titles == [
        "Δm against single-task", "Quality against cost", "Against ls",
        "How stable the order is", "Two metrics, one picture", "What tuning buys", "Training",
        "Diagnostics",
    ]  # fmt: skip
    assert "NaN" not in browser.js("return document.querySelector('.charts').innerHTML")
    background = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(16, 18, 22)") is dark


@needs_browser
def test_sorting(browser: Browser, page: Path, runs: Path) -> None:
    browser.open(page)
    rows = boards(runs)[0].rows
    assert browser.names() == rows["method"].tolist()
    click(browser, "th.name button")
    assert browser.names() == sorted(rows["method"])
    click(browser, "th.name button")
    assert browser.names() == sorted(rows["method"], reverse=True)
    click(browser, "th.delta button")
    assert browser.names() == rows.sort_values("delta_m")["method"].tolist()
    sorted_by = "return [...document.querySelectorAll('section:not([hidden]) th[aria-sort]')]"
    state = browser.js(f"{sorted_by}.map(h => h.getAttribute('aria-sort'))")
    assert state.count("none") == len(state) - 1
    assert state[2] == "ascending"
    click(browser, "th.rank button")
    assert browser.names()[0] == rows.sort_values("mean_rank")["method"].iloc[0]
    click(browser, "th.rank button")
    assert browser.names()[-1] == "uw"  # has no rank: last either way


@needs_browser
def test_headings_stand_over_their_columns_on_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, 380)
    left = (
        "return [...document.querySelector('#board0 table').rows].slice(0, 3).map(r => [...r.cells]"
        ".filter(c => c.offsetParent).map(c => Math.round(c.getBoundingClientRect().x)))"
    )
    heads, *rows = browser.js(left)
    assert len(heads) > 8
    assert all(row == heads for row in rows)


@needs_browser
def test_a_printed_table_keeps_all_columns_and_intervals(browser: Browser, page: Path) -> None:
    """Landscape A4 has 1,047 pixels between its margins; a letter's page 980."""
    browser.open(page, 980)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    table = "document.querySelector('#board0 table')"
    browser.js(  # as many columns as QM9 has
        f"for (const row of {table}.rows) for (let i = 0; i < 9; i++)"
        f" row.cells[3].after(row.cells[3].cloneNode(true));"
        f"{table}.style.setProperty('--columns', {table}.rows[0].cells.length)"
    )
    right = "e => e.getBoundingClientRect().right"
    assert browser.js(f"return {table}.rows[0].cells.length") > 25
    edge = browser.js("return (" + right + ")(document.querySelector('#board0 .card.table'))")
    ends = f"return Math.max(...[...{table}.querySelectorAll('th, td')].map({right}))"
    assert browser.js(ends) <= edge + 1
    hidden = f"return [...{table}.querySelectorAll('.printed, th, td')].filter(e => !e.offsetWidth)"
    assert browser.js(hidden) == []
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@needs_browser
def test_filtering(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.by import By

    browser.open(page)
    field = browser.driver.find_element(By.CSS_SELECTOR, ".filter")
    field.send_keys("GRAD")
    assert browser.names() == ["cagrad"]
    assert browser.js("return document.querySelector('.count').textContent") == "1 of 7"
    field.clear()
    field.send_keys(" ")
    assert len(browser.names()) == 7
    click(browser, ".ranked")
    assert set(browser.names()) == set(METHODS) - {"uw"}


@needs_browser
def test_the_theme_button_overrules_the_system(browser: Browser, page: Path) -> None:
    browser.open(page, dark=True)
    color = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.js(color)
    click(browser, "#theme")
    light = browser.js(color)
    assert light != dark
    browser.driver.refresh()
    assert browser.js(color) == light  # remembered
    click(browser, "#theme")
    assert browser.js(color) == dark
    browser.js("localStorage.clear()")


@needs_browser
def test_another_board_is_drawn_when_it_is_shown(browser: Browser, page: Path) -> None:
    browser.open(page)
    drawn = "return document.querySelectorAll('#board1 svg').length"
    assert browser.js(drawn) == 0
    browser.pick("board1")
    assert browser.js(drawn) > 8
    assert browser.js("return document.getElementById('board0').hidden") is True


@needs_browser
def test_all_boards_together_come_first(browser: Browser, page: Path) -> None:
    browser.open(page, board="")
    told = "return [...document.querySelectorAll('#overall li')].map(e => e.textContent)"
    assert len(verdicts := browser.js(told)) == 2
    assert all("Against ls: " in one for one in verdicts)
    names = browser.names()
    assert set(names) == set(METHODS) - {"uw"}
    click(browser, "#overall th.rank button")
    assert browser.names()[0] == names[-1]
    assert browser.log("browser") == []


@needs_browser
def test_chips_colour_and_drop_methods(browser: Browser, page: Path) -> None:
    browser.open(page)
    lines = "return document.querySelectorAll('.multiples g[data-slot]').length"
    before = browser.js(lines)
    click(browser, ".chip[aria-pressed='true']")
    assert browser.js(lines) < before
    for _ in METHODS:
        browser.js("document.querySelectorAll('.chip[aria-pressed=true]').forEach(c => c.click())")
    assert browser.js(lines) == 0
    assert browser.log("browser") == []


@needs_browser
def test_keyboard(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    browser.press(Keys.TAB)
    assert browser.js("return document.activeElement.textContent") == "Skip to the table"
    browser.js("document.querySelector('th.passes button').focus()")
    browser.press(Keys.TAB)
    ring = browser.js(
        "const s = getComputedStyle(document.activeElement);return [s.outlineStyle, s.outlineWidth]"
    )
    assert ring == ["solid", "2px"]
    browser.js("document.querySelector('td.delta [data-tip]').focus()")
    browser.press(Keys.TAB)  # to the next tip
    assert browser.js("return document.getElementById('tip').hidden") is False
    browser.js("document.querySelector('th.delta button').focus()")
    browser.press(Keys.ENTER)
    assert browser.js("return document.querySelector('th.delta').ariaSort") == "ascending"


@needs_browser
@pytest.mark.parametrize("width", [1300, 380])
def test_hostile_values_do_nothing(browser: Browser, hostile: Path, width: int) -> None:
    browser.open(hostile, width)
    assert browser.log("browser") == []
    assert browser.js("return document.querySelectorAll('img').length") == 0
    assert browser.js("return document.documentElement.scrollWidth") <= width
    assert any(HOSTILE in name for name in browser.names())
    browser.js(
        "document.querySelectorAll('[data-tip]').forEach(e => e.dispatchEvent("
        "new PointerEvent('pointermove', {bubbles: true, clientX: 50, clientY: 50})))"
    )
    assert browser.log("browser") == []
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data"}


@needs_browser
def test_every_point_of_a_crowd_is_named(browser: Browser, tmp_path: Path) -> None:
    """In print there are no tips, and no name may hide another."""
    write(tmp_path, ["ls", "stl", *(f"method_{i}" for i in range(58))], seeds=4, epochs=2)
    browser.open(report.write(boards(tmp_path), tmp_path / "site"))
    texts = (
        "return [...document.querySelectorAll('.charts svg')].map(s => [...s.querySelectorAll("
        "'text.name')].map(t => { const b = t.getBBox(); return [t.textContent, b.x, b.y, "
        "b.x + b.width, b.y + b.height]; })).filter(names => names.length)"
    )
    found = browser.js(texts)
    assert len(found) == 2  # quality against cost, and two metrics
    for names in found:
        assert len({name for name, *_ in names}) == 60
        hidden = [
            (a[0], b[0])
            for i, a in enumerate(names)
            for b in names[:i]
            if min(a[3], b[3]) - max(a[1], b[1]) > 1 and min(a[4], b[4]) - max(a[2], b[2]) > 2
        ]
        assert hidden == []


@needs_browser
@pytest.mark.parametrize(("plain", "what"), [("ew", "its training"), ("ls", "a step")])
def test_the_chart_of_costs_says_of_what(
    browser: Browser, tmp_path: Path, plain: str, what: str
) -> None:
    """Without the plain sum there are seconds of a step only."""
    write(tmp_path, [plain, "stl", "uw"], seeds=2, epochs=2)
    browser.open(report.write(boards(tmp_path), tmp_path / "site"))
    assert f"by what {what} costs" in browser.js(
        "return document.querySelector('.charts').textContent"
    )


@needs_browser
def test_hundreds_of_rows_stay_responsive(browser: Browser, tmp_path: Path) -> None:
    write(tmp_path, ["ls", "stl", *(f"m{i}" for i in range(298))], seeds=2, epochs=2)
    file = report.write(boards(tmp_path), tmp_path / "site")
    browser.open(file)
    for selector in ("th.delta button", ".chip:nth-child(200)"):
        milliseconds = browser.js(
            "const begin = performance.now(); document.querySelector(arguments[0]).click();"
            "document.body.offsetHeight; return performance.now() - begin",
            selector,
        )
        assert milliseconds < 2000
    assert len(browser.names()) == 300
