"""How much `carryover inspect` of a large checkpoint takes beside importing torch: processor time and memory.

    python benchmarks/inspect_large.py [--runs 7]

Writes a ViT-L (1.2 GB, timm's names, random values) as safetensors and as torch.save does, and inspects each
in processes of their own, in turn with one that imports torch; nothing is remembered. The files are in the
page cache: what is measured is the processor, not the disk. Writes a dated table to benchmarks/results/.

This program imports torch last: a child's peak memory counts from that of the process that starts it.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, spread, write_table

PROCESSOR_WANTED, MEMORY_WANTED = 1.3, 1.15


def cost(command: list[str], cache: str) -> tuple[float, float]:
    """Run a command to its end; return its seconds of processor time and its peak memory in MiB."""
    sink = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, sink, 1), (os.POSIX_SPAWN_DUP2, sink, 2)]
    pid = os.posix_spawn(command[0], command, os.environ | {"XDG_CACHE_HOME": cache}, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    os.close(sink)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


WRITE = """
import sys, timm, torch
from safetensors.torch import save_file
generator = torch.Generator().manual_seed(0)
with torch.device("meta"):
    shapes = timm.create_model("vit_large_patch16_224", num_classes=0).state_dict()
state = {name: 0.02 * torch.randn(value.shape, generator=generator) for name, value in shapes.items()}
save_file(state, "vit_l.safetensors")
torch.save({"model": state, "epoch": 3}, "vit_l.pth")
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        carryover = str(Path(sys.executable).with_name("carryover"))
        commands = {"python -c 'import torch'": [sys.executable, "-c", "import torch"]}
        subprocess.run([sys.executable, "-c", WRITE], check=True, cwd=directory)
        for path in sorted(Path(directory).iterdir()):
            commands[f"carryover inspect {path.name}"] = [carryover, "inspect", str(path)]
        for run in range(options.runs + 1):
            for name, command in commands.items():
                with tempfile.TemporaryDirectory() as cache:
                    measured = cost(command, cache)
                if run:
                    found.setdefault(name, []).append(measured)
    from carryover.core.training.provenance import hardware

    middle = {
        n: tuple(statistics.median(m[i] for m in values) for i in (0, 1)) for n, values in found.items()
    }
    base = next(iter(middle.values()))
    text = [
        "# Inspecting 1.2 GB",
        "",
        f"`python benchmarks/inspect_large.py --runs {options.runs}`",
        "",
        f"{datetime.date.today()}, {hardware()}; load average before the first run {load:.1f}. Medians of"
        f" {options.runs} (smallest to largest), processes in turn, nothing remembered.",
        "",
        "| what | processor s | ratio | peak MiB | ratio |",
        "|---|---|---|---|---|",
        *(
            f"| `{name}` | {spread([m[0] for m in values], 2)} | {middle[name][0] / base[0]:.2f} |"
            f" {spread([m[1] for m in values], 0)} | {middle[name][1] / base[1]:.2f} |"
            for name, values in found.items()
        ),
        "",
        f"Wanted: at most {PROCESSOR_WANTED} of the processor time and {MEMORY_WANTED} of the memory of"
        " importing torch.",
    ]
    print("\n".join(text))
    write_table("inspect-large", text, options.out)


if __name__ == "__main__":
    main()
