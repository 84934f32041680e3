"""Processes that load images: how many, how they start, and when they end."""

import multiprocessing
import os
import sys
import weakref
from typing import Any


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_processes(asked: int) -> int:
    """Return `asked`, or the number of cores where there are fewer; 0 loads in this process."""
    return min(asked, cores())


def start_method(processes: int) -> str | None:
    """Return the `multiprocessing_context` of a torch DataLoader with so many processes.

    A method that the program chose with `multiprocessing.set_start_method` is kept. Otherwise processes are
    forked on Linux, whatever the Python version: "forkserver", the default of 3.14, imports the main module
    again, which fails in a script without ``if __name__ == "__main__"``, and copies a decoded data set into
    every process. On other platforms the default is kept (None).
    """
    if not processes:
        return None
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or ("fork" if sys.platform == "linux" else None)


def end_with_interpreter(owner: object, loader: Any) -> None:
    """End the processes of a torch DataLoader when `owner` is collected, or else when the interpreter exits.

    The processes ignore SIGTERM (`outlive_signals`), with which multiprocessing ends them at exit: it would
    wait forever for the processes of a loader that the program still holds.
    """
    weakref.finalize(owner, _shut_down, loader)


def _shut_down(loader: Any) -> None:
    # torch has no public call for it.
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
