"""Status, logs, cancelling and retrying need the run directory and nothing else."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
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
    submission,
)
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.control import cancel, retry
from carryover.slurm.executor import EXECUTORS
from carryover.slurm.ledger import GONE, Attempt
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
    assert (train.state, train.reason) == ("interrupted", GONE)
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


def test_how_a_job_ended_is_said_in_slurms_own_words(tmp_path: Path, fake: FakeSlurm) -> None:
    """While the controller remembers it, by squeue; later by sacct, which may know others of its number."""
    submit(tmp_path)
    comment = fake.queue["101"][2]
    name = f"{tmp_path.name}:train"
    cases: list[tuple[str, dict[str, object], tuple[str, str]]] = [
        ("waiting", {}, ("cancelled", "SLURM no longer knows how it ended")),
        ("waiting", {"State": "CANCELLED by 0"}, ("cancelled", "job 101 ended as CANCELLED")),
        (
            "waiting",
            {"State": "FAILED", "ExitCode": "127:0"},
            ("failed", "(exit status 127) before the stage"),
        ),
        ("waiting", {"State": "FAILED", "JobName": "other:x"}, ("cancelled", "no longer knows")),
        ("waiting", {"State": "FAILED", "Cluster": "other"}, ("cancelled", "no longer knows")),
        ("waiting", {"State": "FAILED", "Comment": "other"}, ("cancelled", "no longer knows")),
        (
            "running",
            {"State": "OUT_OF_MEMORY", "ExitCode": "0:125"},
            ("interrupted", "OUT_OF_MEMORY (killed"),
        ),
        ("running", {"State": "NODE_FAIL"}, ("interrupted", "job 101 ended as NODE_FAIL; the stage wrote")),
    ]
    fake.set_queue({})
    for state, row, (expected, words) in cases:
        if state == "running" and of(tmp_path, "train").attempts == 0:
            begin(tmp_path, "train")
        fake.account({"JobID": "101", "JobName": name, **row} if row else {})
        train = of(tmp_path, "train")
        assert train.state == expected and words in train.reason, (row, train)
    fake.set_queue({"101": ["TIMEOUT", "TimeLimit", comment, 15]})
    train = of(tmp_path, "train")
    assert (
        train.reason
        == "job 101 ended as TIMEOUT (TimeLimit, killed by signal 15); the stage wrote nothing down"
    )
    assert train.lost


def test_what_happened_after_the_last_attempt_is_not_hidden_by_its_reason(
    tmp_path: Path, fake: FakeSlurm
) -> None:
    """Requeued after a time limit, a job whose interpreter is gone fails before the stage begins again."""
    submit(tmp_path)
    begin(tmp_path, "train")
    ledger, comment = Ledger(tmp_path), fake.queue["101"][2]
    record = ledger.read("train")
    assert record is not None
    ended = record.attempts[0].model_copy(update={"ended": datetime.now(UTC), "state": "interrupted"})
    ledger.write(record.changed("interrupted", "stopped by SIGUSR2 (timeout)", attempts=(ended,)))
    for restarts, state, words in (
        (0, "interrupted", "SIGUSR2"),
        (1, "failed", "status 127) before the stage"),
    ):
        fake.set_queue({"101": ["FAILED", "NonZeroExitCode", comment, 127 << 8, restarts]})
        (tmp_path / "jobs/101_0_log.err").write_text("python: No such file or directory\n")
        train = of(tmp_path, "train")
        assert train.state == state and words in train.reason
        assert train.last_line == "python: No such file or directory"


def test_what_is_unknown_is_called_unknown(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is submitted again, and nothing cancelled, while SLURM says nothing that can be relied on."""
    submit(tmp_path)
    queued = fake.queue
    foreign = {job: [state, reason, "other"] for job, (state, reason, _) in queued.items()}
    everybody = os.getuid()

    def broken() -> None:
        fake.break_command("squeue", "Unable to contact slurm controller")

    def silent() -> None:
        fake.silence("squeue")

    def no_name() -> None:
        fake.set_queue({})
        fake.break_command("scontrol", "Unable to contact slurm controller")
        (fake.root / "slurm.conf").unlink()

    def elsewhere() -> None:
        fake.move_to("other")
        fake.set_queue(foreign)

    def private() -> None:
        fake.move_to("fake", private=True)
        fake.set_queue({})
        monkeypatch.setattr(os, "getuid", lambda: everybody + 1)

    def contradicted() -> None:
        fake.set_queue({})
        fake.account(*({"JobID": j, "State": "RUNNING", "JobName": f"{tmp_path.name}:x"} for j in queued))
        lines = []
        for job, (state, *_) in queued.items():
            base, _, element = job.partition("_")
            array = f"ArrayJobId={base} ArrayTaskId={element} " if element else ""
            lines.append(f"JobId={base} {array}JobState={state} Reason=None\n")
        fake.say("scontrol", "".join(lines))

    def a_header_alone() -> None:
        """A squeue that some filter stands behind."""
        contradicted()
        fake.account()

    for fault in (broken, silent, no_name, elsewhere, private, contradicted, a_header_alone):
        fault()
        now = status(tmp_path)
        assert {s.state for s in now.stages} == {"unknown"} and now.note, fault.__name__
        assert now.in_flight and not now.ended_badly
        with pytest.raises(RunError, match=r"cannot be told|squeue does not list"):
            retry(tmp_path)
        if fault in (broken, silent, elsewhere):
            with pytest.raises(RunError):
                cancel(tmp_path)
        assert len(fake.scripts) == 3 and not fake.cancelled, fault.__name__
        for command in ("squeue", "scontrol"):
            fake.mend(command)
        (fake.root / "scontrol.says").unlink(missing_ok=True)
        fake.account()
        fake.move_to("fake")
        fake.set_queue(queued)
        monkeypatch.setattr(os, "getuid", lambda: everybody)
        assert {s.state for s in status(tmp_path).stages} == {"submitted"}, fault.__name__


