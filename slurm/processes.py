"""Processes and their signals: who lives, and who is asked to stop."""

import os
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


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


STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""USR2 is what SLURM sends ahead of a time limit here; USR1 is left alone, since NCCL may use it."""


@contextmanager
def leaving() -> Iterator[None]:
    """Turn a stopping signal into ``SystemExit(128 + signal number)`` in the main thread.

    A callable that catches these signals itself, to save its state first, replaces this while it runs.
    """
    with handling(_leave):
        yield


@contextmanager
def deaf() -> Iterator[None]:
    """Pass stopping signals over: while a record is written, and where leaving would end other ranks too."""
    with handling(signal.SIG_IGN):
        yield


@contextmanager
def noting() -> Iterator[list[int]]:
    """Collect the numbers of stopping signals, and of Ctrl-C, instead of acting on them."""
    noted: list[int] = []
    with handling(lambda signum, frame: noted.append(signum), (*STOPPING, signal.SIGINT)):
        yield noted


@contextmanager
def handling(handler: "signal._HANDLER", numbers: Iterable[int] = STOPPING) -> Iterator[None]:
    """Install a handler for some signals, and the former ones again afterwards."""
    before = {}
    for number in numbers:
        try:
            before[number] = signal.signal(number, handler)
        except ValueError:  # not the main thread: Python allows no handlers, and nothing changes
            break
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
