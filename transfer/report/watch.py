"""A report that is written again and again while its runs go on."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from carryover.transfer.report.progress import run_progress
from carryover.transfer.report.write import Report, write_report


def watch(
    runs: Sequence[Path],
    out: Path,
    title: str,
    formats: Sequence[str],
    interval: int,
    on_written: Callable[[Report], None],
) -> None:
    """Write a partial report every `interval` seconds until nothing of the runs is under way, or Ctrl-C.

    Writing the report that stays, whose page does not load itself again, is left to the caller. Each look
    asks squeue, so `interval` should not be short on a busy cluster. Raises UserError as `write_report` does.
    """
    try:
        while any(p.under_way for p in run_progress(runs)):
            on_written(write_report(runs, out, title, formats, refresh_seconds=interval))
            time.sleep(interval)
    except KeyboardInterrupt:
        return
