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
    """Return whether the process that had this number and start time still runs on this machine."""
    found = process_start(pid)
    if found == 0 and start != 0 and _hidden(pid):
        return True
    return start != 0 and found == start


def _hidden(pid: int) -> bool:
    """Return whether /proc keeps a living process of another user from us (mount option hidepid)."""
    if Path(f"/proc/{pid}").exists():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def here() -> tuple[str, int, int]:
    """Return this process as (host, pid, start)."""
    return socket.gethostname(), os.getpid(), process_start(os.getpid())


def pid_space() -> str:
    """Return which numbering of processes this one lives in: the boot, and the namespace; "" if unknown.

    Containers of one host name may number their processes apart: a number then says nothing in another.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def known_to_live(host: str, space: str, pid: int, start: int) -> bool | None:
    """Return whether a process lives, from its `here` and `pid_space`; None where that cannot be seen.

    `space` is "" in records of earlier releases: a process that is not seen may then be in another container.
    """
    if host != socket.gethostname() or space not in ("", pid_space()):
        return None
    return lives(pid, start) or (None if space == "" else False)


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
def noting(numbers: Iterable[int] = (*STOPPING, signal.SIGINT)) -> Iterator[list[int]]:
    """Collect the numbers of stopping signals, and of Ctrl-C unless told, instead of acting on them."""
    noted: list[int] = []
    with handling(lambda signum, frame: noted.append(signum), numbers):
        yield noted


@contextmanager
def handling(handler: "signal._HANDLER", numbers: Iterable[int] = STOPPING) -> Iterator[None]:
    """Install a handler for some signals, and the former ones again afterwards."""
    before = {}
    for number in numbers:
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # started by nohup
        try:
            before[number] = signal.signal(number, handler)
        except ValueError:  # not the main thread: Python allows no handlers, and nothing changes
            break
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class Stopped(SystemExit):
    """Raised where a signal asks a process to stop; exit status 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}; run again to go on"


def _leave(signum: int, frame: FrameType | None) -> None:
    raise Stopped(signum)
