"""Pictures of docs/gallery.md: ``python -m tests.transfer.report.gallery``, when the page has changed."""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from selenium.webdriver import Chrome

from carryover.transfer.report import write_report
from tests.transfer.report.browser import chromium, require_chromium
from tests.transfer.report.demo_run import write_demo_run

GALLERY = Path(__file__).parents[3] / "docs" / "gallery"


class View(NamedTuple):
    """A window of the page: from the heading that begins with `heading` on, or from the top."""

    name: str
    heading: str | None
    width: int = 1440
    height: int = 900
    dark: bool = False


VIEWS = (
    View("summary", None, height=950),
    View("tables", "Fine-tuning", height=1200),
    View("curves", "Training", height=1450),
    View("detections", "What the detectors", height=700),
    View("narrow", None, width=390),
    View("dark", None, height=1250, dark=True),
)


def take(browser: Chrome, page: Path, view: View, folder: Path) -> None:
    """Write one picture."""
    scheme = "dark" if view.dark else "light"
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": view.width, "height": view.height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    browser.get(page.as_uri())
    if view.heading is not None:
        script = "[...document.querySelectorAll('h2')].find(h => h.textContent.startsWith(arguments[0]))"
        browser.execute_script(f"{script}.scrollIntoView()", view.heading)
    # Figures are drawn when they come into view.
    time.sleep(1.5)
    (folder / f"{view.name}.png").write_bytes(browser.get_screenshot_as_png())


def main() -> None:
    require_chromium()
    with tempfile.TemporaryDirectory() as folder:
        run = write_demo_run(Path(folder, "run"))
        write_report([run], run / "report")
        with chromium(Path(folder, "profile")) as browser:
            for view in VIEWS:
                take(browser, run / "report" / "index.html", view, GALLERY)


if __name__ == "__main__":
    main()
