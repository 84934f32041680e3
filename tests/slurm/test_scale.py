"""Two thousand evaluations: planned and submitted in arrays, looked at in a moment."""

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
    assert len(fake.scripts) == 22
    assert submitting < 30
    assert len(fake.calls) == 22, "SLURM was asked for nothing besides"

    start = time.process_time()
    now = status(tmp_path / "run")
    assert now.counts["submitted"] == 2021
    assert time.process_time() - start < 2
    assert len([call for call in fake.calls if call.startswith("squeue")]) == 1

    fake.set_queue({})
    calls = len(fake.calls)
    assert not status(tmp_path / "run").in_flight
    assert [call.split()[0] for call in fake.calls[calls:]] == ["squeue", "sacct"]

    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 100
