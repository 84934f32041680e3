"""What a stage cost, from sacct where it answers and from our own clock where it does not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from carryover.slurm import Graph, Ledger, Resources, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.costs import Cost, stage_costs
from carryover.slurm.ledger import Attempt, Change, StageRecord
from tests.slurm import work
from tests.slurm.fake_slurm import FakeSlurm

GRAPH = Graph(
    [
        Stage("train", work.write, resources=Resources(nodes=2, gpus_per_node=4)),
        Stage("evaluate", work.write, depends_on=("train",), resources=Resources(gpus_per_node=1)),
    ]
)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def attempt(number: int, begin: float, end: float, job: str, cause: str = "") -> Attempt:
    state = "interrupted" if cause else "finished"
    return Attempt(
        number=number,
        executor="slurm",
        host="node1",
        pid=1,
        process_start=1,
        started=at(begin),
        ended=at(end),
        job_id=job,
        state=state,  # type: ignore[arg-type]
        cause=cause,
    )


@pytest.fixture
def run_dir(tmp_path: Path, fake: FakeSlurm) -> Path:
    """A run of two stages: the first preempted once and requeued, the second submitted with the first."""
    run = tmp_path / "run"
    run_graph(GRAPH, SlurmExecutor(), run)
    ledger = Ledger(run)
    submitted = Change(state="waiting", at=at(0))
    for name, attempts in {
        "train": (attempt(1, 10, 70, "101", "preemption"), attempt(2, 90, 120, "101")),
        "evaluate": (attempt(1, 126, 156, "102"),),
    }.items():
        record = ledger.read(name)
        assert record is not None
        history = (submitted, Change(state="finished", at=attempts[-1].ended or NOON))
        ledger.write(
            StageRecord(name=name, hash=record.hash, state="finished", attempts=attempts, history=history)
        )
    return run


def approximately(cost: Cost, gpu: float, wall: float, waiting: float) -> bool:
    return (cost.gpu_hours, cost.wall_hours, cost.waiting_hours) == pytest.approx((gpu, wall, waiting))


def test_without_accounting_our_own_clock_tells(run_dir: Path, fake: FakeSlurm) -> None:
    fake.break_command("sacct", "Slurm accounting storage is disabled")
    costs = stage_costs(Ledger(run_dir))
    assert {c.source for c in costs.values()} == {"clock"}
    assert approximately(costs["train"], gpu=1.5 * 8, wall=1.5, waiting=0.5)
    assert approximately(costs["evaluate"], gpu=0.5, wall=0.5, waiting=0.1)
    assert costs["train"].attempts == 2


def test_accounting_knows_better(run_dir: Path, fake: FakeSlurm) -> None:
    day = "2026-11-20T"

    def row(
        job: str, state: str, *times: str, seconds: int = 0, tres: str = "", **more: str
    ) -> dict[str, object]:
        when = dict(zip(("Eligible", "Start", "End"), (day + t for t in times), strict=True)) if times else {}
        return {"JobID": job, "State": state, **when, "ElapsedRaw": seconds, "AllocTRES": tres, **more}

    gpus = "billing=8,gres/gpu=8"
    fake.account(
        row("101", "PREEMPTED", "12:00:00", "12:12:00", "13:12:00", seconds=3600, tres=gpus),
        row("101", "COMPLETED", "13:14:00", "13:20:00", "13:50:00", seconds=1800, tres=gpus),
        row("101", "COMPLETED", "13:14:00", "13:20:00", "19:50:00", seconds=9999, tres=gpus, Cluster="other"),
        row("102", "COMPLETED", "13:50:00", "14:02:00", "14:20:00", seconds=1080, tres="billing=1"),
        row("103", "PENDING"),
        row("104_[0-3]", "PENDING"),
    )
    costs = stage_costs(Ledger(run_dir))
    assert {c.source for c in costs.values()} == {"sacct"}
    assert approximately(costs["train"], gpu=1.5 * 8, wall=1.5, waiting=0.3)
    assert approximately(costs["evaluate"], gpu=0.3, wall=0.3, waiting=0.2)
    assert len([call for call in fake.calls if call.startswith("sacct")]) == 1


def test_a_stage_that_never_began_costs_nothing(tmp_path: Path, fake: FakeSlurm) -> None:
    run_graph(GRAPH, SlurmExecutor(), tmp_path / "run")
    assert stage_costs(Ledger(tmp_path / "run")) == {}