def test_a_shell_does_not_steer_slurms_commands(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (fake.root / "watch").write_text(
        "SQUEUE_PARTITION SBATCH_TIMELIMIT SLURM_CLUSTERS SACCT_FORMAT SLURM_CONF"
    )
    for name in ("SQUEUE_PARTITION", "SBATCH_TIMELIMIT", "SLURM_CLUSTERS", "SACCT_FORMAT", "SLURM_CONF"):
        monkeypatch.setenv(name, "steered")
    submit(tmp_path)
    status(tmp_path)
    fake.set_queue({})
    status(tmp_path)
    cancel(tmp_path)
    seen = (fake.root / "seen").read_text().splitlines()
    assert {line.split()[0] for line in seen} == {"sbatch", "squeue", "scontrol", "sacct"}
    assert {line.split(" ", 1)[1] for line in seen} == {"SLURM_CONF"}
    assert os.environ["SBATCH_TIMELIMIT"] == "steered"
    assert "SBATCH_TIMELIMIT: not passed to sbatch" in caplog.text


def test_a_foreign_job_of_the_same_number_is_left_alone(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path)
    fake.set_queue({"101": ["RUNNING", "None", "somebody-else's"]})
    assert cancel(tmp_path) == [] and not fake.cancelled
    assert of(tmp_path, "train").state == "cancelled"


def test_cancel_stops_every_job_of_a_stage(tmp_path: Path, fake: FakeSlurm) -> None:
    """Should a stage ever have jobs of two submissions, the older one is stopped too."""
    graph = Graph([Stage("train", work.write)])
    submit(tmp_path, graph)
    first = fake.queue
    fake.set_queue({})
    submit(tmp_path, graph)
    fake.set_queue(first | fake.queue)
    assert cancel(tmp_path) == ["train"] and fake.cancelled == ["101", "102"]


def test_a_job_that_is_completing_is_at_work_only_while_its_stage_is(tmp_path: Path, fake: FakeSlurm) -> None:
    graph = Graph([Stage("train", work.write)])
    submit(tmp_path, graph)
    begin(tmp_path, "train")
    queue_state(fake, "101", "COMPLETING")
    assert of(tmp_path, "train").state == "running"
    record = Ledger(tmp_path).read("train")
    assert record is not None
    Ledger(tmp_path).write(record.changed("failed", "ValueError: no"))
    assert of(tmp_path, "train").state == "failed"
    assert retry(tmp_path).succeeded and "--dependency=afterany:101" in fake.scripts[1]


def test_looking_writes_nothing(tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the run is on another machine, whose clock is ahead; its heart beats."""
    monkeypatch.setattr(submission, "_WATCH_SECONDS", 1.0)
    run = tmp_path / "run"
    submit(run)
    for age, beats, held in ((0, False, True), (-7200, True, True), (7200, True, True), (7200, False, False)):
        path = run / "submissions/0001.json"
        plain = json.loads(path.read_text()) | {"state": "open", "host": "elsewhere"}
        path.write_text(json.dumps(plain))
        beat = time.time() - age
        os.utime(path, (beat, beat))
        heart = threading.Timer(0.3, os.utime, (path, (beat + 5, beat + 5)))
        if beats:
            heart.start()
        before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p != path}
        assert (status(run).holder is not None) == held, (age, beats)
        assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p != path} == before
        heart.cancel()


def test_a_number_of_another_container_says_nothing(tmp_path: Path) -> None:
    """Same host name, processes numbered apart: the heartbeat tells, and nothing is signalled."""
    run = tmp_path / "run"
    process = waiting_run(run, "inline", tmp_path / "door")
    path = run / "submissions/0001.json"
    plain = json.loads(path.read_text())
    there = {"space": "boot pid:[1]", "pid": 999_999}
    path.write_text(json.dumps(plain | there))
    record = Ledger(run).read("train")
    assert record is not None
    attempts = (record.attempts[0].model_copy(update=there),)
    Ledger(run).write(record.model_copy(update={"attempts": attempts}))
    assert of(run, "train").state == "running"
    with pytest.raises(RunError, match="has been at work on this run"):
        retry(run)
    with pytest.raises(RunError, match="cannot be seen from here"):
        cancel(run)
    process.kill()
    process.wait()


def test_a_report_in_flight_waits_for_what_is_retried(tmp_path: Path, fake: FakeSlurm) -> None:
    evaluate = [Stage(name, work.write, {"text": name}) for name in ("one", "two")]
    graph = Graph([*evaluate, Stage("report", work.collect, {"directories": []}, after=("one", "two"))])
    for state in ("PENDING", "RUNNING"):
        run = tmp_path / state
        fake.set_queue({})
        submit(run, graph)
        array, report = (next(j for j in fake.queue if f".{n}." in fake.queue[j][2]) for n in (1, 2))
        record = Ledger(run).read("one")
        assert record is not None
        Ledger(run).write(record.changed("failed", "ValueError: no"))
        base = array.partition("_")[0]
        queue = {f"{base}_1": ["RUNNING", "None", fake.queue[array][2]]}
        queue[report] = [state, "None", fake.queue[report][2]]
        fake.set_queue(queue)
        assert retry(run, failed_only=True).succeeded
        assert fake.cancelled[-1] == report, state
        (again,) = (job for job in fake.queue if job not in queue and ".1." in fake.queue[job][2])
        assert f"--dependency=afterany:{again}:{base}_1" in fake.scripts[-1].replace("'", "")


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
    assert now.stages[0].state == "unknown" and "Unable to contact" in now.note


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
