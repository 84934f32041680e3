"""Status, logs, cancelling and retrying need the run directory and nothing else."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from carryover.configs import UserError
from carryover.slurm import (
    Event,
    Graph,
    InlineExecutor,
    Ledger,
    RequestError,
    Resources,
    RunError,
    Stage,
    run_graph,
)
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.control import cancel, retry
from carryover.slurm.executor import EXECUTORS
from carryover.slurm.ledger import Attempt
from carryover.slurm.local import LocalExecutor
from carryover.slurm.runner import read_progress
from carryover.slurm.status import StageStatus, follow, log_files, status
from carryover.slurm.submission import submissions
from tests.slurm import work
from tests.slurm.fake_slurm import FakeSlurm

ROOT = Path(__file__).parents[2]
GRAPH = Graph(
    [
        Stage("train", work.write, resources=Resources(gpus_per_node=2)),
        Stage("evaluate", work.write, depends_on=("train",)),
        Stage("report", work.write, depends_on=("evaluate",)),
    ]
)


def submit(run_dir: Path, graph: Graph = GRAPH) -> None:
    run_graph(graph, SlurmExecutor(), run_dir)


def of(run_dir: Path, stage: str) -> StageStatus:
    return next(s for s in status(run_dir).stages if s.name == stage)


def begin(run_dir: Path, stage: str, seconds: float = 60, **more: object) -> None:
    """Write what a job writes when it begins."""
    ledger = Ledger(run_dir)
    record = ledger.read(stage)
    assert record is not None
    fields: dict[str, object] = {
        "number": len(record.attempts) + 1,
        "executor": "slurm",
        "host": "node1",
        "pid": 1,
        "process_start": 1,
        "started": datetime.now(UTC) - timedelta(seconds=seconds),
        "job_id": "101",
        "log": "logs/001.log",
        **more,
    }
    attempt = Attempt.model_validate(fields)
    ledger.write(record.changed("running", attempts=(*record.attempts, attempt)))


def queue_state(fake: FakeSlurm, job: str, state: str, reason: str = "None") -> None:
    fake.set_queue({**fake.queue, job: [state, reason, fake.queue[job][2]]})


def test_a_submitted_run_shows_what_the_queue_says(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    now = status(tmp_path)
    assert [(s.state, s.reason) for s in now.stages] == [
        ("submitted", "job 101 is pending (Priority)"),
        ("submitted", "job 102 is pending (Dependency)"),
        ("submitted", "job 103 is pending (Dependency)"),
    ]
    assert now.in_flight and not now.succeeded


def test_a_running_stage_shows_its_progress_and_what_is_left(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    begin(tmp_path, "train", seconds=100, first_step=100)
    queue_state(fake, "101", "RUNNING")
    out = Ledger(tmp_path).out("train")
    out.mkdir(parents=True)
    (out / "metrics.jsonl").write_text('{"step": 100, "total": 900}\n{"step": 300, "total": 900}\n{"step": 4')
    train = of(tmp_path, "train")
    assert (train.state, train.job_id, train.attempts) == ("running", "101", 1)
    assert train.progress is not None and (train.progress.step, train.progress.total) == (300, 900)
    assert train.eta_seconds == pytest.approx(300, rel=0.05)
    assert train.seconds == pytest.approx(100, rel=0.05)


def test_a_stage_without_metrics_has_no_progress(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('not json\n{"epoch": 1}\n')
    assert read_progress(tmp_path) is None


def test_a_requeued_stage_is_on_its_way(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    begin(tmp_path, "train")
    queue_state(fake, "101", "PENDING", "BeginTime")
    assert of(tmp_path, "train").state == "submitted"
    assert of(tmp_path, "train").reason == "job 101 is pending (BeginTime)"


def test_a_job_killed_with_its_machine_is_seen_as_interrupted(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    begin(tmp_path, "train")
    fake.set_queue({})
    train = of(tmp_path, "train")
    assert (train.state, train.reason) == ("interrupted", "its process was killed")
    assert train.seconds == pytest.approx(0, abs=1)
    assert not status(tmp_path).in_flight


def test_dependents_of_a_failed_stage_are_blocked_not_pending(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    ledger = Ledger(tmp_path)
    record = ledger.read("train")
    assert record is not None
    ledger.write(record.changed("failed", "ValueError: no"))
    ledger.logs("train").mkdir(parents=True)
    (ledger.logs("train") / "001.log").write_text("Traceback\nValueError: no\n")
    fake.set_queue({})
    now = status(tmp_path)
    assert [s.state for s in now.stages] == ["failed", "blocked", "blocked"]
    assert now.stages[1].reason == "train failed"
    assert now.stages[0].last_line == "ValueError: no"


def test_a_job_that_somebody_removed_is_seen_as_cancelled(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    fake.set_queue({})
    train = of(tmp_path, "train")
    assert (train.state, train.reason) == ("cancelled", "its job left the queue before it began")


def test_a_run_taken_over_inline_is_not_taken_for_lost(tmp_path: Path, fake: FakeSlurm) -> None:
    graph = Graph([Stage("stops", work.stop_half_way), Stage("next", work.write, depends_on=("stops",))])
    submit(tmp_path, graph)
    cancel(tmp_path)
    run_graph(graph, InlineExecutor(), tmp_path)
    assert [s.state for s in status(tmp_path).stages] == ["interrupted", "waiting"]


def test_without_squeue_the_ledger_is_shown_and_a_note(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    begin(tmp_path, "train")
    fake.break_command("squeue", "Unable to contact slurm controller")
    now = status(tmp_path)
    assert now.stages[0].state == "running" and "Unable to contact" in now.note


def test_a_finished_run_needs_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_graph(GRAPH, InlineExecutor(), tmp_path / "run")
    monkeypatch.setenv("PATH", "")
    now = status(tmp_path / "run")
    assert now.succeeded and not now.in_flight and not now.note


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a run directory"):
        status(tmp_path)


def test_logs_are_found_by_stage_and_attempt(tmp_path: Path) -> None:
    run_graph(Graph([Stage("a", work.talk), Stage("b", work.fail)]), InlineExecutor(), tmp_path)
    run_graph(Graph([Stage("a", work.talk), Stage("b", work.fail)]), InlineExecutor(), tmp_path)
    ledger = Ledger(tmp_path)
    assert [p.name for p in log_files(ledger, "a")] == ["001.log", "001.out"]
    assert [p.name for p in log_files(ledger, "b")] == ["002.log"]
    assert [p.name for p in log_files(ledger, "b", attempt=1)] == ["001.log"]
    with pytest.raises(RequestError, match="has no stage 'c'; it has: a, b"):
        log_files(ledger, "c")
    with pytest.raises(RequestError, match="there is no attempt 3"):
        log_files(ledger, "b", attempt=3)


def test_a_job_that_never_began_still_has_its_logs(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    error = tmp_path / "jobs/101_0_log.err"
    error.write_text("slurmstepd: error: out of memory\n")
    assert log_files(Ledger(tmp_path), "train") == [error]


def test_cancel_stops_jobs_and_says_which(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    assert cancel(tmp_path) == ["train", "evaluate", "report"]
    assert not fake.queue
    assert [s.state for s in status(tmp_path).stages] == ["cancelled", "blocked", "blocked"]
    assert cancel(tmp_path) == []


def test_cancel_of_one_stage_leaves_the_others(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    assert cancel(tmp_path, ["evaluate"]) == ["evaluate"]
    assert sorted(fake.queue) == ["101", "103"]
    with pytest.raises(RequestError, match="has no stage 'nope'"):
        cancel(tmp_path, ["nope"])


def test_retry_uses_the_executor_of_the_last_submission(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    cancel(tmp_path)
    result = retry(tmp_path)
    assert result.succeeded and sorted(fake.queue) == ["104", "105", "106"]
    assert [s.executor for s in submissions(Ledger(tmp_path))] == ["slurm", "cancel", "slurm"]


def test_retry_of_the_failed_leaves_the_rest(tmp_path: Path) -> None:
    door = tmp_path / "door"
    graph = Graph(
        [
            Stage("bad", work.fail_unless, {"path": str(door)}),
            Stage("needs", work.write, depends_on=("bad",)),
            Stage("stopped", work.stop_half_way),
        ]
    )
    run = tmp_path / "run"
    run_graph(graph, InlineExecutor(), run)
    door.touch()
    events: list[Event] = []
    result = retry(run, failed_only=True, on_event=events.append)
    assert {n: o.state for n, o in result.stages.items()} == {
        "bad": "finished",
        "needs": "finished",
        "stopped": "interrupted",
    }
    assert {e.stage for e in events} == {"bad", "needs"}
    assert retry(run).succeeded


def test_executors_are_made_again_from_their_settings() -> None:
    for executor in (
        InlineExecutor(),
        LocalExecutor(at_once=3, packages=("slurm",)),
        SlurmExecutor(packages=("a",)),
    ):
        assert EXECUTORS.get(executor.name).of(executor.settings) == executor or executor.name == "inline"
    with pytest.raises(UserError, match="no executor is called 'pbs'; there are: inline, local, slurm"):
        EXECUTORS.get("pbs")


def waiting_run(run_dir: Path, executor: str, door: Path) -> "subprocess.Popen[bytes]":
    program = (
        "from pathlib import Path\n"
        "from carryover.slurm import Graph, Stage, run_graph\n"
        "from carryover.slurm.executor import EXECUTORS\n"
        "from tests.slurm import work\n"
        f"graph = Graph([Stage('train', work.wait_for, {{'path': {str(door)!r}}}), Stage('next', work.write, "
        "depends_on=('train',))])\n"
        f"run_graph(graph, EXECUTORS.get({executor!r}).of({{}}), Path({str(run_dir)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    begun = Ledger(run_dir).out("train") / "begun.txt"
    for _ in range(600):
        if begun.exists():
            return process
        time.sleep(0.05)
    raise AssertionError("the run never began")


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_run_is_seen_and_cancelled_from_another_process(tmp_path: Path, executor: str) -> None:
    run = tmp_path / "run"
    process = waiting_run(run, executor, tmp_path / "door")
    now = status(run)
    assert [s.state for s in now.stages] == ["running", "waiting"]
    assert now.holder is not None and now.holder.pid == process.pid
    with pytest.raises(RunError, match="it can be stopped only as a whole"):
        cancel(run, ["train"])
    assert cancel(run) == ["train"]
    process.wait()
    assert of(run, "train").state == "interrupted"
    assert (Ledger(run).out("train") / "state.txt").read_text() == "saved"
    (tmp_path / "door").touch()
    assert retry(run).succeeded


def test_a_local_stage_outlives_its_submitter_and_is_not_started_twice(tmp_path: Path) -> None:
    run, door = tmp_path / "run", tmp_path / "door"
    process = waiting_run(run, "local", door)
    process.kill()
    process.wait()
    assert of(run, "train").state == "running"
    begun = (Ledger(run).out("train") / "begun.txt").read_text()
    door.touch()
    result = retry(run, executor=LocalExecutor())
    assert result.succeeded
    assert (Ledger(run).out("train") / "begun.txt").read_text() == begun
    record = Ledger(run).read("train")
    assert record is not None and len(record.attempts) == 1


def test_following_tells_every_change_until_all_is_at_rest(tmp_path: Path, fake: FakeSlurm) -> None:
    graph = Graph([Stage("train", work.write)])
    submit(tmp_path, graph)
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        fake.set_queue({})
        run_graph(graph, InlineExecutor(), tmp_path)

    end = follow(tmp_path, on_event, poll_seconds=0.01)
    assert [e.state for e in events] == ["submitted", "finished"] and end.succeeded


def test_a_holder_on_another_machine_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = waiting_run(tmp_path / "run", "inline", tmp_path / "door")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(RunError, match="cancel it there"):
        cancel(tmp_path / "run")
    monkeypatch.undo()
    os.kill(process.pid, signal.SIGTERM)
    process.wait()
