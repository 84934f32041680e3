"""Costs of stages: from sacct where it knows how their jobs ended, else from the ledger."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

from carryover.slurm.errors import RunError
from carryover.slurm.ledger import Attempt, Ledger, StageRecord
from carryover.slurm.scheduler import Accounted, accounting
from carryover.slurm.stage import Stage
from carryover.slurm.submission import submissions


@dataclass(frozen=True)
class Cost:
    """One stage, all its attempts together, in hours.

    `waiting_hours` is time in the queue when nothing but the cluster stood in the way.
    """

    gpu_hours: float
    wall_hours: float
    waiting_hours: float
    attempts: int
    source: Literal["sacct", "clock"]


def stage_costs(ledger: Ledger) -> dict[str, Cost]:
    """Return the cost of every stage that has begun; sacct is asked about all jobs together."""
    graph = ledger.read_pipeline()
    found = {name: ledger.readable(name)[0] for name in graph.names}
    records = {name: record for name, record in found.items() if record is not None and record.attempts}
    clusters = {s.cluster for s in submissions(ledger) if s.cluster}
    accounted = _rows_by_job({job for record in records.values() for job in _jobs(record)}, clusters)
    costs: dict[str, Cost] = {}
    for name, record in records.items():
        rows = [row for job in _jobs(record) for row in accounted.get(job, [])]
        attempts = ledger.closed(record, record.state == "running")
        # The database hears of a job's end later than the ledger does.
        if rows and (record.state == "running" or all(row.ended is not None for row in rows)):
            costs[name] = _from_accounting(graph[name], rows, attempts)
        else:
            upstream = [records[n] for n in graph[name].upstream if n in records]
            costs[name] = _from_clock(graph[name], record, attempts, upstream)
    return costs


def _jobs(record: StageRecord) -> set[str]:
    return {a.job_id for a in record.attempts if a.executor == "slurm" and a.job_id is not None}


def _rows_by_job(job_ids: Set[str], clusters: Set[str]) -> dict[str, list[Accounted]]:
    """Return the starts of jobs; rows of other clusters that share the database are about other jobs."""
    by_job: dict[str, list[Accounted]] = {}
    try:
        rows = accounting(job_ids) if job_ids else []
    except RunError:
        rows = []
    for row in rows:
        foreign = clusters and row.cluster and row.cluster not in clusters
        if row.started is not None and not foreign:
            by_job.setdefault(row.job_id, []).append(row)
    return by_job


def _from_accounting(stage: Stage, rows: Sequence[Accounted], attempts: Sequence[Attempt]) -> Cost:
    waits = [row.started - row.eligible for row in rows if row.started and row.eligible]
    outside = sum(a.seconds for a in attempts if a.executor != "slurm")
    asked = _gpus(stage)
    return Cost(
        # A cluster that does not account for GPUs (AccountingStorageTRES) reports none.
        gpu_hours=(outside * asked + sum(r.seconds * (r.gpus or asked) for r in rows)) / 3600,
        wall_hours=(outside + sum(r.seconds for r in rows)) / 3600,
        waiting_hours=sum(max(wait.total_seconds(), 0.0) for wait in waits) / 3600,
        attempts=len(attempts),
        source="sacct",
    )


def _from_clock(
    stage: Stage, record: StageRecord, attempts: Sequence[Attempt], upstream: Sequence[StageRecord]
) -> Cost:
    seconds = sum(a.seconds for a in attempts)
    submitted = [change.at for change in record.history if change.state == "waiting"]
    ready = [r.history[-1].at for r in upstream if r.state == "finished"]
    waited = 0.0
    for before, attempt in zip([None, *attempts], attempts, strict=False):
        if before is not None and before.ended is not None and before.job_id == attempt.job_id is not None:
            waited += max((attempt.started - before.ended).total_seconds(), 0.0)
            continue
        asked = [at for at in submitted if at <= attempt.started]
        if asked and attempt.executor == "slurm":
            eligible = max([asked[-1], *(at for at in ready if at <= attempt.started)])
            waited += max((attempt.started - eligible).total_seconds(), 0.0)
    return Cost(
        gpu_hours=seconds * _gpus(stage) / 3600,
        wall_hours=seconds / 3600,
        waiting_hours=waited / 3600,
        attempts=len(attempts),
        source="clock",
    )


def _gpus(stage: Stage) -> int:
    return stage.resources.nodes * stage.resources.gpus_per_node
