"""How many processes load images: those asked for, as far as there are cores for them."""

import os


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_processes(asked: int) -> int:
    """Return `asked`, or the number of cores where there are fewer; 0 loads in this process."""
    return min(asked, cores())
