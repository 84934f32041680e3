"""A plan on SLURM: the preview of what would be submitted, and the executor that submits it."""

import logging
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from carryover.slurm import sbatch, scheduler
from carryover.slurm.errors import RequestError, RunError
from carryover.slurm.executor import Run
from carryover.slurm.graph import Graph
from carryover.slurm.job import StageJob
from carryover.slurm.ledger import Ledger
from carryover.slurm.plan import Action, Decision, make_plan, missing, working
from carryover.slurm.processes import leaving
from carryover.slurm.resources import Cluster
from carryover.slurm.sbatch import Batch, dependency, make_batches
from carryover.slurm.stage import portable
from carryover.slurm.submission import Flights


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


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlurmExecutor:
    """Submits a plan's stages as jobs and job arrays.

    Every job carries the submission's token as its comment, and what it was given is written down as soon as
    SLURM has taken it. Refused half-way, or interrupted, all that was submitted is cancelled.

    `packages` are copied into the run directory, and the jobs import the copies.
    """

    cluster: Cluster = field(default_factory=Cluster)
    packages: tuple[str, ...] = ()
    name = "slurm"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "SlurmExecutor":
        """Make one from "cluster" and "packages"."""
        return cls(Cluster.from_json(settings.get("cluster", {})), tuple(settings.get("packages", ())))

    @property
    def settings(self) -> dict[str, Any]:
        """What `of` needs to make this executor again."""
        return {"cluster": self.cluster.to_json(), "packages": list(self.packages)}

    def execute(self, run: Run) -> int:
        """Submit the plan; returns 0 when SLURM has taken all of it."""
        if not scheduler.available():
            raise RequestError("sbatch not found: this machine does not belong to a SLURM cluster")
        orphans = run.flights.orphans(run.graph)
        if orphans:
            log.warning("cancelling %d jobs of a submitter that was killed: %s", len(orphans), orphans[0])
            scheduler.cancel(orphans)
        batches = make_batches(run.plan, self.cluster.defaults, self.cluster.max_array_size)
        if not batches:
            return 0
        setup = self._setup(run.ledger)
        self._check(batches, run.ledger.run_dir.name, setup)
        jobs = {d.stage.name: _jobs(d, run) for d in run.plan if d.action is Action.IN_FLIGHT}
        submitted: dict[str, tuple[str, ...]] = {}
        try:
            with leaving():
                for batch in batches:
                    submitted |= self._submit(batch, run, {**jobs, **submitted}, setup)
                    run.submission.update(jobs=submitted)
        except BaseException as error:
            self._take_back(run, submitted)
            if isinstance(error, FailedJobError | FailedSubmissionError):
                said = str(error).strip().splitlines() or [type(error).__name__]
                raise RunError(
                    f"SLURM refused {batch.name}: {said[-1]}; the {len(submitted)} stages submitted before "
                    "it were cancelled"
                ) from None
            raise
        for decision in working(run.plan):
            run.tell(decision, "submitted", f"job {submitted[decision.stage.name][-1]}, {decision.reason}")
        return 0

    def _submit(
        self, batch: Batch, run: Run, jobs: dict[str, tuple[str, ...]], setup: Sequence[str]
    ) -> dict[str, tuple[str, ...]]:
        hashes = {d.stage.name: d.hash for d in run.plan}
        links: list[str] = []
        given: dict[str, tuple[str, ...]] = {}
        for link in range(1, batch.resources.chain + 1):
            waits = dependency(batch, jobs)
            if links:
                waits = ",".join(filter(None, [waits, f"afterany:{links[-1]}"]))
            token, run_dir = run.submission.record.token, run.ledger.run_dir
            chosen = sbatch.parameters(batch, self.cluster, run_dir.name, token, waits, setup)
            executor = submitit.SlurmExecutor(sbatch.folder(run.ledger), python=sbatch.interpreter())
            executor.update_parameters(**chosen)
            calls = [
                StageJob(run_dir, portable(stage), hashes[stage.name], self.name, link)
                for stage in batch.stages
            ]
            try:
                accepted = executor.submit_array(calls)
            except (FailedJobError, FailedSubmissionError, OSError):
                raise
            except Exception as error:  # whatever putting a user's function into a file raises
                raise batch.stages[0].calls.cannot_be_sent(batch.stages[0].name, error) from error
            links.append(accepted[-1].job_id)
            for stage, job in zip(batch.stages, accepted, strict=True):
                given[stage.name] = (*given.get(stage.name, ()), job.job_id)
        return given

    def _check(self, batches: Sequence[Batch], run_name: str, setup: Sequence[str]) -> None:
        """Ask SLURM about every kind of job in the plan before any is submitted."""
        kinds = {repr(batch.resources): batch for batch in batches}
        with tempfile.TemporaryDirectory() as directory:
            for batch in kinds.values():
                one = replace(batch, stages=batch.stages[:1])
                chosen = sbatch.parameters(one, self.cluster, run_name, "check", None, setup)
                path = Path(directory) / "check.sh"
                path.write_text(sbatch.script(one, chosen, Path(directory), "true"))
                try:
                    scheduler.check_accepted(path)
                except RequestError as error:
                    raise RequestError(f"stage {batch.stages[0].name}: {error}") from None

    def _setup(self, ledger: Ledger) -> list[str]:
        variables = sbatch.job_environment(ledger, self.packages)
        return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]

    def _take_back(self, run: Run, submitted: dict[str, tuple[str, ...]]) -> None:
        token = run.submission.record.token
        try:
            scheduler.cancel([job for jobs in submitted.values() for job in jobs])
            scheduler.cancel([job.job_id for job in scheduler.queue().values() if job.comment == token])
        except RunError as error:
            log.error("what was submitted stays recorded, but could not be cancelled: %s", error)
        else:
            run.submission.update(jobs={})


def _jobs(decision: Decision, run: Run) -> tuple[str, ...]:
    jobs = run.flights.jobs(run.record(decision))
    if not jobs:
        raise RunError(
            f"stage {decision.stage.name} is at work outside SLURM ({decision.reason}); wait for it"
        )
    return jobs
