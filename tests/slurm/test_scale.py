"""Fifteen hundred stages: a few calls to SLURM, whatever waits for what, and a moment to look at."""

import resource
import time
from pathlib import Path

import pytest

from carryover.slurm import Graph, Output, Resources, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.resources import Cluster
from carryover.slurm.status import status
from tests.slurm import work
from tests.slurm.fake_slurm import FakeSlurm


def study(pretrainings: int = 30, evaluations: int = 47) -> Graph:
    """Pretrainings of several lengths, for each a conversion and evaluations on two kinds of machines."""
    stages = [Stage("data", work.write, resources=Resources(cpus_per_task=4, time_min=60))]
    for i in range(pretrainings):
        asked = Resources(gpus_per_node=8, tasks_per_node=8, time_min=240 + 60 * (i % 5))
        stages.append(Stage(f"pretrain/{i}", work.write, depends_on=("data",), resources=asked))
        convert = Resources(cpus_per_task=4, time_min=30)
        needs = (f"pretrain/{i}",)
        stages.append(Stage(f"convert/{i}", work.write, depends_on=needs, resources=convert))
        source = {"source": Output(f"convert/{i}" if i % 2 else f"pretrain/{i}", "result.txt")}
        for seed in range(evaluations):
            detects = (
                Resources(gpus_per_node=8, time_min=480) if seed % 10 == 0 else Resources(gpus_per_node=1)
            )
            params = {**source, "seed": seed}
            stages.append(Stage(f"evaluate/{i}/seed{seed}", work.copy, params, resources=detects))
    ends = tuple(stage.name for stage in stages if stage.name.startswith("evaluate"))
    return Graph([*stages, Stage("report", work.write, after=ends, resources=Resources(cpus_per_task=4))])


@pytest.mark.slow
def test_fifteen_hundred_stages_where_every_call_takes_five_seconds(tmp_path: Path, fake: FakeSlurm) -> None:
    graph, run = study(), tmp_path / "run"
    assert len(graph) == 1472
    fake.slow_down(5)
    start = time.monotonic()
    assert run_graph(graph, SlurmExecutor(Cluster(array_parallelism=50)), run).succeeded
    submitting = time.monotonic() - start
    assert submitting < 60 and len(fake.calls) <= 6, (submitting, fake.calls)
    assert len(fake.queue) == 1472

    def look(*states: str) -> list[str]:
        before, start = len(fake.calls), time.monotonic()
        counts = status(run).counts
        assert sum(counts[state] for state in states) == 1472
        assert time.monotonic() - start < 15
        return [call.split()[0] for call in fake.calls[before:]]

    assert look("submitted") == ["squeue"]
    jobs = fake.queue
    fake.set_queue({})
    ended = {"State": "FAILED", "JobName": "run:x"}
    fake.account(*({"JobID": job, **ended} for job in jobs))
    assert sorted(look("failed")) == ["sacct", "scontrol", "squeue"]
    # As after a crash of the database: sacct takes jobs for running that the controller has forgotten.
    fake.account(*({"JobID": job, **ended, "State": "RUNNING"} for job in jobs))
    assert sorted(look("cancelled", "blocked")) == ["sacct", "scontrol", "squeue"]


@pytest.mark.slow
def test_two_thousand_evaluations(tmp_path: Path, fake: FakeSlurm) -> None:
    stages = [Stage(f"pretrain/{i}", work.write, {"text": str(i)}) for i in range(20)]
    stages += [
        Stage(
            f"evaluate/{i}/seed{seed}",
            work.copy,
            {"source": Output(f"pretrain/{i}", "result.txt"), "seed": seed},
            resources=Resources(gpus_per_node=1),
        )
        for i in range(20)
        for seed in range(100)
    ]
    stages.append(Stage("report", work.write, after=tuple(s.name for s in stages[20:])))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    start = time.monotonic()
    result = run_graph(Graph(stages), SlurmExecutor(Cluster(array_parallelism=50)), tmp_path / "run")
    submitting = time.monotonic() - start
    assert result.succeeded and len(fake.queue) == 2021
    assert [call.split()[0] for call in fake.calls] == ["sbatch"] * 3 + ["scontrol"]
    assert submitting < 30

    start = time.process_time()
    now = status(tmp_path / "run")
    assert now.counts["submitted"] == 2021
    assert time.process_time() - start < 2
    assert len([call for call in fake.calls if call.startswith("squeue")]) == 1

    fake.set_queue({})
    calls = len(fake.calls)
    assert not status(tmp_path / "run").in_flight
    assert sorted(call.split()[0] for call in fake.calls[calls:]) == ["sacct", "scontrol", "squeue"]

    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 100
