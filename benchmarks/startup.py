"""How long carryover takes to get going: its command line beside importing torch, a stage beside its imports.

    python benchmarks/startup.py [--runs 7]

Every command is a process of its own; they take turns, after one round that is not counted. A stage's own
overhead is what `carryover run --executor local` takes from start to end with one stage that imports the
modules of a fine-tuning and does nothing, less what a Python process takes that imports the same. The time in
which the run itself imports what it needs is not the stage's, and not counted. Writes a dated table to
benchmarks/results/.
"""

import argparse
import datetime
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, in_turn, spread, write_table
from carryover.core.training.provenance import hardware
from carryover.slurm.executor import run_graph
from carryover.slurm.graph import Graph
from carryover.slurm.local import LocalExecutor
from carryover.slurm.stage import Stage

MODULES = ("torch", "torchvision", "carryover.transfer.tasks.finetune.task")
HELP_WANTED, STAGE_WANTED = 0.25, 1.0


def do_nothing(modules: list[str], out: Path) -> None:
    """A stage that has imported what a fine-tuning needs, and is done."""
    for name in modules:
        importlib.import_module(name)


def process(*command: str) -> Callable[[int], object]:
    """A turn that runs a command to its end."""
    return lambda run: subprocess.run(command, check=True, capture_output=True)


def stage(run: int) -> None:
    """Run one empty stage from plan to finished record."""
    with tempfile.TemporaryDirectory() as directory:
        graph = Graph([Stage("nothing", do_nothing, {"modules": list(MODULES)})])
        result = run_graph(graph, LocalExecutor(at_once=1), Path(directory) / "run")
        assert result.succeeded


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()

    load_before = os.getloadavg()[0]
    carryover = str(Path(sys.executable).with_name("carryover"))
    help_ = "carryover --help"
    torch_alone, imports, nothing = 'python -c "import torch"', "the same imports alone", "an empty stage"
    seconds = in_turn(
        {
            torch_alone: process(sys.executable, "-c", "import torch"),
            help_: process(carryover, "--help"),
            "carryover recipes": process(carryover, "recipes"),
            "carryover run demo --dry-run": process(carryover, "run", "demo", "--dry-run"),
            imports: process(sys.executable, "-c", f"import {', '.join(MODULES)}"),
            nothing: stage,
        },
        options.runs,
    )
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    text = [
        "# Start-up",
        "",
        f"`python benchmarks/startup.py --runs {options.runs}`",
        "",
        f"{datetime.date.today()}, {hardware()}; load average before the first run {load_before:.1f}. Medians"
        f" of {options.runs} (smallest to largest).",
        "",
        "| what | ratio to `import torch` | seconds |",
        "|---|---|---|",
        *(
            f"| `{name}` | {middle[name] / middle[torch_alone]:.2f} | {spread(values, 2)} |"
            for name, values in seconds.items()
        ),
        "",
        f"`carryover --help`: {middle[help_] / middle[torch_alone]:.2f} of `import torch`, wanted at most"
        f" {HELP_WANTED}. A stage's own overhead: {middle[nothing] - middle[imports]:.2f} s above its"
        f" imports, wanted at most {STAGE_WANTED:.0f} s.",
    ]
    print("\n".join(text))
    write_table("startup", text, options.out)


if __name__ == "__main__":
    main()
