"""How time and memory grow: with the bank, the batch, the images, the stages and the result records.

    python benchmarks/growth.py [--series sqrtkl_step knn ...] [--runs 5] [--threads 1] [--quick] [--list]

Every size of a series is measured in a process of its own, forked from one that has only imported. The first
turn gives the peak of resident memory above what was there before it (the input was; what a turn maps from
files counts), all turns the median time. Above 5 s a turn there are 3 turns, above 60 s one; the tables say
how many. Slopes are least-squares fits of log time and log memory against log size; sizes at which a turn
adds less than 1 MiB are not in the memory's.

Writes a dated table and figure to benchmarks/results/; with --quick, tiny sizes to a temporary folder.
"""

import argparse
import ctypes
import datetime
import gc
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.growth_series import SERIES, Series
from carryover.core.training.provenance import hardware
from carryover.transfer.report.drawing import SERIES as COLORS

SMALLEST = 2**20
MARKERS = "osD^vPX"


@dataclass(frozen=True)
class Point:
    """One size of a series: seconds of every turn, and the bytes that the first one added at its peak."""

    size: int
    seconds: list[float]
    added: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The least-squares slope of log value against log size; None for fewer than three points."""
    if len(sizes) < 3:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def slopes(points: Sequence[Point]) -> tuple[float | None, float | None]:
    """Slopes of time and of memory."""
    seen = [p for p in points if p.added >= SMALLEST]
    return slope([p.size for p in points], [p.median for p in points]), slope(
        [p.size for p in seen], [p.added for p in seen]
    )


def measure(name: str, size: int, runs: int, threads: int, work: Path) -> Point:
    """Measure one size, in this process."""
    torch.set_num_threads(threads)
    series = next(s for s in SERIES if s.name == name)
    # A first small one, so that imports and libraries' own buffers are not counted.
    series.prepare(series.quick[0], work)()()
    prepared = series.prepare(size, work)
    seconds: list[float] = []
    added = 0
    while len(seconds) < _turns(seconds, runs):
        turn = prepared()
        gc.collect()
        if not seconds:
            # What was freed but kept would hide as much of the turn's own.
            ctypes.CDLL(None).malloc_trim(0)
            # Linux: forget the high-water mark of resident memory so far.
            Path("/proc/self/clear_refs").write_text("5")
            before = _resident("VmRSS")
        start = time.perf_counter()
        turn()
        taken = time.perf_counter() - start
        if not seconds:
            added = _resident("VmHWM") - before
        seconds.append(taken)
    return Point(size, seconds, added)


def _turns(seconds: Sequence[float], runs: int) -> int:
    longest = max(seconds, default=0.0)
    return 1 if longest > 60 else min(runs, 3) if longest > 5 else runs


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def in_its_own_process(name: str, size: int, options: argparse.Namespace, work: Path) -> Point:
    """Measure one size in a fresh process; the server that it is forked from spares it the imports' time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.growth_series"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, name, size, options.runs, options.threads, work).result()


def table(series: Series, points: Sequence[Point]) -> list[str]:
    """Markdown: a row a size, and the slopes."""
    lines = [
        f"### {series.name}: {series.what}",
        "",
        f"| {series.unit} | seconds | MiB | turns |",
        "|---|---|---|---|",
    ]
    for p in points:
        mib = f"{p.added / 2**20:.1f}" if p.added >= SMALLEST else "< 1"
        lines.append(f"| {p.size:,} | {p.median:.4g} | {mib} | {len(p.seconds)} |")
    in_time, in_memory = slopes(points)
    last = math.log(points[-1].median / points[-2].median) / math.log(points[-1].size / points[-2].size)
    text = f"slope time {_number(in_time)} (last two sizes {last:.2f}), memory {_number(in_memory)}"
    return [*lines, "", text, ""]


