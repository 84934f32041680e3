"""A seeded schedule of faults over a pipeline on a real SLURM; results must be an undisturbed run's.

::

    python -m tests.slurm_cluster.schedule --seed 7 --faults 40

Fourteen stages: a data set, two pretrainings, their proofs, for each a detection, a segmentation and two
fine-tunings, and the report. While they run, faults drawn with the seed hit whatever is there to be hit.
Every line that is printed is a fault, or what had to be done after it. In the end weights, metrics and
predictions are compared with those of an inline run, and the exit status is 1 where they differ.
"""

import argparse
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from carryover.configs import CarryoverError, load
from carryover.slurm import InlineExecutor, Ledger, Resources, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.control import cancel, retry
from carryover.slurm.flights import Flights
from carryover.slurm.graph import Graph
from carryover.slurm.resources import Cluster as Settings
from carryover.slurm.scheduler import Queued
from carryover.slurm.status import status
from carryover.transfer.pipeline.plan import plan
from tests.slurm_cluster.cluster import Cluster, Kind, running_cluster
from tests.slurm_cluster.waiting import hurry
from tests.transfer import tiny_demo
from tests.transfer.tasks.segmentation import scenes

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "slow": 'sleep 3; exec {real} "$@"',
    "silent": "exit 0",
    "with a header alone": '{real} "$@" | head -1',
    "failing": "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
    "failing once": (
        'if mkdir {mark} 2>/dev/null; then echo "Socket timed out" >&2; exit 1; fi; exec {real} "$@"'
    ),
}


@dataclass
class Field:
    """Where a schedule happens: the cluster, the run, and the dice."""

    cluster: Cluster
    run: Path
    dice: random.Random
    shims: Path
    tally: Counter[str] = field(default_factory=Counter)

    def live(self) -> dict[str, list[Queued]]:
        """Return every stage's jobs that have not ended, and make sure that no stage runs twice."""
        ledger = Ledger(self.run)
        flights, found = Flights(ledger), {}
        for name in ledger.read_pipeline().names:
            record, _ = ledger.readable(name)
            found[name] = list(flights.live(record)) if record is not None else []
            at_work = [job.job_id for job in found[name] if job.state in ("RUNNING", "COMPLETING")]
            assert len(at_work) <= 1, f"two jobs at work on {name}: {at_work}"
        return found

    def victim(self, state: str = "RUNNING") -> str | None:
        """Choose one of the run's jobs in a state."""
        jobs = [job.job_id for jobs in self.live().values() for job in jobs if job.state == state]
        return self.dice.choice(sorted(jobs)) if jobs else None


def _signal(name: str, *more: str) -> Callable[[Field], str]:
    def fault(there: Field) -> str:
        job = there.victim()
        if job:
            _try(there, "scancel", f"--signal={name}", *more, job)
        return job or ""

    return fault


def requeue(there: Field) -> str:
    """Requeue a running job as an administrator does."""
    job = there.victim()
    if job:
        _try(there, "scontrol", "requeue", job)
    return job or ""


def preempt(there: Field) -> str:
    """Let an urgent job take all the CPUs of one node."""
    node = there.dice.choice(there.cluster.nodes)
    options = [f"--nodelist={node}", f"--cpus-per-task={there.cluster.cpus}", "--output=/dev/null"]
    _try(there, "sbatch", "--partition=urgent", "--job-name=urgent", *options, "--wrap", "sleep 2")
    return node


def scancel(there: Field) -> str:
    """Cancel a job behind the run's back, running or not."""
    job = there.victim(there.dice.choice(["RUNNING", "PENDING"]))
    if job:
        _try(there, "scancel", job)
    return job or ""


def drain(there: Field) -> str:
    """Drain a node and take it back into service a while later; jobs on it go on."""
    node = there.dice.choice(there.cluster.nodes)
    _try(there, "scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=schedule")
    _retry(there)
    _try(there, "scontrol", "update", f"NodeName={node}", "State=RESUME")
    return node


def restart_controller(there: Field) -> str:
    """Stop the controller; what is asked meanwhile must not be taken for an answer."""
    there.cluster.stop_controller()
    try:
        now = status(there.run)
        assert not now.ended_badly or now.counts["failed"] + now.counts["cancelled"] > 0, now.counts
        said = _retry(there)
    finally:
        there.cluster.start_controller()
    return said


