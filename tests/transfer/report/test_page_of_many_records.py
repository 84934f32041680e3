"""The page of ten thousand records holds the rows in view, not all; benchmarks/report.py times it."""

from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from carryover.transfer.report.content import Pictures, build_content
from carryover.transfer.report.page import page
from carryover.transfer.results.reading import StoredRecord
from tests.transfer.records import record
from tests.transfer.report.browser import chromium, require_chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RECORDS = 10_000
AT_FIRST, AT_THE_END = 30, 200
"""Rows of a table before and after a reader scrolls to its end, without asking for all of them."""
EVERY = "[aria-label='Every evaluation'] table"
SORT = """
  document.querySelector(`${arguments[0]} th[data-sort='${arguments[1]}'] button`).click();
  return document.querySelector(arguments[0]).tBodies[0].rows.length;
"""
ELEMENTS = "return document.querySelectorAll('*').length"
TO_THE_END = """
  const rows = document.querySelector(arguments[0]).tBodies[0].rows;
  rows[rows.length - 1].scrollIntoView();
  return rows.length;
"""
FIRST = "return document.querySelector(arguments[0]).tBodies[0].rows[0].cells[arguments[1]].textContent"


def write_page(path: Path, number: int = RECORDS) -> Path:
    """Write the page of so many records: ten protocols and ten seeds of each pretraining."""
    records = []
    for i in range(number):
        pretraining, rest = divmod(i, 100)
        protocol, seed = divmod(rest, 10)
        named = {"pretrain_recipe": f"p{pretraining}", "checkpoint_sha256": f"{pretraining:064x}"}
        evaluation = {"recipe": f"e{protocol}", "recipe_hash": f"{protocol:064x}", "seed": seed}
        made = record(
            float(i % 97), wall_seconds=float(i * 7 % RECORDS), job_id=f"job{i}", **named, **evaluation
        )
        records.append(StoredRecord(path.parent / f"{i}" / "result.json", made))
    content = build_content("ten thousand", records, [])
    path.write_text(page(content, Pictures((), (), (), (), (), (), ()), path.parent), encoding="utf-8")
    return path


def test_ten_times_as_many_records_make_hardly_more_elements(tmp_path: Path) -> None:
    require_chromium()
    elements = []
    for number in (RECORDS // 10, RECORDS):
        written = write_page(tmp_path / f"{number}.html", number)
        with chromium(tmp_path / f"profile{number}") as browser:
            browser.get(written.as_uri())
            assert browser.find_element(By.TAG_NAME, "html").get_attribute("data-ready") == "yes"
            rows = browser.execute_script(f"return document.querySelector({EVERY!r}).tBodies[0].rows.length")
            assert rows == AT_FIRST
            elements.append(browser.execute_script(ELEMENTS))
    assert elements[1] < 2 * elements[0], elements


def test_ten_thousand_rows_are_sorted_and_only_those_in_view_drawn(tmp_path: Path) -> None:
    require_chromium()
    written = write_page(tmp_path / "index.html")
    with chromium(tmp_path / "profile") as browser:
        browser.get(written.as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        WebDriverWait(browser, 10).until(lambda b: b.execute_script(TO_THE_END, EVERY) == AT_THE_END)
        for column in (1, 8, 9):
            for _ in ("ascending", "descending"):
                assert browser.execute_script(SORT, EVERY, column) <= AT_THE_END
        assert browser.execute_script(FIRST, EVERY, 9) == f"job{RECORDS - 1}"
        browser.execute_script(SORT, EVERY, 8)
        assert browser.execute_script(FIRST, EVERY, 8) == "0"
