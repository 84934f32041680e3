"""What submitting a graph would do, without doing it: the dry run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from carryover.slurm import sbatch
from carryover.slurm.batches import Batch, dependency, make_batches
from carryover.slurm.cluster import Cluster
from carryover.slurm.flights import Flights
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Ledger
from carryover.slurm.plan import Action, Decision, make_plan, missing


@dataclass(frozen=True)
class PlannedJob:
    """One sbatch call to come.

    `header` holds its #SBATCH lines; in its --dependency, ``$3`` stands for the id of the third planned job.
    `links` jobs like it are chained one behind the other.
    """

    number: int
    name: str
    stages: tuple[str, ...]
    waits_for: tuple[str, ...]
    header: tuple[str, ...]
    gpu_hours: float
    links: int = 1


@dataclass(frozen=True)
class Preview:
    """A whole submission to come: `plan` says what is done with every stage, and why.

    `missing` holds the paths without which it would be refused, each with the stages that require it.
    """

    plan: tuple[Decision, ...]
    jobs: tuple[PlannedJob, ...]
    missing: Mapping[Path, list[str]] = field(default_factory=dict)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours asked for, every job taking its whole time limit once."""
        return sum(job.gpu_hours for job in self.jobs)


def preview(graph: Graph, run_dir: Path, cluster: Cluster) -> Preview:
    """Plan a submission; nothing is written, and SLURM is asked only about stages submitted before.

    Raises
    ------
    RequestError
        What `run_graph` would raise before it submits, but for missing paths.
    """
    ledger = Ledger(run_dir)
    flights = Flights(ledger)
    plan = make_plan(graph, ledger, flights)
    jobs: dict[str, tuple[str, ...]] = {}
    for decision in plan:
        record, _ = ledger.readable(decision.stage.name)
        if decision.action is Action.IN_FLIGHT and record is not None:
            jobs[decision.stage.name] = flights.jobs(record) or ("elsewhere",)
    planned: list[PlannedJob] = []
    batches = make_batches(plan, cluster.defaults, cluster.max_array_size)
    for number, batch in enumerate(batches, 1):
        planned.append(_planned(number, batch, jobs, cluster, ledger))
        for i, stage in enumerate(batch.stages):
            jobs[stage.name] = (f"${number}_{i}" if len(batch.stages) > 1 else f"${number}",)
    return Preview(tuple(plan), tuple(planned), missing(plan))


def _planned(
    number: int, batch: Batch, jobs: dict[str, tuple[str, ...]], cluster: Cluster, ledger: Ledger
) -> PlannedJob:
    waits = dependency(batch, jobs)
    chosen = sbatch.parameters(batch, cluster, ledger.run_dir.name, "", waits, ())
    text = sbatch.script(batch, chosen, sbatch.folder(ledger), "true")
    return PlannedJob(
        number=number,
        name=batch.name,
        stages=tuple(stage.name for stage in batch.stages),
        waits_for=(*batch.needs, *batch.follows),
        header=tuple(line for line in sbatch.header(text) if "--comment" not in line),
        gpu_hours=batch.gpu_hours,
        links=batch.resources.chain,
    )