def node_down(there: Field) -> str:
    """Declare a node down, which takes its jobs away, and up again."""
    node = there.dice.choice(there.cluster.nodes)
    _try(there, "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=schedule")
    said = _retry(there)
    _try(there, "scontrol", "update", f"NodeName={node}", "State=RESUME")
    return f"{node}, {said}"


def slurmd_killed(there: Field) -> str:
    """Kill a node's slurmd and start it again a while later."""
    node = there.dice.choice(there.cluster.nodes)
    there.cluster.kill_slurmd(node)
    time.sleep(there.dice.uniform(0.5, 5))
    there.cluster.start_slurmd(node)
    return node


def array_cancelled(there: Field) -> str:
    """Cancel all of a job's array behind the run's back."""
    job = there.victim(there.dice.choice(["RUNNING", "PENDING"]))
    if job:
        _try(there, "scancel", job.partition("_")[0])
    return job or ""


def disk_full(there: Field) -> str:
    """Leave no room on the run's disk for some seconds."""
    disk = there.run.parent
    if not disk.is_mount():
        return ""
    filler, free = disk / "filler", os.statvfs(disk)
    try:
        with suppress(OSError), filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
            while True:
                file.seek(0, os.SEEK_END)
                file.write(bytes(1 << 16))
                file.flush()
        time.sleep(there.dice.uniform(1, 4))
        return _retry(there)
    finally:
        filler.unlink()


def cancel_the_run(there: Field) -> str:
    """Cancel everything."""
    try:
        return ",".join(cancel(there.run))
    except CarryoverError as error:
        return str(error)


def cancelled_twice(there: Field) -> str:
    """Let two processes cancel while a third retries."""
    words = [("cancel",), ("retry",), ("cancel",)]
    processes = [_carryover(*one, str(there.run)) for one in words]
    return ",".join(str(process.wait()) for process in processes)


def submitter_stopped(there: Field) -> str:
    """Ask a process that retries to stop, twice, somewhere on its way."""
    process = _submitter(there.run)
    time.sleep(there.dice.uniform(1, 6))
    for _ in range(2):
        process.terminate()
        time.sleep(0.3)
    return str(process.wait())


def two_submitters(there: Field) -> str:
    """Let three processes retry at once."""
    processes = [_submitter(there.run) for _ in range(3)]
    return ",".join(str(process.wait()) for process in processes)


def killed_submitter(there: Field) -> str:
    """Kill a process that retries, somewhere on its way."""
    process = _submitter(there.run)
    time.sleep(there.dice.uniform(1, 8))
    process.kill()
    process.wait()
    return f"killed {process.pid}"


def _shim(command: str, kind: str) -> Callable[[Field], str]:
    def fault(there: Field) -> str:
        with _in_front(there, command, kind):
            return _retry(there)

    return fault


def steered_shell(there: Field) -> str:
    """Retry from a shell whose variables filter squeue and override sbatch."""
    names = {"SQUEUE_PARTITION": "urgent", "SBATCH_TIMELIMIT": "1", "SQUEUE_USERS": "nobody"}
    names |= {"SBATCH_PARTITION": "nope", "SLURM_CLUSTERS": "elsewhere"}
    before = dict(os.environ)
    os.environ.update(names)
    try:
        return _retry(there)
    finally:
        os.environ.clear()
        os.environ.update(before)


def at_the_start(name: str) -> Callable[[Field], str]:
    """Send a signal to the next job that begins, in its first moments, several times over."""

    def fault(there: Field) -> str:
        known = {j.job_id: j.restarts for jobs in there.live().values() for j in jobs if j.state == "RUNNING"}
        end = time.monotonic() + 20
        while time.monotonic() < end:
            hurry(there.cluster)
            now = [job for jobs in there.live().values() for job in jobs if job.state == "RUNNING"]
            new = [job.job_id for job in now if known.get(job.job_id) != job.restarts]
            if new:
                for _ in range(8):
                    _try(there, "scancel", f"--signal={name}", "--full", new[0])
                    time.sleep(0.1)
                return new[0]
            time.sleep(0.1)
        return ""

    return fault


