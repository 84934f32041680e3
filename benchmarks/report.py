"""Time a report of 10,000 result records, and opening and sorting its page in Chromium.

Run from the repository: ``python -m benchmarks.report [--records N]``. Expected: drawn up in under 15 s; the
page open, and its tables sorted, within 200 ms (Chromium and its driver are needed for that; without them it
says so).

Opened is measured from the start of the navigation, in a fresh browser each time, the file in the system's
cache: the first contentful paint; the load event; and by then the longest task of the page's main thread, the
blocking time (of each task what is beyond 50 ms, as in Lighthouse), and the processor time that the thread
took. Figures are drawn after the load event when the browser is idle; "settled" counts that in. Clock times
hold on a quiet machine only; processor times nearly anywhere, though they too grow with shared caches: the
load average is printed.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from carryover.transfer.report import write_report
from carryover.transfer.results.record import Metric, ResultRecord, write_record

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PRETRAININGS, SEEDS = 100, 10
OPENINGS = 5
METHODS = ("random", "unigrad", "simo", "sqrtkl", "byol")


def write_records(run: Path, count: int) -> None:
    """Write `count` records: 100 pretrainings, 10 seeds, as many protocols as that takes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        pretraining, seed = divmod(i % (PRETRAININGS * SEEDS), SEEDS)
        protocol = i // (PRETRAININGS * SEEDS)
        level = float(rng.normal(50 + pretraining / 10, 1))
        method = METHODS[pretraining % len(METHODS)]
        record = ResultRecord(
            method=method,
            pretrain_epochs=100,
            pretrain_dataset="imagenet",
            pretrain_seed=0,
            pretrain_recipe=f"{method}_{pretraining:03d}",
            backbone="resnet50",
            checkpoint=f"/somewhere/{pretraining:03d}/backbone.safetensors",
            checkpoint_sha256=f"{pretraining:064x}",
            recipe=f"protocol_{protocol}",
            recipe_hash=f"{protocol:064x}",
            task="finetune",
            dataset="imagenet",
            split="val",
            backend="carryover",
            backend_version="0.1.0",
            seed=seed,
            metrics=(
                Metric(name="top1", value=level, n=50000),
                Metric(name="top5", value=level + 20, n=50000),
            ),
            label_fraction=(protocol + 1) / 100,
            wall_seconds=100.0,
            gpu_hours=1.0,
            hardware="1x accelerator",
            git_revision="0" * 40,
            library_versions={"torch": "2.15"},
            host="node",
            job_id=str(i),
            finished="2026-01-01T00:00:00+00:00",
        )
        write_record(record, run / f"{i // 100:04d}" / f"{i:06d}")


def browse() -> "Chrome":
    """Start a headless Chromium whose performance counters count processor time of the page's main thread."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=1440,1000",
    ):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.execute_cdp_cmd("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    return browser


def open_in_browser(page: Path) -> dict[str, float]:
    """Return milliseconds of opening the page: medians of five fresh browsers."""
    watch = """
      window.tasks = [];
      const noted = list => tasks.push(...list.getEntries().map(e => [e.startTime, e.duration]));
      new PerformanceObserver(noted).observe({type: "longtask", buffered: true});
    """
    told = """
      const [opened] = performance.getEntriesByType("navigation");
      const [paint] = performance.getEntriesByName("first-contentful-paint");
      const before = tasks.filter(([start]) => start < opened.loadEventEnd).map(([, took]) => took);
      return {
        "first contentful paint": paint.startTime,
        "load event": opened.loadEventEnd,
        "longest task until load (0: none of over 50 ms)": Math.max(0, ...before),
        "blocking time until load": before.reduce((sum, took) => sum + took - 50, 0),
      };
    """
    measured: list[dict[str, float]] = []
    for _ in range(OPENINGS):
        browser = browse()
        try:
            browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": watch})
            browser.get(page.as_uri())
            at_load = busy(browser)
            time.sleep(1)
            seen = browser.execute_script(told)
            seen["main-thread processor time until load"] = at_load["TaskDuration"]
            settled = busy(browser)
            seen["the same, settled"] = settled["TaskDuration"]
            for part in ("Script", "RecalcStyle", "Layout"):
                seen[f"- of that {part}"] = settled[f"{part}Duration"]
            browser.get("about:blank")
            browser.get(page.as_uri())
            time.sleep(0.5)
            again = browser.execute_script(told)
            seen["first contentful paint, in a browser that is warm"] = again["first contentful paint"]
            seen["load event, in a browser that is warm"] = again["load event"]
            measured.append(seen)
        finally:
            browser.quit()
    return {what: statistics.median(m[what] for m in measured) for what in measured[0]}


def busy(browser: "Chrome") -> dict[str, float]:
    """Return the milliseconds of processor time that the page's main thread has taken, by what for."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return {m["name"]: 1000 * m["value"] for m in metrics if m["name"].endswith("Duration")}


def sort_in_browser(page: Path) -> dict[str, float]:
    """Return milliseconds until a table is sorted and laid out again: its first rows, then also what follows.

    A long table goes on, up to 200 rows, when a reader comes to the end of the first 30.
    """
    find = """
      const table = document.querySelector(arguments[0]), rows = table.tBodies[0].rows;
      for (let d = table.closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
    """
    sort = (
        find
        + """
      table.scrollIntoView({behavior: "instant"});
      document.body.offsetHeight;
      const start = performance.now();
      table.querySelector("th[data-sort='1'] button").click();
      document.body.offsetHeight;
      return [performance.now() - start, [...rows].filter(r => r.offsetHeight).length];
    """
    )
    to_the_end = find + "[...rows].findLast(r => r.offsetHeight).scrollIntoView({behavior: 'instant'});"
    browser = browse()
    took = {}
    try:
        browser.get(page.as_uri())
        for what, table in (
            ("results", "[aria-labelledby=table-1] table"),
            ("all records", "[aria-label='Every evaluation'] table"),
        ):
            for _ in range(2):
                milliseconds, rows = browser.execute_script(sort, table)
                took[f"{what} sorted, {rows} rows shown"] = milliseconds
                browser.execute_script(to_the_end, table)
                time.sleep(1)
    finally:
        browser.quit()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        write_records(run, count)
        began, cpu = time.perf_counter(), time.process_time()
        report = write_report([run], run / "report")
        print(
            f"{report.records:,} records: {time.perf_counter() - began:.1f} s"
            f" ({time.process_time() - cpu:.1f} s of processor time)"
        )
        page = report.files[0]
        print(f"page: {page.stat().st_size / 1e6:.1f} MB")
        if shutil.which("chromium") and shutil.which("chromedriver"):
            print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {OPENINGS}:")
            empty = Path(directory) / "empty.html"
            empty.write_text("<!doctype html><title>empty</title><p>nothing")
            print(f"load event of an empty page: {open_in_browser(empty)['load event']:.0f} ms")
            for what, milliseconds in (open_in_browser(page) | sort_in_browser(page)).items():
                print(f"{what}: {milliseconds:.0f} ms")
        else:
            print("not measured in a browser: Chromium or its driver is not installed")


if __name__ == "__main__":
    main()
