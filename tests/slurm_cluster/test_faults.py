"""What a cluster does to its users: early signals, other clusters, nodes out of service, steered shells."""

import os
import shlex
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from carryover.slurm import Graph, Ledger, RunError, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.control import cancel, retry
from carryover.slurm.status import status
from carryover.slurm.submission import submissions
from tests.slurm import work
from tests.slurm_cluster.cluster import Cluster
from tests.slurm_cluster.test_interruptions import SETTINGS, begun, record, submit, waiting_stage
from tests.slurm_cluster.waiting import at_rest, hurry, states, unfinished, wait_until


def job_of(run: Path, stage: str = "train") -> str:
    return submissions(Ledger(run))[-1].jobs[stage][-1]


def state_of(cluster: Cluster, job: str) -> str:
    listed = cluster.command("squeue", "-h", "--states=all", "-j", job, "-o", "%T %k")
    return listed.strip()


def test_signals_before_a_stage_has_begun_kill_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """While the batch script sets things up, while Python starts: to all of the job, or to its steps."""
    run, door = tmp_path / "run", tmp_path / "door"
    sent = {"usr2": ("USR2", "--full"), "term": ("TERM", "--full"), "step": ("USR2",), "steps": ("TERM",)}
    # Nothing can be done before the batch script's first line: its shell would die of TERM as any does.
    set_up = {name: tmp_path / f"{name} is being set up" for name in sent}
    stages = [waiting_stage(door, n, setup=(f"touch {shlex.quote(str(set_up[n]))}; sleep 2",)) for n in sent]
    submit(run, *stages, *(Stage(f"after-{s.name}", work.write, depends_on=(s.name,)) for s in stages))
    waiting, left = set(sent), dict.fromkeys(sent, 10)
    end = time.monotonic() + 120
    while waiting and time.monotonic() < end:
        hurry(cluster)
        for name in list(waiting):
            if left[name] and set_up[name].exists():
                left[name] -= 1
                signal, *more = sent[name]
                # A step is there to be signalled only from its launch on.
                subprocess.run(
                    ["scancel", f"--signal={signal}", *more, job_of(run, name)], capture_output=True
                )
            if begun(run, name).exists() or record(run, name).attempts:
                waiting.remove(name)
    door.touch()
    now = at_rest(cluster, run)
    assert now.succeeded, unfinished(now)
    for name in sent:
        assert {a.state for a in record(run, name).attempts} <= {"interrupted", "finished"}


def test_a_signal_to_the_batch_script_too_sends_a_stage_back_into_the_queue(
    cluster: Cluster, tmp_path: Path
) -> None:
    """srun, which TERM reaches as well, kills its tasks at once: the stage can write nothing down."""
    run, door = tmp_path / "run", tmp_path / "door"
    submit(run, waiting_stage(door), Stage("after", work.write, depends_on=("train",)))
    for _ in range(2):
        wait_until(begun(run).exists, "the stage")
        attempts = len(record(run).attempts)
        for _ in range(3):
            # Again while the script does what is left to be done; scancel itself waits where it is too late.
            with suppress(subprocess.TimeoutExpired):
                words = ["scancel", "--signal=TERM", "--full", job_of(run)]
                subprocess.run(words, capture_output=True, timeout=1)
        hurried = lambda: hurry(cluster) or len(record(run).attempts) > attempts  # noqa: E731, B023
        wait_until(hurried, "the next attempt")
    door.touch()
    now = at_rest(cluster, run)
    assert now.succeeded, unfinished(now)
    assert record(run).job_ids == (job_of(run),)


