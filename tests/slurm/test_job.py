"""Inside a job: why a signal came, what is counted, what goes back into the queue, and who talks to whom."""

import os
import signal
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from carryover.slurm import Graph, Ledger, Resources, RunError, Stage
from carryover.slurm import job as jobs
from carryover.slurm.job import Place, StageJob
from carryover.slurm.ledger import StageRecord
from carryover.slurm.plan import carry_out, make_plan
from carryover.slurm.stage import portable
from tests.slurm import work
from tests.slurm.fake_slurm import FakeSlurm


def job_of(stage: Stage, run_dir: Path, link: int = 1) -> StageJob:
    """Bring the stage's record to where submission leaves it, and return its job."""
    ledger, graph = Ledger.create(run_dir), Graph([stage])
    (decision,) = make_plan(graph, ledger, lambda record: "")
    if ledger.read(stage.name) is None:
        carry_out(decision, ledger)
    return StageJob(run_dir, portable(stage), decision.hash, "slurm", link)


@pytest.fixture
def in_job(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """The environment that a single-process SLURM job sees."""
    values = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return fake


def controller_says(fake: FakeSlurm, left: timedelta = timedelta(hours=5), **fields: object) -> None:
    """Let the controller, whose clock is an hour off, speak of a job of ten hours."""
    known = {"JobState": "RUNNING", "Reason": "None", "Restarts": 0, "PreemptTime": "None", **fields}
    end = (datetime.now() + left - timedelta(hours=1)).isoformat(timespec="seconds")
    known |= {"TimeLimit": "10:00:00", "EndTime": end}
    fake.say("scontrol", " ".join(f"{k}={v}" for k, v in {"JobId": 77, **known}.items()))
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    os.environ["CARRYOVER_JOB_UPTIME"] = str(uptime - (timedelta(hours=10) - left).total_seconds())


def run(stage: Stage, run_dir: Path, link: int = 1) -> tuple[int, StageRecord]:
    try:
        job_of(stage, run_dir, link)()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    record = Ledger(run_dir).read(stage.name)
    assert record is not None
    return code, record


TRAIN = Stage("train", work.stop_half_way)
REQUEUE = "scontrol requeue 77"


def test_a_finished_stage_ends_its_job_well(tmp_path: Path, in_job: FakeSlurm) -> None:
    code, record = run(Stage("a", work.write), tmp_path / "run")
    assert (code, record.state, record.attempts[0].job_id) == (0, "finished", "77")
    code, record = run(Stage("a", work.write), tmp_path / "run")
    assert (code, len(record.attempts)) == (0, 1)


def test_a_failed_stage_ends_its_job_badly(tmp_path: Path, in_job: FakeSlurm) -> None:
    code, record = run(Stage("a", work.fail), tmp_path / "run")
    assert (code, record.state, record.reason) == (1, "failed", "ValueError: no such color")
    assert REQUEUE not in in_job.calls


def test_an_interrupted_stage_goes_back_into_the_queue_once(tmp_path: Path, in_job: FakeSlurm) -> None:
    near: dict[str, object] = {"left": timedelta(seconds=100)}
    cases: list[tuple[dict[str, object], str, bool]] = [
        ({"PreemptTime": "2026-11-20T22:23:36"}, "preemption", True),
        (near, "timeout", True),
        (near | {"JobState": "SIGNALING"}, "timeout", True),
        ({}, "signal", True),
        ({"JobState": "COMPLETING", "Reason": "TimeLimit"}, "timeout", True),
        ({"JobState": "COMPLETING", "Restarts": 1}, "requeue", False),
    ]
    for number, (said, cause, requeued) in enumerate(cases):
        controller_says(in_job, **said)  # type: ignore[arg-type]
        before, directory = in_job.calls.count(REQUEUE), tmp_path / str(number)
        code, record = run(TRAIN, directory)
        assert (code, record.state) == (128 + signal.SIGUSR2, "interrupted"), said
        assert record.attempts[0].cause == cause, said
        assert in_job.calls.count(REQUEUE) - before == requeued, said
        code, record = run(TRAIN, directory)
        assert (code, record.state) == (0, "finished"), said


def test_a_cancelled_job_stays_cancelled(tmp_path: Path, in_job: FakeSlurm) -> None:
    controller_says(in_job, JobState="COMPLETING")
    code, record = run(Stage("train", work.stop_half_way, {"signum": int(signal.SIGTERM)}), tmp_path / "run")
    assert (code, record.state) == (128 + signal.SIGTERM, "cancelled")
    assert REQUEUE not in in_job.calls


def test_a_short_time_limit_does_not_make_a_preemption_a_timeout(tmp_path: Path, in_job: FakeSlurm) -> None:
    stage = Stage("train", work.stop_half_way, resources=Resources(time_min=2, max_timeouts=0))
    controller_says(in_job, left=timedelta(seconds=60), PreemptTime="2026-11-20T22:23:36")
    _, record = run(stage, tmp_path / "run")
    assert (record.state, record.attempts[0].cause) == ("interrupted", "preemption")
    assert REQUEUE in in_job.calls


def test_timeouts_are_counted_and_preemptions_are_not(tmp_path: Path, in_job: FakeSlurm) -> None:
    stage = Stage("train", work.never_finish, resources=Resources(max_timeouts=1))
    for said in (
        {"PreemptTime": "2026-11-20T22:23:36"},
        {"left": timedelta(0)},
        {"PreemptTime": "2026-11-20T23:00:00"},
    ):
        controller_says(in_job, **said)  # type: ignore[arg-type]
        _, record = run(stage, tmp_path / "run")
        assert record.state == "interrupted"
    controller_says(in_job, left=timedelta(0))
    code, record = run(stage, tmp_path / "run")
    assert (code, record.state) == (128 + signal.SIGUSR2, "failed")
    assert record.reason == "ran into its time limit 2 times (max_timeouts is 1)"
    assert in_job.calls.count(REQUEUE) == 3


def test_a_requeue_that_fails_once_is_tried_again(
    tmp_path: Path, in_job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_REQUEUE_PAUSE", 0)
    controller_says(in_job)
    requeue, failed = jobs.scheduler.requeue, iter(["Unable to contact slurm controller", "Socket timed out"])

    def fails_twice(job_id: str) -> None:
        if message := next(failed, None):
            raise RunError(message)
        requeue(job_id)

    monkeypatch.setattr(jobs.scheduler, "requeue", fails_twice)
    _, record = run(TRAIN, tmp_path / "run")
    assert next(failed, None) is None and in_job.calls.count(REQUEUE) == 1
    assert record.reason == "stopped by SIGUSR2 (signal)"


def test_a_requeue_that_nobody_heard_is_tried_again(
    tmp_path: Path, in_job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scontrol said nothing, and the job runs on."""
    monkeypatch.setattr(jobs, "_REQUEUE_PAUSE", 0)
    controller_says(in_job)
    unheard, requeue = iter([True, True, False]), jobs.scheduler.requeue
    monkeypatch.setattr(jobs.scheduler, "requeue", lambda job: None if next(unheard) else requeue(job))
    _, record = run(TRAIN, tmp_path / "run")
    assert in_job.calls.count(REQUEUE) == 1 and record.reason == "stopped by SIGUSR2 (signal)"
    assert next(unheard, None) is None


def test_time_limits_before_a_retry_are_not_counted_again(tmp_path: Path, in_job: FakeSlurm) -> None:
    stage = Stage("train", work.never_finish, resources=Resources(max_timeouts=0))
    controller_says(in_job, left=timedelta(0))
    for earlier, times in ((0, 1), (1, 1), (1, 2)):
        with pytest.raises(SystemExit):
            replace(job_of(stage, tmp_path / "run"), earlier=earlier)()
        record = Ledger(tmp_path / "run").read("train")
        assert record is not None
        assert record.reason == f"ran into its time limit {times} times (max_timeouts is 0)"


def test_a_full_disk_is_named_by_the_job_that_met_it(
    tmp_path: Path, in_job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, write = job_of(Stage("a", work.write), tmp_path / "run"), Ledger.write

    def fills_up(ledger: Ledger, record: StageRecord) -> None:
        if record.state != "running":
            raise OSError(28, "No space left on device")
        write(ledger, record)

    monkeypatch.setattr(Ledger, "write", fills_up)
    with pytest.raises(RunError, match=r"stage a: its record or log cannot be written: .*No space left"):
        job()
    record = Ledger(tmp_path / "run").read("a")
    assert record is not None and "kept from writing" in record.attempts[0].closed(None).reason


def test_a_signal_that_comes_before_the_stage_begins_is_not_lost(
    tmp_path: Path, in_job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller_says(in_job)
    stage = Stage("a", work.write)
    monkeypatch.setattr(StageJob, "_why_not", lambda job, ledger: os.kill(os.getpid(), signal.SIGUSR2) or "")
    code, record = run(stage, tmp_path / "run")
    assert (code, record.state, record.attempts[0].cause) == (128 + signal.SIGUSR2, "interrupted", "signal")
    assert REQUEUE in in_job.calls and not list(Ledger(tmp_path / "run").out("a").glob("*"))


def test_without_an_answer_from_the_controller_the_own_clock_decides(
    tmp_path: Path, in_job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_REQUEUE_SECONDS", 0)
    in_job.break_command("scontrol", "Unable to contact slurm controller")
    _, record = run(TRAIN, tmp_path / "run")
    assert record.attempts[0].cause == "preemption"
    assert "not queued again: scontrol: Unable to contact" in record.reason
    _, record = run(Stage("short", work.stop_half_way, resources=Resources(time_min=3)), tmp_path / "run2")
    assert record.attempts[0].cause == "timeout"


def test_a_chain_goes_on_in_its_next_job(tmp_path: Path, in_job: FakeSlurm) -> None:
    stage = Stage("train", work.stop_half_way, resources=Resources(chain=2, max_timeouts=0))
    controller_says(in_job, left=timedelta(0))
    code, record = run(stage, tmp_path / "run")
    assert (code, record.state) == (128 + signal.SIGUSR2, "interrupted")
    assert REQUEUE not in in_job.calls
    assert run(stage, tmp_path / "run", link=2)[1].state == "finished"


def test_a_chain_does_not_repeat_a_failure(tmp_path: Path, in_job: FakeSlurm) -> None:
    stage = Stage("train", work.fail, resources=Resources(chain=2))
    run(stage, tmp_path / "run")
    with pytest.raises(RunError, match="train is not run: it failed in an earlier job of its chain"):
        job_of(stage, tmp_path / "run", link=2)()


def test_a_job_of_a_former_submission_does_nothing(tmp_path: Path, in_job: FakeSlurm) -> None:
    job = job_of(Stage("a", work.write), tmp_path / "run")
    ledger = Ledger(tmp_path / "run")
    record = ledger.read("a")
    assert record is not None
    ledger.write(record.model_copy(update={"hash": "other"}))
    with pytest.raises(RunError, match="a is not run: it was changed in the ledger"):
        job()
    assert not (ledger.out("a") / "result.txt").exists()


def test_a_job_trusts_the_ledger_about_what_it_needs(
    tmp_path: Path, in_job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carryover.slurm.job._UPSTREAM_SECONDS", 0.01)
    needs = Stage("needs", work.write, depends_on=("gone",))
    ledger = Ledger.create(tmp_path / "run")
    graph = Graph([Stage("gone", work.write), needs])
    plan = make_plan(graph, ledger, lambda record: "")
    carry_out(plan[1], ledger)
    with pytest.raises(RunError, match="needs is not run: gone is not finished"):
        StageJob(tmp_path / "run", needs, plan[1].hash, "slurm")()
    record = ledger.read("needs")
    assert record is not None and record.state == "blocked"


def test_other_ranks_keep_no_record_and_leave_cleanly(
    tmp_path: Path, in_job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(TRAIN, tmp_path / "run")
    directory = Ledger(tmp_path / "run").directory("train") / "rendezvous"
    jobs.join(directory / "77-0-0.json", Place(0, 2, 0), ["localhost", "node2"], work=True)
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    for name, value in {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    job()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("1", "2", "0")
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (address, port) == ("localhost", port)
    record = Ledger(tmp_path / "run").read("train")
    assert record is not None and (record.state, record.attempts) == ("waiting", ())
    assert not in_job.calls


def test_other_ranks_do_what_rank_0_decided(
    tmp_path: Path, in_job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(Stage("a", work.write), tmp_path / "run")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    job()
    monkeypatch.setenv("SLURM_PROCID", "1")
    job()
    calls = Ledger(tmp_path / "run").out("a") / "calls.txt"
    assert len(calls.read_text().splitlines()) == 2, "rank 1 came after rank 0 had finished"
    for rank in ("0", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        monkeypatch.setenv("SLURM_PROCID", rank)
        job()
    assert len(calls.read_text().splitlines()) == 2


def test_a_port_is_free_and_new_for_every_attempt(tmp_path: Path) -> None:
    import socket

    ports = []
    for attempt in ("1-0", "1-1", "1-2"):
        jobs.join(tmp_path / f"{attempt}.json", Place(0, 2, 0), ["here"], work=True)
        port = int(os.environ["MASTER_PORT"])
        with socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    assert len({p.read_text() for p in tmp_path.glob("1-*.json")}) == len(set(ports)) == 3


def test_a_missing_rank_0_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_WAIT_SECONDS", 0.05)
    with pytest.raises(RunError, match="rank 0 wrote nothing"):
        jobs.join(tmp_path / "1-0.json", Place(1, 2, 1), ["here"], work=True)


def test_signals_while_the_record_is_written_are_passed_over(tmp_path: Path, in_job: FakeSlurm) -> None:
    controller_says(in_job)
    before = signal.getsignal(signal.SIGTERM)
    code, record = run(Stage("a", work.kill_itself), tmp_path / "run")
    assert (code, record.state, record.attempts[0].cause) == (128 + signal.SIGTERM, "interrupted", "signal")
    assert signal.getsignal(signal.SIGTERM) is before
