"""Stopping a training where a test wants it stopped: the loop has one place for it."""

import multiprocessing
import os
import signal
from collections.abc import Callable

import pytest

from carryover.core.training import loop
from carryover.core.training.interrupt import Interrupted


def stop_after(step: int, signum: int, monkeypatch: pytest.MonkeyPatch, everybody: bool = False) -> None:
    """Send this process a signal when a training has taken `step` steps; `everybody`: its loaders too."""

    def signalled() -> None:
        if everybody:
            for child in multiprocessing.active_children():
                assert child.pid is not None
                os.kill(child.pid, signum)
        os.kill(os.getpid(), signum)

    call_after(step, signalled, monkeypatch)


def in_two_parts(run: Callable[[], object], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run something that is stopped by USR2 when its training has taken `step` steps; then run it again."""
    stop_after(step, signal.SIGUSR2, monkeypatch)
    with pytest.raises(Interrupted):
        run()
    monkeypatch.undo()
    run()


def stop_after_all(steps: int, signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal when all its trainings together have taken so many steps."""
    taken = [0]

    def count(step: int) -> None:
        taken[0] += 1
        if taken[0] == steps:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(loop, "after_step", count)


def call_after(step: int, call: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call something when a training has taken `step` steps, before that step is logged or saved."""
    monkeypatch.setattr(loop, "after_step", lambda taken: call() if taken == step else None)
