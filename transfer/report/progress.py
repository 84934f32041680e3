"""Progress of the runs of a report, for readers of partial results."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carryover.slurm.ledger import Ledger
from carryover.slurm.status import RunStatus, StageStatus, status

_REPORT = "report"
_ON_ITS_WAY = ("running", "submitted")
# In the order in which a reader asks for them.
_WORDS = {
    "finished": "finished",
    "running": "running",
    "submitted": "submitted",
    "waiting": "waiting",
    "interrupted": "interrupted",
    "failed": "failed",
    "blocked": "blocked by these",
    "cancelled": "cancelled",
}


@dataclass(frozen=True)
class RunProgress:
    """One run that has not finished: `stages` are all but the one that draws up the report.

    Attributes
    ----------
    under_way
        Something of it is running, or will: more results will arrive without a further command.
    note
        What could not be asked (squeue), else empty.
    """

    run: Path
    stages: tuple[StageStatus, ...]
    under_way: bool
    note: str = ""

    @property
    def unfinished(self) -> tuple[StageStatus, ...]:
        """The stages without which the results are partial."""
        return tuple(s for s in self.stages if s.state != "finished")

    def text(self) -> str:
        """Count the stages in words: ``3 of 12 stages finished, 1 running, 8 waiting``."""
        counts: Counter[str] = Counter(s.state for s in self.stages)
        total = f"{counts['finished']} of {len(self.stages)} stages finished"
        return ", ".join(
            [total, *(f"{counts[s]} {w}" for s, w in _WORDS.items() if s != "finished" and counts[s])]
        )


def run_progress(runs: Sequence[Path]) -> list[RunProgress]:
    """Return the progress of those runs that have a ledger and have not finished."""
    found = []
    for run in runs:
        if Ledger(run).pipeline_file.is_file():
            progress = _progress(run, status(run))
            found += [progress] if progress.unfinished else []
    return found


def _progress(run: Path, now: RunStatus) -> RunProgress:
    graph = Ledger.open(run).read_pipeline()
    # The report is written by a stage, which would otherwise count itself as missing.
    stages = tuple(s for s in now.stages if graph[s.name].calls.name != _REPORT)
    moving = any(s.state in _ON_ITS_WAY for s in stages)
    held = now.holder is not None and any(s.state == "waiting" for s in stages)
    return RunProgress(run, stages, moving or held, now.note)
