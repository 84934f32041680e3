"""A report of a run that has not finished says so, and can be watched until the last stage has ended."""

import threading
import time
from pathlib import Path

import pytest

from carryover.slurm import Graph, InlineExecutor, Ledger, Stage, run_graph
from carryover.transfer.cli.commands import print_report
from carryover.transfer.pipeline.stages import report as report_stage
from carryover.transfer.report import Report, watch, write_report
from carryover.transfer.results.record import write_record
from tests.transfer.records import record

TITLE = "What the pretraining carries over"


def measure(out: Path, seed: int) -> None:
    """Leave a result, as an evaluation does."""
    write_record(record(50.0 + seed, seed=seed), out)


def measure_when_told(out: Path, seed: int, sign: str) -> None:
    """Leave a result once the file `sign` is there."""
    deadline = time.monotonic() + 60
    while not Path(sign).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    measure(out, seed)


def fail(out: Path) -> None:
    raise ValueError("out of <memory>")


def two_of_three(run: Path) -> Path:
    """Run three evaluations of which one fails."""
    stages = [Stage(f"evaluate/{s}", measure, {"seed": s}) for s in range(2)]
    run_graph(Graph([*stages, Stage("evaluate/2", fail)]), InlineExecutor(), run)
    return run


def test_a_report_of_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    run = two_of_three(tmp_path / "run")
    report = write_report([run], tmp_path / "report", formats=["html", "md", "tex"])
    (partial,) = report.partial
    assert partial.text() == "2 of 3 stages finished, 1 failed" and not partial.under_way
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert ">Partial results</h2>" in page and "<title>Partial: " in page
    assert "2 of 3 stages finished, 1 failed." in page and "out of &lt;memory&gt;" in page
    assert 'http-equiv="refresh"' not in page and f"<code>carryover retry {run}</code>" in page
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert f"> **Partial results.** `{run}`: 2 of 3 stages finished, 1 failed." in markdown
    tex = (tmp_path / "report" / "tables.tex").read_text(encoding="utf-8")
    assert r"\textbf{Partial results:} 2 of 3 stages finished, 1 failed." in tex


def test_a_report_of_a_finished_run_does_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_graph(Graph([Stage("evaluate/0", measure, {"seed": 0})]), InlineExecutor(), run)
    report = write_report([run], tmp_path / "report", refresh_seconds=5)
    assert report.partial == ()
    for name in ("index.html", "report.md"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert "Partial" not in text and "refresh" not in text


def test_the_stage_that_draws_up_the_report_does_not_count_itself_as_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = Stage("evaluate/0", measure, {"seed": 0})
    drawn = Stage("report", report_stage, {"run_dir": str(run), "title": TITLE}, after=("evaluate/0",))
    result = run_graph(Graph([made, drawn]), InlineExecutor(), run)
    assert result.succeeded
    assert "Partial" not in (run / "report" / "index.html").read_text(encoding="utf-8")


def test_a_run_without_any_result_has_a_page_that_says_so(tmp_path: Path) -> None:
    run_graph(Graph([Stage("evaluate/0", fail)]), InlineExecutor(), tmp_path / "run")
    report = write_report([tmp_path / "run"], tmp_path / "report", formats=["html", "md", "tex", "csv"])
    assert report.records == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "No result yet." in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "No result yet." in page and "0 of 1 stages finished, 1 failed." in page


def test_a_watched_report_is_partial_until_the_last_stage_has_ended(tmp_path: Path) -> None:
    """The run goes on in a thread of this process, and waits for the first report before it ends."""
    run, out, sign = tmp_path / "run", tmp_path / "report", tmp_path / "go"
    stages = [
        Stage("evaluate/0", measure, {"seed": 0}),
        Stage("evaluate/1", measure_when_told, {"seed": 1, "sign": str(sign)}, depends_on=("evaluate/0",)),
    ]
    runner = threading.Thread(target=run_graph, args=(Graph(stages), InlineExecutor(), run))
    runner.start()
    ledger, deadline = Ledger(run), time.monotonic() + 60
    while (state := ledger.read("evaluate/1")) is None or state.state != "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    seen: list[tuple[str, str]] = []

    def on_written(report: Report) -> None:
        seen.append((report.partial[0].text(), (out / "index.html").read_text(encoding="utf-8")))
        sign.touch()

    watch([run], out, TITLE, ["html"], 1, on_written)
    runner.join()
    told, page = seen[0]
    assert told == "1 of 2 stages finished, 1 running"
    assert '<meta http-equiv="refresh" content="1">' in page and ">Partial results</h2>" in page
    assert print_report([run], out, "html", TITLE)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Partial" not in page and 'http-equiv="refresh"' not in page and "<dd>2</dd>" in page


def test_ctrl_c_leaves_a_partial_page_that_no_longer_loads_itself_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = two_of_three(tmp_path / "run"), tmp_path / "report"
    from carryover.transfer.report import progress

    # As if the failed stage were still running; a key is pressed while the watch waits.
    monkeypatch.setattr(progress, "_ON_ITS_WAY", ("failed",))

    def interrupted(seconds: float) -> None:
        assert 'content="7"' in (out / "index.html").read_text(encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    assert print_report([run], out, "html", TITLE, every=7)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert ">Partial results</h2>" in page and 'http-equiv="refresh"' not in page
    assert "2 of 3 stages finished, 1 failed" in capsys.readouterr().err.replace("\n", "")
