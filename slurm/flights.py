"""Which stages are being worked on right now, by whomever submitted them."""

import socket
from datetime import timedelta

from carryover.slurm import scheduler
from carryover.slurm.errors import RunError
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Attempt, Ledger, StageRecord, now
from carryover.slurm.processes import lives
from carryover.slurm.submission import Submission, alive, is_copy, submissions

_SILENT_AFTER = timedelta(minutes=15)


class Flights:
    """What is in flight of one run, as of now: squeue is called once, if the run has jobs at all.

    Make it before reading records. A job writes its record before it leaves the queue, so a record read later
    is final if the job was gone; the other way round, a stage that ends in between would look lost.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._submissions = submissions(ledger)
        self._copied = is_copy(ledger)
        self._queue: dict[str, scheduler.Queued] = {}
        self._silence: RunError | None = None
        if any(s.jobs or self._left_open(s) for s in self._submissions):
            try:
                self._queue = scheduler.queue()
            except RunError as error:
                self._silence = error

    def __call__(self, record: StageRecord) -> str:
        """Say where a stage is being worked on, or "" when nobody works on it.

        Raises
        ------
        RunError
            The stage was submitted to SLURM and has not ended, and SLURM cannot be asked from here.
        """
        if self._copied:
            return ""
        job_ids = self.jobs(record)
        if job_ids:
            queued = self._queued(record, job_ids)
            return str(queued) if queued else ""
        last = record.attempts[-1] if record.attempts else None
        if last is None or last.executor != "local" or last.ended is not None:
            return ""
        return f"process {last.pid} on {last.host}" if self._process_lives(record.name, last) else ""

    def jobs(self, record: StageRecord) -> tuple[str, ...]:
        """Return the SLURM jobs that may still be at work on a stage: its last submission's."""
        last = record.attempts[-1] if record.attempts else None
        for submission in reversed(self._submissions):
            if record.name in submission.jobs:
                elsewhere = (
                    last is not None and last.executor != "slurm" and last.started > submission.started
                )
                return () if elsewhere else submission.jobs[record.name]
        return (last.job_id,) if last and last.executor == "slurm" and last.job_id else ()

    def submitted(self, stage: str) -> bool:
        """Whether SLURM was the last to be given a stage, rather than a process of its submitter's."""
        for submission in reversed(self._submissions):
            if submission.executor in ("inline", "local") or stage in submission.jobs:
                return stage in submission.jobs
        return False

    def orphans(self, graph: Graph) -> list[str]:
        """Return queued jobs of submitters that were killed before they could note them down.

        Those that have begun are none: their stage's record names them.
        """
        dead = {s.token for s in self._submissions if self._left_open(s)}
        if not dead:
            return []
        known = {job for s in self._submissions for jobs in s.jobs.values() for job in jobs}
        for name in graph.names:
            record, _ = self._ledger.readable(name)
            known.update(record.job_ids if record else ())
        return [j.job_id for j in self.queue.values() if j.comment in dead and j.job_id not in known]

    @property
    def queue(self) -> dict[str, scheduler.Queued]:
        """This user's jobs in the queue; raises RunError when SLURM did not answer."""
        if self._silence is not None:
            raise self._silence
        return self._queue

    def _left_open(self, submission: Submission) -> bool:
        """Whether a submission to SLURM was never closed, since its process was killed."""
        is_open = submission.executor == "slurm" and submission.state == "open"
        return is_open and not alive(self._ledger, submission)

    def _queued(self, record: StageRecord, job_ids: tuple[str, ...]) -> scheduler.Queued | None:
        if self._silence is not None and record.state in ("waiting", "running", "interrupted"):
            raise RunError(
                f"stage {record.name} was submitted as job {job_ids[0]}, and whether it is still at work "
                f"cannot be told from here ({self._silence})"
            )
        return next((self._queue[job] for job in job_ids if job in self._queue), None)

    def _process_lives(self, stage: str, attempt: Attempt) -> bool:
        if attempt.host == socket.gethostname():
            return lives(attempt.pid, attempt.process_start)
        life = self._ledger.last_sign_of_life(stage)
        return life is not None and now() - life < _SILENT_AFTER
