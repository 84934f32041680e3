"""How planning, submitting and looking grow with the stages of a run, against a stub in place of SLURM.

    python benchmarks/ledger.py [--runs 3] [--slow 5]

Every size is a process of its own, which plans, submits and lists a graph of pretrainings, one for every
fifty stages, their proofs, and evaluations that wait for both; the sizes take turns. Seconds are of this
process's CPU: the stub's are not ours, and other work on the machine does not count. A line is fitted to the
medians: its slope is what a stage costs, and the largest distance from it says how straight the growth is.
With `--slow`, 1,500 stages are submitted and looked at besides with a SLURM that takes so many seconds for
every call. Writes a dated table to benchmarks/results/.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import pytest

from benchmarks.measuring import RESULTS, write_table
from carryover.core.training.provenance import hardware
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.executor import run_graph
from carryover.slurm.graph import Graph
from carryover.slurm.resources import Resources
from carryover.slurm.stage import Output, Stage
from carryover.slurm.status import status
from tests.slurm import fake_slurm, work

SIZES = (1250, 2500, 5000, 10_000)
WHAT = ("plan", "submit", "status", "status, all lost")


EACH = 50


def graph_of(stages: int) -> Graph:
    """A pretraining and its proof for every fifty stages, as many evaluations as are left, and a report."""
    number = stages // EACH
    trains = [Stage(f"pretrain/{i}", work.write, resources=Resources(gpus_per_node=8)) for i in range(number)]
    proofs = [
        Stage(f"convert/{i}", work.copy, {"source": Output(f"pretrain/{i}", "result.txt")})
        for i in range(number)
    ]
    judged = [
        Stage(
            f"evaluate/{i % number}/{i}",
            work.copy,
            {"source": Output(f"convert/{i % number}", "copy.txt"), "seed": i},
            resources=Resources(gpus_per_node=1),
        )
        for i in range(stages - 2 * number - 1)
    ]
    report = Stage("report", work.write, after=tuple(s.name for s in judged))
    return Graph([*trains, *proofs, *judged, report])


def measure(stages: int, slow: float) -> dict[str, float]:
    """Return the seconds that each thing takes, the calls to SLURM, and the growth of memory in MiB.

    Seconds are of CPU, or on the wall where the stub is `slow`.
    """
    clock = time.perf_counter if slow else time.process_time
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        fake = fake_slurm.install(Path(directory) / "fake", patch)
        if slow:
            fake.slow_down(slow)
        run = Path(directory) / "run"
        found: dict[str, float] = {}

        def note(name: str, start: float, calls: int) -> None:
            found[name] = clock() - start
            found[f"{name}: calls"] = len(fake.calls) - calls

        start = clock()
        graph = graph_of(stages)
        note("plan", start, 0)
        start = clock()
        assert run_graph(graph, SlurmExecutor(), run).succeeded
        note("submit", start, 0)
        start, calls = clock(), len(fake.calls)
        assert status(run).counts["submitted"] == stages
        note("status", start, calls)
        fake.set_queue({})
        start, calls = clock(), len(fake.calls)
        assert not status(run).in_flight
        note("status, all lost", start, calls)
    found["MiB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return found


def in_a_process(stages: int, slow: float = 0.0) -> dict[str, float]:
    """Measure in a fresh process."""
    words = [sys.executable, sys.argv[0], "--one", str(stages), "--slow", str(slow)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def fitted(sizes: tuple[int, ...], values: list[float]) -> tuple[float, float]:
    """Return the slope of a line through the values, and the largest distance from it (1: the last value)."""
    slope, offset = np.polyfit(sizes, values, 1)
    far = max(abs(value - (slope * size + offset)) for size, value in zip(sizes, values, strict=True))
    return float(slope), far / values[-1]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.slow)))
        return
    found: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    for _ in range(asked.runs):
        for size in SIZES:
            found[size].append(in_a_process(size))
    lines = [f"# Stages of a run, against a stub of SLURM ({hardware()})", ""]
    lines += ["| what | " + " | ".join(f"{s:,} stages" for s in SIZES) + " | slope a stage | off the line |"]
    lines += ["|---" * (len(SIZES) + 3) + "|"]
    for name in (*WHAT, "MiB"):
        medians = [statistics.median(one[name] for one in found[size]) for size in SIZES]
        slope, far = fitted(SIZES, medians)
        unit = "KiB" if name == "MiB" else "ms"
        per_stage = slope * (1024 if name == "MiB" else 1000)
        values = " | ".join(f"{v:.2f}" for v in medians)
        lines.append(f"| {name} | {values} | {per_stage:.3f} {unit} | {far:.0%} |")
    if asked.slow:
        one = in_a_process(1500, asked.slow)
        lines += ["", f"1,500 stages, {asked.slow:g} s for every call to SLURM:", ""]
        lines += [f"* {name}: {one[name]:.1f} s, {one[f'{name}: calls']:.0f} calls" for name in WHAT[1:]]
    write_table("ledger", lines, asked.out)


if __name__ == "__main__":
    main()
