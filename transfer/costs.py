"""What every result cost, its checkpoint's pretraining included, from the run's ledger into the records."""

import logging
from pathlib import Path
from typing import Any

from slurm.cost import Cost, stage_costs
from slurm.graph import Graph
from slurm.ledger import Ledger
from slurm.stage import Output
from transfer.results import RECORD_NAME, ResultRecord, read_records, write_record

log = logging.getLogger(__name__)


def write_costs(run_dir: Path) -> int:
    """Bring the costs in a run's result records up to date; return how many records changed.

    Hours come from sacct where it knows of the job, from our own clock otherwise. Records that cannot be read
    are left as they are.

    Raises
    ------
    RequestError
        `run_dir` is not a run directory.
    OSError
        The records cannot be replaced.
    """
    ledger = Ledger.open(run_dir)
    graph = ledger.read_pipeline()
    costs = stage_costs(ledger)
    changed = 0
    for stage in graph:
        record_file = ledger.out(stage.name) / RECORD_NAME
        if stage.name not in costs or not record_file.is_file():
            continue
        found, problems = read_records([record_file])
        for problem in problems:
            log.warning("%s: its cost is not written down: %s", problem.path, problem.reason)
        for stored in found:
            spent = _with_costs(stored.record, graph, stage.name, costs)
            if spent != stored.record:
                write_record(spent, record_file.parent)
                changed += 1
    return changed


def _with_costs(record: ResultRecord, graph: Graph, stage: str, costs: dict[str, Cost]) -> ResultRecord:
    own = costs[stage]
    update: dict[str, Any] = {
        "wall_seconds": own.wall_hours * 3600,
        "waiting_seconds": own.waiting_hours * 3600,
        "attempts": own.attempts,
        "cost_source": own.source,
    }
    # A run without a scheduler asks for no GPUs, and yet uses those there are: the evaluation counted them.
    if _asked_for_gpus(graph, stage):
        update["gpu_hours"] = own.gpu_hours
    parts = _pretraining_of(graph, stage)
    if parts and all(part in costs for part in parts):
        spent = [costs[part] for part in parts]
        update |= {
            "pretrain_wall_seconds": sum(c.wall_hours for c in spent) * 3600,
            "pretrain_waiting_seconds": sum(c.waiting_hours for c in spent) * 3600,
            "pretrain_attempts": sum(c.attempts for c in spent),
        }
        if any(_asked_for_gpus(graph, part) for part in parts):
            update["pretrain_gpu_hours"] = sum(c.gpu_hours for c in spent)
    return record.model_copy(update=update)


def _asked_for_gpus(graph: Graph, stage: str) -> bool:
    return graph[stage].resources.gpus_per_node > 0


def _pretraining_of(graph: Graph, stage: str) -> list[str]:
    """Return the parts of the pretraining that made the checkpoint an evaluation took, last first."""
    parts: list[str] = []
    made_by = graph[stage].params.get("checkpoint")
    while isinstance(made_by, Output) and graph[made_by.stage].call_name == "transfer.stages:pretrain":
        parts.append(made_by.stage)
        made_by = graph[made_by.stage].params.get("start")
    return parts
