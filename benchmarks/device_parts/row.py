"""What a part of benchmarks/device.py is given, and what it answers."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from carryover.core.training.device import synchronize


@dataclass(frozen=True)
class Setting:
    """Where and how large: the device, whether everything is small, and a folder to work in."""

    device: torch.device
    tiny: bool
    folder: Path


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    what
        In words; also why there is nothing measured.
    measured, beside
        The figure, and the one that it is held against, with their units.
    ratio
        The first to the second.
    wanted
        What the ratio should be, in words.
    reached
        None where nothing was wanted, or nothing measured.
    """

    what: str
    result: str = ""
    measured: float | None = None
    beside: str = ""
    ratio: float | None = None
    wanted: str = ""
    reached: bool | None = None

    def line(self, part: str) -> str:
        """Return the row in Markdown."""
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        reached = {None: "", True: "yes", False: "**no**"}[self.reached]
        cells = (part, self.what, self.result, self.beside, ratio, self.wanted, reached)
        return f"| {' | '.join(cells)} |"


def at_most(what: str, measured: float, beside: float, limit: float, unit: str) -> Row:
    """Return a row whose ratio should not be above a limit (of times)."""
    return _compared(what, measured, beside, unit, f"<= {limit:g}", measured <= limit * beside)


def at_least(what: str, measured: float, beside: float, limit: float, unit: str) -> Row:
    """Return a row whose ratio should not be below a limit (of rates)."""
    return _compared(what, measured, beside, unit, f">= {limit:g}", measured >= limit * beside)


def _compared(what: str, measured: float, beside: float, unit: str, wanted: str, reached: bool) -> Row:
    shown = [f"{value:.4g} {unit}" for value in (measured, beside)]
    return Row(what, shown[0], measured, shown[1], measured / beside, wanted, reached)


def seconds_of(work: Callable[[], object], device: torch.device, runs: int) -> float:
    """Return the median seconds of some runs, after one that is not counted."""
    taken = []
    for run in range(runs + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if run:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)
