"""The page in a real browser: opens in silence, sorts, filters, tells and copies where a number is from."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from carryover.transfer.report import write_report
from carryover.transfer.results.record import write_record
from tests.transfer.records import record
from tests.transfer.report.browser import chromium, require_chromium
from tests.transfer.report.demo_run import write_demo_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_chromium()
    run = write_demo_run(tmp_path_factory.mktemp("demo"))
    write_report([run], run / "report")
    return run / "report" / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser: Chrome, report: Path) -> Chrome:
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(report.as_uri())
    return browser


def labels(page: Chrome, table: str) -> list[str]:
    """Return the names in a table's visible rows, from top to bottom."""
    return page.execute_script(
        "return [...arguments[0].tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[0].dataset.name)",
        page.find_element(By.CSS_SELECTOR, f"[aria-labelledby={table}] table"),
    )


def first_value(page: Chrome) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, "[aria-labelledby=table-1] tbody tr:last-child a.value")


def test_it_opens_without_a_message_and_without_a_request(page: Chrome, report: Path) -> None:
    assert page.find_element(By.TAG_NAME, "html").get_attribute("data-ready") == "yes"
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {u for u in requests if not u.startswith("data:")} == {report.as_uri()}
    assert page.get_log("browser") == []


def test_a_heading_sorts_its_column_best_first_then_worst_first(page: Chrome) -> None:
    assert labels(page, "table-1")[0] == "Random initialization"
    head = page.find_element(By.CSS_SELECTOR, "[aria-labelledby=table-1] th[data-sort='1']")
    button = head.find_element(By.TAG_NAME, "button")
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    best_first = labels(page, "table-1")
    assert best_first[:2] == ["Supervised", "UniGrad"]
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending" and labels(page, "table-1") == best_first[::-1]


def test_the_filter_keeps_the_rows_that_hold_the_text(page: Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, "h2#table-1 + .bar input").send_keys("simo")
    assert labels(page, "table-1") == ["SiMo"]
    assert page.find_element(By.CSS_SELECTOR, "h2#table-1 + .bar [role=status]").text == "1 of 5 rows"


def test_pointing_at_a_number_tells_its_provenance(page: Chrome) -> None:
    value = first_value(page)
    ActionChains(page).scroll_to_element(value).move_to_element(value).perform()
    told = page.find_element(By.ID, "provenance").text
    for part in (
        "UniGrad, 1 % of the labels, top1",
        "5" * 64,
        "evaluation seed 2",
        "result.json",
        "torch 2.15",
    ):
        assert part in told
    assert value.get_attribute("aria-describedby") == "provenance"


def test_a_click_copies_the_provenance_and_says_so(page: Chrome) -> None:
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    value = first_value(page)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", value)
    value.click()
    WebDriverWait(page, 5).until(lambda p: p.find_element(By.ID, "said").get_attribute("textContent"))
    copied = page.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied.count("checkpoint SHA-256 " + "5" * 64) == 3 and "recipe demo_finetune_1percent" in copied
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    assert not page.find_element(By.ID, "provenance").is_displayed()


def test_a_record_is_shown_where_a_link_leads_to_it(page: Chrome, report: Path) -> None:
    page.get(f"{report.as_uri()}#record-17")
    row = page.find_element(By.ID, "record-17")
    WebDriverWait(page, 5).until(lambda _: row.is_displayed())
    assert "named" in (row.get_attribute("class") or "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Chrome, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5 for text; of the page's colors, each on each ground that it is used on."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    value = "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0]).trim()"

    def luminance(name: str) -> float:
        color = page.execute_script(value, f"--{name}").lstrip("#")
        parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(ink: str, ground: str) -> float:
        high, low = sorted((luminance(ink), luminance(ground)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    pairs = [(ink, ground) for ink in ("ink", "soft", "best", "link", "warn") for ground in ("page", "panel")]
    pairs += [(ink, "warn-band") for ink in ("ink", "soft", "warn", "link")]
    assert {p: round(contrast(*p), 2) for p in pairs if contrast(*p) < 4.5} == {}
    # Lines and marks of figures need 3.
    marks = [*(f"s{i}" for i in range(1, 9)), "gray"]
    assert {m: round(contrast(m, "page"), 2) for m in marks if contrast(m, "page") < 3} == {}


def test_a_phone_scrolls_tables_and_not_the_page(page: Chrome) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        widths = page.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert widths == [390, 390]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_is_whole_without_scripts(page: Chrome, report: Path) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get(report.as_uri())
        assert first_value(page).text.startswith("32.8")
        assert first_value(page).get_attribute("href").startswith(report.as_uri() + "#record-")
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_hostile_names_do_not_run(browser: Chrome, tmp_path: Path) -> None:
    attack = '"><img src=x onerror="document.title=\'taken\'"><script>document.title="taken"</script>'
    named = {"pretrain_recipe": attack, "dataset": attack, "host": attack, "method": attack}
    write_record(record(recipe=attack, **named), tmp_path)
    write_report([tmp_path], tmp_path / "report", title="plain")
    browser.get((tmp_path / "report" / "index.html").as_uri())
    value = browser.find_element(By.CSS_SELECTOR, "a.value")
    ActionChains(browser).scroll_to_element(value).move_to_element(value).perform()
    assert attack in browser.find_element(By.ID, "provenance").text
    assert browser.title == "plain"
