"""What a run cost reaches its result records, and from them the frame of the report."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from carryover.slurm import Graph, InlineExecutor, Ledger, Output, Resources, Stage, run_graph
from carryover.slurm.calls import Call
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.ledger import Attempt, Change, StageRecord
from carryover.transfer.pipeline.costs import write_costs
from carryover.transfer.results.reading import read_records, to_frame
from carryover.transfer.results.record import write_record
from tests.slurm import fake_slurm
from tests.slurm.fake_slurm import FakeSlurm
from tests.transfer.records import record

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


# Without what tells identities: the stages here have no recipes.
PRETRAIN, EVALUATE = (
    Call(name, f"carryover.transfer.pipeline.stages:{name}") for name in ("pretrain", "evaluate")
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A faked cluster in front of PATH."""
    return fake_slurm.install(tmp_path / "fake", monkeypatch)


@pytest.fixture
def run_dir(tmp_path: Path, fake: FakeSlurm) -> Path:
    """A finished run on eight GPUs: a pretraining in two parts, the second preempted, and one evaluation."""
    asked = Resources(nodes=2, gpus_per_node=4)
    names = ("pretrain/a-epoch1", "pretrain/a", "evaluate/a/voc")
    graph = Graph(
        [
            Stage(names[0], PRETRAIN, {"until": 1}, asked),
            Stage(names[1], PRETRAIN, {"start": Output(names[0], "checkpoint.pt")}, asked),
            Stage(
                names[2],
                EVALUATE,
                {"checkpoint": Output(names[1], "backbone.safetensors")},
                Resources(gpus_per_node=1),
            ),
        ]
    )
    run = tmp_path / "run"
    run_graph(graph, SlurmExecutor(), run)
    ledger = Ledger(run)
    _finish(ledger, names[0], (0, 60, "101", ""))
    _finish(ledger, names[1], (60, 75, "102", "preemption"), (90, 120, "102", ""))
    _finish(ledger, names[2], (126, 156, "103", ""))
    write_record(record(gpu_hours=7.0, pretrain_gpu_hours=None), ledger.out(names[2]))
    return run


def _finish(ledger: Ledger, name: str, *attempts: tuple[int, int, str, str]) -> None:
    there = ledger.read(name)
    assert there is not None
    tries = tuple(
        Attempt(
            number=number,
            executor="slurm",
            host="node1",
            pid=os.getpid(),
            process_start=1,
            started=NOON + timedelta(minutes=begin),
            ended=NOON + timedelta(minutes=end),
            job_id=job,
            state="interrupted" if cause else "finished",
            cause=cause,
        )
        for number, (begin, end, job, cause) in enumerate(attempts, 1)
    )
    history = (Change(state="waiting", at=NOON), Change(state="finished", at=tries[-1].ended or NOON))
    ledger.write(StageRecord(name=name, hash=there.hash, state="finished", attempts=tries, history=history))


def _only_record(run: Path) -> Any:
    (stored,) = read_records([run])[0]
    return stored.record


def test_our_own_clock_fills_in_where_there_is_no_accounting(run_dir: Path, fake: FakeSlurm) -> None:
    fake.break_command("sacct", "Slurm accounting storage is disabled")
    assert write_costs(run_dir) == 1
    spent = _only_record(run_dir)
    assert (spent.cost_source, spent.attempts, spent.pretrain_attempts) == ("clock", 1, 3)
    assert (spent.wall_seconds, spent.gpu_hours) == (1800, 0.5)
    assert spent.pretrain_wall_seconds == (60 + 15 + 30) * 60
    assert spent.pretrain_gpu_hours == pytest.approx((60 + 15 + 30) / 60 * 8)
    assert (spent.waiting_seconds, spent.pretrain_waiting_seconds) == (6 * 60, 15 * 60)
    assert spent.metrics == record().metrics
    assert write_costs(run_dir) == 0, "nothing has changed since"


def test_accounting_is_believed_once_it_knows_how_a_job_ended(run_dir: Path, fake: FakeSlurm) -> None:
    day = "2026-11-20T"
    ended = {"JobID": "103", "State": "COMPLETED", "ElapsedRaw": 1200, "AllocTRES": "billing=1,gres/gpu=2"}
    ended |= {"Eligible": f"{day}14:00:00", "Start": f"{day}14:06:00", "End": f"{day}14:26:00"}
    fake.account(ended | {"State": "RUNNING", "End": "Unknown"})
    write_costs(run_dir)
    assert _only_record(run_dir).cost_source == "clock"
    fake.account(ended)
    assert write_costs(run_dir) == 1
    spent = _only_record(run_dir)
    assert (spent.cost_source, spent.wall_seconds, spent.waiting_seconds) == ("sacct", 1200, 360)
    assert spent.gpu_hours == pytest.approx(2 / 3)


def test_the_frame_has_the_costs(run_dir: Path, fake: FakeSlurm) -> None:
    fake.break_command("sacct", "Slurm accounting storage is disabled")
    write_costs(run_dir)
    row = to_frame(read_records([run_dir])[0]).iloc[0]
    assert (row["attempts"], row["pretrain_attempts"], row["cost_source"]) == (1, 3, "clock")
    assert row["gpu_hours"] == 0.5 and row["waiting_seconds"] >= 0


def test_what_nobody_asked_a_scheduler_for_stays_as_the_evaluation_counted_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_graph(Graph([Stage("evaluate/a", _write_result)]), InlineExecutor(), run)
    write_costs(run)
    spent = _only_record(run)
    assert (spent.gpu_hours, spent.cost_source, spent.attempts) == (7.0, "clock", 1)
    assert spent.pretrain_attempts is None


def test_an_edited_record_is_left_for_the_report_to_refuse(run_dir: Path, fake: FakeSlurm) -> None:
    path = Ledger(run_dir).out("evaluate/a/voc") / "result.json"
    text = path.read_text(encoding="utf-8").replace("50.0", "90.0")
    path.write_text(text, encoding="utf-8")
    assert write_costs(run_dir) == 0
    assert path.read_text(encoding="utf-8") == text


def _write_result(out: Path) -> None:
    write_record(record(gpu_hours=7.0), out)
