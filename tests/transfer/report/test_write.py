"""A report is written whole, traces every number, and trusts no text that it shows."""

from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from configs import UserError
from tests.transfer.records import record
from transfer.report import write_report
from transfer.results import write_record


class Links(HTMLParser):
    """Collects anchors, targets and tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.hrefs += [v for k, v in attrs if k == "href" and v]
        self.ids |= {v for k, v in attrs if k == "id" and v}


def test_every_number_links_to_its_record_and_the_record_to_its_file(tmp_path: Path) -> None:
    for seed in range(2):
        write_record(record(50.0 + seed, seed=seed), tmp_path / f"s{seed}")
    write_report([tmp_path], tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert {h[1:] for h in links.hrefs if h.startswith("#")} <= links.ids
    files = [h for h in links.hrefs if not h.startswith("#")]
    assert len(files) == 2 and all((tmp_path / "report" / f).is_file() for f in files)
    assert text.count("a" * 64) == 2


def test_the_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    write_report([tmp_path], tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "http" not in text.split("</style>")[1] and "src=" not in text


def test_text_from_records_is_escaped(tmp_path: Path) -> None:
    write_record(record(dataset="<script>alert(1)</script>", pretrain_recipe="a|b"), tmp_path)
    write_report([tmp_path], tmp_path / "report")
    links = Links()
    links.feed((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert "script" not in links.tags
    assert "a\\|b" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_the_csv_holds_every_number(tmp_path: Path) -> None:
    write_record(record(12.5), tmp_path)
    write_report([tmp_path], tmp_path / "report")
    frame = pd.read_csv(tmp_path / "report" / "results.csv")
    assert frame[["metric", "value", "n"]].to_numpy().tolist() == [["top1", 12.5, 500]]


def test_an_unreadable_record_is_listed_and_the_report_still_comes(tmp_path: Path) -> None:
    write_record(record(), tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text("{", encoding="utf-8")
    report = write_report([tmp_path], tmp_path / "report")
    assert report.records == 1 and [p.path.parent.name for p in report.problems] == ["bad"]
    assert "bad/result.json" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write_report([tmp_path], tmp_path / "report")
    with pytest.raises(UserError, match="no such run"):
        write_report([tmp_path / "nowhere"], tmp_path / "report")
    with pytest.raises(UserError, match="'pdf' is unknown"):
        write_report([tmp_path], tmp_path / "report", formats=["pdf"])
