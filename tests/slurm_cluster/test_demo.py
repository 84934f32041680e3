"""The demo pipeline on a real SLURM, with nothing but smaller numbers, gives what it gives inline."""

from pathlib import Path

import pytest

from carryover.configs import load
from carryover.slurm.executor import EXECUTORS, InlineExecutor, run_graph
from carryover.transfer.pipeline.costs import write_costs
from carryover.transfer.pipeline.plan import plan
from carryover.transfer.results.reading import read_records
from tests.slurm_cluster.cluster import Cluster
from tests.slurm_cluster.waiting import at_rest, unfinished, wait_until
from tests.transfer import tiny_demo

COMMON = [*tiny_demo.OVERRIDES, "evaluate_every=1"]


@pytest.mark.slow
def test_the_demo_gives_on_a_cluster_what_it_gives_inline(cluster: Cluster, tmp_path: Path) -> None:
    run, inline = tmp_path / "run", tmp_path / "inline"
    place = load("clusters", "default", ["defaults.time_min=30"])
    settings = {"cluster": place.cluster.to_json(), "packages": list(place.packages)}
    config = load("pipelines", "demo", COMMON)
    submitted = run_graph(plan(config, run), EXECUTORS.get("slurm").of(settings), run)
    assert submitted.succeeded
    assert run_graph(plan(config, inline), InlineExecutor(), inline).succeeded
    now = at_rest(cluster, run)
    assert now.succeeded, unfinished(now)

    results = tiny_demo.metrics(run)
    assert len(results) == 5
    assert results == tiny_demo.metrics(inline)
    assert len(tiny_demo.predictions(run)) == 1
    assert tiny_demo.predictions(run) == tiny_demo.predictions(inline)
    assert len(tiny_demo.weights(run)) > 3 * 100
    assert tiny_demo.weights(run) == tiny_demo.weights(inline)
    assert (run / "report" / "index.html").is_file()

    # The database hears of a job's end some seconds after the controller.
    def accounted() -> bool:
        write_costs(run)
        return {s.record.cost_source for s in read_records([run])[0]} == {"sacct"}

    wait_until(accounted, "sacct", seconds=60)
    for stored in read_records([run])[0]:
        assert stored.record.job_id is not None and stored.record.attempts == 1
        assert stored.record.waiting_seconds is not None and stored.record.waiting_seconds >= 0
        assert stored.record.pretrain_attempts in (1, 2)
