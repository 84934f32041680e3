"""Watching a run until nothing of it is on its way any more."""

import time
from collections.abc import Callable
from pathlib import Path

from carryover.slurm.executor import Event
from carryover.slurm.status import RunStatus, status


def follow(run_dir: Path, on_event: Callable[[Event], None], poll_seconds: float = 20.0) -> RunStatus:
    """Tell every change of a stage's state as it happens; return the status at the end.

    Each look is one call to squeue, so `poll_seconds` should not be short on a busy cluster.
    """
    seen: dict[str, tuple[str, int]] = {}
    while True:
        now = status(run_dir)
        for position, stage in enumerate(now.stages, 1):
            mark = (stage.state, stage.attempts)
            if seen.get(stage.name) != mark:
                seen[stage.name] = mark
                on_event(
                    Event(stage.name, stage.state, stage.reason, position, len(now.stages), stage.seconds)
                )
        if not now.in_flight:
            return now
        time.sleep(poll_seconds)
