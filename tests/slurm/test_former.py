"""Stages that a pipeline no longer names stay, are found, and can be stopped."""

from pathlib import Path

import pytest

from carryover.slurm import Graph, InlineExecutor, Ledger, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.control import cancel
from carryover.slurm.former import former_stages
from tests.slurm import fake_slurm, work
from tests.slurm.fake_slurm import FakeSlurm


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A faked cluster in front of PATH."""
    return fake_slurm.install(tmp_path / "fake", monkeypatch)


def of(*names: str) -> Graph:
    return Graph([Stage(name, work.write) for name in names])


def test_the_stages_that_a_graph_does_not_name_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    assert former_stages(Ledger(tmp_path / "nowhere")) == ()
    run = tmp_path / "run"
    run_graph(of("a/out/b", "a/logs", "kept", "c"), InlineExecutor(), run)
    (run / "stages/a/logs/out/stage.json").write_text("not of ours")
    assert former_stages(Ledger(run)) == ()
    assert former_stages(Ledger(run), ["kept"]) == ("a/logs", "a/out/b", "c")
    # A stage may lie where another one lay, whose folder is then above it.
    run_graph(of("kept", "c/d"), InlineExecutor(), run)
    assert former_stages(Ledger(run)) == ("a/logs", "a/out/b", "c")
    run_graph(of("kept", "a/logs", "a/out/b"), InlineExecutor(), run)
    assert former_stages(Ledger(run)) == ("c", "c/d")
    assert all((run / "stages" / name / "out/result.txt").is_file() for name in ("c", "c/d"))


def test_jobs_of_stages_that_the_pipeline_no_longer_names_are_cancelled_with_the_run(
    tmp_path: Path, fake: FakeSlurm
) -> None:
    run = tmp_path / "run"
    run_graph(of("one", "two", "three"), SlurmExecutor(), run)
    run_graph(of("one"), SlurmExecutor(), run)
    assert len(fake.queue) == 3
    assert cancel(run, ["two"]) == ["two"] and len(fake.queue) == 2
    assert cancel(run) == ["one", "three"] and not fake.queue
    assert cancel(run) == []
