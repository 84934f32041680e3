"""A report is written whole, traces every number, and trusts no text that it shows."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from carryover.configs import UserError
from carryover.transfer.cli.main import app
from carryover.transfer.report import write_report
from carryover.transfer.results.record import write_record
from tests.transfer.records import record
from tests.transfer.report.demo_run import write_demo_run

VOID = {"meta", "input", "img", "br", "link"}


class Outline(HTMLParser):
    """Collects links and identifiers, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.ids: list[str] = []
        self.counts: dict[str, int] = {}
        self.open: list[str] = []
        self.unnamed_images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.hrefs += [v for k, v in attrs if k == "href" and v]
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag in ("img", "svg"):
            self.unnamed_images += not (given.get("alt") or given.get("aria-label"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def outline(page: Path) -> Outline:
    found = Outline()
    found.feed(page.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_demo_run(tmp_path_factory.mktemp("demo"))
    write_report([run], run / "report")
    return run / "report"


def test_every_link_of_the_page_leads_somewhere(demo: Path) -> None:
    page = outline(demo / "index.html")
    assert {h[1:] for h in page.hrefs if h.startswith("#")} <= set(page.ids)
    files = [h for h in page.hrefs if not h.startswith("#")]
    assert len(files) == 45 and all((demo / f).is_file() for f in files)


def test_the_page_is_well_formed_and_names_its_pictures(demo: Path) -> None:
    page = outline(demo / "index.html")
    assert page.open == [] and page.unnamed_images == 0
    assert len(page.ids) == len(set(page.ids))
    assert page.counts["img"] == 30


def test_the_page_shows_findings_tables_figures_samples_and_curves(demo: Path) -> None:
    text = (demo / "index.html").read_text(encoding="utf-8")
    for heading in ("In short", "Fine-tuning, shapes", "Figures", "What the detectors see", "Training"):
        assert f">{heading}</h2>" in text
    for number in ("Online k-NN accuracy", "RankMe in", "top 1 in training, held-out images"):
        assert number in text
    assert outline(demo / "index.html").counts["svg"] == 1 + 6 + 6 + (4 + 2 + 4 + 5 + 6)


def test_the_page_names_no_address_and_no_second_file(demo: Path) -> None:
    text = (demo / "index.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert 'src="' not in text.replace('src="data:', "") and "<link" not in text


def test_the_report_is_the_same_when_written_again(demo: Path) -> None:
    def without_time(text: str) -> str:
        return text.split("Written")[0] + text.split("UTC", 1)[1]

    first = (demo / "index.html").read_text(encoding="utf-8")
    write_report([demo.parent], demo)
    assert without_time((demo / "index.html").read_text(encoding="utf-8")) == without_time(first)


def test_curves_are_found_after_the_run_was_moved(tmp_path: Path) -> None:
    run = write_demo_run(tmp_path / "before", seeds=1, pictures=False)
    moved = run.rename(tmp_path / "after")
    write_report([moved], moved / "report", formats=["html"])
    assert "Pretraining loss: UniGrad" in (moved / "report" / "index.html").read_text(encoding="utf-8")


def test_text_from_records_is_escaped(tmp_path: Path) -> None:
    attack = '"><script>alert(1)</script>'
    named = {"pretrain_recipe": attack + "|b", "dataset": attack, "method": attack, "host": attack}
    write_record(record(recipe=attack, model=attack, **named), tmp_path / "<b>run #1")
    write_report([tmp_path], tmp_path / "report", title=attack)
    page = outline(tmp_path / "report" / "index.html")
    assert page.counts["script"] == 3 and "b" not in page.counts and page.open == []
    (file,) = (h for h in page.hrefs if not h.startswith("#"))
    assert file == "../%3Cb%3Erun%20%231/result.json"
    assert "\\|b" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_pictures_outside_the_records_directory_are_not_shown(tmp_path: Path) -> None:
    run = write_demo_run(tmp_path / "run", seeds=1)
    elsewhere = next(run.rglob("samples"))
    write_record(record(artifacts={"samples": str(elsewhere)}), tmp_path / "other")
    write_report([tmp_path / "other"], tmp_path / "report")
    assert "img" not in outline(tmp_path / "report" / "index.html").counts


def test_the_csv_and_the_parquet_file_hold_every_number(tmp_path: Path) -> None:
    write_record(record(12.5), tmp_path)
    write_report([tmp_path], tmp_path / "report", formats=["csv", "parquet"])
    for frame in (
        pd.read_csv(tmp_path / "report" / "results.csv"),
        pd.read_parquet(tmp_path / "report" / "results.parquet"),
    ):
        assert frame[["metric", "value", "n"]].to_numpy().tolist() == [["top1", 12.5, 500]]


def test_a_missing_pyarrow_is_answered_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(record(), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'carryover-eval\[parquet\]'"):
        write_report([tmp_path], tmp_path / "report", formats=["csv", "parquet"])
    assert not (tmp_path / "report").exists()


def test_figures_are_written_for_papers_when_asked_for(tmp_path: Path) -> None:
    for name in ("random", "simo"):
        write_record(record(method=name, pretrain_recipe=name), tmp_path / name)
    report = write_report([tmp_path], tmp_path / "report", formats=["figures"])
    assert [f.name for f in report.files] == ["standing-1-1.pdf"]
    assert report.files[0].read_bytes().startswith(b"%PDF")
    assert (tmp_path / "report" / "figures" / "standing-1-1.svg").is_file()


def test_the_markdown_lists_findings_tables_and_sources(demo: Path) -> None:
    text = (demo / "report.md").read_text(encoding="utf-8")
    assert "## In short" in text and "| UniGrad | resnet18 | 30 |" in text
    assert text.count("checkpoint `") == 45


def test_an_unreadable_record_is_listed_and_the_report_still_comes(tmp_path: Path) -> None:
    write_record(record(), tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text("{", encoding="utf-8")
    report = write_report([tmp_path], tmp_path / "report")
    assert report.records == 1 and [p.path.parent.name for p in report.problems] == ["bad"]
    for name in ("index.html", "report.md"):
        assert "bad/result.json" in (tmp_path / "report" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"schema_version": 3', '"schema_version": 4'),
        lambda text: text.replace('"value": 50.0', '"value": 60.0'),
    ],
    ids=["half-written", "of a newer release", "edited by hand"],
)
def test_the_command_lists_a_bad_record_and_exits_with_1(
    tmp_path: Path, damage: Callable[[str], str]
) -> None:
    write_record(record(), tmp_path / "good")
    bad = write_record(record(seed=1), tmp_path / "bad")
    bad.write_text(damage(bad.read_text(encoding="utf-8")), encoding="utf-8")
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "report")])
    assert done.exit_code == 1
    assert f"left out: {bad}" in done.output.replace("\n", "")
    assert str(bad) in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_a_report_of_unreadable_records_only_still_comes(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("", encoding="utf-8")
    report = write_report([tmp_path], tmp_path / "report")
    assert report.records == 0 and len(report.problems) == 1 and report.files[0].is_file()


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write_report([tmp_path], tmp_path / "report")
    with pytest.raises(UserError, match="no such run"):
        write_report([tmp_path / "nowhere"], tmp_path / "report")
    with pytest.raises(UserError, match=r"runs/\*: nothing matches this pattern"):
        write_report([tmp_path / "runs" / "*"], tmp_path / "report")
    with pytest.raises(UserError, match="'pdf' is unknown"):
        write_report([tmp_path], tmp_path / "report", formats=["pdf"])
