"""Signals that ask a process to stop."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

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
