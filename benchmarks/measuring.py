"""What the benchmarks share: variants that take turns, fresh processes, and dated tables."""

import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def in_turn(variants: Mapping[str, Callable[[int], object]], runs: int) -> dict[str, list[float]]:
    """Return the seconds of every run of every variant, taken in turn after one round that is not counted.

    A variant is given the number of its run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in range(runs + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant(run)
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def in_fresh_process(arguments: Sequence[str]) -> float:
    """Run this program with other arguments; return the number it prints last."""
    done = subprocess.run([sys.executable, sys.argv[0], *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.split()[-1])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the median, and the smallest and largest in brackets."""
    middle, least, most = (f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def write_table(name: str, lines: Sequence[str], out: Path = RESULTS) -> Path:
    """Write lines as OUT/NAME-DATE.md, and say where."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{datetime.date.today()}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path)
    return path
