"""Whole graphs on a real SLURM: dependencies, arrays, failures, retry, what it cost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carryover.slurm import Graph, Ledger, Output, RequestError, Resources, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.control import retry
from carryover.slurm.costs import stage_costs
from carryover.slurm.resources import Cluster as Settings
from carryover.slurm.status import log_files, status
from carryover.slurm.submission import submissions
from tests.slurm import work
from tests.slurm_cluster.cluster import Cluster
from tests.slurm_cluster.waiting import at_rest, states, unfinished, wait_until

EXECUTOR = SlurmExecutor(Settings(defaults=Resources(time_min=10), array_parallelism=2), packages=("slurm",))


def test_a_graph_with_an_array_of_seeds(cluster: Cluster, tmp_path: Path) -> None:
    train = Stage("train", work.write, {"text": "weights"}, resources=Resources(cpus_per_task=2))
    seeds = [
        Stage(f"evaluate/seed{i}", work.copy, {"source": Output("train", "result.txt"), "seed": i})
        for i in range(4)
    ]
    report = Stage("report", work.collect, {"directories": []}, after=tuple(s.name for s in seeds))
    graph = Graph([train, *seeds, report])
    run = tmp_path / "run"
    assert run_graph(graph, EXECUTOR, run).succeeded
    second = run_graph(graph, EXECUTOR, run)
    assert second.succeeded and submissions(Ledger(run))[1].jobs == {}
    now = at_rest(cluster, run)
    assert now.succeeded and [s.attempts for s in now.stages] == [1] * 6
    assert (Ledger(run).out("evaluate/seed3") / "copy.txt").read_text() == "weights"
    jobs = submissions(Ledger(run))[0].jobs
    assert len({jobs[s.name][0].partition("_")[0] for s in seeds}) == 1

    # The database hears of a job's end some seconds after the controller.
    wait_until(lambda: {c.source for c in stage_costs(Ledger(run)).values()} == {"sacct"}, "sacct")
    assert len(stage_costs(Ledger(run))) == 6
    logs = [path.name for path in log_files(Ledger(run), "train")]
    assert logs[0] == "001.log" and f"{jobs['train'][0]}_0_log.out" in logs
    third = run_graph(graph, EXECUTOR, run)
    assert {o.state for o in third.stages.values()} == {"skipped"}


def pretrainings(door: Path, number: int = 6) -> Graph:
    """Pretrainings, of which one fails unless there is a door, with two evaluations each, and a report."""
    stages = [Stage(f"pretrain/{i}", work.write, {"text": str(i)}) for i in range(number - 1)]
    stages.append(Stage(f"pretrain/{number - 1}", work.fail_unless, {"path": str(door)}))
    short = Resources(time_min=5)
    for train in stages[:number]:
        name = train.name.partition("/")[2]
        stages.append(Stage(f"evaluate/{name}/first", work.write, depends_on=(train.name,)))
        stages.append(Stage(f"evaluate/{name}/then", work.write, depends_on=(train.name,), resources=short))
    report = Stage("report", work.collect, {"directories": []}, after=tuple(s.name for s in stages[number:]))
    return Graph([*stages, report])


def test_stages_that_wait_for_different_ones_share_an_array(cluster: Cluster, tmp_path: Path) -> None:
    door, run = tmp_path / "door", tmp_path / "run"
    graph = pretrainings(door)
    assert run_graph(graph, EXECUTOR, run).succeeded
    jobs = submissions(Ledger(run))[0].jobs
    assert len({ids[0].partition("_")[0] for ids in jobs.values()}) == 1, "one array, of all kinds of stages"
    limits = cluster.command("squeue", "--array", "-h", "-j", jobs["report"][0], "-o", "%i %l").splitlines()
    assert limits == [f"{jobs['report'][0]} 10:00"]
    short = jobs["evaluate/1/then"][0]
    assert cluster.command("squeue", "--array", "-h", "-j", short, "-o", "%l").split() in (["5:00"], [])
    while (now := status(run)).in_flight:
        working = [s for s in now.stages if s.state == "running"]
        assert len(working) <= 2, "array_parallelism"
        time.sleep(0.3)
    expected = {s.name: "blocked" if s.name.startswith("evaluate/5") else "finished" for s in graph}
    assert states(now) == expected | {"pretrain/5": "failed"}
    assert all(s.attempts == 1 for s in now.stages if s.state == "finished")
    for name in ("0/first", "3/then"):
        began = Ledger(run).read(f"evaluate/{name}").attempts[0].started  # type: ignore[union-attr]
        assert began > Ledger(run).read(f"pretrain/{name[0]}").attempts[0].ended  # type: ignore[union-attr,operator]
    door.touch()
    assert retry(run).succeeded
    now = at_rest(cluster, run)
    assert now.succeeded and {s.name for s in now.stages if s.attempts == 2} == {"pretrain/5", "report"}


def test_a_submitter_killed_before_it_said_who_waits_for_whom(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left never begins, and the next submitter cancels it."""
    run, door = tmp_path / "run", tmp_path / "door"
    door.touch()
    deadly = tmp_path / "bin/scontrol"
    deadly.parent.mkdir()
    deadly.write_text("#!/bin/sh\nkill -KILL $PPID\n")
    deadly.chmod(0o755)
    program = (
        "from pathlib import Path\n"
        "from carryover.slurm import run_graph\n"
        "from tests.slurm_cluster.test_graphs import EXECUTOR, pretrainings\n"
        f"run_graph(pretrainings(Path({str(door)!r})), EXECUTOR, Path({str(run)!r}))\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{deadly.parent}:{os.environ['PATH']}")
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    (token,) = [s.token for s in submissions(Ledger(run))]

    def left() -> list[str]:
        listed = cluster.command("squeue", "--array", "-h", "-o", "%k %T %r").splitlines()
        return [line for line in listed if line.startswith(token)]

    time.sleep(5)
    assert len(left()) == 19 and all(line.endswith("PENDING BeginTime") for line in left())
    assert not any(Ledger(run).read(name).attempts for name in ("pretrain/0", "report"))  # type: ignore[union-attr]
    assert run_graph(pretrainings(door), EXECUTOR, run).succeeded
    assert not left()
    now = at_rest(cluster, run)
    assert now.succeeded and {s.attempts for s in now.stages} == {1}