def test_a_preemption_before_a_stage_has_begun_kills_nothing(bare_cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(run, waiting_stage(tmp_path, cpus_per_task=bare_cluster.cpus, setup=("sleep 3",)))
    wait_until(lambda: state_of(bare_cluster, job_of(run)).startswith("RUNNING"), "the job's start")
    preempt(bare_cluster)
    assert at_rest(bare_cluster, run).succeeded


def preempt(cluster: Cluster, spare: int = 0) -> None:
    """Take all nodes away from jobs of lower priority for a moment."""
    options = [
        "--partition=urgent",
        f"--nodes={len(cluster.nodes)}",
        "--ntasks-per-node=1",
        "--output=/dev/null",
    ]
    cluster.command("sbatch", *options, f"--cpus-per-task={cluster.cpus - spare}", "--wrap", "sleep 2")


def test_another_cluster_is_not_asked_about_a_runs_jobs(
    cluster: Cluster, bare_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have jobs of the same numbers, somebody else's."""
    run = tmp_path / "run"
    words = ("sbatch", "--hold", "--parsable", "--output=/dev/null", "--wrap", "true")
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    there = int(bare_cluster.command(*words))
    while int(cluster.command(*words)) < there:
        pass
    submit(run, waiting_stage(tmp_path / "door"))
    job = job_of(run)
    while int(bare_cluster.command(*words)) < int(job):
        pass
    monkeypatch.setenv("SLURM_CONF", str(bare_cluster.conf))
    assert "PENDING" in state_of(bare_cluster, job)
    now = status(run)
    assert states(now) == {"train": "unknown"} and "it is on cluster carryover" in now.note
    for refused in (cancel, retry):
        with pytest.raises(RunError, match="on cluster carryover"):
            refused(run)
    assert "PENDING" in state_of(bare_cluster, job), "a foreign job was touched"
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    assert cancel(run) == ["train"]
    assert state_of(bare_cluster, job).startswith("PENDING")
    for one in (cluster, bare_cluster):
        one.command("scancel", "--state=PENDING", "--user=root")


def test_nodes_out_of_service_and_a_controller_that_restarts(bare_cluster: Cluster, tmp_path: Path) -> None:
    run, cluster = tmp_path / "run", bare_cluster
    for node in cluster.nodes:
        cluster.command("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    stages = [waiting_stage(tmp_path / "door", "first"), Stage("second", work.write, depends_on=("first",))]
    submit(run, *stages)
    assert states(status(run)) == {"first": "submitted", "second": "submitted"}
    for node in cluster.nodes:
        cluster.command("scontrol", "update", f"NodeName={node}", "State=RESUME")
    wait_until(begun(run, "first").exists, "the first stage")
    cluster.stop_controller()
    try:
        now = status(run)
        assert states(now) == {"first": "unknown", "second": "unknown"} and now.in_flight
        with pytest.raises(RunError, match="cannot be told"):
            retry(run)
    finally:
        cluster.start_controller()
    assert run_graph(Graph(stages), SlurmExecutor(SETTINGS), run).succeeded
    (tmp_path / "door").touch()
    now = at_rest(cluster, run)
    assert now.succeeded and [s.attempts for s in now.stages] == [1, 1]


def test_a_filter_in_the_shell_submits_nothing_twice(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does one whose squeue is silent; sbatch hears the recipe, and cancel stops everything."""
    run = tmp_path / "run"
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "urgent")
    submit(run, waiting_stage(tmp_path / "door"))
    job = job_of(run)
    shown = cluster.command("scontrol", "show", "job", "-o", job)
    assert "TimeLimit=00:10:00" in shown and "Partition=batch" in shown
    for name, value in (("SQUEUE_PARTITION", "urgent"), ("SQUEUE_USERS", "nobody"), ("SQUEUE_STATES", "S")):
        monkeypatch.setenv(name, value)
        assert retry(run).succeeded and len(submissions(Ledger(run))[-1].jobs) == 0, name
    silent = tmp_path / "bin/squeue"
    silent.parent.mkdir()
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{silent.parent}:{path}")
    with pytest.raises(RunError, match="not even the header"):
        retry(run)
    monkeypatch.setenv("PATH", path)
    assert cancel(run) == ["train"]
    assert "RUNNING" not in state_of(cluster, job)
