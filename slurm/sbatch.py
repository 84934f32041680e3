"""From a batch of stages to the options of one sbatch call, and the batch script itself."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from carryover.slurm.batches import Batch
from carryover.slurm.cluster import Cluster
from carryover.slurm.ledger import Ledger
from carryover.slurm.snapshot import git_revision, package_directory, take_snapshot


def parameters(
    batch: Batch, cluster: Cluster, run_name: str, token: str, dependency: str | None, setup: Sequence[str]
) -> dict[str, Any]:
    """Return a batch's parameters for submitit's SlurmExecutor."""
    asked = batch.resources
    further: dict[str, Any] = {"requeue": True} if cluster.requeue else {"no-requeue": True}
    if dependency is not None:
        further["kill-on-invalid-dep"] = "yes"
    srun = ["--kill-on-bad-exit=1"]
    if asked.cpus_per_task is not None:
        # Since SLURM 22.05 srun no longer takes this from the batch job.
        srun.append(f"--cpus-per-task={asked.cpus_per_task}")
    chosen = {
        "job_name": f"{run_name}:{batch.name}",
        "comment": token,
        "time": asked.time_limit_min,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.tasks_per_node,
        "cpus_per_task": asked.cpus_per_task,
        "gpus_per_node": asked.gpus_per_node or None,
        "mem": None if asked.mem_gb is None else f"{round(asked.mem_gb * 1024)}M",
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "dependency": dependency,
        "array_parallelism": cluster.array_parallelism,
        "signal_delay_s": asked.signal_delay,
        "srun_args": srun,
        "setup": [*setup, *asked.setup],
        # submitit's default wckey is refused where such keys are tracked.
        "wckey": None,
        "additional_parameters": {**further, **asked.sbatch},
    }
    kept_even_if_none = ("wckey",)
    return {key: value for key, value in chosen.items() if value is not None or key in kept_even_if_none}


def script(batch: Batch, chosen: dict[str, Any], directory: Path, command: str) -> str:
    """Return the text of the batch script, as submitit writes it."""
    count = len(batch.stages) if len(batch.stages) > 1 else None
    text: str = _make_sbatch_string(command=command, folder=directory, map_count=count, **chosen)
    return text


def folder(ledger: Ledger) -> Path:
    """Return where submitit keeps its scripts, calls and logs of a run; only the jobs read the calls."""
    return ledger.run_dir / "jobs"


def header(text: str) -> list[str]:
    """Return the #SBATCH lines of a batch script."""
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def interpreter() -> str:
    """Return the shell command of this interpreter.

    -P keeps the directory of submission out of the import path, where a working tree would come before the
    snapshot.
    """
    return f"{shlex.quote(sys.executable)} -P"


def job_environment(ledger: Ledger, packages: Sequence[str]) -> dict[str, str]:
    """Take a snapshot of packages; return the variables by which a job imports it and knows its revision.

    A snapshot has no git directory: what runs from it reads the revision in CARRYOVER_GIT_REVISION.
    """
    code = take_snapshot(ledger, packages) if packages else None
    variables = {"PYTHONPATH": import_path(code)}
    if packages:
        variables["CARRYOVER_GIT_REVISION"] = git_revision(*map(package_directory, packages))
    return variables


def import_path(snapshot: Path | None) -> str:
    """Return the PYTHONPATH under which a job imports what this process does, the snapshot first."""
    library = tuple(os.path.realpath(p) for p in {sys.prefix, sys.base_prefix, sys.exec_prefix})
    own = [os.path.realpath(p or ".") for p in sys.path]
    added = [p for p in own if Path(p).exists() and not p.startswith(library)]
    return os.pathsep.join(dict.fromkeys([*([str(snapshot)] if snapshot else []), *added]))