FAULTS: dict[str, Callable[[Field], str]] = {
    "USR2": _signal("USR2"),
    "TERM": _signal("TERM"),
    "USR2 to the batch script too": _signal("USR2", "--full"),
    "TERM to the batch script too": _signal("TERM", "--full"),
    "KILL": _signal("KILL"),
    "requeue": requeue,
    "preemption": preempt,
    "scancel": scancel,
    "drained node": drain,
    "controller restarted": restart_controller,
    "node down": node_down,
    "slurmd killed": slurmd_killed,
    "array cancelled": array_cancelled,
    "disk full": disk_full,
    "cancel": cancel_the_run,
    "cancelled twice": cancelled_twice,
    "submitter stopped": submitter_stopped,
    "three submitters": two_submitters,
    "submitter killed": killed_submitter,
    "squeue silent": _shim("squeue", "silent"),
    "squeue failing": _shim("squeue", "failing"),
    "squeue slow": _shim("squeue", "slow"),
    "squeue with a header alone": _shim("squeue", "with a header alone"),
    "scontrol silent": _shim("scontrol", "silent"),
    "sbatch failing": _shim("sbatch", "failing"),
    "sbatch silent": _shim("sbatch", "silent"),
    "scancel failing": _shim("scancel", "failing"),
    "scontrol failing once": _shim("scontrol", "failing once"),
    "sbatch failing once": _shim("sbatch", "failing once"),
    "sacct silent": _shim("sacct", "silent"),
    "shell that steers": steered_shell,
    "USR2 at the start": at_the_start("USR2"),
    "TERM at the start": at_the_start("TERM"),
}


def disturb(there: Field, faults: int, pause: float) -> int:
    """Let faults happen until there were so many, or the run has finished; return how many there were."""
    names: list[str] = []
    begun = time.monotonic()
    for number in range(1, faults + 1):
        # Every kind comes before any comes again.
        names = names or there.dice.sample(sorted(FAULTS), len(FAULTS))
        end = time.monotonic() + there.dice.uniform(0.2, pause)
        while time.monotonic() < end:
            _tend(there)
            time.sleep(0.5)
        if status(there.run).succeeded:
            return number - 1
        name = names.pop()
        what = FAULTS[name](there)
        there.tally[name] += 1
        _say(f"{time.monotonic() - begun:6.1f} s  fault {number}: {name} ({what or 'nothing to hit'})")
    return faults


def settle(there: Field, seconds: float) -> None:
    """Retry what has ended badly until everything has finished."""
    end = time.monotonic() + seconds
    while not status(there.run).succeeded:
        assert time.monotonic() < end, [s for s in status(there.run).stages if s.state != "finished"]
        _tend(there)
        time.sleep(1)


def _tend(there: Field) -> None:
    there.live()
    hurry(there.cluster)
    now = status(there.run)
    if now.holder is None and now.ended_badly:
        bad = {s.name: f"{s.state}: {s.reason}" for s in now.stages if s.state not in _WELL}
        for name, why in bad.items():
            _say(f"          {name} is {why}")
        _say(f"          retry: {_retry(there)}")


_WELL = ("finished", "submitted", "running", "unknown", "blocked", "waiting")


def _retry(there: Field) -> str:
    try:
        return "taken" if retry(there.run).succeeded else "not all of it"
    except CarryoverError as error:
        return f"refused: {str(error).splitlines()[0][:120]}"


def _submitter(run: Path) -> "subprocess.Popen[bytes]":
    return _carryover("retry", str(run))


def _carryover(*arguments: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "carryover", *arguments]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _try(there: Field, *words: str) -> None:
    """Run a command that may come too late."""
    try:
        there.cluster.command(*words)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        _say(f"          {error}")


@contextmanager
def _in_front(there: Field, command: str, kind: str) -> Iterator[None]:
    """Put a program in front of one of SLURM's commands on PATH."""
    path = os.environ["PATH"]
    real = subprocess.run(["which", command], capture_output=True, text=True, check=True).stdout.strip()
    mark = there.shims / f"mark-{time.monotonic_ns()}"
    shim = there.shims / command
    shim.write_text("#!/bin/sh\n" + PROGRAMS[kind].format(real=real, mark=mark) + "\n")
    shim.chmod(0o755)
    os.environ["PATH"] = f"{there.shims}{os.pathsep}{path}"
    try:
        yield
    finally:
        os.environ["PATH"] = path
        shim.unlink()


