"""Work in flight of a run: jobs as SLURM knows them, and processes; the rest is unknown."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from carryover.slurm import scheduler
from carryover.slurm.errors import RunError
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Attempt, Ledger, StageRecord, now
from carryover.slurm.processes import known_to_live
from carryover.slurm.scheduler import Ended, Queued
from carryover.slurm.submission import Submission, alive, is_copy, submissions

_SILENT_AFTER = timedelta(minutes=15)
_OVER = ("failed", "cancelled", "blocked", "finished")


@dataclass(frozen=True)
class Sight:
    """Place where a stage is being worked on.

    Attributes
    ----------
    jobs
        Its jobs that have not ended, the one that runs first.
    process
        Its process, of the local executor.
    unknown
        Why it is unknown whether the stage is running; "" if it is known.
    ended
        How its last job ended, where SLURM still knows.
    """

    jobs: tuple[Queued, ...] = ()
    process: str = ""
    unknown: str = ""
    ended: Ended | None = None

    @property
    def where(self) -> str:
        """Return where the stage is worked on ("job 12 is pending"), or ""."""
        return str(self.jobs[0]) if self.jobs else self.process

    @property
    def pending(self) -> bool:
        """Return whether none of its jobs has begun."""
        return bool(self.jobs) and all(job.pending for job in self.jobs)


class Flights:
    """Work in flight of one run: squeue is called once, if the run has jobs at all.

    A job is the run's own if it is on the cluster that it was given to, has the id that was given, and
    carries its submission's token as its comment. One that is not in the queue has ended only if the queue
    was that cluster's, and could show it.

    Make it before reading records. A job writes its record before it leaves the queue, so a record read later
    is final if the job was gone; the other way round, a stage that ends in between would look lost.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._submissions = submissions(ledger)
        self._copied = is_copy(ledger)
        self._by_token = {s.token: s for s in self._submissions}
        self._jobs: dict[str, list[tuple[str, Submission]]] = {}
        for submission in self._submissions:
            for stage, ids in submission.jobs.items():
                self._jobs.setdefault(stage, []).extend((job, submission) for job in ids)
        self._queue: dict[str, Queued] = {}
        self._silence: RunError | None = None
        self._ended: dict[str, Ended | None] = {}
        self._contradicting: dict[str, str] = {}
        self._given_as = {job: s for jobs in self._jobs.values() for job, s in jobs}
        if any(s.jobs or self._broke_off(s) for s in self._submissions):
            try:
                listed = scheduler.queue(self._users())
                self._queue = {job: row for job, row in listed.items() if self._is_own(row)}
            except RunError as error:
                self._silence = error

    def __call__(self, record: StageRecord) -> str:
        """Return where a stage is running, or "" if it is not.

        Raises
        ------
        RunError
            It is unknown here whether it is running.
        """
        sight = self.sight(record)
        if sight.unknown:
            raise RunError(f"stage {record.name}: {sight.unknown}")
        return sight.where

    def sight(self, record: StageRecord) -> Sight:
        """Look for a stage; sacct is asked about jobs that the controller has forgotten."""
        if self._copied:
            return Sight()
        live = self.live(record)
        if live:
            return Sight(jobs=live)
        last = record.attempts[-1] if record.attempts else None
        is_local = last is not None and last.executor == "local" and last.ended is None
        if last is not None and is_local and self._process_lives(record.name, last):
            return Sight(process=f"process {last.pid} on {last.host}")
        given = self._given(record)
        if not given or record.state in _OVER:
            return Sight()
        unknown = self._why_unknown(given)
        if unknown:
            return Sight(unknown=unknown)
        self._ask_about({job for job, _ in given})
        contradicted = next((self._contradicting[job] for job, _ in given if job in self._contradicting), "")
        if contradicted:
            return Sight(unknown=contradicted)
        ends = [end for job, _ in given if (end := self._ended.get(job)) is not None]
        return Sight(ended=ends[-1] if ends else None)

    def live(self, record: StageRecord) -> tuple[Queued, ...]:
        """Return a stage's jobs that have not ended, of all its submissions; the one that runs first.

        A job that is completing is over when its stage is: what is left of it does no work.
        """
        over = record.state in _OVER
        ids = [job for job, _ in self._jobs.get(record.name, ())]
        ids += [job for job in record.job_ids if job not in ids]
        rows = [self._queue[job] for job in ids if job in self._queue]
        live = [r for r in rows if r.end is None and not (over and r.state == "COMPLETING")]
        return tuple(sorted(live, key=lambda row: row.pending))

    def leaving(self, record: StageRecord) -> tuple[str, ...]:
        """Return the jobs of a stage that are completing: whatever follows should wait for them."""
        ids = {job for job, _ in self._jobs.get(record.name, ())} | set(record.job_ids)
        return tuple(sorted(j for j in ids if j in self._queue and self._queue[j].state == "COMPLETING"))

    def withdrawable(self, record: StageRecord, running: bool) -> tuple[str, ...]:
        """Return a stage's jobs that wait for their start, with `running` those at work too."""
        live = self.live(record)
        return tuple(job.job_id for job in live if running or job.pending) if not self._copied else ()

    def look_at(self, records: Iterable[StageRecord]) -> None:
        """Query all jobs of these stages that the controller has purged at once, not stage by stage."""
        if self._copied or self._silence is not None:
            return
        open_ones = [r for r in records if r.state not in _OVER and not self.live(r)]
        self._ask_about({job for record in open_ones for job, _ in self._given(record)})

    def submitted(self, stage: str) -> bool:
        """Return whether SLURM was the last to be given a stage, rather than a process of its submitter's."""
        for submission in reversed(self._submissions):
            if submission.executor in ("inline", "local") or stage in submission.jobs:
                return stage in submission.jobs
        return False

    def orphans(self, graph: Graph) -> list[str]:
        """Return queued jobs of the run that no submission noted down, their submitter having been killed.

        Those that have begun are none: their stage's record names them.
        """
        if not self._queue:
            return []
        noted = set(self._given_as)
        for name in graph.names:
            record, _ = self._ledger.readable(name)
            noted.update(record.job_ids if record else ())
        return [j.job_id for j in self._queue.values() if j.job_id not in noted and j.end is None]

    @property
    def queue(self) -> dict[str, Queued]:
        """The run's own jobs that the controller knows of; raises RunError when SLURM did not answer."""
        if self._silence is not None:
            raise self._silence
        return self._queue

    def require_own_cluster(self) -> None:
        """Raise RunError if jobs of the run are on another cluster, or if SLURM did not answer."""
        if self._silence is not None:
            raise self._silence
        clusters = {s.cluster for s in self._submissions if s.jobs and s.cluster}
        if clusters and not self._copied:
            here = scheduler.cluster_name()
            for other in sorted(clusters - {here}):
                raise RunError(f"jobs of this run are on cluster {other}; this machine belongs to {here}")

    def _broke_off(self, submission: Submission) -> bool:
        """Return whether a submission to SLURM may have ended without recording all of its jobs."""
        if submission.executor != "slurm" or submission.state == "done":
            return False
        return submission.state == "failed" or not alive(self._ledger, submission)

    def _users(self) -> set[int]:
        owners = {s.uid if s.uid is not None else self._owner(s) for s in self._submissions}
        return owners | {os.getuid()}

    def _owner(self, submission: Submission) -> int:
        # Earlier releases did not write down who submitted; whoever did made the file.
        return (self._ledger.run_dir / "submissions" / f"{submission.number:04d}.json").stat().st_uid

    def _is_own(self, row: Queued) -> bool:
        submission = self._by_token.get(row.comment.partition(".")[0])
        if submission is None:
            return False
        return not (submission.cluster and row.cluster) or submission.cluster == row.cluster

    def _given(self, record: StageRecord) -> list[tuple[str, Submission]]:
        """Return the jobs of a stage's last submission, unless it was submitted again since."""
        jobs = self._jobs.get(record.name, [])
        last = record.attempts[-1] if record.attempts else None
        if not jobs:
            return []
        newest = jobs[-1][1]
        later = [s for s in self._submissions if s.number > newest.number and s.executor != "cancel"]
        if any(s.executor in ("inline", "local") for s in later) and last and last.executor != "slurm":
            return []
        return [(job, s) for job, s in jobs if s.number == newest.number]

    def _why_unknown(self, given: list[tuple[str, Submission]]) -> str:
        job, submission = given[-1]
        it = f"it was submitted as job {job}, and whether it is still at work cannot be told from here"
        if self._silence is not None:
            return f"{it} ({self._silence})"
        if any(self._queue[j].end is not None for j, _ in given if j in self._queue):
            return ""
        try:
            here = scheduler.cluster_name()
            owner = submission.uid if submission.uid is not None else self._owner(submission)
            hidden = os.getuid() not in (owner, 0) and scheduler.hides_jobs()
        except RunError as error:
            return f"{it} ({error})"
        if submission.cluster and submission.cluster != here:
            return f"{it}: it is on cluster {submission.cluster}, this machine belongs to {here}"
        if hidden:
            self._ask_about({job})
            if self._ended.get(job) is None:
                return f"{it}: this cluster shows users only jobs of their own"
        return ""

    def _ask_about(self, jobs: set[str]) -> None:
        """Find out how jobs ended that squeue does not list, from sacct; and whether, from scontrol."""
        asked = set()
        for job in jobs:
            if job in self._ended:
                continue
            if job in self._queue:
                self._ended[job] = self._queue[job].end
            else:
                asked.add(job)
        if not asked:
            return
        self._ended.update(dict.fromkeys(asked))
        with ThreadPoolExecutor(1) as beside:
            looking = beside.submit(scheduler.alive)
            try:
                rows = scheduler.accounting(asked)
            except RunError:
                rows = []  # no accounting here: how they ended stays unknown
            try:
                alive: dict[str, str] | None = looking.result()
            except RunError:
                alive = None
        starts: dict[str, list[scheduler.Accounted]] = {}
        for row in rows:
            if row.job_id in asked and self._accounts_for(row):
                starts.setdefault(row.job_id, []).append(row)
        for job in asked:
            last = starts[job][-1] if job in starts else None
            if alive is not None and job in alive and self._has_token(job, alive[job]):
                self._contradicting[job] = f"squeue does not list job {job}, scontrol does"
            elif last is not None and last.state in scheduler.ENDED:
                self._ended[job] = Ended(job, last.state, "", last.status, len(starts[job]) - 1)
            elif last is not None and alive is None:
                said = last.state.lower()
                self._contradicting[job] = f"squeue does not list job {job}, sacct says that it is {said}"

    def _has_token(self, job: str, comment: str) -> bool:
        submission = self._given_as.get(job)
        return submission is None or not comment or comment.partition(".")[0] == submission.token

    def _accounts_for(self, row: scheduler.Accounted) -> bool:
        """Return whether a row of sacct is about our job: ids repeat, and clusters share a database."""
        submission = self._given_as.get(row.job_id)
        if submission is None:
            return False
        if row.comment:
            return self._has_token(row.job_id, row.comment)
        same_cluster = not submission.cluster or row.cluster in ("", submission.cluster)
        names = {Path(submission.run_dir).name, self._ledger.run_dir.name}
        return same_cluster and (not row.name or row.name.partition(":")[0] in names)

    def _process_lives(self, stage: str, attempt: Attempt) -> bool:
        known = known_to_live(attempt.host, attempt.space, attempt.pid, attempt.process_start)
        if known is not None:
            return known
        life = self._ledger.last_sign_of_life(stage)
        return life is not None and now() - life < _SILENT_AFTER
