"""A damaged file costs its stage alone; a newer release's is refused; a copy of a run is a run of its own."""

import json
import os
import shutil
from pathlib import Path

import pytest

from carryover.configs.errors import DamagedFileError, NewerFormatError
from carryover.slurm import (
    Graph,
    InlineExecutor,
    Ledger,
    Output,
    RequestError,
    RunError,
    Stage,
    run_graph,
)
from carryover.slurm.control import cancel, retry
from carryover.slurm.local import LocalExecutor
from carryover.slurm.plan import Action, make_plan
from carryover.slurm.sbatch import take_snapshot
from carryover.slurm.status import log_files, status
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
        with pytest.raises(DamagedFileError, match=r"pipeline\.json: (damaged|not a run graph)"):
            look(run)
    result = run_graph(GRAPH, InlineExecutor(), run)
    assert result.succeeded and {o.state for o in result.stages.values()} == {"skipped"}
    assert status(run).succeeded


@pytest.mark.parametrize("name", ["pipeline.json", "stages/write/stage.json", "submissions/0001.json"])
def test_a_run_of_a_newer_release_is_refused_and_left_alone(run: Path, name: str) -> None:
    plain = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(plain | {"schema_version": 3, "written_by": "carryover 0.9.0"}))
    before = {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for act in (retry, lambda run: run_graph(GRAPH, InlineExecutor(), run)):
        if name == "pipeline.json" and act is not retry:
            continue
        with pytest.raises(NewerFormatError, match=r"written by carryover 0\.9\.0; this is carryover"):
            act(run)
    # It can be looked at, but for what the newer file alone says.
    if name == "pipeline.json":
        with pytest.raises(NewerFormatError, match=r"a run graph of format 3"):
            status(run)
    else:
        states = {s.name: s for s in status(run).stages}
        assert states["other"].state == "finished"
        assert ("written by carryover 0.9.0" in states["write"].reason) == name.startswith("stages")
    after = {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file() and str(p) in before}
    assert after == before


def test_fields_of_a_later_minor_release_are_passed_over(run: Path) -> None:
    for name in ("pipeline.json", "stages/write/stage.json", "submissions/0001.json"):
        plain = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(plain | {"color": "red"}))
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
    assert told["copy"].startswith("changed: result.txt, which it takes, is from other work;")
    follows = [Stage("last", work.write, {"text": "a"}, after=(name,)) for name in ("write", "copy")]
    run_graph(Graph([changed, COPY, OTHER, follows[0]]), InlineExecutor(), run)
    run_graph(Graph([changed, COPY, OTHER, follows[1]]), InlineExecutor(), run)
    again = {s.name: s.reason for s in status(run).stages}["last"]
    assert again.startswith("changed: it now follows copy, it no longer follows write;")


@pytest.mark.parametrize(
    "stage", [1, None, {"name": 3}, {"name": "a", "call": "b", "hash": "c", "requires": 5}]
)
def test_a_graph_of_another_shape_is_damaged(run: Path, stage: object) -> None:
    (run / "pipeline.json").write_text(json.dumps({"schema_version": 2, "stages": [stage]}))
    with pytest.raises(DamagedFileError, match=r"pipeline\.json: not a run graph: stages\.0"):
        status(run)


@pytest.mark.parametrize("name", ["stages/write/stage.json", "submissions/0001.json", "pipeline.json"])
@pytest.mark.parametrize("kind", ["a directory", "a loop", "deep"])
def test_what_stands_in_the_place_of_a_file_is_named(run: Path, name: str, kind: str) -> None:
    path = run / name
    path.unlink()
    if kind == "a directory":
        path.mkdir()
    elif kind == "a loop":
        path.symlink_to(path)
    else:
        path.write_text("[" * 100_000)
    if name == "pipeline.json":
        with pytest.raises((DamagedFileError, RequestError), match="pipeline"):
            status(run)
        return
    shown = {s.name: s for s in status(run).stages}
    assert shown["other"].state == "finished"
    assert (str(path) in shown["write"].reason) == name.startswith("stages")
    cancel(run)


def test_no_name_in_a_record_reaches_out_of_the_stage(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    file = Ledger(run).record_file("write")
    plain = json.loads(file.read_text())
    outside = os.path.relpath(victim, Ledger(run).out("write"))
    plain["outputs"][outside] = {"size": 1, "sha256": "", "mtime_ns": 0}
    plain["attempts"][0]["log"] = os.path.relpath(victim, Ledger(run).directory("write"))
    file.write_text(json.dumps(plain))
    assert status(run).succeeded and retry(run).succeeded
    assert victim.read_text() == "mine" and list(tmp_path.glob("victim*")) == [victim]
    assert victim not in [path.resolve() for path in log_files(Ledger(run), "write")]


def test_an_output_outside_is_not_brought_back_but_made_again(tmp_path: Path) -> None:
    from carryover.slurm import Call

    def draw(out: Path, text: str) -> None:
        (out / "../../../page.txt").write_text(text)

    call = Call("draw", draw, outputs=("../../../page.txt",))
    for text in ("one", "two", "one"):
        run_graph(Graph([Stage("draw", call, {"text": text})]), InlineExecutor(), tmp_path)
        assert (tmp_path / "page.txt").read_text() == text


def test_a_report_follows_the_names_of_what_it_is_about(tmp_path: Path) -> None:
    def graph(name: str) -> Graph:
        return Graph(
            [Stage(name, work.write), Stage("report", work.collect, {"directories": []}, after=(name,))]
        )

    run_graph(graph("a"), InlineExecutor(), tmp_path)
    decisions = {d.stage.name: d for d in make_plan(graph("b"), Ledger(tmp_path), lambda record: "")}
    assert decisions["report"].action is Action.REPLACE
    assert [d.key for d in decisions["report"].differences] == ["after.b", "after.a"]


def test_a_copy_of_a_run_at_work_is_not_at_work(run: Path, tmp_path: Path) -> None:
    ledger = Ledger(run)
    record = ledger.read("write")
    assert record is not None
    attempt = record.attempts[-1].model_copy(update={"executor": "local", "ended": None, "state": "running"})
    ledger.write(record.changed("running", attempts=(attempt,)))
    copy = shutil.copytree(run, tmp_path / "copy")
    there = {s.name: s for s in status(copy).stages}["write"]
    assert (there.state, there.reason) == (
        "interrupted",
        "at work in the run that this directory is a copy of",
    )
    assert retry(copy).succeeded
    assert {s.name: s.state for s in status(run).stages}["write"] == "running"


def test_a_copy_is_retried_by_the_executor_of_the_original(tmp_path: Path) -> None:
    run_graph(Graph([WRITE]), LocalExecutor(at_once=3), tmp_path / "run")
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    retry(copy)
    (own,) = submissions(Ledger(copy))
    assert (own.executor, own.settings["at_once"]) == ("local", 3)


def test_jobs_never_import_a_snapshot_that_was_changed(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path)
    code = take_snapshot(ledger, ["carryover.slurm"])
    module = next(code.rglob("files.py"), None) or next(code.rglob("*.py"))
    before = module.read_text()
    module.write_text(before + "raise SystemExit('changed')\n")
    assert take_snapshot(ledger, ["carryover.slurm"]) == code and module.read_text() == before