def test_a_failure_blocks_its_dependents_and_retry_finishes_the_graph(
    cluster: Cluster, tmp_path: Path
) -> None:
    door, run = tmp_path / "door", tmp_path / "run"
    graph = Graph(
        [
            Stage("bad", work.fail_unless, {"path": str(door)}),
            Stage("needs", work.write, depends_on=("bad",)),
            Stage("then", work.write, depends_on=("needs",)),
            Stage("other", work.write),
            Stage("report", work.collect, {"directories": []}, after=("then", "other")),
        ]
    )
    run_graph(graph, EXECUTOR, run)
    now = at_rest(cluster, run)
    assert states(now) == {
        "bad": "failed",
        "needs": "blocked",
        "then": "blocked",
        "other": "finished",
        "report": "finished",
    }
    assert "FileNotFoundError" in now.stages[0].reason and "is missing" in now.stages[0].last_line
    door.touch()
    assert retry(run).succeeded
    now = at_rest(cluster, run)
    assert now.succeeded, unfinished(now)
    attempts = {s.name: s.attempts for s in now.stages}
    assert attempts == {"bad": 2, "needs": 1, "then": 1, "other": 1, "report": 2}


def test_a_process_killed_by_the_machine_is_not_lost_sight_of(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    graph = Graph([Stage("dies", work.kill_hard), Stage("needs", work.write, depends_on=("dies",))])
    run_graph(graph, EXECUTOR, run)
    now = at_rest(cluster, run)
    assert states(now) == {"dies": "interrupted", "needs": "blocked"}
    (job,) = submissions(Ledger(run))[0].jobs["dies"]
    assert now.stages[0].reason == (
        f"job {job} ended as FAILED (NonZeroExitCode, exit status 137); the stage wrote nothing down"
    )


def test_a_submitter_killed_right_after_submission_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from carryover.slurm import run_graph\n"
        "from tests.slurm_cluster.test_graphs import CHAIN, EXECUTOR\n"
        f"run_graph(CHAIN, EXECUTOR, Path({str(run)!r}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert run_graph(CHAIN, EXECUTOR, run).succeeded
    now = at_rest(cluster, run)
    assert now.succeeded and [s.attempts for s in now.stages] == [1, 1]


CHAIN = Graph([Stage("first", work.write), Stage("second", work.write, depends_on=("first",))])


def test_what_the_controller_rejects_is_submitted_whole_or_not_at_all(
    cluster: Cluster, tmp_path: Path
) -> None:
    for number, (asked, message) in enumerate(
        (
            (Resources(partition="nope"), "invalid partition specified: nope"),
            (Resources(gpus_per_node=8), "Invalid generic resource|Requested node configuration"),
        )
    ):
        run = tmp_path / str(number)
        graph = Graph([Stage("good", work.write), Stage("bad", work.write, resources=asked)])
        with pytest.raises(RequestError, match=f"stage bad: SLURM does not accept .*({message})"):
            run_graph(graph, EXECUTOR, run)
        assert not [job for job in cluster.command("squeue", "-h", "-o", "%j").split() if f"{number}:" in job]


def test_a_cluster_without_accounting(bare_cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    graph = Graph(
        [Stage("bad", work.fail), Stage("needs", work.write, depends_on=("bad",)), Stage("ok", work.write)]
    )
    run_graph(graph, EXECUTOR, run)
    now = at_rest(bare_cluster, run)
    assert states(now) == {"bad": "failed", "needs": "blocked", "ok": "finished"}
    costs = stage_costs(Ledger(run))
    assert {name: cost.source for name, cost in costs.items()} == {"bad": "clock", "ok": "clock"}
    assert costs["ok"].wall_hours > 0 and costs["ok"].waiting_hours > 0
