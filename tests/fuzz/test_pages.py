"""Pages of hostile names, in a real browser: nothing runs, nothing is fetched."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image as Pil

from mtbench.comparing.judging import leaderboard, report
from mtbench.training.cell.rundir import find_runs
from mtbench_tasks._lesion import report as reading
from tests.comparing.report.made_up import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
NAMES = (
    "<script>alert(1)</script>", "</script><script>alert(2)</script>",
    "\"'><img src=x onerror=alert(3)>",
    "<svg onload=alert(4)>", "javascript:alert(5)", "{{7*7}}${alert(6)}", "\u202egnp.exe\u2066",
    "<a href='javascript:alert(7)'>x</a>", "<!--<script>", "]]><base href=http://a.invalid/>",
)  # fmt: skip


def pages(folder: Path) -> list[Path]:
    write(folder / "runs", [*NAMES, "stl", "ls"], seeds=2, epochs=2, params={NAMES[2]: NAMES[0]})
    for file in (folder / "runs").rglob("result.json"):
        record = json.loads(file.read_text())
        record |= {"selection": NAMES[1], "environment": dict.fromkeys(NAMES, NAMES[3])}
        file.write_text(json.dumps(record))
    boards = leaderboard.boards(list(find_runs([folder / "runs"])), "ls", "ew")
    section = reading.Section(
        picture=Pil.new("RGB", (9, 9)),
        headline=NAMES[0],
        measurements=[(n, n) for n in NAMES],
        chances=[(n, 0.1) for n in NAMES],
        radiomics=[(n, [reading.Row(n, n, n, 0.1)]) for n in NAMES],
        terms=[(n, n, n) for n in NAMES],
        by_points=NAMES[2],
        assessed=list(NAMES),
    )
    page = reading.Page(
        name=NAMES[1],
        facts=[(n, n) for n in NAMES],
        notes=list(NAMES),
        judged=NAMES[2],
        described=NAMES[3],
        scale=NAMES[0],
        thresholds=[(n, n, [(n, n, n)]) for n in NAMES],
        sections=[section],
    )
    said = reading.html(page)
    (folder / "reading.html").write_text(said, encoding="utf-8")
    return [report.write(boards, folder / "site"), folder / "reading.html"]


@pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
)
def test_hostile_names_run_nothing(tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument",
            {"source": "window.ran = 0; window.alert = () => { window.ran++ }"},
        )
        for page in pages(tmp_path):
            driver.get(page.as_uri())
            driver.execute_script(
                "document.querySelectorAll('summary, button, th, tbody tr, [tabindex]').forEach("
                "x => { x.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));"
                "x.dispatchEvent(new MouseEvent('click', {bubbles: true})) })"
            )
            assert driver.execute_script("return window.ran") == 0
            text = driver.execute_script("return document.documentElement.textContent")
            assert NAMES[0] in text
            assert "{{7*7}}" in text
            assert not driver.execute_script(
                "return [...document.querySelectorAll('a, base, iframe, object, embed')]"
                ".filter(x => !(x.getAttribute('href') || '').startsWith('#')).length"
            )
        events = [json.loads(e["message"])["message"] for e in driver.get_log("performance")]
        asked = [
            e["params"]["request"]["url"]
            for e in events
            if e["method"] == "Network.requestWillBeSent"
        ]
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    finally:
        driver.quit()
