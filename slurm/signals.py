"""Signals that ask a process to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""USR2 is what SLURM sends ahead of a time limit here; USR1 is left alone, since NCCL may use it."""


@contextmanager
def leaving() -> Iterator[None]:
    """Turn a stopping signal into ``SystemExit(128 + signal number)`` in the main thread.

    A callable that catches these signals itself, to save its state first, replaces this while it runs. In
    another thread than the main one Python allows no handlers, and nothing changes.
    """
    before = {}
    for number in STOPPING:
        try:
            before[number] = signal.signal(number, _leave)
        except ValueError:
            break
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
