"""Preview of a submission to SLURM: every sbatch header, and the scontrol requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from carryover.slurm import sbatch
from carryover.slurm.batches import Batch, arrays_of, dependency, make_batches
from carryover.slurm.flights import Flights
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Ledger
from carryover.slurm.plan import Action, Decision, make_plan, missing
from carryover.slurm.resources import Cluster
from carryover.slurm.shared import NOT_YET, SharedArray, share, updates, worth_sharing


@dataclass(frozen=True)
class PlannedJob:
    """One sbatch call to come.

    `header` holds its #SBATCH lines; in its --dependency, ``$3`` stands for the id of the third planned job.
    `links` jobs like it are chained one behind the other (``$3.2`` is the second). `updates` are the requests
    by which scontrol is told afterwards what elements of a shared array wait for.
    """

    number: int
    name: str
    stages: tuple[str, ...]
    waits_for: tuple[str, ...]
    header: tuple[str, ...]
    gpu_hours: float
    links: int = 1
    updates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """A whole submission to come: `plan` says what is done with every stage, and why.

    `missing` contains the paths without which it would fail, each with the stages that require it.
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
    plan = make_plan(graph, ledger, flights, withdrawable=flights.withdrawable)
    jobs: dict[str, tuple[str, ...]] = {}
    for decision in plan:
        record, _ = ledger.readable(decision.stage.name)
        if decision.action is Action.IN_FLIGHT and record is not None:
            live = tuple(job.job_id for job in flights.live(record))
            jobs[decision.stage.name] = live or ("elsewhere",)
    batches = make_batches(plan, cluster.defaults, cluster.max_array_size)
    arrays = share(plan, cluster.defaults, cluster.max_array_size)
    shared = worth_sharing(batches, arrays)
    planned = _of_arrays(arrays, jobs, graph, cluster, ledger) if shared else []
    if not shared:
        sizes: dict[str, int] = {}
        for number, batch in enumerate(batches, 1):
            planned.append(_planned(number, batch, dependency(batch, jobs, sizes), cluster, ledger))
            given = {name: ids[:1] for name, ids in _ids(number, batch).items()}
            jobs |= given
            sizes |= arrays_of(given)
    return Preview(tuple(plan), tuple(planned), missing(plan))


def _ids(number: int, batch: Batch) -> dict[str, tuple[str, ...]]:
    """Return what stands for the jobs of a batch that has not been submitted."""
    links = [
        f"${number}" if link == 1 else f"${number}.{link}" for link in range(1, batch.resources.chain + 1)
    ]
    many = len(batch.stages) > 1
    return {
        stage.name: tuple(f"{link}_{i}" if many else link for link in links)
        for i, stage in enumerate(batch.stages)
    }


def _of_arrays(
    arrays: Sequence[SharedArray],
    jobs: Mapping[str, tuple[str, ...]],
    graph: Graph,
    cluster: Cluster,
    ledger: Ledger,
) -> list[PlannedJob]:
    given: dict[str, tuple[str, ...]] = {}
    for number, array in enumerate(arrays, 1):
        given |= _ids(number, array.batch)
    told = updates(arrays, given, jobs, graph)
    planned = []
    for number, array in enumerate(arrays, 1):
        own = {job for stage in array.batch.stages for job in given[stage.name]}
        job = _planned(number, array.batch, None, cluster, ledger, NOT_YET)
        waits = [name for stretch in array.stretches for name in stretch.batch.waits_for]
        planned.append(
            replace(
                job,
                waits_for=tuple(dict.fromkeys(waits)),
                gpu_hours=array.gpu_hours,
                updates=tuple(update.request for update in told if own.issuperset(update.jobs)),
            )
        )
    return planned


def _planned(
    number: int, batch: Batch, waits: str | None, cluster: Cluster, ledger: Ledger, begin: str | None = None
) -> PlannedJob:
    chosen = sbatch.parameters(batch, cluster, ledger.run_dir.name, "", waits, (), begin)
    text = sbatch.script(batch, chosen, sbatch.folder(ledger), "true")
    return PlannedJob(
        number=number,
        name=batch.name,
        stages=tuple(stage.name for stage in batch.stages),
        waits_for=batch.waits_for,
        header=tuple(line for line in sbatch.header(text) if "--comment" not in line),
        gpu_hours=batch.gpu_hours,
        links=batch.resources.chain,
    )
