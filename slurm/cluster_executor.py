"""The executor that submits a plan to SLURM."""

import logging
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from carryover.slurm import sbatch, scheduler
from carryover.slurm.batches import Batch, arrays_of, dependency, make_batches
from carryover.slurm.commands import cleaned_environment, overriding
from carryover.slurm.errors import RequestError, RunError
from carryover.slurm.executor import Run
from carryover.slurm.job import StageJob
from carryover.slurm.ledger import Ledger
from carryover.slurm.plan import Action, Decision, working
from carryover.slurm.processes import leaving
from carryover.slurm.resources import Cluster
from carryover.slurm.shared import NOT_YET, SharedArray, Update, share, updates, worth_sharing
from carryover.slurm.stage import portable

log = logging.getLogger(__name__)

_PAUSES = (2.0, 5.0)
_AT_ONCE = 4
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
        """Return the settings from which `of` builds this executor again."""
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
                "%s: not passed to sbatch; set them in the recipe or the cluster's file", ", ".join(ignored)
            )
        arrays = share(run.plan, self.cluster.defaults, self.cluster.max_array_size, behind)
        setup = self._setup(run.ledger)
        run.submission.update(cluster=scheduler.cluster_name())
        jobs = {d.stage.name: _jobs(d, run) for d in run.plan if d.action is Action.IN_FLIGHT}
        with leaving(), cleaned_environment():
            submitted = None
            if worth_sharing(batches, arrays):
                submitted = self._submit_arrays(arrays, run, jobs, setup)
            if submitted is None:
                submitted = self._submit_batches(batches, run, jobs, setup)
        for decision in working(run.plan):
            run.tell(decision, "submitted", f"job {submitted[decision.stage.name][-1]}, {decision.reason}")
        return 0

    def _submit_batches(
        self, batches: Sequence[Batch], run: Run, jobs: dict[str, tuple[str, ...]], setup: Sequence[str]
    ) -> dict[str, tuple[str, ...]]:
        """Submit one batch after another, each with what it waits for: all of them or, by an error, none."""
        submitted: dict[str, tuple[str, ...]] = {}
        sizes: dict[str, int] = {}
        try:
            for number, batch in enumerate(batches, 1):
                after = dependency(batch, jobs | submitted, sizes)
                given: dict[str, tuple[str, ...]] = {}
                for link in range(1, batch.resources.chain + 1):
                    former = given[batch.stages[0].name][-1] if given else ""
                    waits = ",".join(filter(None, [after, former and f"afterany:{former}"])) or None
                    accepted = self._send(run, batch, (number, link), setup, waits)
                    given = {name: (*given.get(name, ()), job) for name, job in accepted.items()}
                submitted |= given
                run.submission.update(jobs=submitted)
                sizes |= arrays_of(given)
        except BaseException as error:
            if self._take_back(run, [job for ids in submitted.values() for job in ids]):
                with suppress(OSError):
                    run.submission.update(jobs={})
            if isinstance(error, _RefusedError):
                raise error.told(len(submitted)) from None
            raise
        return submitted

    def _submit_arrays(
        self,
        arrays: Sequence[SharedArray],
        run: Run,
        jobs: Mapping[str, tuple[str, ...]],
        setup: Sequence[str],
    ) -> dict[str, tuple[str, ...]] | None:
        """Submit shared arrays side by side, then tell their elements what they wait for.

        Nothing is noted down before: jobs of a submitter that is killed here are orphans, and hardly any has
        begun. Returns None if SLURM rejects it while none has.
        """
        accepted: dict[tuple[int, int], dict[str, str]] = {}

        def send(number: int, link: int) -> None:
            accepted[number, link] = self._send(
                run, arrays[number - 1].batch, (number, link), setup, None, NOT_YET
            )

        calls = [(n, k) for n, a in enumerate(arrays, 1) for k in range(1, a.batch.resources.chain + 1)]
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                sent = [pool.submit(send, *call) for call in calls]
                try:
                    for future in sent:
                        future.result()
                finally:
                    for future in sent:
                        future.cancel()
            given: dict[str, tuple[str, ...]] = {}
            for call in calls:
                given |= {name: (*given.get(name, ()), job) for name, job in accepted[call].items()}
            _tell(updates(arrays, given, jobs, run.graph), run.submission.record.token)
            run.submission.update(jobs=given)
        except BaseException as error:
            clean = self._take_back(run, [job for ids in accepted.values() for job in ids.values()])
            refused = isinstance(error, _RefusedError | _UntouchedError) and clean
            if not refused:
                raise
            log.warning("%s; submitting without arrays that stages share", error)
            return None
        return given

    def _send(
        self,
        run: Run,
        batch: Batch,
        place: tuple[int, int],
        setup: Sequence[str],
        waits: str | None,
        begin: str | None = None,
    ) -> dict[str, str]:
        """Submit a batch, or one link of its chain, with one sbatch; return every stage's job."""
        run_dir, link = run.ledger.run_dir, place[1]
        comment = f"{run.submission.record.token}.{place[0]}.{link}"
        chosen = sbatch.parameters(batch, self.cluster, run_dir.name, comment, waits, setup, begin)
        executor = submitit.SlurmExecutor(sbatch.folder(run.ledger), python=sbatch.heedless_interpreter())
        executor.update_parameters(**chosen)
        calls = []
        for stage in batch.stages:
            decision = run.decisions[stage.name]
            earlier = len(run.record(decision).attempts)
            calls.append(StageJob(run_dir, portable(stage), decision.hash, self.name, link, earlier))
        try:
            accepted = _submitted(executor, calls, comment)
        except (FailedJobError, FailedSubmissionError) as error:
            raise _RefusedError(batch, error) from error
        except (OSError, RunError):
            raise
        except Exception as error:  # whatever putting a user's function into a file raises
            raise batch.stages[0].calls.cannot_be_sent(batch.stages[0].name, error) from error
        return {stage.name: job.job_id for stage, job in zip(batch.stages, accepted, strict=True)}

    def _setup(self, ledger: Ledger) -> list[str]:
        variables = sbatch.job_environment(ledger, self.packages)
        return [*sbatch.BEFORE_ALL, *(f"export {k}={shlex.quote(v)}" for k, v in variables.items())]

    def _take_back(self, run: Run, accepted: Sequence[str]) -> bool:
        """Cancel all jobs of this submission; returns whether that worked."""
        token = run.submission.record.token
        try:
            scheduler.cancel(accepted)
            listed = scheduler.queue({os.getuid()}).values()
            scheduler.cancel(
                [j.job_id for j in listed if j.end is None and j.comment.startswith(f"{token}.")]
            )
        except RunError as error:
            log.error("the submitted jobs could not be cancelled: %s", error)
            return False
        return True


