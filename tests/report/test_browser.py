"""The report page in a headless browser: 100,000 rows, leafing, searching, and names that attack.

One browser and two pages serve all tests, as starting is what takes time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, browse, find_chromium
from report_study import EVIL, build_study

from kdpipe.report.page.write import write_report

N_CASES = 6250  # times 4 methods, 2 seeds, 2 structures: 100,000 rows
READY = "document.querySelectorAll('.window tbody tr').length > 4"
SCORES = "document.getElementById('all-scores')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("needs Chromium or Chrome, which is not here")
    with browse(binary, tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    written = {}
    for name, options in {"large": {"n_cases": N_CASES}, "evil": {"evil": True}}.items():
        study = build_study(root / name, **options)  # type: ignore[arg-type]
        written[name] = root / f"{name}.html"
        write_report(study.run, study.tables, study.figures, study.overlays, written[name])
    return written


@pytest.fixture
def large(browser: Page, reports: dict[str, Path]) -> Page:
    return opened(browser, reports["large"])


@pytest.fixture
def evil(browser: Page, reports: dict[str, Path]) -> Page:
    return opened(browser, reports["evil"])


def opened(browser: Page, file: Path) -> Page:
    browser.events.clear()
    browser.open(file)
    browser.wait_for(f"document.querySelectorAll('.window').length === 2 && {READY}")
    return browser


def count(page: Page) -> str:
    return page.run(f"{SCORES}.querySelector('output').textContent")


def shown(page: Page) -> list[list[str]]:
    """The rows of all scores that are in the document."""
    rows = f"[...{SCORES}.querySelectorAll('tbody tr:not(.gap)')]"
    return page.run(f"{rows}.map(row => [...row.cells].map(cell => cell.textContent))")


def choose(page: Page, label: str, value: str) -> None:
    """Pick a value in the list over all scores that has this label."""
    page.run(
        f"(() => {{ const select = [...{SCORES}.querySelectorAll('label')]"
        f".find(each => each.textContent.startsWith('{label} ')).querySelector('select');"
        f"select.value = [...select.options].find(each => each.text === '{value}').value;"
        "select.dispatchEvent(new Event('change')); })()"
    )


def column(page: Page, name: str) -> int:
    heads = f"[...{SCORES}.querySelectorAll('thead th')].map(head => head.textContent)"
    return page.run(heads).index(name)


def sort_by(page: Page, name: str) -> None:
    page.run(f"{SCORES}.querySelectorAll('thead button')[{column(page, name)}].click()")


def test_nothing_is_asked_for_and_nothing_goes_wrong(large: Page) -> None:
    large.run("document.querySelectorAll('button').forEach(button => button.click())")
    large.run("document.getElementById('enlarged').close()")
    asked = {event["request"]["url"] for event in large.of("Network.requestWillBeSent")}
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert large.of("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []


def test_the_page_may_not_ask_for_anything(large: Page) -> None:
    """The check above sees requests, and the policy stops them."""
    answer = "fetch('http://127.0.0.1:9/x').then(() => 'came', () => 'refused')"
    assert large.run(answer) == "refused"
    blocked = [event["entry"]["text"] for event in large.of("Log.entryAdded")]
    assert any("Content Security Policy" in text for text in blocked)


def test_a_hundred_thousand_rows(large: Page) -> None:
    assert count(large) == "100,000 of 100,000 rows"
    assert 0 < len(shown(large)) < 100
    assert large.run("document.querySelectorAll('.window tr').length") < 200
    case = column(large, "case")
    large.run(f"{SCORES}.querySelector('.window').scrollTop = 1e9")
    large.wait_for(f"{SCORES}.querySelector('tbody').textContent.includes('case_{N_CASES - 1}')")
    assert shown(large)[-1][case] == f"case_{N_CASES - 1}"
    assert large.run("document.querySelectorAll('.window tr').length") < 200


def test_filters_and_sorting(large: Page) -> None:
    choose(large, "method", "kd")
    assert count(large) == "25,000 of 100,000 rows"
    choose(large, "structure", "spleen")
    assert count(large) == "12,500 of 100,000 rows"
    large.run(f"{SCORES}.querySelector('input').focus()")
    large.type("CASE_12 ok")
    large.wait_for(f"{SCORES}.querySelector('output').textContent.startsWith('222 ')")
    value = column(large, "value")
    sort_by(large, "value")
    values = [float(row[value]) for row in shown(large)]
    assert values == sorted(values)
    sort_by(large, "value")
    values = [float(row[value]) for row in shown(large)]
    assert values == sorted(values, reverse=True)
    assert large.run(f"{SCORES}.querySelectorAll('th[aria-sort=descending]').length") == 1


def test_gaps_come_last_in_both_directions(large: Page) -> None:
    choose(large, "status", "missing_in_both")
    assert count(large) == "8 of 100,000 rows"
    choose(large, "status", "all")
    value = column(large, "value")
    for _ in range(2):
        sort_by(large, "value")
        assert shown(large)[0][value] != "-"
        large.run(f"{SCORES}.querySelector('.window').scrollTop = 1e9")
        large.wait_for(f"{SCORES}.querySelector('tbody').lastChild.offsetHeight < 2")
        assert [row[value] for row in shown(large)[-9:]].count("-") == 8


def test_rows_that_are_left_can_be_saved(evil: Page, tmp_path: Path) -> None:
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    evil.call("Page.setDownloadBehavior", **where)
    choose(evil, "structure", EVIL[1])
    evil.run(f"{SCORES}.querySelector('button:not(th button)').click()")
    evil.wait_for("new Promise(done => setTimeout(() => done(true), 300))")
    text = (tmp_path / "scores.csv").read_bytes().decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 48
    assert {row["structure"] for row in rows} == {EVIL[1]}
    assert EVIL[0] in {row["case"] for row in rows}
    # no spreadsheet takes a name for a formula
    assert "'" + EVIL[2] in {row["method"] for row in rows}
    assert {row["value"] for row in rows if row["method"] == "mskd"} >= {"0.78", "0.78001"}


def test_names_that_attack_stay_text(evil: Page) -> None:
    evil.run("document.querySelectorAll('button').forEach(button => button.click())")
    evil.run("document.getElementById('enlarged').close()")
    sort_by(evil, "case")
    assert evil.of("Page.javascriptDialogOpening") == []
    assert evil.run("document.querySelectorAll('img[onerror], [src=x]').length") == 0
    texts = {text for row in shown(evil) for text in row}
    assert set(EVIL) <= texts
    assert evil.run("document.querySelector('h1').textContent") == EVIL[0]
    assert evil.of("Runtime.exceptionThrown", "Log.entryAdded") == []


def test_the_policy_stops_a_script_that_slipped_through(evil: Page) -> None:
    evil.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(1)>')")
    evil.run("new Promise(done => setTimeout(done, 100))")
    assert evil.of("Page.javascriptDialogOpening") == []
    assert evil.of("Log.entryAdded") != []


def test_leafing(large: Page) -> None:
    visible = (
        "[...document.querySelectorAll('.leaf figure')].filter(each => each.checkVisibility())"
        ".map(each => each.querySelector('strong').textContent.split(',')[0])"
    )
    assert large.run(visible) == ["Worst case: case_0"]
    assert large.run("document.querySelector('.leaf .count').textContent") == "1 of 2"
    large.run("document.querySelector('.leaf').focus()")
    large.press("ArrowRight")
    assert large.run(visible) == ["Best case: case_1"]
    large.press("ArrowRight")  # and round
    assert large.run(visible) == ["Worst case: case_0"]
    large.press("ArrowLeft")
    assert large.run(visible) == ["Best case: case_1"]
    large.run("document.querySelector('[data-step=\"1\"]').click()")
    assert large.run(visible) == ["Worst case: case_0"]


def test_tabs_and_enlarging(large: Page) -> None:
    tabs = "[...document.querySelectorAll('#figures [role=tab]')]"
    titles = "[...document.querySelectorAll('#figures figure')].filter(f => f.checkVisibility())"
    assert large.run(f"{titles}.length") == 2
    large.run(f"{tabs}[0].focus()")
    large.press("ArrowRight")
    assert large.run(f"{titles}.length") == 1
    assert large.run(f"{tabs}.map(tab => tab.getAttribute('aria-selected'))") == ["false", "true"]
    large.run(f"{titles}[0].querySelector('button').click()")
    assert large.run("document.getElementById('enlarged').open") is True
    large.press("Escape")
    assert large.run("document.getElementById('enlarged').open") is False


def test_small_tables_are_sorted_and_searched(large: Page) -> None:
    methods = (
        "[...document.querySelectorAll('#results-1 table')[0].tBodies[0].rows]"
        ".filter(row => !row.hidden).map(row => row.cells[2].textContent)"
    )
    assert large.run(methods) == ["none", "kd", "cwd", "mskd†"]
    heads = "[...document.querySelectorAll('#results-1 table')[0].querySelectorAll('th button')]"
    large.run(f"{heads}.find(head => head.textContent.startsWith('Dice')).click()")
    assert large.run(methods) == ["mskd†", "none", "cwd", "kd"]
    large.run("document.querySelector('[data-search=results-1]').focus()")
    large.type("big cw")
    large.wait_for(f"{methods}.length === 1")
    assert large.run(methods) == ["cwd"]


@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_is_wider_than_the_window(large: Page, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    large.call("Emulation.setDeviceMetricsOverride", **size)
    try:
        assert large.run("document.documentElement.scrollWidth") <= width
    finally:
        large.call("Emulation.clearDeviceMetricsOverride")


def test_dark_and_light(large: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    for scheme, colour in (("dark", "rgb(18, 23, 30)"), ("light", "rgb(255, 255, 255)")):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        large.call("Emulation.setEmulatedMedia", features=[feature])
        assert large.run(paper) == colour
    large.run("document.getElementById('theme').click()")
    assert large.run(paper) == "rgb(18, 23, 30)"


def test_printing_shows_what_is_hidden(large: Page) -> None:
    """Pictures and tables of all tabs; of the scores, only where they are."""
    large.call("Emulation.setEmulatedMedia", media="print")
    try:
        pictures = "[...document.querySelectorAll('figure')].filter(f => f.checkVisibility())"
        assert large.run(f"{pictures}.length") == 5
        assert large.run(f"{SCORES}.querySelector('.window').checkVisibility()") is False
        assert "100,000 rows; they are in the file scores.csv" in large.run(f"{SCORES}.innerText")
        assert large.call("Page.printToPDF", preferCSSPageSize=True)["data"].startswith("JVBER")
    finally:
        large.call("Emulation.setEmulatedMedia", media="")
