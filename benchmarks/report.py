"""Time a report of 10,000 result records, and sorting its longest table in Chromium.

Run from the repository: ``python -m benchmarks.report [--records N]``. Expected: drawn up in under 15 s, the
table sorted within 200 ms (Chromium and its driver are needed for that part; without them it says so).
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from transfer.report import write_report
from transfer.results import Metric, ResultRecord, write_record

PRETRAININGS, SEEDS = 100, 10
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


def sort_in_browser(page: Path) -> dict[str, float]:
    """Return milliseconds until the page is ready and until its tables are sorted and laid out again."""
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
    sort = """
      const table = document.querySelectorAll(arguments[0])[0];
      for (let d = table.closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
      document.body.offsetHeight;
      const start = performance.now();
      table.querySelector("th[data-sort='1'] button").click();
      document.body.offsetHeight;
      return performance.now() - start;
    """
    try:
        browser.get(page.as_uri())
        timing = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        return {
            "page ready": browser.execute_script(timing),
            "results sorted": browser.execute_script(sort, "[aria-labelledby=table-1] table"),
            "all records sorted": browser.execute_script(sort, "[aria-label='Every evaluation'] table"),
        }
    finally:
        browser.quit()


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
            for what, milliseconds in sort_in_browser(page).items():
                print(f"{what}: {milliseconds:.0f} ms")
        else:
            print("not measured in a browser: Chromium or its driver is not installed")


if __name__ == "__main__":
    main()
