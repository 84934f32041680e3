"""The inline executor: done work is not done again, half-done work goes on, failures stay where they are."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carryover.slurm import (
    Event,
    Graph,
    GraphResult,
    InlineExecutor,
    Ledger,
    Output,
    RequestError,
    RunError,
    Stage,
    run_graph,
)
from carryover.slurm.control import retry
from carryover.slurm.ledger import GONE
from carryover.slurm.plan import MissingPathsError
from carryover.slurm.preview import preview
from carryover.slurm.resources import Cluster
from carryover.slurm.status import status
from carryover.slurm.submission import submission, submissions
from tests.slurm import work


def run(run_dir: Path, *stages: Stage) -> tuple[GraphResult, list[Event]]:
    events: list[Event] = []
    result = run_graph(Graph(stages), InlineExecutor(), run_dir, on_event=events.append)
    return result, events


def states(result: GraphResult) -> dict[str, str]:
    return {name: outcome.state for name, outcome in result.stages.items()}


def calls(run_dir: Path, stage: str) -> int:
    return len((Ledger(run_dir).out(stage) / "calls.txt").read_text().splitlines())


WRITE = Stage("make/text", work.write, {"text": "words"})
COPY = Stage("copy", work.copy, {"source": Output("make/text", "result.txt")})


def test_outputs_reach_the_stages_that_name_them(tmp_path: Path) -> None:
    result, events = run(tmp_path, COPY, WRITE)
    assert result.succeeded
    assert (result.stages["copy"].out / "copy.txt").read_text() == "words"
    assert [(e.stage, e.state, e.position, e.total) for e in events] == [
        ("make/text", "running", 1, 2),
        ("make/text", "finished", 1, 2),
        ("copy", "running", 2, 2),
        ("copy", "finished", 2, 2),
    ]


def test_a_finished_stage_is_skipped_and_says_why(tmp_path: Path) -> None:
    run(tmp_path, WRITE, COPY)
    result, events = run(tmp_path, WRITE, COPY)
    assert result.succeeded and calls(tmp_path, "make/text") == 1
    assert [e.state for e in events] == ["skipped", "skipped"]
    short = result.stages["make/text"].hash[:8]
    assert events[0].reason.startswith("finished 20") and events[0].reason.endswith(f"hash {short}, skipped")


def test_a_deleted_output_is_made_again(tmp_path: Path) -> None:
    run(tmp_path, WRITE)
    out = Ledger(tmp_path).out("make/text")
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    _, events = run(tmp_path, WRITE)
    assert events[0].reason == "its output directory was deleted"
    assert (out / "result.txt").exists()


def test_an_interrupted_stage_ends_the_run_and_resumes(tmp_path: Path) -> None:
    stages = (Stage("train", work.stop_half_way), Stage("next", work.write, depends_on=("train",)))
    result, _ = run(tmp_path, *stages)
    assert (states(result), result.signum) == ({"train": "interrupted", "next": "waiting"}, signal.SIGUSR2)
    assert not result.succeeded
    result, events = run(tmp_path, *stages)
    assert result.succeeded
    assert events[0].reason == "resumes: interrupted (stopped by SIGUSR2)"
    assert (result.stages["train"].out / "result.txt").read_text() == "resumed"
    record = Ledger(tmp_path).read("train")
    assert record is not None
    assert [a.state for a in record.attempts] == ["interrupted", "finished"]
    assert [c.state for c in record.history] == [
        "waiting",
        "running",
        "interrupted",
        "waiting",
        "running",
        "finished",
    ]


def test_a_signal_to_an_unprepared_stage_is_recorded(tmp_path: Path) -> None:
    result, _ = run(tmp_path, Stage("a", work.kill_itself))
    assert (states(result), result.signum) == ({"a": "interrupted"}, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_failure_blocks_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    result, _ = run(
        tmp_path,
        Stage("bad", work.fail),
        Stage("needs", work.write, depends_on=("bad",)),
        Stage("then", work.write, depends_on=("needs",)),
        WRITE,
    )
    assert states(result) == {"bad": "failed", "needs": "blocked", "then": "blocked", "make/text": "finished"}
    assert not result.succeeded and result.signum == 0
    assert result.stages["bad"].reason == "ValueError: no such color"
    assert result.stages["needs"].reason == "bad failed"
    log = Ledger(tmp_path).logs("bad") / "001.log"
    assert "Traceback" in log.read_text() and "second line" in log.read_text()


def test_a_failed_stage_is_called_again_with_its_output_directory(tmp_path: Path) -> None:
    door = tmp_path / "door"
    stages = (
        Stage("bad", work.fail_unless, {"path": str(door)}),
        Stage("needs", work.write, depends_on=("bad",)),
    )
    run(tmp_path / "run", *stages)
    door.touch()
    result, events = run(tmp_path / "run", *stages)
    assert result.succeeded
    assert events[0].reason.startswith("resumes: failed (FileNotFoundError: ")


def test_a_stage_that_follows_runs_with_what_there_is_and_again_when_there_is_more(tmp_path: Path) -> None:
    door = tmp_path / "door"
    report = Stage(
        "report", work.collect, {"directories": [str(tmp_path / "run/stages/x/out")]}, after=("x",)
    )
    stages = (Stage("x", work.fail_unless, {"path": str(door)}), report)
    result, _ = run(tmp_path / "run", *stages)
    assert states(result) == {"x": "failed", "report": "finished"}
    result, events = run(tmp_path / "run", *stages)
    assert [e.state for e in events if e.stage == "report"] == ["running", "finished"]
    door.touch()
    result, events = run(tmp_path / "run", *stages)
    assert (result.stages["report"].out / "report.txt").read_text() == "1"
    result, events = run(tmp_path / "run", *stages)
    assert [e.state for e in events] == ["skipped", "skipped"]


@pytest.mark.parametrize(
    ("code", "state"), [(0, "finished"), (1, "failed"), (128 + signal.SIGTERM, "interrupted")]
)
def test_exit_statuses_mean_what_they_mean_in_a_shell(tmp_path: Path, code: int, state: str) -> None:
    result, _ = run(tmp_path, Stage("a", work.leave, {"code": code}))
    assert result.stages["a"].state == state


def test_a_changed_stage_is_run_anew_and_the_old_output_kept(tmp_path: Path) -> None:
    first, _ = run(tmp_path, WRITE, COPY)
    changed = Stage("make/text", work.write, {"text": "other"})
    result, events = run(tmp_path, changed, COPY)
    old = first.stages["make/text"].hash[:8]
    kept = Ledger(tmp_path).directory("make/text") / f"out.{old}"
    assert (kept / "result.txt").read_text() == "words"
    assert f"the old output is kept in out.{old}" in events[0].reason
    assert (result.stages["copy"].out / "copy.txt").read_text() == "other"


def test_a_change_taken_back_brings_the_old_output_back(tmp_path: Path) -> None:
    run(tmp_path, WRITE)
    run(tmp_path, Stage("make/text", work.write, {"text": "other"}))
    result, events = run(tmp_path, WRITE)
    assert events[0].state == "skipped" and "brought back" in events[0].reason
    assert (result.stages["make/text"].out / "result.txt").read_text() == "words"
    assert calls(tmp_path, "make/text") == 1
    run(tmp_path, Stage("make/text", work.write, {"text": "other"}))
    assert calls(tmp_path, "make/text") == 1


def test_words_go_to_the_log_files_and_to_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger().level
    run(tmp_path, Stage("a", work.talk))
    logs = Ledger(tmp_path).logs("a")
    assert "logged words" in (logs / "001.log").read_text()
    printed = (logs / "001.out").read_text()
    assert "printed words" in printed and "drawn bar" not in printed
    shown = capsys.readouterr().out
    assert "printed words" in shown and "drawn bar" in shown
    assert logging.getLogger().level == level


def test_a_function_that_only_its_program_knows_runs_there_and_nowhere_else(tmp_path: Path) -> None:
    word = "closure"

    def local(out: Path) -> None:
        (out / "result.txt").write_text(word)

    first, _ = run(tmp_path, Stage("a", local))
    assert (first.stages["a"].out / "result.txt").read_text() == "closure"
    assert states(run(tmp_path, Stage("a", local))[0]) == {"a": "skipped"}
    with pytest.raises(RequestError, match=r"stage a calls '.*local', which this program does not know"):
        retry(tmp_path)


def test_nothing_that_a_run_directory_names_is_imported(tmp_path: Path) -> None:
    run(tmp_path, WRITE)
    file = Ledger(tmp_path).pipeline_file
    file.write_text(file.read_text().replace(WRITE.calls.name, "shutil:rmtree"))
    with pytest.raises(RequestError, match="calls 'shutil:rmtree', which this program does not know"):
        retry(tmp_path)
    assert status(tmp_path).succeeded, "and yet it can be looked at"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("a", "no.such.module:f"), "stage a: there is no module 'no.such.module'"),
        (Stage("a", "just_a_name"), "not of the form 'module:function'"),
        (
            Stage("a", work.write, requires=(Path("/no/data"),)),
            "stage a needs /no/data, which does not exist",
        ),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(tmp_path: Path, stage: Stage, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run(tmp_path, WRITE, stage)
    assert not Ledger(tmp_path).out("make/text").exists()


def test_every_missing_path_is_named_once_with_the_stages_that_need_it(tmp_path: Path) -> None:
    images, boxes = tmp_path / "images", tmp_path / "boxes"
    stages = [Stage(f"s{i}", work.write, {"text": str(i)}, requires=(images,)) for i in range(3)]
    stages.append(Stage("last", work.write, requires=(images, boxes)))
    graph = Graph(stages)
    with pytest.raises(MissingPathsError) as raised:
        run(tmp_path / "run", *stages)
    assert raised.value.paths == {images: ["s0", "s1", "s2", "last"], boxes: ["last"]}
    assert str(raised.value).count("\n") == 1 and "and 3 more" in str(raised.value)
    seen = preview(graph, tmp_path / "run", Cluster())
    assert dict(seen.missing) == raised.value.paths and [len(j.stages) for j in seen.jobs] == [4]
    images.mkdir()
    boxes.mkdir()
    assert run(tmp_path / "run", *stages)[0].succeeded


def test_an_unwritable_run_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"run directory .*file"):
        run(tmp_path / "file", WRITE)


def test_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    said = rf"process {os.getpid()} on .* has been at work on this run"
    with submission(Ledger.create(tmp_path), "inline"), pytest.raises(RunError, match=said):
        run(tmp_path, WRITE)
    result, _ = run(tmp_path, WRITE)
    assert result.succeeded


def test_a_heartbeat_goes_on_after_the_file_server_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carryover.slurm.submission._HEARTBEAT_SECONDS", 0.01)
    touched, answers = os.utime, iter([OSError("stale file handle"), None])

    def fails_once(path: Path) -> None:
        if error := next(answers, None):
            raise error
        touched(path)

    monkeypatch.setattr(os, "utime", fails_once)
    with submission(Ledger.create(tmp_path), "inline") as held:
        touched(held.path, (0, 0))
        end = time.monotonic() + 30
        while held.path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert held.path.stat().st_mtime > 0


def test_a_killed_run_is_taken_over_and_resumed(tmp_path: Path) -> None:
    program = (
        "import pathlib, time\n"
        "from carryover.slurm import Graph, InlineExecutor, Stage, run_graph\n"
        "def wait(out):\n"
        "    (out / 'state.txt').write_text('half')\n"
        "    time.sleep(60)\n"
        f"run_graph(Graph([Stage('a', wait)]), InlineExecutor(), pathlib.Path({str(tmp_path)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    state = Ledger(tmp_path).out("a") / "state.txt"
    for _ in range(200):
        if state.exists():
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    ledger = Ledger(tmp_path)
    record = ledger.read("a")
    assert record is not None and record.state == "running"

    stage = Stage("a", work.stop_half_way)
    ledger.write(record.model_copy(update={"hash": Graph([stage]).hashes()["a"]}))
    result, events = run(tmp_path, stage)
    assert events[0].reason == f"resumes: {GONE}"
    assert (result.stages["a"].out / "result.txt").read_text() == "resumed"
    assert [s.state for s in submissions(ledger)] == ["open", "done"]
