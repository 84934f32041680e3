"""A plan on SLURM: the preview of what would be submitted, and the executor that submits it."""

import logging
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from carryover.slurm import sbatch, scheduler
from carryover.slurm.commands import cleaned_environment, overriding
from carryover.slurm.errors import RequestError, RunError
from carryover.slurm.executor import Run
from carryover.slurm.flights import Flights
from carryover.slurm.graph import Graph
from carryover.slurm.job import StageJob
from carryover.slurm.ledger import Ledger
from carryover.slurm.plan import Action, Decision, make_plan, missing, working
from carryover.slurm.processes import leaving
from carryover.slurm.resources import Cluster
from carryover.slurm.sbatch import Batch, dependency, make_batches
from carryover.slurm.stage import portable


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
    plan = make_plan(graph, ledger, flights, withdrawable=flights.withdrawable)
    jobs: dict[str, tuple[str, ...]] = {}
    for decision in plan:
        record, _ = ledger.readable(decision.stage.name)
        if decision.action is Action.IN_FLIGHT and record is not None:
            live = tuple(job.job_id for job in flights.live(record))
            jobs[decision.stage.name] = live or ("elsewhere",)
    planned: list[PlannedJob] = []
    arrays: dict[str, int] = {}
    batches = make_batches(plan, cluster.defaults, cluster.max_array_size)
    for number, batch in enumerate(batches, 1):
        planned.append(_planned(number, batch, dependency(batch, jobs, arrays), cluster, ledger))
        ids = [f"${number}_{i}" if len(batch.stages) > 1 else f"${number}" for i in range(len(batch.stages))]
        given = {stage.name: (job,) for stage, job in zip(batch.stages, ids, strict=True)}
        jobs |= given
        arrays |= sbatch.arrays_of(given)
    return Preview(tuple(plan), tuple(planned), missing(plan))


def _planned(number: int, batch: Batch, waits: str | None, cluster: Cluster, ledger: Ledger) -> PlannedJob:
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

_PAUSES = (2.0, 5.0)
_INVALID = re.compile(
    r"[Ii]nvalid|unrecognized|Requested node configuration|More processors requested|[Nn]ode count"
)
_NO_ANSWER = "contact|timed out|Zero Bytes|onnection|ommunication|temporarily|standby|Unspecified"
_REFUSED = re.compile(rf"Batch job submission failed: (?!.*({_NO_ANSWER}))|{_INVALID.pattern}")