@contextmanager
def _disk(path: Path) -> Iterator[Path]:
    """Mount a disk of three GB, which a fault can fill; a directory where that is not allowed."""
    path.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "carryover-faults", str(path)]).returncode
        == 0
    )
    try:
        yield path
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def pipeline(root: Path, steps: int) -> Callable[[Path], Graph]:
    """Write data and a pipeline of fourteen stages below `root`; return what lays it out for a run."""
    folders = scenes.write_folders(root / "scenes")
    shapes = '"data.root=${roots.classification}"'
    small = f'"augment.view.size=32", "batch_size=16", "schedule.epochs={steps // 5}"'
    small += ', "schedule.warmup_epochs=0", "log_every=5"'
    detection = '"data.root=${roots.detection}", "solver.max_iter=20", "solver.steps=[15]"'
    detection += ', "solver.warmup_iters=1", "precise_bn=0", "samples=0", "log_every=5"'
    detection += ', "data.defects.absent_class=keep"'
    length = ("solver.max_iter=20", "backend=torchvision")
    segmentation = ", ".join(f'"{key}"' for key in scenes.overrides(folders, *length))
    tuning = '"image.size=32", "image.resize=32", "schedule.epochs=6"'
    text = f"""
shapes: {{n_train: 80, n_val: 20, n_detection: 24}}
roots: {{classification: shapes:classification, detection: shapes:detection}}
pretrain:
  - {{recipe: unigrad_demo, overrides: [{shapes}, {small}]}}
  - {{recipe: sqrtkl_demo, overrides: [{shapes}, {small}]}}
convert: [torchvision]
evaluate:
  - {{recipe: demo_finetune_10percent, seeds: [0, 1], overrides: [{shapes}, {tuning}]}}
  - {{recipe: demo_faster_fpn, overrides: [{detection}]}}
  - {{recipe: fcn_folders, overrides: [{segmentation}]}}
"""
    path = root / "faults.yaml"
    path.write_text(text, encoding="utf-8")
    return lambda run: plan(load("pipelines", path, []), run)


def main() -> int:
    """Run the schedule that the command line asks for; 0 where the results are the undisturbed run's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--pause", type=float, default=8.0, help="most seconds between two faults")
    parser.add_argument("--steps", type=int, default=200, help="training steps of a pretraining")
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds for what is left then")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Jobs of a schedule that was broken off may still write.
    with tempfile.TemporaryDirectory(prefix="carryover-faults-", ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        laid = pipeline(root, asked.steps)
        kind = Kind(nodes=3, cpus=2, kill_wait=8, grace_time=0)
        with _disk(root / "disk") as disk, running_cluster(kind) as cluster:
            os.environ["SLURM_CONF"] = str(cluster.conf)
            (root / "shims").mkdir()
            there = Field(cluster, disk / "disturbed", random.Random(asked.seed), root / "shims")
            settings = Settings(defaults=Resources(time_min=30, signal_delay_s=20), array_parallelism=4)
            graph = laid(there.run)
            assert len(graph) == 14
            assert run_graph(graph, SlurmExecutor(settings, ("carryover",)), there.run).succeeded
            happened = disturb(there, asked.faults, asked.pause)
            settle(there, asked.patience)
            attempts = {name: len(Ledger(there.run).read(name).attempts) for name in graph.names}  # type: ignore[union-attr]
            shutil.copytree(there.run, root / "disturbed", symlinks=True)
        there.run = root / "disturbed"
        _say(f"seed {asked.seed}: {happened} faults: {dict(sorted(there.tally.items()))}")
        _say(f"attempts: {attempts}")
        assert run_graph(laid(root / "inline"), InlineExecutor(), root / "inline").succeeded
        same = {
            name: look(there.run) == look(root / "inline")
            for name, look in (
                ("weights", tiny_demo.weights),
                ("metrics", tiny_demo.metrics),
                ("predictions", tiny_demo.predictions),
            )
        }
        _say(f"equal to the undisturbed run's: {same}, {len(tiny_demo.weights(there.run))} tensors")
        return 0 if all(same.values()) and happened >= asked.faults else 1


if __name__ == "__main__":
    sys.exit(main())
