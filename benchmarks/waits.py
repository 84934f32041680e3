"""What people wait for, beside another checkout of this project (61b7ba6, say): both in turn, ratios.

    python benchmarks/waits.py OTHER [--rows knn20 views report ...] [--data JPEGS] [--runs 5]

Every turn is a process of its own with one thread, after a round that is not counted (but for "demo" and
"test", which take minutes). "knn", "views" and "report" count the processor time of the work alone; "plan",
"inspect" and "doctor" that of the whole command, with its children; "demo" and "test" are the commands' time
by the clock, with as many threads as cores. `knn` is compared with the matrix product alone, lightly and
faiss too, where they are installed. Ratios are of medians; the smallest and largest follow. Writes a dated
table.
"""

import argparse
import datetime
import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, spread, write_table
from carryover.core.training.provenance import hardware

HERE = Path(__file__).resolve().parents[1]

_BANK = """
torch.manual_seed(0)
bank, queries = (torch.nn.functional.normalize(torch.randn(n, 512), dim=1) for n in (50000, 512))
labels = torch.arange(50000) % 1000
"""
_KNN = f"""
import torch
from {{p}}transfer.{{knn}} import Neighborhood, nearest, votes
{_BANK}
def turn():
    for _, similarity, index in nearest(queries, bank, {{k}}):
        votes(similarity, labels[index], 1000, Neighborhood({{k}}, 0.07)).topk(5, dim=1)
"""
_PRODUCT = f"""
import torch
{_BANK}
def turn():
    for part in bank.split(4096): queries @ part.T
"""
_LIGHTLY = f"""
import torch
from lightly.utils.benchmarking import knn_predict
{_BANK}
columns = bank.T.contiguous()
def turn():
    knn_predict(queries, columns, labels, num_classes=1000, knn_k={{k}}, knn_t=0.07)
"""
_FAISS = f"""
import faiss, torch
{_BANK}
faiss.omp_set_num_threads(1)
index = faiss.IndexFlatIP(512)
index.add(bank.numpy())
def turn():
    index.search(queries.numpy(), {{k}})
"""
_VIEWS = """
from pathlib import Path
import {p}pretrain.config
from {p}configs import load
from {p}{data} import DataConfig
from {p}{loader} import Loader, open_dataset
found = open_dataset(DataConfig(kind="imagefolder", root=Path({root!r})))
dataset = found.take(range(min(64, len(found))))
config = load("pretrain", {recipe!r}, ["data.root=unread"])
loader = Loader(dataset, config.augment, 32, seed=0, drop_last=False)
def turn():
    for _ in loader.epoch(0): pass
"""
_REPORT = """
import tempfile
from pathlib import Path
from benchmarks.report import write_records
from {p}transfer.report import write_report
work = Path(tempfile.mkdtemp(dir={work!r}))
write_records(work / "run", 10000)
def turn():
    write_report([work / "run"], Path(tempfile.mkdtemp(dir=work)) / "report")
"""
_TIMED = """
import time, torch
torch.set_num_threads(1)
{warm}
start = time.process_time()
turn()
print(time.process_time() - start)
"""
_PIPELINE = """checkpoints: [{{path: {checkpoint}, label: theirs}}]
evaluate:
  - {{recipe: demo_knn, overrides: ["data.root={root}"]}}
  - {{recipe: demo_finetune_10percent, seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8], overrides: ["data.root={root}"]}}
"""


@dataclass(frozen=True)
class Side:
    """One checkout, and how its modules are called."""

    root: Path

    @property
    def is_packaged(self) -> bool:
        return (self.root / "src").is_dir()

    @property
    def names(self) -> dict[str, str]:
        if self.is_packaged:
            data = {"data": "core.data.config", "loader": "core.data.prepared"}
            return {"p": "carryover.", "knn": "tasks.knn.model", **data}
        return {
            "p": "",
            "knn": "classify.neighbours",
            "data": "pretrain.data_config",
            "loader": "pretrain.data",
        }

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(self.root / "src"), str(self.root)] if self.is_packaged else [str(self.root)]
        kept = [
            p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and HERE not in Path(p).parents
        ]
        return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *kept])}

    def command(self, *arguments: str) -> list[str]:
        main = "carryover.transfer.cli.main" if self.is_packaged else "transfer.cli"
        return [sys.executable, "-c", f"import sys; from {main} import main; sys.exit(main())", *arguments]