class _RefusedError(Exception):
    """sbatch did not take a batch."""

    def __init__(self, batch: Batch, error: Exception) -> None:
        super().__init__(f"SLURM refused {batch.name}: {_last_words(error)}")
        self.batch, self.error = batch, error

    def told(self, count: int) -> RequestError | RunError:
        """Return the error for the user, after `count` stages had been submitted."""
        rest = f"; the {count} stages submitted before it were cancelled" if count else ""
        if _INVALID.search(str(self.error)):
            said = "; ".join(line.strip() for line in str(self.error).splitlines() if line.strip())
            name = self.batch.stages[0].name
            return RequestError(f"stage {name}: SLURM does not accept these resources: {said}{rest}")
        return RunError(f"{self}{rest}")


class _UntouchedError(RunError):
    """scontrol changed none of the jobs."""


def _tell(told: Sequence[Update], token: str) -> None:
    """Set the dependencies of jobs; a request that failed is repeated for the remaining ones."""
    left, pauses = list(told), [*_PAUSES]
    while True:
        try:
            return scheduler.update([update.request for update in left], left[-1].jobs[-1])
        except RunError as error:
            log.warning("%s", error)
            listed = scheduler.queue({os.getuid()})
            waiting = {
                job.job_id for job in listed.values() if job.comment.startswith(f"{token}.") and job.not_yet
            }
            left = [update for update in left if waiting.intersection(update.jobs)]
            if not left:
                return None
            if not pauses:
                untouched = all(waiting.issuperset(update.jobs) for update in told)
                kind = _UntouchedError if untouched else RunError
                raise kind(f"jobs could not be told what they wait for: {error}") from None
        time.sleep(pauses.pop(0))


def _jobs(decision: Decision, run: Run) -> tuple[str, ...]:
    live = run.flights.live(run.record(decision))
    if not live:
        raise RunError(
            f"stage {decision.stage.name} is running outside SLURM ({decision.reason}); wait for it"
        )
    return tuple(job.job_id for job in live)


def _leaving(decision: Decision, run: Run) -> tuple[str, ...]:
    return run.flights.leaving(run.record(decision))


def _require_plain(run_dir: Path) -> None:
    found = re.search(r"[%\\\n]", str(run_dir))
    if found is not None:
        raise RequestError(
            f"run directory {run_dir}: SLURM interprets {found.group()!r} in the names of"
            " log files; choose another directory"
        )


def _submitted(executor: submitit.SlurmExecutor, calls: Sequence[StageJob], comment: str) -> list[Any]:
    """Submit a batch's calls; where sbatch gave no answer, cancel what it may have taken and ask again."""
    for pause in (*_PAUSES, None):
        try:
            return executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            if pause is None or _REFUSED.search(str(error)):
                raise
            log.warning("sbatch did not answer (%s); trying again", _last_words(error))
            taken = [j for j in scheduler.queue({os.getuid()}).values() if j.comment == comment]
            scheduler.cancel([job.job_id for job in taken if job.end is None])
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _last_words(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
