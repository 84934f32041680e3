"""A long report holds but the first rows of its lists as HTML, and everything can still be reached."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from carryover.transfer.report import listing, write_report
from carryover.transfer.report.content import Pictures, build_content
from carryover.transfer.report.page import page as page_of
from carryover.transfer.results.reading import StoredRecord
from carryover.transfer.results.record import Metric, write_record
from tests.transfer.records import record
from tests.transfer.report.browser import chromium, require_chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RECORDS, PRETRAININGS = 320, 40
EVERY = "[aria-label='Every evaluation'] table"
ROWS = "return [...document.querySelector(arguments[0]).tBodies[0].rows].map(r => r.outerHTML)"
SEEN = "return [...document.querySelector(arguments[0]).tBodies[0].rows].filter(r => r.offsetHeight).length"
# An exact half of the last digit shown, a name that has to be escaped in HTML, in data and in an address.
VALUES = (50.125, 50.375, -0.125, 33.333333333333336, None)
NAMES = ("a", "</script><b>", "per cent %20 & #é", "(!) '\"")


def stored(directory: Path) -> list[StoredRecord]:
    """Return 320 records: 40 pretrainings, 8 seeds."""
    found = []
    for i in range(RECORDS):
        number, seed = divmod(i, RECORDS // PRETRAININGS)
        metrics = (
            Metric(name="top1", value=VALUES[i % 5], n=8),
            Metric(name="<top5>", value=float(i), n=8),
        )
        made = record(
            pretrain_recipe=f"p{number} {NAMES[number % 4]}",
            checkpoint_sha256=f"{number:064x}",
            pretrain_seed=None if number % 3 else 0,
            seed=seed,
            metrics=metrics,
            wall_seconds=i + 0.5,
            job_id=None if i % 7 else f"job{i}",
            host=NAMES[i % 4],
        )
        found.append(
            StoredRecord(directory / f"{i:03d}{NAMES[i % 4].replace('/', '')}" / "result.json", made)
        )
    return found


def write_page(directory: Path) -> Path:
    directory.mkdir()
    content = build_content("long", stored(directory), [])
    path = directory / "index.html"
    path.write_text(page_of(content, Pictures((), (), (), (), (), (), ()), directory), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("long") / "page")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    require_chromium()
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser: Chrome, long: Path) -> Chrome:
    browser.get("about:blank")
    browser.get(long.as_uri())
    return browser


def test_rows_made_from_data_equal_those_written_as_html(
    browser: Chrome, long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(listing, "_WHOLE", RECORDS)
        whole = write_page(long.parent.with_name("whole-page"))
    browser.get(whole.as_uri())
    written = browser.execute_script(ROWS, EVERY)
    browser.get(long.as_uri())
    assert len(browser.execute_script(ROWS, EVERY)) == listing.FIRST
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    made = browser.execute_script(ROWS, EVERY)
    assert len(made) == RECORDS
    assert [row.replace(' class=""', "") for row in made] == written


def test_a_record_far_down_is_shown_where_a_link_leads_to_it(page: Chrome, long: Path) -> None:
    page.get(f"{long.as_uri()}#record-{RECORDS}")
    row = page.find_element(By.ID, f"record-{RECORDS}")
    WebDriverWait(page, 5).until(lambda _: row.is_displayed())
    assert "named" in (row.get_attribute("class") or "") and "319.00" in row.text


def test_the_filter_looks_into_rows_that_are_not_there_yet(page: Chrome) -> None:
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.find_element(By.CSS_SELECTOR, "details:last-of-type .bar input").send_keys("job315")
    (found,) = page.execute_script(ROWS, EVERY)
    assert 'id="record-316"' in found
    assert (
        page.find_element(By.CSS_SELECTOR, "details:last-of-type .bar [role=status]").text == "1 of 320 rows"
    )


def test_a_long_table_goes_on_when_a_reader_comes_to_its_end(page: Chrome) -> None:
    table = "[aria-labelledby=table-1] table"
    assert page.execute_script(SEEN, table) == listing.FIRST
    assert page.find_element(By.CSS_SELECTOR, table).get_attribute("aria-rowcount") == f"{PRETRAININGS + 2}"
    last = f"{table} > tbody > tr:nth-child({listing.FIRST})"
    page.execute_script("document.querySelector(arguments[0]).scrollIntoView()", last)
    WebDriverWait(page, 5).until(lambda p: p.execute_script(SEEN, table) == PRETRAININGS)
    assert page.find_element(By.CSS_SELECTOR, table).get_attribute("aria-rowcount") is None


def test_a_button_shows_every_row(page: Chrome) -> None:
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    button = page.find_element(By.CSS_SELECTOR, "details:last-of-type .bar button")
    assert button.text == f"Show all {RECORDS}"
    page.execute_script("arguments[0].focus({preventScroll: true})", button)
    button.send_keys("\n")
    assert page.execute_script(SEEN, EVERY) == RECORDS


def test_paper_holds_all_of_it(browser: Chrome, tmp_path: Path) -> None:
    """Every row, every figure, all that is folded on the screen; afterwards the screen is as before."""
    for one in stored(tmp_path):
        write_record(one.record, one.path.parent)
    write_report([tmp_path], tmp_path / "report", formats=["html"])
    browser.get((tmp_path / "report" / "index.html").as_uri())
    state = """return {
      rows: [...document.querySelectorAll("table.sortable")].map(t => t.tBodies[0].rows.length),
      folded: document.querySelectorAll("details:not([open])").length,
    }"""
    before = browser.execute_script(state)
    browser.execute_script(
        "addEventListener('beforeprint', () => { window.printed = (() => {" + state + "})();"
        " window.drawn = document.querySelectorAll('.picture svg').length; })"
    )
    browser.execute_cdp_cmd("Page.printToPDF", {})
    printed = browser.execute_script("return window.printed")
    assert printed["folded"] == 0 and before["folded"] > 0
    assert RECORDS in printed["rows"] and PRETRAININGS in printed["rows"]
    figures = len(browser.find_elements(By.CSS_SELECTOR, ".picture"))
    assert browser.execute_script("return window.drawn") == figures > 0
    assert browser.execute_script(state)["folded"] == before["folded"]
    assert browser.execute_script(SEEN, "[aria-labelledby=table-1] table") == listing.FIRST


def test_without_scripts_tables_are_whole_and_a_cut_list_says_so(browser: Chrome, long: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(long.as_uri())
        rows = browser.find_elements(By.CSS_SELECTOR, "[aria-labelledby=table-1] tbody tr")
        assert len(rows) == PRETRAININGS and all(r.is_displayed() for r in rows)
        said = browser.find_element(By.CSS_SELECTOR, "details:last-of-type noscript")
        assert "this list ends after 30 of 320 rows" in (said.get_attribute("textContent") or "")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
