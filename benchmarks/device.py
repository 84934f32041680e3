"""Everything one wants to know of a GPU, most valuable first: correctness, then speed beside what is to beat.

    python benchmarks/device.py [--device cuda] [--minutes 9] [--parts sqrtkl ...] [--again]
    python benchmarks/device.py --tiny --device cpu --out /tmp/somewhere

For the day a GPU is at hand, and for as long as it is: every part is a process with its own share of the
minutes, and what it measured is kept under OUT/device-parts/ as soon as it ends. The table,
OUT/device-DATE.md, is written anew after every part, so that it is there whenever the program is stopped;
started again it goes on with the parts that are missing. It needs no data: pictures are painted first.
`--tiny` does everything once, small and in this process; its figures say nothing.

- methods: every method 20 steps on the device and on the CPU, in float32: losses, and steps that wait.
- resume: fine-tuning, detection and segmentation stopped, gone on with, and compared with one that was not.
- sqrtkl: streaming SqrtKL beside its three matrix products, at ImageNet-1k's and 22k's size.
- barlow: ViT-S/16, Barlow Twins, two views of 224 px, bf16, 8 loaders, from JPEG files to updated weights.
- simclr: ResNet-50 SimCLR beside lightly's example as documented.
- features: ViT-L features beside the bare loop.
- knn: k-NN over 1.28 million rows of 768 numbers beside the matrix product alone.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.device_parts import correctness, speed
from benchmarks.device_parts.row import Row, Setting
from benchmarks.measuring import RESULTS, write_table
from carryover.configs.files import write_atomic
from carryover.core.training.device import choose_device
from carryover.core.training.provenance import git_revision, hardware

KEPT = "device-parts"


@dataclass(frozen=True)
class Part:
    """One question: what answers it, and how many seconds it may take at the most."""

    name: str
    measure: Callable[[Setting], Iterable[Row]]
    seconds: int


# In the order of their value: what comes last is what a short lease does without.
PARTS = (
    Part("methods", correctness.methods, 120),
    Part("resume", correctness.resume, 100),
    Part("sqrtkl", speed.sqrtkl, 50),
    Part("barlow", speed.barlow, 80),
    Part("simclr", speed.simclr, 100),
    Part("features", speed.features, 50),
    Part("knn", speed.knn, 30),
)


def run_here(part: Part, options: argparse.Namespace) -> Iterator[Row]:
    """Measure one part in this process, row by row; a part that fails is a row that says so."""
    setting = Setting(choose_device(options.device), options.tiny, options.out / KEPT / "work")
    try:
        yield from part.measure(setting)
    except Exception as error:  # what failed is said, and the others are measured
        traceback.print_exc()
        yield Row("–", f"failed: {type(error).__name__}: {str(error)[:200]}")


def run_part(part: Part, options: argparse.Namespace, seconds: float) -> list[Row]:
    """Measure one part in a process of its own; a part that fails or takes too long is a row that says so."""
    command = [sys.executable, __file__, "--only", part.name, "--device", options.device]
    command += ["--out", str(options.out), *(["--tiny"] if options.tiny else [])]
    # Its own group, so that its loaders end with it.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    began = time.monotonic()
    try:
        out, errors = process.communicate(timeout=seconds)
        end = [] if process.returncode == 0 else [Row("–", f"failed: exit status {process.returncode}")]
    except subprocess.TimeoutExpired:
        # What was measured so far counts.
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        end = [Row("–", f"stopped after {time.monotonic() - began:.0f} s")]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if end:
        print(errors[-3000:], file=sys.stderr)
    return [Row(**json.loads(line)) for line in out.splitlines() if line.startswith("{")] + end


def table(found: dict[str, list[Row]], options: argparse.Namespace) -> list[str]:
    """Return the whole table, with a line for every part that is missing."""
    lines = [
        "# On a device",
        "",
        f"`python benchmarks/device.py --device {options.device}{' --tiny' if options.tiny else ''}`",
        "",
        f"{datetime.date.today()}, {hardware(choose_device(options.device))}, {os.cpu_count()} cores, torch"
        f" {torch.__version__}, revision {git_revision()}.",
        "",
        "| part | what | measured | beside | ratio | wanted | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        rows = found.get(part.name, [Row("–", "not measured")])
        lines += [row.line(part.name) for row in rows]
    return lines


def measure_all(options: argparse.Namespace) -> int:
    """Measure what is missing while there is time; return how many parts failed or missed what was wanted."""
    deadline = time.monotonic() + 60 * options.minutes
    kept = options.out / KEPT / ("tiny" if options.tiny else "full")
    found: dict[str, list[Row]] = {}
    for part in PARTS:
        stored = kept / f"{part.name}.json"
        if stored.exists() and not options.again:
            found[part.name] = [Row(**row) for row in json.loads(stored.read_text(encoding="utf-8"))]
    for part in PARTS:
        left = deadline - time.monotonic()
        if part.name in found or part.name not in options.parts or left < 5:
            continue
        began = time.monotonic()
        seconds = min(left, part.seconds)
        rows = list(run_here(part, options)) if options.tiny else run_part(part, options, seconds)
        found[part.name] = rows
        print(f"{part.name}: {time.monotonic() - began:.0f} s, {len(rows)} rows", flush=True)
        if all(row.measured is not None for row in rows):
            kept.mkdir(parents=True, exist_ok=True)
            write_atomic(kept / f"{part.name}.json", json.dumps([asdict(row) for row in rows]))
        write_table("device-tiny" if options.tiny else "device", table(found, options), options.out)
    print("\n".join(table(found, options)))
    everything = [row for rows in found.values() for row in rows]
    # Of a tiny network on a CPU no rate is wanted.
    return sum(row.measured is None or (row.reached is False and not options.tiny) for row in everything)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--device", default="auto", help="as recipes say it: auto, cuda, cpu, ...")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--again", action="store_true", help="measure anew what is kept")
    parser.add_argument("--tiny", action="store_true", help="everything once, small: does the program run?")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        part = next(part for part in PARTS if part.name == options.only)
        for row in run_here(part, options):
            print(json.dumps(asdict(row)), flush=True)
        return
    # What a scheduler sends before it kills: the parts so far are kept, and the one under way goes too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(1 if measure_all(options) else 0)


if __name__ == "__main__":
    main()
