"""Telling whether a process that a file names still lives."""

import os
import socket
from pathlib import Path


def process_start(pid: int) -> int:
    """Return when a process started, in clock ticks since boot, or 0 when there is none.

    With its number this names a process: numbers alone are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def lives(pid: int, start: int) -> bool:
    """Tell whether the process that had this number and start time still runs on this machine."""
    return start != 0 and process_start(pid) == start


def here() -> tuple[str, int, int]:
    """Return this process as (host, pid, start)."""
    return socket.gethostname(), os.getpid(), process_start(os.getpid())