def timed(side: Side, snippet: str, warm: bool) -> Callable[[], float]:
    """Processor time of a snippet's `turn`; with `warm`, of its second call."""

    def measure() -> float:
        code = snippet + _TIMED.format(warm="turn()" if warm else "")
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**side.environment, "OMP_NUM_THREADS": "1"},
            cwd=side.root,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{side.root}: {done.stderr[-2000:]}")
        return float(done.stdout.split()[-1])

    return measure


def whole(side: Side, command: Sequence[str], clock: bool, folder: Path | None = None) -> Callable[[], float]:
    """Processor time of a command and its children, or its time by the clock; `folder` is emptied before."""

    def measure() -> float:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, env=side.environment, cwd=side.root, capture_output=True, text=True)
        taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{side.root}: {' '.join(command)}: {done.stderr[-2000:]}")
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return taken if clock else spent

    return measure


def write_inputs(work: Path) -> None:
    """Write class folders of 40 pictures a split, and a small checkpoint of torchvision's names."""
    from torchvision.models import resnet18

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(40):
            path = work / "classes" / split / f"class{i % 4}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    network = resnet18()
    for name, value in network.named_parameters():
        if "bn" in name or "downsample.1" in name:
            # As trained: a network that never was is refused.
            torch.nn.init.normal_(value, 0.5, 0.1)
    torch.save(network.state_dict(), work / "resnet18.pth")
    (work / "thirteen.yaml").write_text(
        _PIPELINE.format(checkpoint=work / "resnet18.pth", root=work / "classes")
    )


def variants(row: str, side: Side, work: Path, data: Path | None) -> Callable[[], float]:
    """Return what measures a row on one side."""
    own = work / ("new" if side.is_packaged else "old")
    own.mkdir(exist_ok=True)
    if row.startswith("knn"):
        return timed(side, _KNN.format(k=int(row[3:]), **side.names), True)
    if row.startswith("views"):
        if data is None:
            raise SystemExit("views: give --data, a folder with JPEGs in class folders")
        recipe = {"views": "unigrad_r50_100ep", "views_simo": "simo_r50_200ep_k256_a256"}[row]
        return timed(side, _VIEWS.format(root=str(data), recipe=recipe, **side.names), True)
    if row == "report":
        return timed(side, _REPORT.format(work=str(own), **side.names), False)
    if row in ("demo", "test"):
        programs = str(Path(sys.executable).parent)
        command = {
            "demo": side.command("demo", "--out", str(own / "demo")),
            "test": [f"{programs}/python", "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal"],
        }[row]
        return whole(side, command, True, own / "demo")
    arguments = {
        "plan": ("run", str(work / "thirteen.yaml"), "--dry-run"),
        "inspect": ("inspect", str(work / "resnet18.pth")),
        "doctor": ("doctor",),
    }[row]
    return whole(side, side.command(*arguments), False)


def references(row: str, here: Side) -> dict[str, Callable[[], float]]:
    """Return what else a row is compared with."""
    if not row.startswith("knn"):
        return {}
    found = {"the product alone": timed(here, _PRODUCT, True)}
    for name, snippet in (("lightly", _LIGHTLY), ("faiss", _FAISS)):
        if importlib.util.find_spec(name) is not None:
            found[name] = timed(here, snippet.format(k=int(row[3:])), True)
    return found


ROWS = ("knn20", "knn200", "views", "views_simo", "report", "plan", "inspect", "doctor")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=(*ROWS, "demo", "test"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    here, other = Side(HERE), Side(options.other.resolve())
    revision = subprocess.run(
        ["git", "-C", str(other.root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    lines = [
        f"# Beside {revision}, {datetime.date.today()}",
        "",
        f"{hardware(torch.device('cpu'))}, torch {torch.__version__}.",
        f"Seconds: medians of {options.runs} (smallest to largest).",
        "",
        "| row | what | seconds | this checkout's, divided by it |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_inputs(work)
        for row in options.rows:
            turns = {
                "this checkout": variants(row, here, work, options.data),
                revision: variants(row, other, work, options.data),
                **references(row, here),
            }
            taken: dict[str, list[float]] = {name: [] for name in turns}
            uncounted = 0 if row in ("demo", "test") else 1
            for run in range(uncounted + options.runs):
                for name, turn in turns.items():
                    seconds = turn()
                    if run >= uncounted:
                        taken[name].append(seconds)
            ours = statistics.median(taken["this checkout"])
            for name, values in taken.items():
                ratio = "" if name == "this checkout" else f"{ours / statistics.median(values):.2f}"
                lines.append(f"| {row} | {name} | {spread(values, 3)} | {ratio} |")
                print(lines[-1], flush=True)
    lines += ["", f"Load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."]
    write_table("waits", lines, options.out)


if __name__ == "__main__":
    main()