@dataclass(frozen=True)
class SlurmExecutor:
    """Submits a plan's stages as jobs and job arrays.

    Every job carries the submission's token as its comment, and what it was given is written down as soon as
    SLURM has taken it. Refused half-way, or interrupted, all that was submitted is cancelled. Where sbatch
    gave no answer, the queue is asked whether the job was taken all the same.

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
        behind = {d.stage.name: _leaving(d, run) for d in working(run.plan)}
        batches = make_batches(run.plan, self.cluster.defaults, self.cluster.max_array_size, behind)
        if not batches:
            return 0
        _require_plain(run.ledger.run_dir)
        ignored = overriding(os.environ)
        if ignored:
            log.warning(
                "%s: not passed on to sbatch; recipes and the cluster's file decide", ", ".join(ignored)
            )
        setup = self._setup(run.ledger)
        run.submission.update(cluster=scheduler.cluster_name())
        jobs = {d.stage.name: _jobs(d, run) for d in run.plan if d.action is Action.IN_FLIGHT}
        submitted: dict[str, tuple[str, ...]] = {}
        arrays: dict[str, int] = {}
        try:
            with leaving(), cleaned_environment():
                for number, batch in enumerate(batches, 1):
                    given = self._submit(number, batch, run, dependency(batch, jobs, arrays), setup)
                    submitted |= given
                    run.submission.update(jobs=submitted)
                    jobs |= given
                    arrays |= sbatch.arrays_of(given)
        except BaseException as error:
            self._take_back(run, submitted)
            if isinstance(error, FailedJobError | FailedSubmissionError):
                raise _refused(batch, error, len(submitted)) from None
            raise
        for decision in working(run.plan):
            run.tell(decision, "submitted", f"job {submitted[decision.stage.name][-1]}, {decision.reason}")
        return 0

    def _submit(
        self,
        number: int,
        batch: Batch,
        run: Run,
        after: str | None,
        setup: Sequence[str],
    ) -> dict[str, tuple[str, ...]]:
        links: list[str] = []
        given: dict[str, tuple[str, ...]] = {}
        for link in range(1, batch.resources.chain + 1):
            waits = ",".join(filter(None, [after, *(f"afterany:{link}" for link in links[-1:])])) or None
            run_dir = run.ledger.run_dir
            comment = f"{run.submission.record.token}.{number}.{link}"
            chosen = sbatch.parameters(batch, self.cluster, run_dir.name, comment, waits, setup)
            executor = submitit.SlurmExecutor(sbatch.folder(run.ledger), python=sbatch.heedless_interpreter())
            executor.update_parameters(**chosen)
            calls = []
            for stage in batch.stages:
                decision = run.decisions[stage.name]
                earlier = len(run.record(decision).attempts)
                calls.append(StageJob(run_dir, portable(stage), decision.hash, self.name, link, earlier))
            try:
                accepted = _submitted(executor, calls, comment)
            except (FailedJobError, FailedSubmissionError, OSError, RunError):
                raise
            except Exception as error:  # whatever putting a user's function into a file raises
                raise batch.stages[0].calls.cannot_be_sent(batch.stages[0].name, error) from error
            links.append(accepted[-1].job_id)
            for stage, job in zip(batch.stages, accepted, strict=True):
                given[stage.name] = (*given.get(stage.name, ()), job.job_id)
        return given

    def _setup(self, ledger: Ledger) -> list[str]:
        variables = sbatch.job_environment(ledger, self.packages)
        return [*sbatch.BEFORE_ALL, *(f"export {k}={shlex.quote(v)}" for k, v in variables.items())]

    def _take_back(self, run: Run, submitted: dict[str, tuple[str, ...]]) -> None:
        token = run.submission.record.token
        try:
            scheduler.cancel([job for jobs in submitted.values() for job in jobs])
            listed = scheduler.queue({os.getuid()}).values()
            scheduler.cancel(
                [j.job_id for j in listed if j.end is None and j.comment.startswith(f"{token}.")]
            )
        except RunError as error:
            log.error("what was submitted stays recorded, but could not be cancelled: %s", error)
        else:
            run.submission.update(jobs={})


def _jobs(decision: Decision, run: Run) -> tuple[str, ...]:
    live = run.flights.live(run.record(decision))
    if not live:
        raise RunError(
            f"stage {decision.stage.name} is at work outside SLURM ({decision.reason}); wait for it"
        )
    return tuple(job.job_id for job in live)


def _leaving(decision: Decision, run: Run) -> tuple[str, ...]:
    return run.flights.leaving(run.record(decision))


def _require_plain(run_dir: Path) -> None:
    found = re.search(r"[%\\\n]", str(run_dir))
    if found is not None:
        raise RequestError(
            f"run directory {run_dir}: SLURM gives {found.group()!r} in the names of log files a meaning of"
            " its own; choose another directory"
        )


def _submitted(executor: submitit.SlurmExecutor, calls: Sequence[StageJob], comment: str) -> list[Any]:
    """Submit a batch's calls; where sbatch gave no answer, cancel what it may have taken and ask again."""
    for pause in (*_PAUSES, None):
        try:
            return executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            if pause is None or _REFUSED.search(str(error)):
                raise
            log.warning("sbatch gave no answer (%s); asking again", _last_words(error))
            taken = [j for j in scheduler.queue({os.getuid()}).values() if j.comment == comment]
            scheduler.cancel([job.job_id for job in taken if job.end is None])
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _last_words(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _refused(batch: Batch, error: Exception, count: int) -> RequestError | RunError:
    rest = f"; the {count} stages submitted before it were cancelled" if count else ""
    if _INVALID.search(str(error)):
        said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        return RequestError(
            f"stage {batch.stages[0].name}: SLURM does not accept these resources: {said}{rest}"
        )
    return RunError(f"SLURM refused {batch.name}: {_last_words(error)}{rest}")