def summary(measured: dict[str, list[Point]]) -> list[str]:
    """Markdown: a row a series, at its largest size."""
    lines = [
        "| series | what | sizes | seconds, largest | MiB, largest | slope, time | slope, memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for series in (s for s in SERIES if s.name in measured):
        points = measured[series.name]
        first, last = points[0], points[-1]
        mib = f"{last.added / 2**20:.0f}" if last.added >= SMALLEST else "< 1"
        sizes = f"{first.size:,} to {last.size:,} {series.unit}"
        fitted = " | ".join(_number(value) for value in slopes(points))
        lines.append(f"| {series.name} | {series.what} | {sizes} | {last.median:.3g} | {mib} | {fitted} |")
    return lines


def _number(value: float | None) -> str:
    return "not fitted" if value is None else f"{value:.2f}"


def draw(measured: dict[str, list[Point]], path: Path) -> None:
    """All series on log-log axes: a row of axes a group, time on the left and memory on the right."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    chosen = [s for s in SERIES if s.name in measured]
    groups = list(dict.fromkeys(s.group for s in chosen))
    style: Any = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "growth", "axes.axisbelow": True}
    with mpl.rc_context(style):
        figure = Figure(figsize=(12, 2.9 * len(groups)), layout="constrained")
        for row, group in zip(figure.subplots(len(groups), 2, squeeze=False), groups):
            of_group = [s for s in chosen if s.group == group]
            for number, series in enumerate(of_group):
                points = measured[series.name]
                fitted = slopes(points)
                seen = [p for p in points if p.added >= SMALLEST]
                look = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 4}
                for axes, kept, values, exponent in (
                    (row[0], points, [p.median for p in points], fitted[0]),
                    (row[1], seen, [p.added / 2**20 for p in seen], fitted[1]),
                ):
                    label = f"{series.name}, slope {_number(exponent)}"
                    axes.plot([p.size for p in kept], values, label=label, **look)
            sizes = sorted({p.size for series in of_group for p in measured[series.name]})
            for axes, unit in zip(row, ("seconds", "MiB added")):
                axes.set(xscale="log", yscale="log", xlabel=of_group[0].unit, ylabel=unit)
                axes.set_xticks(sizes, labels=[f"{size:,}" for size in sizes], fontsize=7)
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_minor_formatter(NullFormatter())
                axes.grid(True, which="major", linewidth=0.5, alpha=0.5)
                axes.spines[["top", "right"]].set_visible(False)
                axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    names = [s.name for s in SERIES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the series and stop")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two turns: does it run?")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{s.name:14} {s.unit:8} {s.what}" for s in SERIES))
        return
    options.runs = 2 if options.quick else options.runs

    chosen = "" if options.series == names else f" --series {' '.join(options.series)}"
    head = [
        "# How time and memory grow",
        "",
        f"`python benchmarks/growth.py --runs {options.runs} --threads {options.threads}{chosen}`",
        "",
        f"{datetime.date.today()}, {hardware()}, torch {torch.__version__}, {options.threads} threads; load"
        f" average before the first turn {os.getloadavg()[0]:.1f}. Seconds are medians, MiB what the first"
        " turn adds at its peak.",
        "",
    ]
    quick = Path(tempfile.mkdtemp(prefix="growth-")) if options.quick else None
    out = options.out or quick or Path(__file__).parent / "results"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"growth-{datetime.date.today()}.md"
    figure = path.with_suffix(".svg")
    measured: dict[str, list[Point]] = {}
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for series in SERIES:
            if series.name not in options.series:
                continue
            sizes = series.quick if options.quick else series.sizes
            measured[series.name] = [in_its_own_process(series.name, n, options, Path(work)) for n in sizes]
            lines += table(series, measured[series.name])
            print("\n".join(table(series, measured[series.name])), flush=True)
            # After every series, so that an interrupted run leaves what it has.
            draw(measured, figure)
            shown = f"![All series on log-log axes]({figure.name})"
            text = [*head, *summary(measured), "", shown, "", *lines]
            path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
