"""By how much the demo's pretrainings beat random initialization, over seeds, threads and instruction sets.

    python benchmarks/demo_margins.py [--seeds 100 ... 109] [--threads 1 2] [--work DIR] [--isa default avx2]

Pretrains every recipe of `carryover demo` once for each seed (none that the demo uses), evaluates each with
1 % and 10 % of the labels and by k-NN as the demo does, and compares each method's mean with that of random
initialization: the difference, and how many times the larger of the two standard deviations it is. "avx2"
lowers PyTorch's and oneDNN's instruction set (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA), which takes AMX and
bf16 instructions away: there, and on a CPU without them, the demo runs in fp32. Runs that are there in DIR
already are gone on with. Writes a dated table.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, write_table
from carryover.core.processor import bf16_instructions
from carryover.core.training.provenance import hardware
from carryover.transfer.results.reading import read_records

FLOOR = "random_demo"
RECIPES = ("unigrad_demo", "simo_demo", "sqrtkl_demo", FLOOR)
EVALUATIONS = {"demo_finetune_1percent": "top-1", "demo_finetune_10percent": "top-1", "demo_knn": "k=200"}
ISA = {"default": {}, "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}}
_PIPELINE = """shapes: {{seed: 0, n_train: 2000, n_val: 500, n_detection: 120}}
roots: {{classification: shapes:classification}}
holds: {{classification: [shapes (imagefolder)]}}
pretrain: [{pretrain}]
evaluate: [{evaluate}]
"""


def run(work: Path, seeds: Sequence[int], threads: int, isa: str) -> Path:
    """Pretrain and evaluate in one process with so many threads; return the run's directory."""
    pretrain = ", ".join(
        f"{{recipe: {name}, seeds: {list(seeds)}, overrides: [augment.view.size=48]}}" for name in RECIPES
    )
    evaluate = ", ".join(f"{{recipe: {name}, overrides: [image.input_size=any]}}" for name in EVALUATIONS)
    file, out = work / "margins.yaml", work / f"{threads}-{isa}"
    file.write_text(_PIPELINE.format(pretrain=pretrain, evaluate=evaluate))
    program = "import sys; from carryover.transfer.cli.main import main; sys.exit(main())"
    arithmetic = [] if bf16_instructions() and isa == "default" else ["precision=fp32"]
    arguments = ("run", str(file), *arithmetic, "--executor", "inline", "--out", str(out))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | ISA[isa] | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SystemExit(f"{out}: the run ended with status {done.returncode}")
    return out


def scores(run_directory: Path) -> dict[str, dict[str, list[float]]]:
    """Return evaluation -> pretraining recipe -> one score for each seed."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    records, problems = read_records([run_directory])
    if problems:
        raise SystemExit(f"{problems[0].path}: {problems[0].reason}")
    for record in (stored.record for stored in records):
        wanted = EVALUATIONS[record.recipe]
        (value,) = (m.value for m in record.metrics if wanted in m.label and "top-5" not in m.label)
        found[record.recipe][record.pretrain_recipe].append(value)
    return found


def table(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Markdown: a row for each evaluation and method."""
    lines = [
        "| evaluation | pretraining | mean | standard deviation | smallest | above random | in deviations |",
        "|---|---|---|---|---|---|---|",
    ]
    for evaluation, rows in found.items():
        floor = rows[FLOOR]
        for name, values in rows.items():
            mean, spread = statistics.mean(values), statistics.stdev(values)
            above = mean - statistics.mean(floor)
            own = "" if name == FLOOR else f"{above:.1f} | {above / max(spread, statistics.stdev(floor)):.1f}"
            lines.append(
                f"| {evaluation} | {name} | {mean:.1f} | {spread:.1f} | {min(values):.1f} | {own or ' | '} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 110)))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--isa", nargs="+", choices=ISA, default=["default"])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    machine = hardware(torch.device("cpu"))
    lines = [
        f"# The demo's margins, {datetime.date.today()}",
        "",
        f"{machine}, torch {torch.__version__}; pretraining seeds {options.seeds[0]} to {options.seeds[-1]}.",
    ]
    with tempfile.TemporaryDirectory() as directory:
        work = options.work or Path(directory)
        work.mkdir(parents=True, exist_ok=True)
        for isa in options.isa:
            for threads in options.threads:
                found = scores(run(work, options.seeds, threads, isa))
                lines += ["", f"## {threads} threads, {isa} instructions", "", *table(found)]
                print("\n".join(lines[-len(table(found)) - 2 :]), flush=True)
    write_table("demo-margins", lines, options.out)


if __name__ == "__main__":
    main()
