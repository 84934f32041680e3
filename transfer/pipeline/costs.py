"""Costs of every result, with its checkpoint's pretraining, from the ledger to the records."""

import logging
from pathlib import Path
from typing import Any

import carryover.transfer.pipeline.calls  # noqa: F401 (makes the calls of a run directory known)
from carryover.configs import UserError
from carryover.slurm.costs import Cost, stage_costs
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Ledger
from carryover.slurm.stage import Output
from carryover.transfer.results.record import (
    RECORD_NAME,
    Costs,
    ResultRecord,
    load_costs,
    load_record,
    write_costs_file,
)

log = logging.getLogger(__name__)


def write_costs(run_dir: Path) -> int:
    """Bring the costs beside a run's result records (costs.json) up to date; return how many changed.

    Hours come from sacct where it knows of the job, from our own clock otherwise. The records themselves are
    not touched; those that cannot be read get no costs.

    Raises
    ------
    RequestError
        `run_dir` is not a run directory.
    OSError
        A costs.json cannot be written.
    """
    ledger = Ledger.open(run_dir)
    graph = ledger.read_pipeline()
    costs = stage_costs(ledger)
    changed = 0
    for stage in graph:
        record_file = ledger.out(stage.name) / RECORD_NAME
        if stage.name not in costs or not record_file.is_file():
            continue
        try:
            spent = _costs(load_record(record_file), graph, stage.name, costs)
            known = load_costs(record_file.parent)
        except UserError as error:
            log.warning("its cost could not be recorded: %s", error)
            continue
        if spent != known:
            write_costs_file(spent, record_file.parent)
            changed += 1
    return changed


def _costs(record: ResultRecord, graph: Graph, stage: str, costs: dict[str, Cost]) -> Costs:
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
    return Costs(**update)


def _asked_for_gpus(graph: Graph, stage: str) -> bool:
    return graph[stage].resources.gpus_per_node > 0


def _pretraining_of(graph: Graph, stage: str) -> list[str]:
    """Return the parts of the pretraining that made the checkpoint an evaluation took, last first."""
    parts: list[str] = []
    made_by = graph[stage].params.get("checkpoint")
    while isinstance(made_by, Output) and graph[made_by.stage].calls.name == "pretrain":
        parts.append(made_by.stage)
        made_by = graph[made_by.stage].params.get("start")
    return parts
