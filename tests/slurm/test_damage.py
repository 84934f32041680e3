"""A damaged file costs its stage alone; a newer release's is refused; a copy of a run is a run of its own."""

import json
import os
import shutil
from pathlib import Path

import pytest

from carryover.configs.errors import DamagedFileError, NewerFormatError
from carryover.slurm import Graph, InlineExecutor, Ledger, Output, RunError, Stage, run_graph
from carryover.slurm.control import cancel, retry
from carryover.slurm.logs import log_files
from carryover.slurm.plan import Action, make_plan
from carryover.slurm.status import status
from carryover.slurm.submission import holder, submission, submissions
from tests.slurm import work

WRITE = Stage("write", work.write, {"text": "words"})
COPY = Stage("copy", work.copy, {"source": Output("write", "result.txt")})
OTHER = Stage("other", work.write, {"text": "else"})
GRAPH = Graph([WRITE, COPY, OTHER])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of three stages."""
    assert run_graph(GRAPH, InlineExecutor(), tmp_path / "run").succeeded
    return tmp_path / "run"


def calls(run: Path, stage: str) -> int:
    return len((Ledger(run).out(stage) / "calls.txt").read_text().splitlines())


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema_version": 2, "name": 5}', "\x00\x00"])
def test_a_damaged_record_costs_its_stage_alone(run: Path, damage: str) -> None:
    file = Ledger(run).record_file("write")
    file.write_text(damage)
    states = {s.name: s for s in status(run).stages}
    assert states["write"].state == "damaged" and str(file) in states["write"].reason
    assert states["other"].state == "finished" and states["copy"].state in ("finished", "blocked")
    assert log_files(Ledger(run), "other") and log_files(Ledger(run), "write") == []

    result = retry(run)
    assert result.succeeded and result.stages["other"].state == "skipped"
    assert result.stages["write"].state == "finished" and status(run).succeeded
    assert (Ledger(run).directory("write") / "stage.damaged-1.json").read_text() == damage
    assert (Ledger(run).directory("write") / "out.damaged-1/result.txt").is_file(), "kept, not gone on with"


def test_a_damaged_submission_is_passed_over_and_its_number_not_given_again(run: Path) -> None:
    (run / "submissions/0001.json").write_text("{")
    assert status(run).succeeded and submissions(Ledger(run)) == []
    assert retry(run).succeeded
    assert [p.name for p in sorted((run / "submissions").glob("*.json"))] == ["0001.json", "0002.json"]
    assert (run / "submissions/0001.json").read_text() == "{"


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema_version": 2, "stages": 7}'])
def test_a_damaged_graph_is_named_and_written_anew_by_the_next_run(run: Path, damage: str) -> None:
    file = run / "pipeline.json"
    file.write_text(damage)
    for look in (status, retry, cancel):
        with pytest.raises(DamagedFileError, match=r"pipeline\.json: damaged"):
            look(run)
    result = run_graph(GRAPH, InlineExecutor(), run)
    assert result.succeeded and {o.state for o in result.stages.values()} == {"skipped"}
    assert status(run).succeeded


@pytest.mark.parametrize("name", ["pipeline.json", "stages/write/stage.json", "submissions/0001.json"])
def test_a_run_of_a_newer_release_is_refused_and_left_alone(run: Path, name: str) -> None:
    plain = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(plain | {"schema_version": 3, "written_by": "carryover 0.9.0"}))
    before = {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for look in (status, retry, lambda run: run_graph(GRAPH, InlineExecutor(), run)):
        if name == "pipeline.json" and look not in (status, retry):
            continue
        with pytest.raises(NewerFormatError, match=r"written by carryover 0\.9\.0; this is carryover"):
            look(run)
    after = {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file() and str(p) in before}
    assert after == before


def test_fields_of_a_later_minor_release_are_passed_over(run: Path) -> None:
    for name in ("pipeline.json", "stages/write/stage.json", "submissions/0001.json"):
        plain = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(plain | {"colour": "red"}))
    assert status(run).succeeded and retry(run).succeeded


def test_an_output_that_is_gone_is_named_and_made_again(run: Path) -> None:
    (Ledger(run).out("write") / "result.txt").unlink()
    states = {s.name: s for s in status(run).stages}
    assert states["write"].state == "damaged" and "result.txt is gone" in states["write"].reason
    decisions = {d.stage.name: d for d in make_plan(GRAPH, Ledger(run), lambda record: "")}
    assert decisions["write"].action is Action.RESUME and decisions["other"].action is Action.SKIP
    assert run_graph(GRAPH, InlineExecutor(), run).succeeded and status(run).succeeded


def test_only_what_a_call_declares_must_be_there(tmp_path: Path) -> None:
    from carryover.slurm import Call

    stage = Stage("write", Call("declared", work.write, outputs=("result.txt",)))
    run_graph(Graph([stage]), InlineExecutor(), tmp_path)
    (Ledger(tmp_path).out("write") / "calls.txt").unlink()
    (decision,) = make_plan(Graph([stage]), Ledger(tmp_path), lambda record: "")
    assert decision.action is Action.SKIP


def test_a_copied_output_of_another_time_is_the_same_output(run: Path) -> None:
    file = Ledger(run).out("write") / "result.txt"
    os.utime(file, (0, 0))
    assert status(run).succeeded
    file.write_text("wards")
    assert not status(run).succeeded


def test_a_copy_knows_nothing_of_the_process_at_work_on_the_original(run: Path, tmp_path: Path) -> None:
    with submission(Ledger(run), "inline") as held:
        copy = shutil.copytree(run, tmp_path / "copy")
        assert holder(Ledger(run)) == held.record and holder(Ledger(copy)) is None
        assert retry(copy).succeeded
        with pytest.raises(RunError, match="has been at work on this run"):
            retry(run)
    moved = run.rename(tmp_path / "moved")
    assert len(submissions(Ledger(moved))) == 2, "a run that was moved keeps its past"


def test_a_stage_that_is_done_again_says_why_afterwards(run: Path) -> None:
    changed = Stage("write", work.write, {"text": "other words"})
    decisions = {d.stage.name: d for d in make_plan(Graph([changed, COPY, OTHER]), Ledger(run), lambda r: "")}
    assert [str(d) for d in decisions["write"].differences] == ["text: words -> other words"]
    run_graph(Graph([changed, COPY, OTHER]), InlineExecutor(), run)
    told = {s.name: s.reason for s in status(run).stages}
    assert told["write"].startswith("changed: text: words -> other words;") and told["other"] == ""
    assert told["copy"].startswith("changed: needs: ")
